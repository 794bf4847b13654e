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
from ..prediction import Kind, Prediction
from .base import Done, Generators, Request, Solver
from .decisions import MAX_ORDER, SolverSchedule, StepDecision, relaxation_factor
from .dpm_v3 import Point, Tables, combined, ddim_step, has_finite_lambda
from .exponential import phi, taylor_weights

_SAME_LAMBDA = 1e-9


@dataclass
class Answer:
    """A network answer in the history."""

    prediction: Prediction  # at the state the run continued from, corrected or not
    given: Prediction  # as the network gave it
    point: Point | None = None  # its reading by DPM-Solver-v3, made when asked for

    @property
    def lam(self) -> float:
        """Its lambda."""
        return float(self.prediction.level.lam)

    def read(self, name: str) -> Tensor:
        """eps or x0."""
        return self.prediction.eps if name == "noise" else self.prediction.x0


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

    def start(self, x: Tensor, grid: Sequence[Level], generator: Generators = None) -> Request:
        """See Solver.start; draws no noise. A skipped first call is taken here."""
        self.check_grid(grid)
        self.check_shared_levels(grid, "a solver schedule")
        if self.statistics is not None and self.schedule.needs_statistics:
            self.statistics.check_shape(x)
        self._grid, self._step, self._x = grid, 0, x
        self._decisions = self._last(len(grid) - 1)
        self._history: list[Answer] = []  # newest first
        self._broken = True  # no transition that a new answer could correct
        self._repeat = False  # the next answer replaces an implicit corrector's
        if not self._skips(grid):
            return Request(x, grid[0])
        x0 = torch.zeros_like(x) if self.mean is None or self.schedule.first == "zero_x0" else self.mean.to(x)
        answer = self.feed(Prediction(x, grid[0], x0.expand_as(x), "sample"))
        assert isinstance(answer, Request)
        return answer

    def feed(self, prediction: Prediction) -> Request | Done:
        """See Solver.feed: corrects the last step where decided, then takes the next."""
        level = self._grid[self._step]
        answer = Answer(prediction, prediction)
        if self._history and abs(self._history[0].lam - float(level.lam)) < _SAME_LAMBDA:
            self._history.pop(0)  # a level asked twice leaves one point
            self._broken = True
        last = None if self._broken or self._repeat or self._step == 0 else self._decisions[self._step - 1]
        self._repeat = False
        if last is not None and last.corrector != "none" and has_finite_lambda(level):
            corrected = self._transition(last, level, answer)
            if last.corrector == "implicit":
                self._repeat = True
                return Request(corrected, level)
            answer = self._moved(answer, corrected, last)
        self._history.insert(0, answer)
        x = self._transition(self._decisions[self._step], self._grid[self._step + 1])
        del self._history[MAX_ORDER + 1 :]
        self._step += 1
        made = self.replace(x)
        self._broken = False
        return made

    def replace(self, x: Tensor) -> Request | Done:
        """See Solver.replace; the last step is then no longer corrected."""
        self._x, self._broken = x, True
        if self._step == len(self._grid) - 1:
            return Done(x)
        return Request(x, self._grid[self._step])

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

    def asks(self, grid: Sequence[Level]) -> list[Level]:
        """See Solver.asks."""
        decisions = self._last(len(grid) - 1)
        levels = []
        for k, level in enumerate(grid[:-1]):
            again = k > 0 and decisions[k - 1].corrector == "implicit" and has_finite_lambda(level)
            levels += [level] * (1 + again)
        return levels[1:] if self._skips(grid) else levels

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

    def _moved(self, answer: Answer, x: Tensor, decision: StepDecision) -> Answer:
        """The answer at a corrected state: what the corrector integrates keeps its value."""
        level = answer.prediction.level
        if decision.prediction == "v3":
            assert self._tables is not None
            point = self._v3(answer)
            return Answer(self._tables.moved(point, x, level), answer.given, point)
        kept = answer.read(decision.prediction)
        kind: Kind = "epsilon" if decision.prediction == "noise" else "sample"
        return Answer(Prediction(x, level, kept, kind), answer.given)

    def _v3(self, answer: Answer) -> Point:
        assert self._tables is not None
        if answer.point is None:
            answer.point = self._tables.point(answer.prediction)
        return answer.point

    def _transition(self, decision: StepDecision, target: Level, new: Answer | None = None) -> Tensor:
        """x at `target`; with `new` (the answer there) one order higher and with the new point among the nodes."""
        base = self._history[min(-decision.start, len(self._history)) - 1]
        level = base.prediction.level
        if not has_finite_lambda(level) or not has_finite_lambda(target):
            return ddim_step(base.given, target)
        others = [a for a in self._history if a is not base and has_finite_lambda(a.prediction.level)]
        nodes = [*([] if new is None else [new]), *others][: decision.order - (new is None)]
        low = (decision.estimate if new is None else decision.corrector_estimate) == "low"
        relaxation = decision.relaxation if new is None else decision.corrector_relaxation
        factor = relaxation_factor(relaxation, float(target.lam) - base.lam, decision.prediction == "data")
        if decision.prediction == "v3":
            assert self._tables is not None
            points = [self._v3(node) for node in nodes]
            return self._tables.update(base.prediction.x, level, target, self._v3(base), points, low, factor)
        return self._exponential(decision, base, nodes, target, low, factor)

    @staticmethod
    def _exponential(
        decision: StepDecision, base: Answer, nodes: Sequence[Answer], target: Level, low: bool, factor: float
    ) -> Tensor:
        """The noise or data form."""
        noise = decision.prediction == "noise"
        level, h = base.prediction.level, float(target.lam) - base.lam
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
        return keep * base.prediction.x + scale * total
