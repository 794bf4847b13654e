"""The EDM view of a prior (Karras et al. 2022): x_sigma = x0 + sigma n and a denoiser D(x; sigma), sigma in (0, inf).

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)
with F a v-prediction: c_skip = 1 / (sigma^2 + 1), c_out = -sigma / sqrt(sigma^2 + 1), c_in = 1 / sqrt(sigma^2 + 1).
A variance-preserving path has the same states up to their scale: alpha = c_in, s = sigma c_in, x_vp = alpha x_sigma,
lambda = -log sigma, D = alpha x_vp - s v. Euler in sigma over x_sigma is DDIM over x_vp; `Sampler` with DDIM on a
Karras grid is that sampler.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError
from .denoiser import Denoiser
from .grids import lambda_spaced
from .levels import Level, NoiseSchedule
from .prediction import Prediction

SIGMA_MIN, SIGMA_MAX = 0.002, 700.0  # of Stable Video Diffusion


def karras_sigmas(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Tensor:
    """(steps + 1,) float64, falling: (max^{1/7} + i / (steps - 1) (min^{1/7} - max^{1/7}))^7, and 0.

    Raises InputError for fewer than one step and for ends in the wrong order.
    """
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise InputError(f"steps={steps} >= 1 and 0 < sigma_min={sigma_min} < sigma_max={sigma_max} needed")
    lambdas = lambda_spaced(steps, -math.log(sigma_max), -math.log(sigma_min), "karras")
    return torch.tensor([*(math.exp(-lam) for lam in lambdas), 0.0], dtype=torch.float64)


class EDMDenoiser:
    """A denoiser of any prior as D(x; sigma), for samplers that are written that way (k-diffusion's among them)."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x: Tensor, sigma: Tensor | float, **_: Any) -> Tensor:
        """D (B, C, h, w), the clean estimate at x = x0 + sigma n; sigma > 0 a number or (B,)."""
        level = level_of(self.schedule, sigma)
        alpha = level.coefficients(x)[0]
        return self.denoiser(alpha * x, level).x0  # alpha (x0 + sigma n), whatever the path

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """(D - x) / sigma^2, the gradient of log p at x_sigma."""
        wide = sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x) if isinstance(sigma, Tensor) and sigma.ndim else sigma
        return (self(x, sigma) - x) / wide**2


def level_of(schedule: NoiseSchedule, sigma: Tensor | float) -> Level:
    """The level of a prior's path with this sigma / alpha, a number or (B,); where its network has no time for it the
    nearest one is told. Raises InputError for sigma <= 0."""
    value = torch.as_tensor(sigma, dtype=torch.float64)
    if not bool((value > 0).all()):
        raise InputError(f"sigma={sigma} must be above 0; at 0 the state is the answer")
    lam = -value.log()
    return schedule.at_lambda(lam if lam.ndim else float(lam))


def lognormal_levels(schedule: NoiseSchedule, count: int, mean: float, std: float, generator: torch.Generator) -> Level:
    """Levels (count,) with log sigma ~ N(mean, std^2), held within what the prior's network has times for.

    A larger mean suits larger pictures and more frames, which noise hides later.
    """
    drawn = mean + std * torch.randn(count, generator=generator, dtype=torch.float64)
    ends = [float(schedule.at_index(index).lam) for index in (0, schedule.steps - 1)]
    return schedule.at_lambda((-drawn).clamp(min(ends), max(ends)))


def v_error(prediction: Prediction, x0: Tensor, eps: Tensor) -> Tensor:
    """(1 + sigma^2) / sigma^2 |D - x0|^2 of each number, like x0: on a variance-preserving path that is |v - v*|^2."""
    alpha, sigma = prediction.level.coefficients(x0)
    return (prediction.v - (alpha * eps - sigma * x0)).square()
