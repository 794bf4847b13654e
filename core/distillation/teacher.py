"""What students learn from: a frozen prior with its guidance, asked through a denoiser."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ...utils.digests import digest
from ..priors.base import Prior
from ..priors.rows import Condition
from ..sampling.denoiser import Denoiser
from ..sampling.guidance import Guidance, as_guidance, guided
from ..sampling.levels import Level, NoiseSchedule
from ..sampling.prediction import Prediction
from ..sampling.sampler import Denoise, Sampler
from ..sampling.solvers import DDIM, Solver

Off = Callable[[], AbstractContextManager[Any]]


class Teacher:
    """A prior whose weights never change and never get gradients; states may have them.

    `hash` names weights, noise path and guidance: a student and its checkpoints belong to one teacher.
    """

    def __init__(self, prior: Prior, guidance: Guidance | float | None = None, off: Off | None = None) -> None:
        """`off`: turns off, inside, what a student has added to a network that both share (`Student.teacher`);
        without it the prior is frozen here."""
        self.prior, self.guidance, self._off = prior if off else prior.freeze(), as_guidance(guidance), off
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)

    @property
    def hash(self) -> str:
        """16 hex digits of what it answers with."""
        return prior_hash(self.prior, self.guidance)

    def denoiser(self, condition: Condition) -> Denoiser:
        """It, told a condition; differentiable in the state."""
        return self._asking(condition, self.guidance)

    def _asking(self, condition: Condition, guidance: Guidance) -> Denoiser:
        if self._off is None:
            return Denoiser(self.prior, condition, guidance)
        return _Switched(self._off, self.prior, condition, guidance)

    @torch.no_grad()
    def predict(self, x: Tensor, level: Level, condition: Condition) -> Prediction:
        """The guided prediction at x (B, C, h, w), without gradients."""
        return self.denoiser(condition)(x.detach(), level)

    @torch.no_grad()
    def guided(self, x: Tensor, level: Level, condition: Condition, scale: Tensor) -> Prediction:
        """The prediction at x (B, C, h, w) at a guidance scale for each row (B,), without gradients."""
        return self.denoiser_at(condition, scale)(x.detach(), level)

    def denoiser_at(self, condition: Condition, scale: Tensor) -> Denoiser:
        """It, told a condition and a guidance scale for each row (B,) in the place of its own guidance."""
        guidance, told = guided(self.prior, condition, scale)
        return self._asking(told, guidance)

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        level: Level,
        after: Level,
        condition: Condition,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> Tensor:
        """The state (B, C, h, w) one step of a solver (None: DDIM) further."""
        return Sampler(solver or DDIM()).run(self.denoiser(condition), x, [level, after], generator)

    def rollout(
        self,
        noise: Tensor,
        levels: Sequence[Level],
        condition: Condition,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> list[Tensor]:
        """See `rollout`."""
        return rollout(self.denoiser(condition), noise, levels, generator, solver)


@torch.no_grad()
def rollout(
    denoiser: Denoise,
    noise: Tensor,
    levels: Sequence[Level],
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    solver: Solver | None = None,
) -> list[Tensor]:
    """States (K + 1 of (B, C, h, w)) of a run from noise at levels[0], by a solver of one call a step (None: DDIM)."""
    states = [noise]
    Sampler(solver or DDIM()).run(denoiser, noise, levels, generator, lambda call, level, x: states.append(x))
    return states


def prior_hash(prior: Prior, guidance: Guidance | float | None = None) -> str:
    """16 hex digits of weights (rounded to half), noise path and guidance; adapters are not of the prior."""
    weights = {name: value for name, value in vars(prior).items() if isinstance(value, Tensor)}  # of analytic priors
    for part, module in prior.modules().items():
        for name, value in module.state_dict().items():
            if ".lora_" not in name:
                weights[f"{part}.{name.replace('.base_layer.', '.')}"] = value
    path = {k: v for k, v in prior.scheduler_config.items() if k == "_class_name" or not k.startswith("_")}
    told = {"weights": digest(weights, torch.float16), "path": path, "guidance": str(as_guidance(guidance))}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


class _Switched(Denoiser):
    """A denoiser that asks with something turned off."""

    def __init__(self, off: Off, *settings: Any) -> None:
        self._off = off
        super().__init__(*settings)

    def ask(self, x: Tensor, level: Level, names: Sequence[str]) -> dict[str, Prediction]:
        """See Denoiser.ask."""
        with self._off():
            return super().ask(x, level, names)
