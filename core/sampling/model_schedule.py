"""Several networks along one trajectory (A-SDM's multi-U-Net switching): each level has its model.

eps(x, t) = eps_k(t)(x, t). The models share autoencoder, text encoder and noise path; answers of another
parameterisation are converted, so that a solver's history stays of one kind across the switch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...utils.errors import InputError, UnprojectError
from ..priors.base import Prior
from ..priors.noise import on_cpu
from ..priors.rows import COND, LEVEL_TIME, Condition, Rows
from .levels import Level, NoiseSchedule
from .prediction import Prediction, reread_v

P = TypeVar("P", bound="ScheduledPrior")


class ScheduledPrior(Prior):
    """Priors in the order of the trajectory, noisiest first; the first one speaks for all (text, images, schedule)."""

    def __init__(self, models: Sequence[Prior], switches: Sequence[float]) -> None:
        """Model k answers at model times above switches[k] (falling; one fewer than the models); the last below.

        Raises InputError when the models differ in latents, noise path or text embeddings.
        """
        if not models or len(switches) != len(models) - 1:
            raise InputError(f"{len(models)} models need {max(len(models) - 1, 0)} switches, got {len(switches)}")
        if any(a < b for a, b in zip(switches, switches[1:])):
            raise InputError(f"switches={list(switches)} must fall: they are model times, noisiest first")
        self.models, self.switches = list(models), [float(s) for s in switches]
        first = self.models[0]
        self.name = "+".join(dict.fromkeys(model.name for model in models))
        self.prediction_type, self.scheduler_config = first.prediction_type, first.scheduler_config
        self.latent_shape, self.image_size = first.latent_shape, first.image_size
        self.vae_factor, self.latent_multiple = first.vae_factor, first.latent_multiple
        self.guidance_embedded, self.recommended = first.guidance_embedded, first.recommended
        self.frames, self.recipe = first.frames, first.recipe
        self._device, self.dtype = first.device, first.dtype
        self.reads = frozenset.intersection(*(model.reads for model in models))
        self.schedule = NoiseSchedule.from_config(first.scheduler_config)
        for model in self.models[1:]:
            self._check(model)

    def _check(self, model: Prior) -> None:
        first = self.models[0]
        if model is first:
            return
        for name in ("latent_shape", "vae_factor", "guidance_embedded"):
            mine, other = getattr(first, name), getattr(model, name)
            if mine != other:
                raise InputError(f"models {first.name!r} and {model.name!r} differ in {name}: {mine} and {other}")
        path = NoiseSchedule.from_config(model.scheduler_config)
        same = (path.flow, path.steps) == (self.schedule.flow, self.schedule.steps)
        if same and path.lambdas is not None and self.schedule.lambdas is not None:
            same = torch.allclose(path.lambdas, self.schedule.lambdas, rtol=0, atol=1e-6)
        if not same:
            raise InputError(f"models {first.name!r} and {model.name!r} have different noise schedules; retrain one")
        text, other_text = (one.encode_text("")[COND]["text"] for one in (first, model))
        if text.shape != other_text.shape or not torch.allclose(text.float(), other_text.float(), atol=1e-3):
            raise InputError(f"models {first.name!r} and {model.name!r} have different text encoders; share one")

    def chosen(self, time: float) -> int:
        """Number of the model that answers at this model time."""
        return sum(time <= switch for switch in self.switches)

    def predict_rows(self, number: int, x: Tensor, time: Tensor, told: Tensor, rows: Rows) -> Tensor:
        """Answer (b, C, h, w) of model `number` at states of model time `time`, when it is told the times `told`.

        In the common parameterisation, v as a network says it that was told so.
        """
        model = self.models[number]
        raw = model.predict(x, told, rows.with_tensors(**{LEVEL_TIME: time}))
        if model.prediction_type == self.prediction_type:
            return raw
        level, other = self._level(time), self._level(told)
        if model.prediction_type == "v_prediction":
            raw = reread_v(x, raw, level, other)
        found = Prediction(x, level, raw, model.prediction_type)
        if self.prediction_type != "v_prediction":
            return found.read(self.prediction_type)
        alpha, sigma = other.coefficients(found.x)
        return alpha * found.eps - sigma * found.x0

    def _level(self, time: Tensor) -> Level:
        return self.schedule.at_time(time)

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        true = rows.tensors.get(LEVEL_TIME, time).to(time.device)
        numbers = [self.chosen(t) for t in on_cpu(true.detach()).tolist()]
        if len(set(numbers)) == 1:
            return self.predict_rows(numbers[0], x, true, time, rows)
        out: Tensor | None = None
        for number in sorted(set(numbers)):
            own = torch.tensor([i for i, n in enumerate(numbers) if n == number], device=x.device)
            part = self.predict_rows(number, x[own], true[own], time[own], rows.index(own))
            out = part.new_zeros(x.shape) if out is None else out
            out = out.index_copy(0, own, part.to(out.dtype))
        assert out is not None
        return out

    def modules(self) -> dict[str, nn.Module]:
        """See Prior.modules; those of model k are called k.NAME, shared ones appear once."""
        found: dict[str, nn.Module] = {}
        for k, model in enumerate(self.models):
            for name, module in model.modules().items():
                if all(module is not other for other in found.values()):
                    found[f"{k}.{name}"] = module
        return found

    def to(self: P, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> P:
        """See Prior.to."""
        for model in self.models:
            model.to(device, dtype)
        self._device, self.dtype = self.models[0].device, self.models[0].dtype
        return self

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """See Prior.encode_text."""
        return self.models[0].encode_text(prompts, negative)

    def encode(
        self, images: Tensor, sample: bool = False, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """See Prior.encode."""
        return self.models[0].encode(images, sample, generator)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """See Prior.decode."""
        return self.models[0].decode(latents, clamp)

    def tokens(self, latents: Tensor) -> int:
        """See Prior.tokens."""
        return self.models[0].tokens(latents)

    def truncated(self, prompt: str) -> str:
        """See Prior.truncated."""
        return self.models[0].truncated(prompt)

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        """See Prior.unknown_words."""
        return self.models[0].unknown_words(prompt)

    def save(self, folder: str | Path) -> Path:
        """Models of a schedule are saved one by one."""
        raise UnprojectError("a schedule of models has no files of its own; save its models one by one")


def switched(first: Prior, second: Prior, levels: Sequence[Level], share: float) -> ScheduledPrior:
    """`first` for the leading `share` of the steps of a grid (rounded), `second` for the rest.

    Args:
        first: prior of the noisy part; it speaks for both.
        second: prior of the clean part.
        levels: n + 1 levels from noisy to clean.
        share: [0, 1]; 0 is `second` alone, 1 is `first` alone.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share={share} must lie in [0, 1]")
    steps = round(share * (len(levels) - 1))
    times = [float(level.model_time) for level in levels[:-1]]
    if steps in (0, len(times)):  # a switch above, or below, every level
        return ScheduledPrior([first, second], [float("inf") if steps == 0 else -float("inf")])
    return ScheduledPrior([first, second], [0.5 * (times[steps - 1] + times[steps])])
