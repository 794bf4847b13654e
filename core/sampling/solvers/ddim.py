"""DDIM (Song et al. 2020): x_t = alpha_t x0 + sigma_t eps; on a rectified flow it is Euler's method.

With eta > 0: s = eta sigma_t sqrt(1 - e^{-2h}), h = lambda_t - lambda_s,
x_t = alpha_t x0 + sqrt(sigma_t^2 - s^2) eps + s z; eta = 1 is ancestral sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ....utils.errors import InputError
from ....utils.seeds import sample_noise
from ..levels import Level
from ..prediction import Prediction
from .base import Done, Generators, Request, Solver


class DDIM(Solver):
    """First-order solver; deterministic for eta = 0."""

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise InputError(f"eta={eta} must lie in [0, 1]: 0 is deterministic, 1 ancestral")
        self.eta = eta

    def start(self, x: Tensor, grid: Sequence[Level], generator: Generators = None) -> Request:
        """See Solver.start; eta > 0 needs a generator."""
        self.check_grid(grid)
        if self.eta > 0 and generator is None:
            raise InputError(f"eta={self.eta} draws noise: pass a generator")
        self._grid, self._step, self._generator, self._x = grid, 0, generator, x
        return Request(x, grid[0])

    def feed(self, prediction: Prediction) -> Request | Done:
        """See Solver.feed."""
        level, after = self._grid[self._step], self._grid[self._step + 1]
        alpha, sigma = after.coefficients(prediction.x)
        noise_scale = self.eta * ancestral_std(level, after) if self.eta else 0.0
        if noise_scale == 0:
            x = prediction.x0 if after.sigma == 0 else alpha * prediction.x0 + sigma * prediction.eps
        else:
            assert self._generator is not None
            x = noised_mean(prediction, after, noise_scale)
            x = x + noise_scale * _noise_like(x, self._generator)
        self._step += 1
        return self.replace(x)

    def replace(self, x: Tensor) -> Request | Done:
        """See Solver.replace."""
        self._x = x
        if self._step == len(self._grid) - 1:
            return Done(x)
        return Request(x, self._grid[self._step])


def noised_mean(prediction: Prediction, after: Level, noise_scale: float) -> Tensor:
    """What a step adds noise of this standard deviation to, alpha_t x0 + sqrt(sigma_t^2 - s^2) eps, (B, C, h, w)."""
    if after.sigma == 0:
        return prediction.x0
    rest = max(float(after.sigma) ** 2 - noise_scale**2, 0.0)
    return float(after.alpha) * prediction.x0 + math.sqrt(rest) * prediction.eps


def ancestral_std(level: Level, after: Level) -> float:
    """Standard deviation of the reverse Markov transition, sigma_t sqrt(1 - e^{-2h}); 0 to the clean end."""
    if after.sigma == 0:
        return 0.0
    return float(after.sigma) * math.sqrt(-math.expm1(-2 * (float(after.lam) - float(level.lam))))


def _noise_like(x: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    return sample_noise(x.shape[1:], generator, x.shape[0], x.device, x.dtype)
