"""StableDreamer's claims: levels that fall make fewer faces; what the loss compares, and what is optimised.

The prior draws single images and is told views in words, which is where several faces come from. All settings have the
same prompts, seeds and network rows; a volume gets the seconds that Gaussians took instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.distillation.time_window import TimeWindow
from ..core.priors import Prior, load_prior
from ..pipelines.text_to_shape import MeshRecipe, load_recipe
from ..toybox.judge import Judge
from .distilled import Made, at_rows, geometry, judged, made, true_of
from .intervals import share, spread
from .runner import Context
from .text_to_mesh import MeshBench, Wanted, prompts

FIXED = TimeWindow((0.02,), (0.98,), shared=False)
Setting = Callable[[MeshRecipe], MeshRecipe]


@dataclass(frozen=True)
class DreamBench:
    """Sizes of the experiment."""

    prompts: int = 8
    seeds: int = 2
    rows: int = 1200  # network rows of each run


def _scored(recipe: MeshRecipe, **changes: Any) -> MeshRecipe:
    return replace(recipe, score=replace(recipe.score, **changes))


SETTINGS: dict[str, Setting] = {
    "fixed window": lambda recipe: _scored(recipe, window=FIXED),
    "annealed window": lambda recipe: recipe,
    "annealed, images compared": lambda recipe: _scored(recipe, space="image"),
}


def runs(
    recipe: MeshRecipe, prior: Prior, wanted: list[Wanted], seeds: list[int], judge: Judge
) -> tuple[dict[str, Any], list[Made]]:
    """One row, and what was made."""
    jobs = [(one, seed) for one in wanted for seed in seeds]
    shapes = [made(recipe, prior, one.prompt, seed) for one, seed in jobs]
    records = [
        {**judged(judge, shape, one, true_of(one, 1000 + seed)), **geometry(shape, one)}
        for shape, (one, seed) in zip(shapes, jobs, strict=True)
    ]
    row = {
        "two_fronts": share([r["two_fronts"] for r in records]),
        "right": share([r["right"] for r in records]),
        "f_score": spread([r["f_score"] for r in records]),
        "saturation_error": spread([r["saturation_error"] for r in records]),
        "seconds": spread([r["seconds"] for r in records]),
        "nfe": spread([r["nfe"] for r in records]),
        "failed": sum(bool(r["failed"]) for r in records),
    }
    return row, shapes


def at_seconds(recipe: MeshRecipe, prior: Prior, seconds: float) -> MeshRecipe:
    """The recipe with as many steps as so many seconds allow, by a short trial of a whole run's schedules."""
    trial = replace(recipe, optimise=replace(recipe.optimise, steps=8, checkpoint_every=0))
    made(trial, prior, "a red cube", 0)  # compiles
    each = made(trial, prior, "a red cube", 0).seconds / 8
    return replace(recipe, optimise=replace(recipe.optimise, steps=max(1, round(seconds / each)), checkpoint_every=0))


def run(context: Context) -> dict[str, Any]:
    """The settings with Gaussians, then a volume in the time of the annealed one."""
    config = DreamBench(1, 1, 64) if context.quick else DreamBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    wanted = prompts(MeshBench(test_prompts=config.prompts, heldout_prompts=0))
    seeds = [context.seed + k for k in range(config.seeds)]
    splats = at_rows(load_recipe(None, prior, None, "text-to-splats"), prior, config.rows)
    rows = []
    for name, changed in SETTINGS.items():
        row, _ = runs(changed(splats), prior, wanted, seeds, judge)
        rows.append({"setting": name, "representation": "gaussians", **row})
    seconds = rows[1]["seconds"]["mean"]
    volume = at_seconds(load_recipe(None, prior, None, "text-to-mesh"), prior, seconds)
    row, _ = runs(volume, prior, wanted, seeds, judge)
    rows.append({"setting": "annealed window", "representation": "volume", **row})
    return {"config": asdict(config), "seeds": seeds, "table": rows}
