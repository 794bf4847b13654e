"""Solver schedules (Liu et al. 2024, "A Unified Sampling Framework"): one decision per step.

The known solvers are schedules too (`preset`). A schedule is plain data: it can be compared, mutated, saved and run by
`UnifiedSolver`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ....utils.errors import InputError
from ..calibration import Calibration, Fingerprint
from ..levels import Level, NoiseSchedule

KIND = "solver-schedule"
MAX_ORDER = 4
PREDICTIONS = ("noise", "data", "v3")
ESTIMATES = ("full", "low")
CORRECTORS = ("none", "pseudo", "implicit")
FIRST_STEPS = ("none", "zero_x0", "average_x0")
RELAXATIONS = ("bh1", "bh2", "exp+", "exp-")

Prediction = Literal["noise", "data", "v3"]
Estimate = Literal["full", "low"]
Correct = Literal["none", "pseudo", "implicit"]
FirstStep = Literal["none", "zero_x0", "average_x0"]
Relaxation = float | str


@dataclass(frozen=True)
class StepDecision:
    """How one step is taken."""

    order: int = 1  # Taylor terms, 1 to 4; fewer where the history is shorter
    prediction: Prediction = "data"  # what is expanded
    estimate: Estimate = "full"  # derivatives from all points, or the k-th from the nearest k
    relaxation: Relaxation = 0.0  # factor of the first derivative: 1 + c h, or a preset of RELAXATIONS
    corrector: Correct = "none"  # redo with the new point; "implicit" asks the network again
    corrector_estimate: Estimate = "full"
    corrector_relaxation: Relaxation = 0.0
    start: int = -1  # point the step starts from: -1 the newest, -2 the one before, ...

    def __post_init__(self) -> None:
        if not 1 <= self.order <= MAX_ORDER:
            raise InputError(f"order={self.order} of a step must lie between 1 and {MAX_ORDER}")
        choices = (
            ("prediction", self.prediction, PREDICTIONS),
            ("estimate", self.estimate, ESTIMATES),
            ("corrector", self.corrector, CORRECTORS),
            ("corrector_estimate", self.corrector_estimate, ESTIMATES),
        )
        for name, value, known in choices:
            if value not in known:
                raise InputError(f"{name}={value!r} of a step is unknown; have {', '.join(known)}")
        for factor in (self.relaxation, self.corrector_relaxation):
            if isinstance(factor, str) and factor not in RELAXATIONS:
                raise InputError(f"relaxation={factor!r} is unknown; have a number or {', '.join(RELAXATIONS)}")
        if self.start >= 0:
            raise InputError(f"start={self.start} of a step counts back from the newest point: -1, -2, ...")


def relaxation_factor(value: Relaxation, h: float, data: bool) -> float:
    """The factor R(h) of the first derivative; presets take -h for data prediction, the linear one h."""
    if not isinstance(value, str):
        return 1 + value * h
    z = -h if data else h
    if value == "exp+":
        return 1 + 0.5 * math.expm1(z)
    if value == "exp-":
        return 1 - 0.5 * math.expm1(z)
    if abs(z) < 1e-4:  # both presets, to second order
        return (1 + z / 6 if value == "bh2" else 1 - z / 3) + z * z / 36
    rest = math.expm1(z) - z
    return 0.5 * z * (math.expm1(z) if value == "bh2" else z) / rest


@dataclass(frozen=True)
class SolverSchedule:
    """Decisions for every step, where the steps end, and whether the first network call is skipped."""

    decisions: tuple[StepDecision, ...]
    times: tuple[float, ...] | None = None  # steps + 1, falling; (index + 1) / N, for flows sigma; 0 is clean
    first: FirstStep = "none"  # "zero_x0" and "average_x0" replace the first call by a guess of x0

    def __post_init__(self) -> None:
        if not self.decisions:
            raise InputError("a solver schedule needs at least one step")
        if self.first not in FIRST_STEPS:
            raise InputError(f"first={self.first!r} is unknown; have {', '.join(FIRST_STEPS)}")
        if self.first != "none" and len(self.decisions) < 2:
            raise InputError("a schedule that skips the first network call needs at least 2 steps")
        if self.times is not None:
            falls = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
            if len(self.times) != self.steps + 1 or not falls or not 0 <= self.times[-1] < self.times[0] <= 1:
                raise InputError(f"times={self.times} must fall within [0, 1] and be one more than {self.steps} steps")

    @property
    def steps(self) -> int:
        """Number of updates."""
        return len(self.decisions)

    @property
    def nfe(self) -> int:
        """Network calls: a correction is free unless implicit, the one of the last step never happens."""
        return self.steps - (self.first != "none") + sum(d.corrector == "implicit" for d in self.decisions[:-1])

    @property
    def needs_statistics(self) -> bool:
        """Whether some step uses the prediction of DPM-Solver-v3."""
        return any(decision.prediction == "v3" for decision in self.decisions)

    def levels(self, schedule: NoiseSchedule) -> list[Level] | None:
        """The levels of `times`, None without times."""
        if self.times is None:
            return None
        return [_level(time, schedule) for time in self.times]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        times = None if self.times is None else list(self.times)
        return {"decisions": [asdict(d) for d in self.decisions], "times": times, "first": self.first}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SolverSchedule:
        """Reads what `to_dict` made; InputError for anything else."""
        try:
            decisions = tuple(StepDecision(**d) for d in values["decisions"])
            times = None if values["times"] is None else tuple(float(t) for t in values["times"])
            return cls(decisions, times, values["first"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"this is no solver schedule: {error!r}") from error

    def save(
        self, path: str | Path, mark: Fingerprint, made: Mapping[str, Any] | None = None, mean: Tensor | None = None
    ) -> Path:
        """Writes a calibration artefact.

        Args:
            path: file.
            mark: fingerprint of what it was searched on.
            made: plain values that tell how.
            mean: average clean latent (C, h, w); a file with first="average_x0" needs it to be run, others drop it.
        """
        tensors = {"times": torch.tensor(self.times or (), dtype=torch.float64)}
        if mean is not None and self.first == "average_x0":
            tensors["mean"] = mean
        settings = {"schedule": self.to_dict(), **(made or {})}
        return Calibration(KIND, tensors, mark, settings).save(path)

    @classmethod
    def load(cls, path: str | Path, expected: Fingerprint | None = None) -> SolverSchedule:
        """Reads what `save` wrote."""
        return cls.load_with_mean(path, expected)[0]

    @classmethod
    def load_with_mean(
        cls, path: str | Path, expected: Fingerprint | None = None
    ) -> tuple[SolverSchedule, Tensor | None]:
        """What `save` wrote: the schedule and, where it was given, the average clean latent (C, h, w)."""
        found = Calibration.load(path, KIND, expected)
        return cls.from_dict(found.settings.get("schedule", {})), found.tensors.get("mean")


def _level(time: float, schedule: NoiseSchedule) -> Level:
    """The level of a time in [0, 1]; times between 0 and the least-noise train index stand for that index."""
    if time == 0:
        return schedule.clean
    return schedule.at_index(time * schedule.steps - 1 if schedule.flow else max(time * schedule.steps - 1, 0.0))


def times_of(levels: Sequence[Level], schedule: NoiseSchedule) -> tuple[float, ...]:
    """The times of a grid of levels, as `SolverSchedule.times` has them."""
    return tuple(float(level.sigma) if schedule.flow else (float(level.index) + 1) / schedule.steps for level in levels)


def preset(name: str, steps: int, order: int = 2) -> SolverSchedule:
    """A known solver as decisions, without times.

    Args:
        name: "ddim"; "dpm" (noise prediction); "dpm++" (the midpoint form of 2M at order 2), "dpm++taylor"; "unipc-bh1"
            and "unipc-bh2"; "v3" (with its pseudo corrector).
        steps: number of updates.
        order: of the predictor; lower where the history is short and in the last step.
    """
    bases = {
        "ddim": StepDecision(),
        "dpm": StepDecision(prediction="noise"),
        "dpm++": StepDecision(relaxation="bh2"),
        "dpm++taylor": StepDecision(),
        "unipc-bh1": StepDecision(corrector="pseudo"),
        "unipc-bh2": StepDecision(corrector="pseudo"),
        "v3": StepDecision(prediction="v3", corrector="pseudo", corrector_estimate="low"),
    }
    if name not in bases:
        raise InputError(f"preset {name!r} is unknown; have {', '.join(bases)}")
    if steps < 1:
        raise InputError(f"steps={steps} must be at least 1")
    top = 1 if name == "ddim" else order
    orders = [min(top, k + 1, steps - k) for k in range(steps)]
    return SolverSchedule(tuple(_at_order(name, bases[name], n) for n in orders))


def _at_order(name: str, base: StepDecision, order: int) -> StepDecision:
    """UniPC weighs the derivative by B(h) where there is a single one: order 2 to predict, order 1 to correct."""
    if not name.startswith("unipc"):
        return replace(base, order=order)
    kind = name.removeprefix("unipc-")
    own: dict[int, dict[str, Any]] = {1: {"corrector_relaxation": kind}, 2: {"relaxation": kind}}
    return replace(base, order=order, **own.get(order, {}))
