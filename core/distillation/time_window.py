"""When to look: which noise level a step of score distillation uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.ramps import Ramp


@dataclass(frozen=True)
class TimeWindow:
    """Levels as fractions of the train time, 0 clean and 1 noise; bounds are numbers or [start, v0, v1, end].

    "uniform": t ~ U[low(s), high(s)], s the share of the run that is done; moving both ends down is StableDreamer's
    annealing, low alone is not. "sqrt": t = high - (high - low) sqrt(s), one value a step (HiFA).
    """

    low: tuple[float, ...] = (0, 0.98, 0.02, 0.8)
    high: tuple[float, ...] = (0, 0.98, 0.50, 0.8)
    draw: Literal["uniform", "sqrt"] = "uniform"
    shared: bool = True  # one level for the whole batch; False: one for each group of views

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            ramp = Ramp.of(getattr(self, name))
            if not all(0 <= value <= 1 for value in (ramp.value0, ramp.value1)):
                raise InputError(f"window {name}={getattr(self, name)} must hold fractions of the train time in [0, 1]")

    def bounds(self, share: float) -> tuple[float, float]:
        """(low, high) at a share of the run, ordered."""
        low, high = Ramp.of(self.low).at(share), Ramp.of(self.high).at(share)
        return min(low, high), high

    def indices(self, share: float, groups: int, train_steps: int, generator: torch.Generator | None) -> Tensor:
        """Train index (groups,) float64, whole numbers."""
        low, high = self.bounds(share)
        if self.draw == "sqrt":
            fraction = torch.tensor(high - (high - low) * math.sqrt(share))
        else:
            count = 1 if self.shared else groups
            fraction = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
        return (fraction.double() * train_steps).round().clamp(0, train_steps - 1).expand(groups)
