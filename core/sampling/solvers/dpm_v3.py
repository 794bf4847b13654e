"""DPM-Solver-v3 (Zheng et al. 2023): multistep exponential integrator in the parameterisation that statistics choose.

Order n + 1 adds derivatives of g, estimated from older points, to the exact solution with constant g:
x_t = alpha_t e^{-L} [x_s / alpha_s - drift - sum_k moment_k g^(k)], moments and drift over [lambda_s, lambda_t].
With l = 1, s = b = 0 it is DPM-Solver++, with l = 0, s = -1, b = 0 DPM-Solver. Levels at lambda = +-inf (the ends of a
rectified flow, a clean end) are joined by a DDIM step and take no part in the history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ....utils.errors import InputError
from ..dpm_v3_statistics import ModelStatistics, Segment
from ..levels import Level
from ..prediction import Prediction
from .base import Generators, Solver, Steps, replaced
from .ddim import ddim_step
from .exponential import taylor_weights

Corrector = Literal["none", "full", "pseudo"]
MAX_ORDER = 4
_SAME_LAMBDA = 1e-9


@dataclass(frozen=True)
class Point:
    """A point of the history: lambda and f (B, C, h, w)."""

    lam: float
    f: Tensor


@dataclass(frozen=True)
class Transition:
    """A step of the predictor: the state (B, C, h, w) and level it began at, and its order."""

    x: Tensor
    level: Level
    order: int


class Tables:
    """Model statistics applied to states: f of a prediction, one update, one correction. Integrals are kept."""

    def __init__(self, statistics: ModelStatistics, moments: int = MAX_ORDER + 1) -> None:
        self.statistics, self._moments = statistics, moments
        self._segments: dict[tuple[float, float], Segment] = {}

    def point(self, prediction: Prediction) -> Point:
        """(sigma eps - l x) / alpha at a level with finite lambda."""
        level = prediction.level
        ell = self.statistics.at(float(level.lam)).to(prediction.x)
        return Point(float(level.lam), (float(level.sigma) * prediction.eps - ell * prediction.x) / float(level.alpha))

    def update(
        self,
        x: Tensor,
        level: Level,
        target: Level,
        base: Point,
        nodes: Sequence[Point],
        low: bool = False,
        factor: float = 1.0,
    ) -> Tensor:
        """x at `target` from x at `level`, where f is base.f; one derivative of g for each of the nodes.

        `low` estimates derivative k from the first k nodes, otherwise all nodes serve every derivative; `factor`
        multiplies the first derivative.
        """
        segment = self._segment(base.lam, float(target.lam))
        inside = _like(segment.moments[0], x) * base.f + _like(segment.drift, x)
        if nodes:
            changes = [self._rebased(node, base.lam) - base.f for node in nodes]
            for k, row in enumerate(taylor_weights([node.lam - base.lam for node in nodes], low), start=1):
                slope = combined(row, changes) * (factor if k == 1 else 1.0)
                inside = inside + _like(segment.moments[k], x) * slope
        shrink = torch.exp(-segment.ell) * float(target.alpha)
        return _like(shrink / float(level.alpha), x) * x - _like(shrink, x) * inside

    def _rebased(self, node: Point, base: float) -> Tensor:
        """g of a node seen from lambda `base`: e^{-S} f - B."""
        segment = self._segment(base, node.lam)
        return _like(torch.exp(-segment.s), node.f) * node.f - _like(segment.b, node.f)

    def _segment(self, start: float, end: float) -> Segment:
        key = (start, end)
        if key not in self._segments:
            self._segments[key] = self.statistics.segment(start, end, self._moments)
        return self._segments[key]


def combined(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum of weight times value, over the weights that are not 0."""
    return torch.stack([a * value for a, value in zip(weights, values, strict=True) if a]).sum(0)


def _like(table: Tensor, x: Tensor) -> Tensor:
    """A float64 table in the dtype and on the device of a state."""
    return table.to(x.device, x.dtype)


def has_finite_lambda(level: Level) -> bool:
    """Whether a level is neither clean nor pure noise."""
    return math.isfinite(float(level.lam))


def same_lambda(lam: float, level: Level) -> bool:
    """Whether a point of the history is at this level."""
    return abs(lam - float(level.lam)) < _SAME_LAMBDA


class DPMSolverV3(Solver):
    """Predictor of order 1 to 3, with an optional corrector that costs no network call."""

    def __init__(
        self,
        statistics: ModelStatistics,
        order: int = 2,
        corrector: Corrector | None = None,
        pseudo: bool = False,
        lower_order_final: bool = True,
        corrector_range: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        """Settings of Table 10 of the paper, but for the corrector of strongly guided runs.

        Args:
            statistics: of this prior, latent shape and guidance.
            order: of the predictor, 1 to 3.
            corrector: "full" redoes a transition at the predictor's order with the new point among its nodes (no use
                at order 1), "pseudo" at one order more with derivatives from the nearest nodes only; None: "pseudo",
                or "none" at order 1 and where the statistics are strongly guided, since it raises the error there.
            pseudo: the predictor's derivatives from the nearest nodes only.
            lower_order_final: lower the order towards the end, order 1 in the last step.
            corrector_range: lambdas in which the corrector acts.
        """
        if order not in (1, 2, 3):
            raise InputError(f"order={order} of DPM-Solver-v3 must be 1, 2 or 3")
        if corrector is None:
            corrector = "none" if order == 1 or statistics.strongly_guided else "pseudo"
        if corrector not in ("none", "full", "pseudo"):
            raise InputError(f"corrector={corrector!r} is unknown; have none, full, pseudo")
        self.statistics, self.order, self.corrector, self.pseudo = statistics, order, corrector, pseudo
        self.lower_order_final, self.corrector_range = lower_order_final, corrector_range
        self._tables = Tables(statistics)

    def check(self, x: Tensor, grid: Sequence[Level]) -> None:
        """See Solver.check."""
        super().check(x, grid)
        self.statistics.check_shape(x)

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps; draws no noise. The transition to a state that is replaced is not corrected."""
        points: list[Point] = []  # newest first
        begun: Transition | None = None  # the last one, where a new point may correct it
        for k, (level, after) in enumerate(pairwise(grid)):
            p = yield x, level
            if replaced(p, x):
                begun = None
            x, point = p.x, self._tables.point(p) if has_finite_lambda(level) else None
            if points and same_lambda(points[0].lam, level):  # a level asked twice leaves one point
                points.pop(0)
                begun = None
            if point is not None:
                if begun is not None:
                    x = self._corrected(begun, points, point, x, level)
                points.insert(0, point)  # f stays what it is at the corrected state
            if point is not None and has_finite_lambda(after):
                begun = Transition(x, level, self._order(len(points), len(grid) - 1 - k))
                x = self._tables.update(x, level, after, point, points[1 : begun.order], self.pseudo)
            else:
                begun, x = None, ddim_step(p, after)
            del points[MAX_ORDER:]
        return x

    def _order(self, points: int, left: int) -> int:
        """That of a step with as many points of the history and steps left to go, this one included."""
        order = min(self.order, points)
        return min(order, left) if self.lower_order_final else order

    def _corrected(self, begun: Transition, points: Sequence[Point], new: Point, x: Tensor, level: Level) -> Tensor:
        """The state at `level` by the last transition redone with the new point; x where that is not wanted."""
        low, high = self.corrector_range
        count = begun.order if self.corrector == "pseudo" else begun.order - 1  # derivatives
        if self.corrector == "none" or count < 1 or not low <= new.lam <= high:
            return x
        nodes = [new, *points[1:count]]
        return self._tables.update(begun.x, begun.level, level, points[0], nodes, self.corrector == "pseudo")
