"""The unified sampling framework (Liu et al. 2024): a solver that carries out a schedule of per-step decisions.

Step s -> t, h = lambda_t - lambda_s, derivatives with respect to lambda at the start point:
noise form  x_t = (alpha_t / alpha_s) x_s - sigma_t sum_k h^{k+1} phi_{k+1}(h) eps^(k),
data form   x_t = (sigma_t / sigma_s) x_s + alpha_t sum_k h^{k+1} phi_{k+1}(-h) x0^(k),
v3 form     the update of DPM-Solver-v3. Every network answer can be read in all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....utils.errors import InputError
from ..dpm_v3_statistics import ModelStatistics
from ..levels import Level, NoiseSchedule
from ..prediction import Prediction
from .base import Generators, Solver, Steps, replaced
from .ddim import ddim_step
from .decisions import MAX_ORDER, SolverSchedule, StepDecision, relaxation_factor
from .dpm_v3 import Point, Tables, combined, has_finite_lambda, same_lambda
from .exponential import phi, taylor_weights


@dataclass
class Answer:
    """A network answer in the history."""

    x: Tensor  # state the run went on from, corrected or not, (B, C, h, w)
    given: Prediction  # as the network gave it, at the state it was asked at
    point: Point | None = None  # its reading by DPM-Solver-v3, made when asked for

    @property
    def level(self) -> Level:
        """Its level."""
        return self.given.level

    @property
    def lam(self) -> float:
        """Its lambda."""
        return float(self.given.level.lam)

    def read(self, name: str) -> Tensor:
        """eps or x0."""
        return self.given.eps if name == "noise" else self.given.x0


class UnifiedSolver(Solver):
    """Runs a `SolverSchedule` on its own levels or on any grid of as many steps; late entry uses its last steps."""

    def __init__(
        self, schedule: SolverSchedule, statistics: ModelStatistics | None = None, mean: Tensor | None = None
    ) -> None:
        """`statistics` for steps of the v3 kind, `mean` (C, h, w) of the data for first="average_x0"."""
        if schedule.needs_statistics and statistics is None:
            raise InputError("this solver schedule has v3 steps, which need statistics=ModelStatistics.load(...)")
        if schedule.first == "average_x0" and mean is None:
            raise InputError('first="average_x0" of this solver schedule needs mean=, the average clean latent')
        self.schedule, self.statistics, self.mean = schedule, statistics, mean
        self._tables = None if statistics is None else Tables(statistics, MAX_ORDER + 1)

    def check(self, x: Tensor, grid: Sequence[Level]) -> None:
        """See Solver.check; late entry is fine, more steps than the schedule has are not."""
        super().check(x, grid)
        self._last(len(grid) - 1)
        if self.statistics is not None and self.schedule.needs_statistics:
            self.statistics.check_shape(x)

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps; draws no noise. The step to a state that is replaced is not corrected.

        A corrector changes x alone: eps, x0 and f stay as the network gave them at the predicted x.
        """
        history: list[Answer] = []  # newest first
        last: StepDecision | None = None  # of the last step, where a new answer may correct it
        for decision, level, after in zip(self._last(len(grid) - 1), grid, grid[1:], strict=False):
            if not history and self._skips(grid):
                p = self._guess(x, level)
            else:
                p = yield x, level
            last = None if replaced(p, x) else last
            answer = Answer(p.x, p)
            if history and same_lambda(history[0].lam, level):  # a level asked twice leaves one point
                history.pop(0)
                last = None
            if last is not None and last.corrector != "none" and has_finite_lambda(level):
                answer.x = self._transition(history, last, level, answer)
                if last.corrector == "implicit":
                    p = yield answer.x, level
                    answer = Answer(p.x, p)
            history.insert(0, answer)
            x = self._transition(history, decision, after)
            del history[MAX_ORDER + 1 :]
            last = decision
        return x

    def _guess(self, x: Tensor, level: Level) -> Prediction:
        """What stands in for a skipped first call."""
        x0 = torch.zeros_like(x) if self.mean is None or self.schedule.first == "zero_x0" else self.mean.to(x)
        return Prediction(x, level, x0.expand_as(x), "sample")

    def calls(self, steps: int) -> int:
        """See Solver.calls."""
        decisions = self._last(steps)
        again = sum(decision.corrector == "implicit" for decision in decisions[:-1])
        return steps + again - (self.schedule.first != "none" and steps == self.schedule.steps)

    @property
    def asks_once(self) -> bool:
        """See Solver.asks_once."""
        again = any(decision.corrector == "implicit" for decision in self.schedule.decisions[:-1])
        return self.schedule.first == "none" and not again

    def asks(self, grid: Sequence[Level]) -> list[int]:
        """See Solver.asks."""
        decisions = self._last(len(grid) - 1)
        asked = []
        for k, level in enumerate(grid[:-1]):
            again = k > 0 and decisions[k - 1].corrector == "implicit" and has_finite_lambda(level)
            asked += [k] * (1 + again)
        return asked[1:] if self._skips(grid) else asked

    def own_grid(self, schedule: NoiseSchedule) -> list[Level] | None:
        """See Solver.own_grid."""
        return self.schedule.levels(schedule)

    def _last(self, steps: int) -> tuple[StepDecision, ...]:
        """The decisions of a run of that many steps, the last ones of the schedule."""
        if steps > self.schedule.steps:
            raise InputError(
                f"this solver schedule has {self.schedule.steps} steps, the grid {steps}; use its own levels or a "
                "grid of that many steps"
            )
        return self.schedule.decisions[self.schedule.steps - steps :]

    def _skips(self, grid: Sequence[Level]) -> bool:
        return self.schedule.first != "none" and len(grid) - 1 == self.schedule.steps

    def _v3(self, answer: Answer) -> Point:
        assert self._tables is not None
        if answer.point is None:
            answer.point = self._tables.point(answer.given)
        return answer.point

    def _transition(
        self, history: Sequence[Answer], decision: StepDecision, target: Level, new: Answer | None = None
    ) -> Tensor:
        """x at `target`; with `new` (the answer there) one order higher and with the new point among the nodes."""
        base = history[min(-decision.start, len(history)) - 1]
        if not has_finite_lambda(base.level) or not has_finite_lambda(target):
            return ddim_step(base.given, target)
        others = [a for a in history if a is not base and has_finite_lambda(a.level)]
        nodes = [*([] if new is None else [new]), *others][: decision.order - (new is None)]
        low = (decision.estimate if new is None else decision.corrector_estimate) == "low"
        relaxation = decision.relaxation if new is None else decision.corrector_relaxation
        factor = relaxation_factor(relaxation, float(target.lam) - base.lam, decision.prediction == "data")
        if decision.prediction == "v3":
            assert self._tables is not None
            points = [self._v3(node) for node in nodes]
            return self._tables.update(base.x, base.level, target, self._v3(base), points, low, factor)
        return self._exponential(decision, base, nodes, target, low, factor)

    @staticmethod
    def _exponential(
        decision: StepDecision, base: Answer, nodes: Sequence[Answer], target: Level, low: bool, factor: float
    ) -> Tensor:
        """The noise or data form."""
        noise = decision.prediction == "noise"
        level, h = base.level, float(target.lam) - base.lam
        if noise:
            sign, keep, scale = 1, float(target.alpha) / float(level.alpha), -float(target.sigma)
        else:
            sign, keep, scale = -1, float(target.sigma) / float(level.sigma), float(target.alpha)
        value = base.read(decision.prediction)
        total = h * phi(1, sign * h) * value
        if nodes:
            changes = [node.read(decision.prediction) - value for node in nodes]
            for k, row in enumerate(taylor_weights([node.lam - base.lam for node in nodes], low), start=1):
                gain = h ** (k + 1) * phi(k + 1, sign * h) * (factor if k == 1 else 1.0)
                total = total + gain * combined(row, changes)
        return keep * base.x + scale * total
