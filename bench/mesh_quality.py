"""What may be saved in score distillation of a mesh without losing its shape: looks, steps of a look, caches.

Every setting makes the same prompts with the same seeds as the packaged recipe, whose meshes are the reference; the
same recipe with another seed says how far apart two meshes of a prompt are anyway. What counts is geometry: overlap of
silhouettes from eight sides, distance of the surfaces, and how many pieces and handles came or went. A second table,
"drawn", asks the same of drawn normal maps (`drawn_quality`). Both take about 25 minutes of one core.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling.caches import apply_cache, remove_cache
from ..generate.finish import surface_of
from ..geometry.meshes import Mesh
from ..pipelines.mesh_quality import Spent, spending, spent
from ..pipelines.text_to_shape import MeshRecipe, load_recipe
from ..toybox.judge import Judge
from ..utils.errors import UnprojectError
from ..utils.pictures import grid, save_image
from .distilled import ROUGH, Made, judged, made, true_of
from .drawn_quality import DrawnBench, drawn_table
from .kept_shapes import kept, summary
from .runner import Context
from .text_to_mesh import MeshBench, Wanted, prompts

REFERENCE, OTHER_SEED = "the recipe", "the recipe, another seed"
SIDES = (1, 3, 5)


@dataclass(frozen=True)
class Setting:
    """What is changed in the recipe."""

    spent: Spent = field(default_factory=Spent)
    walk: int | None = None  # more denoising steps of a look than the recipe's
    cache: str = ""  # in those steps
    shift: int = 0  # of the seed


@dataclass(frozen=True)
class QualityBench:
    """Sizes of the experiment."""

    prompts: int = 3
    scale: float = 1.0  # of the recipe's steps
    samples: int = 20_000  # points of a surface
    size: int = 64  # px of silhouettes


def settings() -> dict[str, Setting]:
    """By name, the reference first; those of `--quality` as they are packaged."""
    return {
        REFERENCE: Setting(),
        OTHER_SEED: Setting(shift=1000),
        "half the looks": Setting(Spent(looks=0.5)),
        "4 steps a look": Setting(Spent(walk=4)),
        "1 step a look": Setting(Spent(walk=1)),
        "16 steps a look": Setting(walk=16),
        "16 steps a look, deep:2": Setting(walk=16, cache="deep:2"),
        "fast": Setting(spending().fast),
        "best": Setting(spending().best),
    }


def at_setting(recipe: MeshRecipe, setting: Setting, scale: float) -> MeshRecipe:
    """The recipe with a setting, and with a share of all its steps."""
    found = spent(recipe, replace(setting.spent, looks=setting.spent.looks * scale))
    if setting.walk is not None:
        found = replace(found, score=replace(found.score, target_steps=setting.walk))
    return replace(found, optimise=replace(found.optimise, checkpoint_every=0))


def made_at(recipe: MeshRecipe, prior: Prior, setting: Setting, prompt: str, seed: int, scale: float) -> Made:
    """One optimisation with a setting."""
    chosen = at_setting(recipe, setting, scale)
    if setting.cache:
        apply_cache(prior, setting.cache, chosen.score.target_steps)
    try:
        return made(chosen, prior, prompt, seed + setting.shift)
    finally:
        if setting.cache:
            remove_cache(prior)


def surface(one: Made) -> Mesh | None:
    """Its mesh, None without one."""
    if one.work is None:
        return None
    try:
        return surface_of(one.work.shape, ROUGH)
    except UnprojectError:
        return None


def run(context: Context) -> dict[str, Any]:
    """The table, and a picture of all settings."""
    config = QualityBench(1, 0.1, 1000, 32) if context.quick else QualityBench()
    prior, judge = load_prior("toybox-mv"), Judge.from_pretrained()
    recipe = load_recipe(None, prior)
    wanted = prompts(MeshBench(test_prompts=config.prompts, heldout_prompts=0))
    references: dict[int, Mesh] = {}
    table, shown, labels = [], [], []
    for name, setting in settings().items():
        rows = []
        for one in wanted:
            row, views, mesh = _measured(recipe, prior, setting, one, judge, references, config, context.seed)
            rows.append(row)
            if name == REFERENCE and mesh is not None:
                references[one.index] = mesh
            shown += [view.permute(1, 2, 0).numpy() for view in views[list(SIDES)]]
            labels += [f"{name}: {one.noun}", *[""] * (len(SIDES) - 1)]
        table.append({"setting": name, **summary(rows)})
    save_image(context.picture(), grid(shown, columns=len(SIDES) * len(wanted), labels=labels))
    seeds = [context.seed + w.index for w in wanted]
    drawn = drawn_table(DrawnBench(1, 1000, 32, steps=4) if context.quick else DrawnBench(), judge, context.seed)
    return {"config": asdict(config), "seeds": seeds, "table": table, "drawn": drawn}


def _measured(
    recipe: MeshRecipe,
    prior: Prior,
    setting: Setting,
    wanted: Wanted,
    judge: Judge,
    references: dict[int, Mesh],
    config: QualityBench,
    seed: int,
) -> tuple[dict[str, Any], Tensor, Mesh | None]:
    """(record, views, mesh) of one prompt; the first mesh of a prompt is its own reference."""
    began, number = time.process_time(), seed + wanted.index
    one = made_at(recipe, prior, setting, wanted.prompt, number, config.scale)
    took, mesh = time.process_time() - began, surface(one)
    reference = references.get(wanted.index, mesh)
    geometry = {} if reference is None else kept(mesh, reference, config.samples, config.size)
    found = judged(judge, one, wanted, true_of(wanted, 1000 + number))
    return {"right": found["right"], "seconds": took, "nfe": one.nfe, **geometry}, one.views, mesh
