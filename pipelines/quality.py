"""How much to spend: fast, balanced or best, the presets of configs/sampling/presets.yaml, or turbo, a student."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ..core.priors import Prior
from ..core.sampling import NoiseSchedule
from ..core.sampling.plan import SamplingPlan
from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import student_folder

Quality = Literal["fast", "balanced", "best", "native", "turbo"]
TURBO = "turbo"


@dataclass(frozen=True)
class Table:
    """configs/sampling/presets.yaml as it stands there."""

    vp: dict[str, dict[str, Any]]
    flow: dict[str, dict[str, Any]]
    own_solver: dict[str, int]
    turbo: dict[str, str]


class Presets(NamedTuple):
    """Plans by quality, without guidance: that is the prior's own; the steps of methods with their own solver; and the
    students of turbo by prior."""

    vp: dict[str, SamplingPlan]
    flow: dict[str, SamplingPlan]
    own_solver: dict[str, int]
    turbo: dict[str, str]


@functools.cache
def presets() -> Presets:
    """The table, read once."""
    table = load_config(Table, "sampling/presets")
    vp, flow = (
        {quality: SamplingPlan.from_dict(values) for quality, values in side.items()} for side in (table.vp, table.flow)
    )
    return Presets(vp, flow, table.own_solver, table.turbo)


def checked(quality: str) -> Quality:
    """Raises InputError for a name that is no quality."""
    if quality not in get_args(Quality):
        raise InputError(f"quality={quality!r} is unknown; have {', '.join(get_args(Quality))}")
    return quality  # type: ignore[return-value]


def settings(prior: Prior, quality: Quality) -> SamplingPlan:
    """The plan of a quality at the prior's own guidance; "native" is what its makers recommend.

    A prior distilled to a few steps gives the same at every quality: its steps are part of what it learned. Raises
    InputError for "turbo" and any other prior: it is another network (`turbo_student`), not a plan.
    """
    native = SamplingPlan.of(prior.recommended)
    if quality == "native" or prior.recommended.distilled:
        return native
    if quality == TURBO:
        raise InputError(f"quality={quality!r} draws with a student of few steps, which {prior.name} is not; load one")
    table = presets().flow if NoiseSchedule.from_config(prior.scheduler_config).flow else presets().vp
    return table[quality].over(SamplingPlan(guidance=native.guidance))


def own_steps(quality: Quality) -> int:
    """Steps of a method that brings its own solver; "native" is balanced there.

    Raises InputError for "turbo": students of few steps are none for such methods.
    """
    steps = presets().own_solver
    if quality == TURBO:
        raise InputError(f"quality={quality!r}: this brings its own solver, which a student of few steps has none for; "
                         f"have {', '.join(steps)}")  # fmt: skip
    return steps["balanced" if quality == "native" else quality]


def turbo_student(prior: str | Path) -> Path:
    """The folder of the student that quality "turbo" draws with in the place of a prior.

    Raises InputError for priors that have none, and where its weights are not there.
    """
    known = presets().turbo
    if str(prior) not in known:
        raise InputError(
            f"quality={TURBO!r} has a student of {', '.join(known)}, none of {prior}; make one with `unproject distill "
            f"lcm-lora --prior {prior} --out runs/fast` and give --student runs/fast/export"
        )
    return student_folder(known[str(prior)])
