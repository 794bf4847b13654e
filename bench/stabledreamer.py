"""StableDreamer's claims: levels that fall make fewer faces; what the loss compares, and what is optimised.

The prior draws single images and is told views in words, which is where several faces come from. All settings have the
same prompts, seeds and network rows; a volume gets the seconds that Gaussians took instead. Two stages spend half of
the rows on the prior of pixels, which is no part of the package: without runs/pixels/export that row waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.distillation.time_window import TimeWindow
from ..core.priors import Prior, load_prior
from ..pipelines.text_to_shape import BeginConfig, MeshRecipe, first_recipe, load_recipe
from ..toybox.judge import Judge
from ..utils.errors import InputError
from .distilled import Made, at_rows, geometry, judged, made, true_of
from .intervals import share, spread
from .runner import Context
from .text_to_mesh import MeshBench, Wanted, prompts

FIXED = TimeWindow((0.02,), (0.98,), shared=False)
STAGED = "toybox-two-stages"
Setting = Callable[[MeshRecipe], MeshRecipe]
Maker = Callable[[str, int], Made]  # of a prompt and a seed


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


def in_one(recipe: MeshRecipe, prior: Prior) -> Maker:
    """One stage."""
    return lambda prompt, seed: made(recipe, prior, prompt, seed)


def in_two(prior: Prior, rows: int) -> Maker:
    """A first stage of half the rows with the recipe's first prior, and a second one from its shape."""
    recipe = load_recipe(STAGED, prior, None, "text-to-splats")
    first = load_prior(recipe.begin.prior, prior.device, prior.dtype)
    begin = at_rows(first_recipe(recipe, first), first, rows // 2)
    rest = at_rows(replace(recipe, begin=BeginConfig()), prior, rows - rows // 2)
    return lambda prompt, seed: made(rest, prior, prompt, seed, first=made(begin, first, prompt, seed))


def row_of(make: Maker, wanted: list[Wanted], seeds: list[int], judge: Judge) -> dict[str, Any]:
    """One row of the table."""
    jobs = [(one, seed) for one in wanted for seed in seeds]
    shapes = [make(one.prompt, seed) for one, seed in jobs]
    records = [
        {**judged(judge, shape, one, true_of(one, 1000 + seed)), **geometry(shape, one)}
        for shape, (one, seed) in zip(shapes, jobs, strict=True)
    ]
    return {
        "two_fronts": share([r["two_fronts"] for r in records]),
        "right": share([r["right"] for r in records]),
        "f_score": spread([r["f_score"] for r in records]),
        "saturation_error": spread([r["saturation_error"] for r in records]),
        "seconds": spread([r["seconds"] for r in records]),
        "nfe": spread([r["nfe"] for r in records]),
        "failed": sum(bool(r["failed"]) for r in records),
    }


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
        row = row_of(in_one(changed(splats), prior), wanted, seeds, judge)
        rows.append({"setting": name, "representation": "gaussians", **row})
    try:
        staged = row_of(in_two(prior, config.rows), wanted, seeds, judge)
    except InputError as error:  # there is no prior of pixels
        staged = {"waits": " ".join(str(error).split())}
    rows.append({"setting": "two stages, pixels first", "representation": "gaussians", **staged})
    volume = at_seconds(load_recipe(None, prior, None, "text-to-mesh"), prior, rows[1]["seconds"]["mean"])
    row = row_of(in_one(volume, prior), wanted, seeds, judge)
    rows.append({"setting": "annealed window", "representation": "volume", **row})
    return {"config": asdict(config), "seeds": seeds, "table": rows}
