"""Steps of a velocity law (ArcFlow, 2026): one network call says how the velocity changes along the whole step.

In flow coordinates (sigma = s / (a + s), x = z / (a + s) of a level with coefficients a, s) a network asked at sigma_s
gives K velocities u_k, weights pi_k that sum to 1 and rates g_k with g_1 = 0:
    v(sigma) = sum_k pi_k u_k e^{g_k d},   d = sigma_s - sigma >= 0,
whose integral from sigma_a to sigma_b, D = sigma_a - sigma_b, is known:
    x_b = x_a - sum_k pi_k u_k e^{g_k d_a} D phi(g_k D),   phi(y) = (e^y - 1) / y.
The network's output has K C channels of answers in the prior's own parameterisation, K of log-weights, K - 1 of rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ....utils.errors import InputError
from ..levels import Level
from ..prediction import Prediction
from .base import Generators, Solver, Steps

SERIES = 1e-3  # below it phi is its series


def phi(y: Tensor) -> Tensor:
    """(e^y - 1) / y; 1 at 0."""
    near = y.abs() < SERIES
    safe = torch.where(near, torch.ones_like(y), y)
    return torch.where(near, 1 + y / 2 + y * y / 6, torch.expm1(safe) / safe)


@dataclass(frozen=True)
class Policy:
    """The velocity law of one call."""

    velocity: Tensor  # (B, K, C, h, w)
    weights: Tensor  # (B, K, 1, h, w), sum 1
    rates: Tensor  # (B, K, 1, h, w), the first 0
    source: float  # sigma_s

    @classmethod
    def of(cls, prediction: Prediction) -> Policy:
        """That of a network output (B, K C + 2 K - 1, h, w). Raises InputError for one of another form."""
        x, raw, channels = prediction.x, prediction.raw, prediction.x.shape[1]
        count, rest = divmod(raw.shape[1] + 1, channels + 2)
        if rest or not count:
            raise InputError(
                f"a network output of {raw.shape[1]} channels holds no velocity law for {channels}; the solver arc "
                "serves students of arcflow"
            )
        answers, logits, rates = raw.split([count * channels, count, count - 1], 1)
        each = [
            Prediction(x, prediction.level, one, prediction.kind).u
            for one in answers.unflatten(1, (count, channels)).unbind(1)
        ]
        rates = torch.cat([torch.zeros_like(logits[:, :1]), rates], 1)
        return cls(torch.stack(each, 1), logits.softmax(1)[:, :, None], rates[:, :, None], flow_sigma(prediction.level))

    def at(self, sigma: float) -> Tensor:
        """v(sigma), (B, C, h, w)."""
        return (self.weights * self.velocity * torch.exp(self.rates * (self.source - sigma))).sum(1)

    def moved(self, start: float, end: float) -> Tensor:
        """The integral of v from sigma = end up to start, (B, C, h, w): what a step takes off the state."""
        span = start - end
        law = torch.exp(self.rates * (self.source - start)) * phi(self.rates * span)
        return span * (self.weights * self.velocity * law).sum(1)

    def step(self, x: Tensor, start: float, end: float) -> Tensor:
        """The state (B, C, h, w) in flow coordinates at sigma = end, from one at start."""
        return x - self.moved(start, end)

    def detached(self, dropped: Tensor | None = None) -> Policy:
        """Without gradients; and without components (K,) of a mask, of which one has to stay."""
        weights = self.weights.detach()
        if dropped is not None:
            weights = weights * (~dropped).to(weights)[:, None, None, None]
            weights = weights / weights.sum(1, keepdim=True)
        return Policy(self.velocity.detach(), weights, self.rates.detach(), self.source)


def flow_sigma(level: Level) -> float:
    """sigma / (alpha + sigma) of a level."""
    return float(level.sigma) / (float(level.alpha) + float(level.sigma))


class Arc(Solver):
    """One call a step, integrated exactly along its velocity law."""

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps."""
        for level, after in pairwise(grid):
            p = yield x, level
            total, total_after = (float(one.alpha) + float(one.sigma) for one in (level, after))
            x = total_after * Policy.of(p).step(p.x / total, flow_sigma(level), flow_sigma(after))
        return x
