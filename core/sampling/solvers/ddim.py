"""DDIM (Song et al. 2020): x_t = alpha_t x0 + sigma_t eps; on a rectified flow it is Euler's method.

With eta > 0: s = eta sigma_t sqrt(1 - e^{-2h}), h = lambda_t - lambda_s,
x_t = alpha_t x0 + sqrt(sigma_t^2 - s^2) eps + s z; eta = 1 is ancestral sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ....utils.errors import InputError
from ....utils.seeds import sample_noise
from ..levels import Level
from ..prediction import Prediction
from .base import Generators, Solver, Steps


class DDIM(Solver):
    """First-order solver; deterministic for eta = 0."""

    one_level = False

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise InputError(f"eta={eta} must lie in [0, 1]: 0 is deterministic, 1 ancestral")
        self.eta, self.stochastic = eta, eta > 0

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps."""
        for level, after in pairwise(grid):
            p = yield x, level
            s = self.eta * ancestral_std(level, after) if self.eta else 0.0
            x = noised_mean(p, after, s)
            if s and generator is not None:
                x = x + s * sample_noise(x.shape[1:], generator, x.shape[0], x.device, x.dtype)
        return x


def ddim_step(prediction: Prediction, after: Level) -> Tensor:
    """alpha_t x0 + sigma_t eps, (B, C, h, w); also where lambda is infinite."""
    if after.sigma == 0:
        return prediction.x0
    alpha, sigma = after.coefficients(prediction.x)
    return alpha * prediction.x0 + sigma * prediction.eps


def noised_mean(prediction: Prediction, after: Level, noise_scale: float) -> Tensor:
    """What a step adds noise of this standard deviation to, alpha_t x0 + sqrt(sigma_t^2 - s^2) eps, (B, C, h, w)."""
    if noise_scale == 0 or after.sigma == 0:
        return ddim_step(prediction, after)
    rest = max(float(after.sigma) ** 2 - noise_scale**2, 0.0)
    return float(after.alpha) * prediction.x0 + math.sqrt(rest) * prediction.eps


def ancestral_std(level: Level, after: Level) -> float:
    """Standard deviation of the reverse Markov transition, sigma_t sqrt(1 - e^{-2h}); 0 to the clean end."""
    if after.sigma == 0:
        return 0.0
    return float(after.sigma) * math.sqrt(-math.expm1(-2 * (float(after.lam) - float(level.lam))))
