"""DeepCache: quality and cost against interval, branch and schedule, and against fewer plain steps of equal cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..core.sampling.caches import DeepCache, Refresh, branch_units, network_of, profile_units
from .caching import CacheSetting, Scene, equal_cost_steps
from .runner import Context


@dataclass(frozen=True)
class DeepCacheBench:
    """Sizes of the experiment."""

    setting: CacheSetting = field(default_factory=CacheSetting)
    shallow: tuple[int, ...] = (2, 3, 5, 10)
    """intervals of branch 0, each against fewer plain steps of its cost"""
    deep_branch: int = 3
    deep: tuple[int, ...] = (3, 5)
    """intervals of the deeper branch"""
    centred: tuple[int, ...] = (5, 10)
    """intervals of branch 0 with full steps gathered around `centre`"""
    centre: int = 15
    power: float = 1.4
    clocked: int = 3
    """interval of branch 0 whose wall-clock is compared"""
    clock_rounds: int = 9


QUICK = DeepCacheBench(CacheSetting(8, 4, 8, batch=8), (3,), 3, (3,), (4,), 3, clock_rounds=1)


def run(context: Context) -> dict[str, Any]:
    """The table, the premise (features of neighbouring steps are alike) and an interleaved wall-clock ratio."""
    config = QUICK if context.quick else DeepCacheBench()
    scene = Scene.make(context.prior, config.setting, context.seed)
    table = _rows(scene, config)
    speed = scene.clock([DeepCache(0, Refresh(interval=config.clocked))], config.clock_rounds)[0]
    feeding = branch_units(network_of(scene.prior), 0)[1]
    profile = profile_units(network_of(scene.prior), [feeding], scene.run_once())
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "wall_clock_speedup": {f"branch 0, N={config.clocked}": speed},
        "cosine_of_neighbouring_steps": {feeding: [round(c, 4) for c in profile.cosine[feeding][1:]]},
    }


def _rows(scene: Scene, config: DeepCacheBench) -> list[dict[str, Any]]:
    rows = [scene.plain()]
    for interval in config.shallow:
        row = scene.row(f"branch 0, N={interval}", DeepCache(0, Refresh(interval=interval)))
        fewer = equal_cost_steps(scene.setting.steps, row["mac_ratio"])
        rows += [row, scene.row(f"plain, cost of branch 0, N={interval}", steps=fewer)]
    for interval in config.deep:
        cache = DeepCache(config.deep_branch, Refresh(interval=interval))
        rows.append(scene.row(f"branch {config.deep_branch}, N={interval}", cache))
    for interval in config.centred:
        refresh = Refresh("centred", interval, config.centre, config.power)
        rows.append(scene.row(f"branch 0, centred, N={interval}", DeepCache(0, refresh)))
    return rows
