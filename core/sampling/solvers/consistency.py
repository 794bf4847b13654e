"""Multistep consistency sampling (Luo et al. 2023, LCM): jump to the clean end, add fresh noise, jump again.

f(z) = c_skip z + c_out x0, with s = 10 t (t the network's time) and sigma_d = 0.5
    c_skip = sigma_d^2 / (s^2 + sigma_d^2),   c_out = s / sqrt(s^2 + sigma_d^2),
so that f(z) = z at t = 0. On a rectified flow x0 = z - sigma u is z without noise by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ....utils.seeds import sample_noise
from ..levels import Level
from ..prediction import Prediction
from .base import Generators, Solver, Steps

DATA_STD = 0.5
TIME_SCALE = 10.0


class Consistency(Solver):
    """x = f(z); z = alpha x + sigma xi at the next level; the last x is the result."""

    stochastic = True

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps."""
        for level, after in pairwise(grid):
            p = yield x, level
            x = consistent(p)
            if float(after.index) > 0 and generator is not None:  # the least noisy train step is an end too
                noise = sample_noise(x.shape[1:], generator, x.shape[0], x.device, x.dtype)
                x = after.alpha * x + after.sigma * noise
        return x


def consistent(prediction: Prediction) -> Tensor:
    """f(z), (B, C, h, w): the clean end that a prediction stands for; z itself at time 0."""
    if prediction.kind == "flow_prediction":
        return prediction.x0
    x = prediction.x
    scaled = TIME_SCALE * prediction.level.times(x).to(x).reshape(-1, *[1] * (x.ndim - 1))
    total = scaled.square() + DATA_STD**2
    return DATA_STD**2 / total * x + scaled / torch.sqrt(total) * prediction.x0
