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
from typing import Literal

import torch
from torch import Tensor

from ....utils.errors import InputError
from ..dpm_v3_statistics import ModelStatistics, Segment
from ..levels import Level
from ..prediction import Prediction
from .base import Done, Generators, Request, Solver
from .exponential import taylor_weights

Corrector = Literal["none", "full", "pseudo"]
MAX_ORDER = 4
_SAME_LAMBDA = 1e-9


@dataclass(frozen=True)
class Point:
    """A point of the history: lambda and f (B, C, h, w)."""

    lam: float
    f: Tensor


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

    def moved(self, point: Point, x: Tensor, level: Level) -> Prediction:
        """The prediction that has this f at another state x of the same level."""
        ell = _like(self.statistics.at(float(level.lam)), x)
        return Prediction(x, level, (float(level.alpha) * point.f + ell * x) / float(level.sigma), "epsilon")

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


def ddim_step(prediction: Prediction, target: Level) -> Tensor:
    """alpha_t x0 + sigma_t eps, also where lambda is infinite."""
    if target.sigma == 0:
        return prediction.x0
    return float(target.alpha) * prediction.x0 + float(target.sigma) * prediction.eps


def has_finite_lambda(level: Level) -> bool:
    """Whether a level is neither clean nor pure noise."""
    return math.isfinite(float(level.lam))


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

    def start(self, x: Tensor, grid: Sequence[Level], generator: Generators = None) -> Request:
        """See Solver.start; draws no noise."""
        self.check_grid(grid)
        self.check_shared_levels(grid, "DPM-Solver-v3")
        self.statistics.check_shape(x)
        self._grid, self._step, self._x = grid, 0, x
        self._points: list[Point] = []  # newest first
        self._before: tuple[Tensor, Level] | None = None  # state and level the last transition began at
        self._last_order = 0
        return Request(x, grid[0])

    def feed(self, prediction: Prediction) -> Request | Done:
        """See Solver.feed: corrects the last transition, then predicts the next."""
        level, target = self._grid[self._step], self._grid[self._step + 1]
        x = prediction.x
        self._drop_repeated(level)
        point = self._tables.point(prediction) if has_finite_lambda(level) else None
        if point is not None:  # f stays what it is at the corrected state
            x = self._corrected(point, x, level)
            self._points.insert(0, point)
        self._before = None
        if point is None or not has_finite_lambda(target):
            after = ddim_step(prediction, target)
        else:
            self._before, self._last_order = (x, level), self._order()
            nodes = self._points[1 : self._last_order]
            after = self._tables.update(x, level, target, point, nodes, self.pseudo)
        del self._points[MAX_ORDER:]
        self._step += 1
        before = self._before
        answer = self.replace(after)
        self._before = before
        return answer

    def replace(self, x: Tensor) -> Request | Done:
        """See Solver.replace; the last transition is then no longer corrected."""
        self._x, self._before = x, None
        if self._step == len(self._grid) - 1:
            return Done(x)
        return Request(x, self._grid[self._step])

    def _order(self) -> int:
        left = len(self._grid) - 1 - self._step
        order = min(self.order, len(self._points))
        return min(order, left) if self.lower_order_final else order

    def _drop_repeated(self, level: Level) -> None:
        """A level asked twice leaves one point."""
        if self._points and abs(self._points[0].lam - float(level.lam)) < _SAME_LAMBDA:
            self._points.pop(0)
            self._before = None

    def _corrected(self, new: Point, x: Tensor, level: Level) -> Tensor:
        """The state at `level` by the last transition redone with the new point; x where that is not wanted."""
        low, high = self.corrector_range
        count = self._last_order if self.corrector == "pseudo" else self._last_order - 1  # derivatives
        if self._before is None or self.corrector == "none" or count < 1 or not low <= new.lam <= high:
            return x
        start, before = self._before
        nodes = [new, *self._points[1:count]]
        return self._tables.update(start, before, level, self._points[0], nodes, self.corrector == "pseudo")
