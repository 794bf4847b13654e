"""The solver protocol: request and response, so that one loop serves single-step, multistep and coupled methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....utils.errors import InputError
from ..levels import Level, NoiseSchedule
from ..prediction import Kind, Prediction

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Request:
    """The next question to the network."""

    x: Tensor
    level: Level


@dataclass(frozen=True)
class Done:
    """The final state."""

    x: Tensor


class Solver(ABC):
    """Integrates the reverse process; one Request is one network call. A solver serves one run at a time."""

    direction: Kind = "sample"  # the quantity whose average over a step the solver estimates

    @abstractmethod
    def start(self, x: Tensor, grid: Sequence[Level], generator: Generators = None) -> Request:
        """Begins a run at state x on grid[0]; returns the first question."""

    @abstractmethod
    def feed(self, prediction: Prediction) -> Request | Done:
        """Takes the answer to the last request; returns the next question or the final state."""

    @abstractmethod
    def replace(self, x: Tensor) -> Request | Done:
        """Continues from another state at the current level; returns the question (or end) that now holds."""

    def calls(self, steps: int) -> int:
        """Network calls of a run of `steps` steps."""
        return steps

    @property
    def asks_once(self) -> bool:
        """Whether every step asks the network exactly once."""
        return self.calls(2) == 2

    def asks(self, grid: Sequence[Level]) -> list[Level]:
        """The levels a run over this grid asks the network at, in order."""
        return list(grid[:-1])

    def own_grid(self, schedule: NoiseSchedule) -> list[Level] | None:
        """The levels this solver was made for; None when it takes any grid."""
        return None

    @staticmethod
    def check_grid(grid: Sequence[Level]) -> None:
        """Raises InputError unless the grid has at least one step."""
        if len(grid) < 2:
            raise InputError(f"a grid of {len(grid)} levels has no step; give at least 2 levels")

    @staticmethod
    def check_shared_levels(grid: Sequence[Level], name: str) -> None:
        """Raises InputError when levels differ within the batch, which `name` cannot serve."""
        if any(isinstance(level.alpha, Tensor) for level in grid):
            raise InputError(f"{name} needs one level for the whole batch")


class SolverAround(Solver):
    """A solver that changes another one's states or answers; grid and questions are those of the inner one."""

    def __init__(self, inner: Solver) -> None:
        self.inner = inner

    def replace(self, x: Tensor) -> Request | Done:
        """See Solver.replace."""
        return self.inner.replace(x)

    def calls(self, steps: int) -> int:
        """See Solver.calls."""
        return self.inner.calls(steps)

    @property
    def asks_once(self) -> bool:
        """See Solver.asks_once."""
        return self.inner.asks_once

    def asks(self, grid: Sequence[Level]) -> list[Level]:
        """See Solver.asks."""
        return self.inner.asks(grid)

    def own_grid(self, schedule: NoiseSchedule) -> list[Level] | None:
        """See Solver.own_grid."""
        return self.inner.own_grid(schedule)
