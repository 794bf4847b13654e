"""Region-adaptive sampling: quality at equal cost against fewer steps and other choices of tokens; where it looks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.sampling.caches import Regions, caching, network_of
from ..core.sampling.caches.hooks import HOOK
from ..core.sampling.caches.selector import Selector, select_tokens
from ..utils.seeds import generator
from .caching import PROFILED, CacheSetting, Scene, equal_cost_steps
from .runner import Context


@dataclass(frozen=True)
class RegionsBench:
    """Sizes of the experiment."""

    setting: CacheSetting = field(default_factory=lambda: CacheSetting(steps=28, solver="euler"))
    ratios: tuple[float, ...] = (0.5, 0.25)
    start: int = 4
    refresh: int = 8
    starvations: tuple[float, ...] = (0.0, 0.1, 1.0)
    clock_rounds: int = 5


QUICK = RegionsBench(CacheSetting(8, 4, 9, solver="euler", batch=8), (0.5,), 2, 3, (0.1,), 1)


def run(context: Context) -> dict[str, Any]:
    """The table, overlaps of successive choices, and interleaved wall-clock ratios.

    The prior must be a diffusion transformer.
    """
    config = QUICK if context.quick else RegionsBench()
    scene = Scene.make(context.prior, config.setting, context.seed)
    table = [scene.plain()]
    for ratio in config.ratios:
        base = Regions(ratio, config.start, config.refresh)
        row = scene.row(f"ratio {ratio:g}", base)
        table.append(row)
        fewer = equal_cost_steps(config.setting.steps, row["mac_ratio"])
        table.append(scene.row(f"plain, cost of ratio {ratio:g}", steps=fewer))
        low = Regions(ratio, config.start, config.refresh, focus="low")
        table.append(scene.row(f"ratio {ratio:g}, least moved", low))
        for k in config.starvations:
            if k != base.starvation:
                wanted = Regions(ratio, config.start, config.refresh, starvation=k)
                table.append(scene.row(f"ratio {ratio:g}, k={k:g}", wanted))
        for choice, select in (("random", _by_chance(context.seed)), ("fixed", _in_turn)):
            table.append(scene.row(f"ratio {ratio:g}, {choice} tokens", replace(base, select=select)))
    chosen = [Regions(ratio, config.start, config.refresh) for ratio in config.ratios]
    speed = scene.clock(chosen, config.clock_rounds)
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "wall_clock_speedup": {f"ratio {r:g}": s for r, s in zip(config.ratios, speed)},
        "choices": {f"ratio {c.ratio:g}": _choices(scene, c) for c in chosen},
    }


def _by_chance(seed: int) -> Selector:
    """Tokens chosen at random."""
    rng = generator(seed)

    def select(measure: Tensor, dropped: Tensor, config: Regions) -> tuple[Tensor, Tensor]:
        half = torch.rand(1, measure.shape[1], generator=rng).to(measure)
        return select_tokens(half.expand_as(measure), dropped * 0, config)

    return select


def _in_turn(measure: Tensor, dropped: Tensor, config: Regions) -> tuple[Tensor, Tensor]:
    """Tokens of a fixed pattern, those left out longest first: equal measures, and counts that decide."""
    return select_tokens(torch.ones_like(measure), dropped, replace(config, starvation=1.0))


def _choices(scene: Scene, config: Regions) -> dict[str, float]:
    """Jaccard overlap of successive active sets, and of active tokens with the object, each beside chance."""
    seen: list[Tensor] = []
    network: Any = network_of(scene.prior)
    with caching(scene.prior, config, steps=scene.setting.steps):
        root = network._diffusers_hook.get_hook(HOOK)

        def note(*_: Any) -> None:
            if root.active is not None:
                seen.append(_mask(root))

        handle = network.proj_out.register_forward_pre_hook(note)
        scene.run_once()()
        handle.remove()
    pairs = [((a & b).sum(1) / (a | b).sum(1)).mean() for a, b in zip(seen, seen[1:])]
    overlap = float(torch.stack(pairs).mean()) if pairs else 0.0
    kept = float(seen[0].float().mean())
    return {"jaccard": round(overlap, 4), "jaccard_by_chance": round(kept / (2 - kept), 4), **_focus(scene, seen)}


def _mask(root: Any) -> Tensor:
    """Active tokens (B, P) as flags."""
    return torch.zeros(root.active.shape[0], root.tokens, dtype=torch.bool).scatter(1, root.active.cpu(), True)


def _focus(scene: Scene, seen: list[Tensor]) -> dict[str, float]:
    """Share of active tokens on the drawn object, and the object's share of the picture.

    The object is where the final picture differs from its border colour.
    """
    side, rows = round(seen[0].shape[1] ** 0.5), min(PROFILED, len(scene.full))
    images = scene.prior.decode(scene.full[:rows])
    border = torch.cat([images[:, :, 0], images[:, :, -1]], 2).median(2).values[:, :, None, None]
    inside = ((images - border).abs().amax(1, keepdim=True) > 0.1).float()
    tokens = F.adaptive_avg_pool2d(inside, side).flatten(1).repeat(seen[0].shape[0] // rows, 1)
    hits = torch.stack([(mask * tokens).sum(1) / mask.sum(1) for mask in seen]).mean()
    return {"on_object": round(float(hits), 4), "on_object_by_chance": round(float(tokens.mean()), 4)}
