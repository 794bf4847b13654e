"""At which steps a cached network is computed in full.

uniform: i = 0, N, 2N, ...; centred: full steps gathered around a step c (DeepCache, section 3.4); growing, shrinking:
their spacing grows or shrinks along the run; early, middle, late: reuse only in that third of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ....utils.errors import InputError

Mode = Literal["uniform", "centred", "centred-real", "growing", "shrinking", "early", "middle", "late"]
MODES: tuple[Mode, ...] = get_args(Mode)
POWER_STEP = 0.02


@dataclass(frozen=True)
class Refresh:
    """One full step in about `interval`; 1 is the plain network."""

    mode: Mode = "uniform"
    interval: int = 3
    centre: int = 15  # step around which full steps are dense (centred modes)
    power: float = 1.4  # how dense, >= 1; 1 is uniform (centred, growing and shrinking modes)
    last: bool = False  # the last step of a run is full as well

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"refresh mode {self.mode!r} is unknown; have {', '.join(MODES)}")
        if self.interval < 1:
            raise InputError(f"interval={self.interval} must be at least 1 (1 computes every step)")
        if self.power < 1:
            raise InputError(f"power={self.power} must be at least 1 (1 is uniform)")
        if self.centre < 0:
            raise InputError(f"centre={self.centre} must be a step number, 0 or more")

    def full_steps(self, calls: int | None) -> frozenset[int] | None:
        """The steps computed in full in a run of `calls`; None for the endless uniform schedule."""
        if calls is None:
            if self.mode == "uniform" and not self.last:
                return None
            raise InputError(
                f"refresh mode {self.mode!r}{' with last=True' if self.last else ''} needs the number of steps: "
                "pass steps=, or the pipeline instead of its network"
            )
        if self.interval == 1:
            return frozenset(range(calls))
        return self._spread(calls) | ({calls - 1} if self.last else frozenset())

    def _spread(self, calls: int) -> frozenset[int]:
        every = frozenset(range(0, calls, self.interval))
        if self.mode == "uniform":
            return every
        thirds = ("early", "middle", "late")
        if self.mode in thirds:
            start = thirds.index(self.mode)
            inside = range(start * calls // 3, (start + 1) * calls // 3)
            return every | (frozenset(range(calls)) - frozenset(inside))
        if self.mode in ("centred", "centred-real"):
            return frozenset(centred_steps(calls, self.interval, self.centre, self.power, self.mode == "centred"))
        growing = centred_steps(calls, self.interval, 0, self.power, False)
        if self.mode == "growing":
            return frozenset(growing)
        return frozenset({0, *(calls - step for step in growing if step)})

    def is_full(self, step: int, full: frozenset[int] | None) -> bool:
        """Whether `step` is computed, given the answer of `full_steps`."""
        return step % self.interval == 0 if full is None else step in full


def centred_steps(calls: int, interval: int, centre: int, power: float, complex_root: bool = True) -> list[int]:
    """ceil(calls / interval) full steps dense around `centre`, step 0 among them.

    l = linspace((-c)^(1/p), (T - c)^(1/p), k + 1), step = c + trunc(Re l^p). With `complex_root` (-c)^(1/p) is the
    complex root, as in the authors' release; otherwise powers keep the sign, which is denser at the centre. The power
    is lowered until the k steps are distinct.
    """
    count = math.ceil(calls / interval)
    while power > 1:
        steps = _power_grid(calls, count, centre, power, complex_root)
        if len(steps) == count:
            return steps
        power -= POWER_STEP
    return [k * calls // count for k in range(count)]


def _power_grid(calls: int, count: int, centre: int, power: float, complex_root: bool) -> list[int]:
    ends = np.array([-centre, calls - centre], dtype=complex if complex_root else float)
    low, high = (np.sign(ends) * np.abs(ends) ** (1 / power)) if not complex_root else ends ** (1 / power)
    places = np.linspace(low, high, count + 1)
    values = (places**power).real if complex_root else np.sign(places) * np.abs(places) ** power
    steps = {int(value) + centre for value in np.round(values[:-1], 9)}  # -c itself is not a hair above -c
    return sorted({0, *(step for step in steps if 0 <= step < calls)})
