"""One prior on another noise path, exactly: states are rescaled, levels of equal alpha / sigma are one level.

x = alpha x0 + sigma eps on the prior's path and x' = alpha' x0 + sigma' eps on the other differ by a factor where
alpha / sigma = alpha' / sigma', and x0 and eps are the same. A VP prior is so a rectified flow (`flow_view`):
    sigma' = sigma / (alpha + sigma),   x' = x / (alpha + sigma),   u = eps - x0,
which begins at sigma' < 1 where the prior's path ends short of pure noise; and a flow is a VP prior (`vp_view`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..priors.base import Prior
from ..priors.noise import NoisePath, predicts
from ..priors.rows import Condition, Rows
from ..sampling.levels import Level, NoiseSchedule
from ..sampling.prediction import Prediction

VP = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "spacing": "trailing"}


class PathView(Prior):
    """A prior asked on another noise path."""

    def __init__(self, inner: Prior, config: Mapping[str, Any]) -> None:
        """`config`: diffusers' of a scheduler on the other path, which says what the view predicts too."""
        self.inner, self.scheduler_config, self.prediction_type = inner, config, predicts(config)
        self.path, self.inner_path = NoisePath.from_config(config), NoisePath.from_config(inner.scheduler_config)
        for name in ("name", "latent_shape", "image_size", "vae_factor", "latent_multiple", "network", "reads"):
            setattr(self, name, getattr(inner, name))
        for name in ("guidance_embedded", "negative_embedded", "dtype"):
            setattr(self, name, getattr(inner, name))

    @property
    def device(self) -> torch.device:
        """See Prior.device."""
        return self.inner.device

    def modules(self) -> dict[str, nn.Module]:
        """See Prior.modules."""
        return self.inner.modules()

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """See Prior.encode_text."""
        return self.inner.encode_text(prompts, negative)

    def encode(self, images: Tensor, sample: bool = False, generator: Any = None) -> Tensor:
        """See Prior.encode."""
        return self.inner.encode(images, sample, generator)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """See Prior.decode."""
        return self.inner.decode(latents, clamp)

    def levels(self, n: int) -> list[Level]:
        """n + 1 levels of the view, even in the model time, from the prior's noisiest to the clean end."""
        schedule = NoiseSchedule(self.path, NoiseSchedule.from_config(self.scheduler_config).rule)
        inner = NoiseSchedule.from_config(self.inner.scheduler_config)
        first = schedule.at_lambda(inner.at_index(inner.steps - 1).lam)
        times = torch.linspace(float(first.model_time), 0.0, n + 1, dtype=torch.float64)[1:-1]
        return [first, *(self.path.at_time(time).item() for time in times), schedule.clean]

    def within(self, x: Tensor, level: Level) -> tuple[Tensor, Level]:
        """The state and level of the inner path; levels beyond its noisiest are that one."""
        lam = torch.as_tensor(level.lam, dtype=torch.float64).expand(x.shape[0])
        if self.inner_path.lambdas is not None:
            lam = lam.clamp(self.inner_path.lambdas[-1], self.inner_path.lambdas[0])
        inside = self.inner_path.at_lambda(lam)
        norm = [torch.as_tensor(one.alpha) ** 2 + torch.as_tensor(one.sigma) ** 2 for one in (inside, level)]
        factor = (norm[0] / norm[1]).sqrt().expand(x.shape[0]).reshape(-1, *[1] * (x.ndim - 1))
        return x * factor.to(x.dtype).to(x.device), inside

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        level = self.path.at_time(time)
        z, inside = self.within(x, level)
        raw = self.inner.predict(z, inside.times(z), rows)
        found = Prediction(z, inside, raw, self.inner.prediction_type)
        return Prediction(x, level, found.eps - found.x0, "flow_prediction").read(self.prediction_type)


def flow_view(prior: Prior) -> PathView:
    """A prior as a rectified flow."""
    return PathView(prior, FLOW)


def vp_view(prior: Prior, config: Mapping[str, Any] = VP) -> PathView:
    """A prior as one of Stable Diffusion's noise path, or of another variance-preserving one."""
    return PathView(prior, config)
