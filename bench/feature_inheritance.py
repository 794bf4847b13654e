"""Feature inheritance at equal cost (depths, time modes, greedy plans), and switching between two networks.

There is no smaller network of the same data: the second network is this one with its weights rounded to 4 bits. It
makes another error at the same multiply-accumulates, so switching is measured for quality and order, not for cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from ..core.priors import Prior, load_prior
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling.caches import (
    HoldEvery,
    HoldPlan,
    Refresh,
    count_macs,
    greedy_plan,
    network_of,
    profile_units,
    units_at,
)
from ..core.sampling.caches.inherit import Depth
from ..core.sampling.caches.refresh import Mode
from ..core.sampling.model_schedule import switched
from ..core.sampling.quantise import fake_quantized
from ..utils.errors import InputError
from .caching import CacheSetting, Scene, equal_cost_steps, grid_of
from .runner import Context


@dataclass(frozen=True)
class InheritanceBench:
    """Sizes of the experiment."""

    setting: CacheSetting = field(default_factory=lambda: CacheSetting(steps=30))
    target: float = 1.4
    """speed-up in multiply-accumulates that every plan aims at"""
    modes: tuple[Mode, ...] = ("uniform", "growing", "early", "late")
    shares: tuple[float, ...] = (0.5,)
    """of the steps that run on the second network"""
    small: str = ""
    """a smaller prior of the same data; empty: the prior with its network rounded to `bits`"""
    bits: int = 4
    clock_rounds: int = 5


QUICK = InheritanceBench(CacheSetting(8, 4, 8, batch=8), 1.2, ("uniform", "late"), (0.5,), "", 4, 1)


def run(context: Context) -> dict[str, Any]:
    """The table of plans and of model schedules, and interleaved wall-clock ratios of the greedy plans."""
    config = QUICK if context.quick else InheritanceBench()
    scene = Scene.make(context.prior, config.setting, context.seed)
    table = [scene.plain()]
    table.append(scene.row("plain, fewer steps", steps=equal_cost_steps(config.setting.steps, config.target)))
    plans: dict[str, HoldPlan] = {}
    unreachable: dict[str, str] = {}
    for depth in get_args(Depth):
        try:
            plans[depth] = _greedy(scene, depth, config.target)
        except InputError as error:
            unreachable[depth] = str(error)
            continue
        table.append(scene.row(f"greedy plan, {depth}", plans[depth]))
    units = frozenset(units_at(network_of(scene.prior), "layer", outermost=True))
    for mode in config.modes:
        row = _at_target(scene, mode, units, config.target)
        if row is not None:
            table.append(row)
    name = config.small or f"{config.bits}-bit"
    with _second(scene.prior, config) as second:
        table.append(scene.row(f"{name} alone", prior=second))
        for share in config.shares:
            table += [_switched(scene, second, name, share, first) for first in (True, False)]
    speed = scene.clock(list(plans.values()), config.clock_rounds)
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "wall_clock_speedup": dict(zip(plans, speed)),
        "out_of_reach": unreachable,
    }


def _greedy(scene: Scene, depth: Depth, target: float) -> HoldPlan:
    """The plan of this depth that reaches the target with the least change per MAC."""
    network, run_once = network_of(scene.prior), scene.run_once()
    profile = profile_units(network, units_at(network, depth, outermost=True), run_once)
    return greedy_plan(profile, target, count_macs(run_once) // profile.calls)


def _at_target(scene: Scene, mode: Mode, units: frozenset[str], target: float) -> dict[str, Any] | None:
    """The row of the interval whose cost is nearest to the target in this time mode."""
    best: tuple[float, HoldEvery, int] | None = None
    network, run_once, steps = network_of(scene.prior), scene.run_once(), scene.setting.steps
    profile = profile_units(network, sorted(units), run_once)
    share = sum(profile.macs.values()) * steps / count_macs(run_once)
    for interval in range(2, steps // 2 + 1):
        policy = HoldEvery(units, Refresh(mode, interval))
        held = steps - len(policy.refresh.full_steps(steps) or ())
        ratio = 1 / (1 - share * held / steps)
        if best is None or abs(ratio - target) < best[0]:
            best = (abs(ratio - target), policy, interval)
    return None if best is None else scene.row(f"{mode}, N={best[2]}", best[1])


@contextlib.contextmanager
def _second(prior: Prior, config: InheritanceBench) -> Iterator[Prior]:
    """The other network: a prior of its own, or a copy of this one's in few bits."""
    if config.small:
        yield load_prior(config.small)
        return
    if not isinstance(prior, DiffusersPrior):
        raise InputError(f"the prior {prior.name!r} has no network to round to few bits; name a smaller prior")
    second = copy(prior)
    second.network, second.name, second.nfe = deepcopy(prior.network), f"{prior.name}-{config.bits}-bit", 0
    with fake_quantized(second.network, config.bits, keep=("conv_in", "conv_out")):
        yield second


def _switched(scene: Scene, second: Prior, name: str, share: float, first: bool) -> dict[str, Any]:
    """A run with `share` of its steps on the second network, at its start or at its end."""
    levels = grid_of(scene.prior, scene.setting.steps, scene.noise)
    pair, leading = ((second, scene.prior), share) if first else ((scene.prior, second), 1 - share)
    row = scene.row(f"{name} {'first' if first else 'last'}", prior=switched(*pair, levels, leading))
    return {**row, "share": share}
