"""Caches inside the network: DeepCache, feature inheritance, region-adaptive sampling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ....utils.errors import InputError
from ..solvers import Solver
from .base import COMPUTE, SHORT, Cache, Policy
from .cost import count_macs, unit_macs
from .deepcache import (
    FEWEST_STEPS,
    DeepCache,
    HoldEvery,
    apply_deep_cache,
    branch_units,
    refuse_few_steps,
    remove_deep_cache,
)
from .hooks import cache_of, detach, network_of, refuse_exact_inverse
from .inherit import HoldPlan, Inherit, apply_inheritance, remove_inheritance, units_at
from .profile import Profile, greedy_plan, profile_units
from .refresh import MODES, Refresh
from .regions import apply_regions, remove_regions
from .selector import Regions

CacheConfig = DeepCache | Inherit | HoldPlan | HoldEvery | Regions
FORMS = "none, deep:INTERVAL[,BRANCH[,MODE]], inherit[:INTERVAL[,DEPTH]], regions[:RATIO]"


def parse_cache(text: str | None) -> CacheConfig | None:
    """The cache a command line names: deep:3, deep:5,0,centred, inherit, inherit:2,unit, regions:0.5, or none.

    Raises InputError for anything else.
    """
    if text is None or text == "none":
        return None
    name, _, rest = text.partition(":")
    values = rest.split(",") if rest else []
    try:
        if name == "deep" and 1 <= len(values) <= 3:
            mode: Any = values[2] if len(values) > 2 else "uniform"
            return DeepCache(int(values[1]) if len(values) > 1 else 0, Refresh(mode, int(values[0])))
        if name == "inherit" and len(values) <= 2:
            depth: Any = values[1] if len(values) > 1 else "layer"
            return Inherit(depth, Refresh(interval=int(values[0]) if values else 2))
        if name == "regions" and len(values) <= 1:
            return Regions(float(values[0])) if values else Regions()
    except InputError:
        raise
    except ValueError:
        pass
    raise InputError(f"cache {text!r} is unknown; write {FORMS}")


def apply_cache(target: Any, config: CacheConfig | str, steps: int | None = None) -> Cache:
    """The `apply_*` that belongs to a config or its text ("deep:3"), until `remove_cache`.

    Args:
        target: a diffusers network, a pipeline that has one (which then tells the number of steps), or a prior.
        config: see `parse_cache` for texts.
        steps: network calls of a run, where the target cannot tell.
    """
    if isinstance(config, str):
        parsed = parse_cache(config)
        if parsed is None:
            raise InputError(f"cache {config!r} applies nothing; write {FORMS.removeprefix('none, ')}")
        config = parsed
    if isinstance(config, DeepCache):
        return apply_deep_cache(target, config, steps)
    if isinstance(config, Regions):
        return apply_regions(target, config, steps)
    return apply_inheritance(target, config, steps=steps)


def remove_cache(target: Any) -> None:
    """Takes any cache off a network, pipeline or prior; without one nothing happens."""
    detach(network_of(target))


@contextlib.contextmanager
def caching(
    target: Any, config: CacheConfig | str | None, steps: int | None = None, solver: Solver | None = None
) -> Iterator[Cache | None]:
    """A cache for the length of a `with` block, for a loop of our own.

    Args:
        target: network, pipeline or prior.
        config: a config or its text (`parse_cache`); None: no cache.
        steps: solver steps of the runs inside.
        solver: the solver that will run: it tells the number of calls, and may be one that no cache fits.

    Presets are off, with a warning, in runs of fewer than 8 calls. Raises InputError for combinations that make no
    sense: any cache with a solver that inverts its steps exactly, regions on a U-Net, DeepCache on a transformer.
    """
    chosen = parse_cache(config) if config is None or isinstance(config, str) else config
    if chosen is None:
        yield None
        return
    refuse_exact_inverse(solver)
    calls = steps if steps is None or solver is None else solver.calls(steps)
    cache = apply_cache(target, chosen, calls)
    try:
        yield cache
    finally:
        remove_cache(target)


__all__ = [
    "COMPUTE",
    "FEWEST_STEPS",
    "FORMS",
    "MODES",
    "SHORT",
    "Cache",
    "CacheConfig",
    "DeepCache",
    "HoldEvery",
    "HoldPlan",
    "Inherit",
    "Policy",
    "Profile",
    "Refresh",
    "Regions",
    "apply_cache",
    "apply_deep_cache",
    "apply_inheritance",
    "apply_regions",
    "branch_units",
    "cache_of",
    "caching",
    "count_macs",
    "greedy_plan",
    "parse_cache",
    "profile_units",
    "refuse_exact_inverse",
    "refuse_few_steps",
    "remove_cache",
    "remove_deep_cache",
    "remove_inheritance",
    "remove_regions",
    "unit_macs",
    "units_at",
]
