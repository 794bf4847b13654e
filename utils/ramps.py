"""Numbers that change over an optimisation: a constant, or the literal [step0, value0, value1, step1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True)
class Ramp:
    """value0 before step0, value1 after step1, linear between."""

    step0: float
    value0: float
    value1: float
    step1: float

    @classmethod
    def of(cls, literal: float | Sequence[float]) -> Ramp:
        """From a number, [number] or [step0, value0, value1, step1]. Raises InputError for anything else."""
        values = [float(literal)] if isinstance(literal, (int, float)) else [float(v) for v in literal]
        if len(values) == 1:
            return cls(0.0, values[0], values[0], 0.0)
        if len(values) != 4 or values[3] < values[0]:
            raise InputError(f"schedule {literal!r} must be a number or [step0, value0, value1, step1], step0 <= step1")
        return cls(*values)

    def at(self, step: float) -> float:
        """Value at a step."""
        if step >= self.step1:
            return self.value1
        if step <= self.step0:
            return self.value0
        return self.value0 + (self.value1 - self.value0) * (step - self.step0) / (self.step1 - self.step0)
