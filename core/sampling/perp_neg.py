"""Perp-Neg (Armandpour et al. 2023, "Re-imagine the Negative Prompt Algorithm"): negatives that cannot undo the prompt.

eps_0 + s (d_c + sum_i w_i perp(eps_i - eps_0, d_c)), d_c = eps_c - eps_0, perp(u, d) = u - <u, d> / |d|^2 d, products
over all elements of one sample. Negatives are branches of the condition like any other, so that each is asked at the
state of its own sample, whatever the size of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...utils.errors import InputError
from ..priors.rows import COND, NULL
from .levels import Level
from .prediction import Prediction

SMALLEST = 1e-6  # |d|^2 below which nothing is taken away


def negative_branch(number: int) -> str:
    """The name of the branch of a negative prompt."""
    return f"against-{number}"


@dataclass(frozen=True, eq=False)
class PerpNeg:
    """Classifier-free guidance with perpendicular negatives, branches "against-0", "against-1" ..."""

    scale: float
    weights: Tensor  # (N, B) of N negatives at B samples; negative numbers push away

    def __post_init__(self) -> None:
        if self.weights.ndim != 2:
            raise InputError(f"perp-neg: weights have shape {tuple(self.weights.shape)}, expected (negatives, samples)")

    def needs(self, level: Level) -> tuple[str, ...]:
        """See Guidance.needs."""
        return (COND, NULL, *(negative_branch(number) for number in range(len(self.weights))))

    def __call__(self, predictions: Mapping[str, Prediction]) -> Prediction:
        """See Guidance."""
        null = predictions[NULL]
        toward = predictions[COND] - null
        pull = toward
        for number, weight in enumerate(self.weights):
            away = predictions[negative_branch(number)] - null
            along = _dot(away, toward) / _dot(toward, toward).clamp_min(SMALLEST)
            pull = pull + weight.to(along)[:, None, None, None] * (away - along * toward)
        return null + self.scale * pull

    def __str__(self) -> str:
        return f"{self.scale:g} perp-neg {self.weights.tolist()}"


def _dot(a: Prediction, b: Prediction) -> Tensor:
    """<a, b> of noise estimates, (B, 1, 1, 1)."""
    return (a.eps * b.eps).sum(tuple(range(1, a.eps.ndim)), keepdim=True)
