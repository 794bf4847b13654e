"""DeepCache: quality and cost against interval, branch and schedule, and against fewer plain steps of equal cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..core.sampling.caches import DeepCache, Refresh, branch_units, network_of, profile_units
from .caching import CacheSetting, Scene, equal_cost_steps
from .runner import Context


@dataclass(frozen=True)
class DeepCacheBench:
    """Sizes of the experiment."""

    setting: CacheSetting = field(default_factory=CacheSetting)
    intervals: tuple[int, ...] = (2, 3, 5, 10)
    branches: tuple[int, ...] = (0, 1, 3)
    solvers: tuple[str, ...] = ("ddim", "dpm++")
    """the first is that of `setting`"""
    centre: int = 15
    powers: tuple[float, ...] = (1.2, 1.4)
    clock_rounds: int = 5


QUICK = DeepCacheBench(CacheSetting(8, 4, 8, batch=8), (3,), (0,), ("ddim",), 3, (1.4,), 1)


def run(context: Context) -> dict[str, Any]:
    """The table, the premise (features of neighbouring steps are alike) and interleaved wall-clock ratios."""
    config = QUICK if context.quick else DeepCacheBench()
    scene = Scene.make(context.prior, config.setting, context.seed)
    table = [{"solver": scene.setting.solver, **row} for row in _rows(scene, config)]
    for solver in config.solvers[1:]:
        other = Scene.make(context.prior, replace(config.setting, solver=solver), context.seed)
        table += [{"solver": solver, **row} for row in _rows(other, config)]
    chosen = [DeepCache(0, Refresh(interval=n)) for n in config.intervals]
    speed = scene.clock(chosen, config.clock_rounds)
    feeding = branch_units(network_of(scene.prior), 0)[1]
    profile = profile_units(network_of(scene.prior), [feeding], scene.run_once())
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "wall_clock_speedup": {f"N={n}": value for n, value in zip(config.intervals, speed)},
        "cosine_of_neighbouring_steps": {feeding: [round(c, 4) for c in profile.cosine[feeding][1:]]},
    }


def _rows(scene: Scene, config: DeepCacheBench) -> list[dict[str, Any]]:
    rows = [scene.row("plain")]
    tried: set[int] = set()
    for branch in config.branches:
        for interval in config.intervals:
            rows.append(scene.row(f"branch {branch}, N={interval}", DeepCache(branch, Refresh(interval=interval))))
            fewer = equal_cost_steps(scene.setting.steps, rows[-1]["mac_ratio"])
            if fewer not in tried:
                tried.add(fewer)
                rows.append(scene.row("plain, fewer steps", steps=fewer))
    for interval in (n for n in config.intervals if n >= 5 or len(config.intervals) == 1):
        for power in config.powers:
            refresh = Refresh("centred", interval, config.centre, power)
            rows.append(scene.row(f"branch 0, centred, p={power:g}, N={interval}", DeepCache(0, refresh)))
    return rows
