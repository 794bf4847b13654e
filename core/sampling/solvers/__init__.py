"""Solvers, each the loop of its paper, and their names."""

from __future__ import annotations

from pathlib import Path

from ....utils.errors import InputError
from ..calibration import Fingerprint
from ..dpm_v3_statistics import ModelStatistics
from ..prediction import Kind
from .arc import Arc
from .base import Solver, Steps, advanced
from .consistency import Consistency
from .ddim import DDIM
from .decisions import SolverSchedule, StepDecision, preset
from .dpm_v3 import DPMSolverV3
from .edict import EDICT
from .ghvb import HeavyBall, LinearMultistep, momentum_number, multistep_weights
from .usf import UnifiedSolver
from .wrapped import RECIPES, WrappedSolver

SOLVERS = ("ddim", *RECIPES, "ghvb", "hb")  # the command line's names that need nothing else
PATTERNS = (
    "dpm-v3[:ORDER]",
    "ghvb:R,BETA",
    "ghvb:NUMBER",
    "hb:R,BETA",
    "hb:SOLVER,BETA",
    "usf:FILE",
    "edict[:MIXING]",
    "lcm",
    "arc",
)
DISTILLED: dict[str, type[Solver]] = {"lcm": Consistency, "arc": Arc}  # of what was distilled for them
CALIBRATED = ("dpm-v3", "usf")  # families whose solvers come from files
_DEFAULTS = {"ghvb": "4,0.8", "hb": "4,0.9", "dpm-v3": "2", "edict": "0.93"}


def make_solver(
    name: str,
    flow: bool = False,
    kind: Kind = "epsilon",
    eta: float = 0.0,
    statistics: ModelStatistics | str | Path | None = None,
    expected: Fingerprint | None = None,
) -> Solver:
    """The solver called `name` for a VP or flow prior of this prediction kind.

    Args:
        name: one of SOLVERS, or a pattern of PATTERNS: "dpm-v3:3" (DPM-Solver-v3 of order 3), "ghvb:2,0.5" (order,
            beta) or "ghvb:1.5" (momentum number), "hb:4,0.9" (heavy ball on Adams-Bashforth 4), "hb:dpm++,0.9" (on
            another solver), "usf:FILE" (a solver schedule that was searched and saved).
        flow: the prior is a rectified flow.
        kind: its prediction type.
        eta: randomness of ddim, [0, 1].
        statistics: model statistics, or their file, for dpm-v3 and for schedules with v3 steps.
        expected: fingerprint of the present prior, shape and guidance that files must agree with.
    """
    if eta and name != "ddim":
        raise InputError(f"eta={eta} only works with the ddim solver, not with {name}")
    family, _, argument = name.partition(":")
    argument = argument or _DEFAULTS.get(family, "")
    if family == "ddim" and not argument:
        return DDIM(eta)
    if family in RECIPES and not argument:
        return WrappedSolver(family, flow, kind)
    if family in DISTILLED and not argument:
        return DISTILLED[family]()
    if family == "dpm-v3":
        return DPMSolverV3(_statistics(name, statistics, expected), int(_number(name, argument)))
    if family == "ghvb":
        return LinearMultistep(*_momentum(name, argument))
    if family == "edict":
        return EDICT(_number(name, argument))
    if family == "hb":
        return _heavy_ball(name, argument, flow, kind)
    if family == "usf" and argument:
        schedule, mean = SolverSchedule.load_with_mean(argument, expected)
        if schedule.first == "average_x0" and mean is None:
            raise InputError(
                f"solver {name} begins with the average clean latent, which its file lacks; save the schedule with "
                'mean=, or search with first_steps=("none", "zero_x0")'
            )
        tables = _statistics(name, statistics, expected) if schedule.needs_statistics else None
        return UnifiedSolver(schedule, tables, mean)
    raise InputError(f"solver {name!r} is unknown; have {', '.join((*SOLVERS, *PATTERNS))}")


def _statistics(name: str, given: ModelStatistics | str | Path | None, expected: Fingerprint | None) -> ModelStatistics:
    if given is None:
        raise InputError(f"solver {name} needs statistics=, measured for this prior, latent shape and guidance")
    return given if isinstance(given, ModelStatistics) else ModelStatistics.load(given, expected)


def _momentum(name: str, argument: str) -> tuple[int, float]:
    order, comma, beta = argument.partition(",")
    if not comma:
        return momentum_number(_number(name, order))
    return int(_number(name, order)), _number(name, beta)


def _heavy_ball(name: str, argument: str, flow: bool, kind: Kind) -> Solver:
    inner, comma, beta = argument.rpartition(",")
    if not comma:
        raise InputError(f"solver {name!r} lacks its beta: hb:R,BETA or hb:SOLVER,BETA")
    if inner.partition(":")[0] in CALIBRATED:
        raise InputError(
            f"solver {name!r}: momentum would undo what {inner} was calibrated for, its corrections included; use "
            f"{inner} alone or momentum on another solver, such as hb:dpm++,{beta}"
        )
    if inner.isdigit():
        return HeavyBall(LinearMultistep(int(inner)), _number(name, beta))
    return HeavyBall(make_solver(inner, flow, kind), _number(name, beta))


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"solver {name!r}: {text!r} is not a number") from error


__all__ = [
    "DDIM",
    "EDICT",
    "PATTERNS",
    "SOLVERS",
    "Arc",
    "Consistency",
    "DPMSolverV3",
    "HeavyBall",
    "LinearMultistep",
    "Solver",
    "SolverSchedule",
    "StepDecision",
    "Steps",
    "UnifiedSolver",
    "WrappedSolver",
    "advanced",
    "make_solver",
    "multistep_weights",
    "preset",
]
