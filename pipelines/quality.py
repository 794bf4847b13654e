"""How much to spend: fast, balanced or best, the presets of configs/sampling/presets.yaml."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from ..core.priors import Prior
from ..core.sampling import NoiseSchedule
from ..core.sampling.plan import SamplingPlan
from ..utils.configs import load_config
from ..utils.errors import InputError

Quality = Literal["fast", "balanced", "best", "native"]


@dataclass(frozen=True)
class Table:
    """configs/sampling/presets.yaml as it stands there."""

    vp: dict[str, dict[str, Any]]
    flow: dict[str, dict[str, Any]]
    own_solver: dict[str, int]


class Presets(NamedTuple):
    """Plans by quality, without guidance: that is the prior's own; and the steps of methods with their own solver."""

    vp: dict[str, SamplingPlan]
    flow: dict[str, SamplingPlan]
    own_solver: dict[str, int]


@functools.cache
def presets() -> Presets:
    """The table, read once."""
    table = load_config(Table, "sampling/presets")
    vp, flow = (
        {quality: SamplingPlan.from_dict(values) for quality, values in side.items()} for side in (table.vp, table.flow)
    )
    return Presets(vp, flow, table.own_solver)


def checked(quality: str) -> Quality:
    """Raises InputError for a name that is no quality."""
    if quality not in get_args(Quality):
        raise InputError(f"quality={quality!r} is unknown; have {', '.join(get_args(Quality))}")
    return quality  # type: ignore[return-value]


def settings(prior: Prior, quality: Quality) -> SamplingPlan:
    """The plan of a quality at the prior's own guidance; "native" is what its makers recommend.

    A prior distilled to a few steps gives the same at every quality: its steps are part of what it learned.
    """
    native = SamplingPlan.of(prior.recommended)
    if quality == "native" or prior.recommended.distilled:
        return native
    table = presets().flow if NoiseSchedule.from_config(prior.scheduler_config).flow else presets().vp
    return table[quality].over(SamplingPlan(guidance=native.guidance))


def own_steps(quality: Quality) -> int:
    """Steps of a method that brings its own solver; "native" is balanced there."""
    return presets().own_solver["balanced" if quality == "native" else quality]
