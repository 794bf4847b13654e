"""Numbers that change over a run: a constant, or the literal [start, value, value, end] in shares of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .errors import InputError


class Moment(NamedTuple):
    """Where a run is."""

    step: int  # of `steps`, from 0; equal to `steps` at the end
    steps: int

    @property
    def share(self) -> float:
        """Of the run that is done, in [0, 1]."""
        return self.step / self.steps

    def reached(self, share: float) -> bool:
        """Whether the step nearest to a share of the run has come."""
        return self.step >= round(share * self.steps)


@dataclass(frozen=True)
class Ramp:
    """value0 before `start`, value1 from `end` on, linear between; both are shares of the run."""

    start: float
    value0: float
    value1: float
    end: float

    @classmethod
    def of(cls, literal: float | Sequence[float]) -> Ramp:
        """From a number, [number] or [start, value, value, end]. Raises InputError for anything else."""
        values = [float(literal)] if isinstance(literal, (int, float)) else [float(v) for v in literal]
        if len(values) == 1:
            return cls(0.0, values[0], values[0], 1.0)
        if len(values) != 4 or not 0 <= values[0] <= values[3] <= 1:
            raise InputError(
                f"schedule {literal!r} must be a number or [start, value, value, end] with 0 <= start <= end <= 1, "
                "shares of the run"
            )
        return cls(*values)

    def at(self, share: float) -> float:
        """Value at a share of the run in [0, 1]."""
        return float(np.interp(share, (self.start, self.end), (self.value0, self.value1)))
