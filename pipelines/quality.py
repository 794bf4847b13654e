"""How much to spend: fast, balanced or best, the presets of configs/sampling/presets.yaml."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..core.priors import Prior, Recommended
from ..core.sampling import NoiseSchedule
from ..core.sampling.grids import Spacing
from ..utils.configs import load_config
from ..utils.errors import InputError

Quality = Literal["fast", "balanced", "best", "native"]


@dataclass(frozen=True)
class Preset:
    """A solver and its steps."""

    solver: str
    steps: int
    spacing: Spacing | None = None
    """None: the noise path's own"""


@dataclass(frozen=True)
class Presets:
    """configs/sampling/presets.yaml."""

    vp: dict[str, Preset]
    flow: dict[str, Preset]
    own_solver: dict[str, int]


@functools.cache
def presets() -> Presets:
    """The table, read once."""
    return load_config(Presets, "sampling/presets")


def checked(quality: str) -> Quality:
    """Raises InputError for a name that is no quality."""
    if quality not in get_args(Quality):
        raise InputError(f"quality={quality!r} is unknown; have {', '.join(get_args(Quality))}")
    return quality  # type: ignore[return-value]


def settings(prior: Prior, quality: Quality) -> Recommended:
    """Solver, steps and spacing of a quality with the prior's own guidance; "native" is what its makers recommend.

    A prior distilled to a few steps gives the same at every quality: its steps are part of what it learned.
    """
    native = prior.recommended
    if quality == "native" or native.distilled:
        return native
    table = presets().flow if NoiseSchedule.from_config(prior.scheduler_config).flow else presets().vp
    chosen = table[quality]
    return replace(native, solver=chosen.solver, steps=chosen.steps, spacing=chosen.spacing)


def own_steps(quality: Quality) -> int:
    """Steps of a method that brings its own solver; "native" is balanced there."""
    return presets().own_solver["balanced" if quality == "native" else quality]
