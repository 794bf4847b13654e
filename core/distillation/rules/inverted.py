"""Rules whose noised state is an inversion of the render: ISM and SDI. Their pull has little or no variance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....utils.errors import InputError
from ....utils.ramps import Ramp
from ...sampling.guidance import ClassifierFree
from .base import Pull, Rule, Seen


@dataclass(frozen=True)
class ISM(Rule):
    """g = w (eps_cfg(x_t, t) - eps_0(x_s, s)), s = t - interval (Liang et al. 2023, "LucidDreamer", eq. 17).

    x_s is an unconditional DDIM inversion from as many strides below s as `steps` allow, where the render gets noise;
    x_t one more step with eps_0(x_s, s).
    """

    interval: tuple[float, ...] = (0, 0.1, 0.08, 0.3)  # of the train time, a number or [start, v0, v1, end]
    stride: float = 0.2  # of the train time
    steps: int = 5  # strides at most

    def __post_init__(self) -> None:
        ramp = Ramp.of(self.interval)
        if min(ramp.value0, ramp.value1, self.stride) <= 0 or self.steps < 1:
            raise InputError(f"ism: interval={self.interval}, stride={self.stride} and steps={self.steps} are positive")

    def __call__(self, seen: Seen) -> Pull:
        """See Rule."""
        total = seen.schedule.steps
        s = (seen.index - round(Ramp.of(self.interval).at(seen.share) * total)).clamp_min(0)
        stride = round(self.stride * total)
        first = (s - self.steps * stride).clamp_min(0)
        stops = [torch.minimum(first + k * stride, s) for k in range(self.steps + 1)]
        begun = seen.schedule.add_noise(seen.x, seen.noise, seen.schedule.at_index(first))
        x, eps = seen.inverted(begun, [*stops, seen.index])
        guided, plain = seen.guided(x)
        return Pull(guided, seen.noise_of(eps, x), plain)


@dataclass(frozen=True)
class SDI(Rule):
    """g = w (eps_cfg(x_t) - kappa), kappa = (x_t - alpha x) / sigma (Lukoianov et al. 2024, "Score Distillation via
    Reparametrized DDIM"); with w = sigma / alpha it is x - x0_cfg(x_t).

    x_t is a DDIM inversion of the render in `steps` strides of the train time, guided away from the prompt.
    """

    steps: int = 10  # of the whole train time
    guidance: float = -7.5  # of the inversion
    eta: float = 0.3  # noise of the inversion, in ancestral deviations

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.eta <= 1:
            raise InputError(f"sdi: steps={self.steps} must be at least 1 and eta={self.eta} in [0, 1]")

    def __call__(self, seen: Seen) -> Pull:
        """See Rule; the render counts as a state of train index 0."""
        stride = seen.schedule.steps / self.steps
        stops = [torch.minimum(torch.full_like(seen.index, k * stride), seen.index) for k in range(self.steps + 1)]
        x, _ = seen.inverted(seen.x, stops, ClassifierFree(self.guidance), self.eta)
        guided, plain = seen.guided(x)
        return Pull(guided, seen.render(x), plain)
