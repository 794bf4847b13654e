"""The solver protocol: a run is a generator that asks the network and returns the final state.

    for level, after in pairwise(grid):
        p = yield x, level          # one network call
        x = ...                     # the paper's step
    return x

Whoever drives a run (`Sampler`, a diffusers pipeline, another solver) asks the network and sends the answer. It may
have asked at another state than the one yielded; p.x says at which, and the run goes on from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from ....utils.errors import InputError
from ..levels import Level, NoiseSchedule
from ..prediction import Kind, Prediction

Generators = torch.Generator | Sequence[torch.Generator] | None
Steps = Generator[tuple[Tensor, Level], Prediction, Tensor]


class Solver(ABC):
    """Integrates the reverse process: the loop of its paper, and what others need to know of it.

    Calling it begins a run; all state is in the run, so that any number of them may go on at once.
    """

    exact_inverse: bool = False  # no cache may stand in for its network calls
    stochastic: bool = False  # draws noise, so that a run needs a generator
    one_level: bool = True  # needs one level for the whole batch

    def __call__(self, x: Tensor, grid: Sequence[Level], generator: Generators = None) -> Steps:
        """Begins a run at state x (B, C, h, w) on grid[0], to its last level; see `advanced`.

        States are float32 (float64 stays float64) whatever x is; the last one has the dtype of x. Raises InputError
        for a grid without a step, for levels or shapes it cannot serve, and for a missing generator.
        """
        self.check(x, grid)
        if self.stochastic and generator is None:
            raise InputError(f"this {type(self).__name__} draws noise: pass a generator, one or one per sample")
        return self._run(x, grid, generator)

    def _run(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        state = x.to(torch.promote_types(x.dtype, torch.float32))
        last = yield from self.steps(state, grid, generator)
        return last.to(x.dtype)

    @abstractmethod
    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """The loop: asks with `prediction = yield x, level`, returns the state at the last level."""

    def check(self, x: Tensor, grid: Sequence[Level]) -> None:
        """Raises InputError where a run from x over this grid makes no sense."""
        if len(grid) < 2:
            raise InputError(f"a grid of {len(grid)} levels has no step; give at least 2 levels")
        if self.one_level and any(isinstance(level.alpha, Tensor) for level in grid):
            raise InputError(f"{type(self).__name__} needs one level for the whole batch")

    def direction(self, grid: Sequence[Level]) -> Kind:
        """The quantity whose average over a step the solver estimates."""
        return "sample"

    def calls(self, steps: int) -> int:
        """Network calls of a run of `steps` steps."""
        return steps

    @property
    def asks_once(self) -> bool:
        """Whether every step asks the network exactly once."""
        return self.calls(2) == 2

    def asks(self, grid: Sequence[Level]) -> list[int]:
        """Which levels a run over this grid asks the network at: their indices, in order."""
        return list(range(len(grid) - 1))

    def own_grid(self, schedule: NoiseSchedule) -> list[Level] | None:
        """The levels this solver was made for; None when it takes any grid."""
        return None


class SolverAround(Solver):
    """A solver that changes another one's states or answers; grid and questions are those of the inner one."""

    def __init__(self, inner: Solver) -> None:
        self.inner, self.one_level = inner, inner.one_level
        self.exact_inverse, self.stochastic = inner.exact_inverse, inner.stochastic

    def check(self, x: Tensor, grid: Sequence[Level]) -> None:
        """See Solver.check."""
        self.inner.check(x, grid)

    def direction(self, grid: Sequence[Level]) -> Kind:
        """See Solver.direction."""
        return self.inner.direction(grid)

    def calls(self, steps: int) -> int:
        """See Solver.calls."""
        return self.inner.calls(steps)

    @property
    def asks_once(self) -> bool:
        """See Solver.asks_once."""
        return self.inner.asks_once

    def asks(self, grid: Sequence[Level]) -> list[int]:
        """See Solver.asks."""
        return self.inner.asks(grid)

    def own_grid(self, schedule: NoiseSchedule) -> list[Level] | None:
        """See Solver.own_grid."""
        return self.inner.own_grid(schedule)


def advanced(run: Steps, answer: Prediction | None = None) -> tuple[Tensor, Level | None]:
    """The next question of a run, (state, level), after an answer (None: the first); at its end (final state, None)."""
    try:
        return next(run) if answer is None else run.send(answer)
    except StopIteration as end:
        return end.value, None


def replaced(prediction: Prediction, x: Tensor) -> bool:
    """Whether the network was asked at another state than x, the one a run yielded."""
    return prediction.x is not x and not torch.equal(prediction.x, x.to(prediction.x))
