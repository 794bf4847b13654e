"""TriplaneTurbo on the embedded priors: K = 4 against K = 1 and against the network's own noise at equal updates.

Three settings learn from nothing, by the packaged recipe's start from drawn views, with the same prompts, seeds and
number of updates, each of which follows all K steps, as the paper's do (the recipe's follow one of them). Two more go
on from the shipped weights by the priors' scores, one of them without any teacher of several views: the two-front rate
has to rise; the shipped weights stand beside them. Runs are kept under runs/bench, so that an interrupted one goes on.
Shapes of noun-colour pairs that no training saw are compared with exact renders of toybox instances, the nearest of
several.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Prior
from ..core.training.trainer import Trainer
from ..generate.drawn_views import ViewDrawer
from ..generate.finish import surface_of
from ..generate.lessons import Prompts
from ..generate.render_teacher import TeacherConfig
from ..generate.turbo import TriplaneTurbo
from ..generate.turbo_start import StartConfig
from ..generate.turbo_train import PRDConfig, PRDObjective
from ..geometry.cameras import Camera, orbit_distance
from ..geometry.meshes import Mesh
from ..geometry.raycast import RayMesh
from ..pipelines.drawn_mesh import FINISH
from ..scripts.turbo_recipe import TurboRecipe, base_and_teachers, view_drawer
from ..toybox.judge import Judge
from ..toybox.programs import ObjectProgram
from ..utils.configs import CONFIGS, load_config, read_yaml
from ..utils.errors import UnprojectError
from ..utils.files import weights_root
from ..utils.pictures import grid, save_image
from .embedded_prior import heldout_pairs, plain_prompt
from .intervals import share, spread
from .runner import Context
from .text_to_mesh import AZIMUTHS, TRUE_SEED, Wanted, judge_views, true_looks

FULL_K, ONE, OWN = "K = 4", "K = 1", "K = 4, the network's own noise"
SHIPPED, SCORED = "as shipped", "as shipped, then scores"
LONELY = "as shipped, then scores, no multi-view teacher"
WEIGHTS = "toybox-turbo"
TRAINED = ("train_seconds", "train_rows")
FOV_DEG, ELEVATION_DEG = 40.0, 15.0


@dataclass(frozen=True)
class TurboBench:
    """Sizes of the experiment."""

    updates: int = 200  # of every setting and seed that learns from nothing
    scored: int = 100  # of those that go on from the shipped weights
    prompts: int = 100  # objects, whose texts all of them learn
    seeds: tuple[int, ...] = (0,)
    heldout: int = 12  # noun-colour pairs
    references: int = 4  # instances, the nearest of which is compared
    size: int = 64  # px of the views
    work: str = "runs/bench/triplane-turbo"


QUICK = TurboBench(updates=1, scored=1, prompts=1, heldout=2, references=1, size=32)


@dataclass(frozen=True)
class Shop:
    """What all settings share."""

    recipe: TurboRecipe
    base: Prior
    teachers: dict[str, Prior]
    drawer: ViewDrawer
    prompts: list[str]

    @classmethod
    def of(cls, prior: str, count: int) -> Shop:
        """The packaged recipe on a prior, with the texts of some objects."""
        values = read_yaml(CONFIGS / "train" / "triplane-turbo.yaml")
        values.pop("objective")
        recipe = load_config(TurboRecipe, values)
        base, teachers = base_and_teachers(prior, recipe.model.teachers)
        drawer = view_drawer(recipe.model.start, teachers["joint"])
        return cls(recipe, base, teachers, drawer, replace(recipe.prompts, count=count).read())

    @property
    def rows(self) -> int:
        """That all networks were asked so far."""
        return sum(one.nfe for one in {id(p): p for p in (*self.teachers.values(), *self.drawer.priors)}.values())


def run(context: Context) -> dict[str, Any]:
    """Every setting trained and measured; the table and a picture."""
    config = replace(QUICK, work=f"{QUICK.work}-quick") if context.quick else TurboBench()
    shop, judge, pairs = Shop.of(context.prior, config.prompts), Judge.from_pretrained(), heldout_pairs(config.heldout)
    table, shown = [], []
    for name, (model, updates) in settings(shop.recipe.model, config).items():
        records: list[dict[str, Any]] = []
        for seed in config.seeds:
            turbo, cost = trained(name, model, updates, shop, config, seed)
            made = [measured(turbo, pair, judge, config, seed) for pair in pairs]
            records += [{**record, **cost} for record, _ in made]
            if seed == config.seeds[0]:
                shown += [views for _, views in made[:6]]
        table.append({"setting": name, "updates": updates, **summary(records)})
    save_image(context.picture(), grid(shown, columns=min(6, len(pairs))))
    return {"config": asdict(config), "seeds": list(config.seeds), "table": table, "recipe": asdict(shop.recipe.model)}


def settings(model: PRDConfig, config: TurboBench) -> dict[str, tuple[PRDConfig, int]]:
    """(method, updates) by name: the recipe at the sizes of the experiment, and what is changed in it."""
    start = replace(model.start, updates=config.updates)
    base = replace(model, schedule=max(config.updates, 1), start=start, taught=0)
    scored = replace(model, schedule=max(config.scored, 1), start=StartConfig())
    return {
        FULL_K: (base, config.updates),
        ONE: (replace(base, turbo=replace(base.turbo, steps=1)), config.updates),
        OWN: (replace(base, fresh=False), config.updates),
        SHIPPED: (scored, 0),
        SCORED: (scored, config.scored),
        LONELY: (replace(scored, joint=TeacherConfig(), normals=TeacherConfig()), config.scored),
    }


def trained(
    name: str, model: PRDConfig, updates: int, shop: Shop, config: TurboBench, seed: int
) -> tuple[TriplaneTurbo, dict[str, Any]]:
    """(a generator with its averaged weights, processor seconds and network rows)."""
    teachers = {key: shop.teachers[key] for key, one in model.teachers.items() if one.prior}
    objective = PRDObjective(model, shop.base, teachers, seed=seed, drawer=shop.drawer)
    turbo = objective.turbo
    if not model.start.updates:
        turbo.take(TriplaneTurbo.load(weights_root() / WEIGHTS, shop.base).state(), WEIGHTS)
    if not updates:
        return turbo, {}
    trainer_config = replace(shop.recipe.trainer, steps=updates, seed=seed, preview_every=0)
    folder = Path(config.work) / f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}"
    before, began = shop.rows, time.process_time()
    trainer = Trainer(trainer_config, objective, Prompts(shop.prompts), folder, "cpu")
    trainer.run(resume=True)
    rows = shop.rows - before + turbo.asked.nfe
    with trainer.averaged():
        weights = {key: value.clone() for key, value in turbo.state().items()}
    turbo.take(weights, name)
    return turbo, {"train_seconds": time.process_time() - began, "train_rows": rows}


def orbit(config: TurboBench) -> Camera:
    """Eight sides."""
    return Camera.orbit(AZIMUTHS, ELEVATION_DEG, orbit_distance(0.95, FOV_DEG), FOV_DEG, config.size)


def measured(
    turbo: TriplaneTurbo, pair: tuple[str, str], judge: Judge, config: TurboBench, seed: int
) -> tuple[dict[str, Any], Tensor]:
    """(how near a shape is to the real thing, its front) for one noun and colour."""
    began = time.process_time()
    shape = turbo.made(plain_prompt(*pair), seed)
    blank = torch.ones(config.size, config.size, 3)
    try:
        mesh = surface_of(shape, FINISH)
    except UnprojectError:
        return {"iou": 0.0, "solid": False, "seconds": time.process_time() - began}, blank
    colors = shape.surface_color(mesh.vertices, mesh.vertices, FINISH)
    seconds = time.process_time() - began
    mesh = Mesh(mesh.vertices, mesh.faces, vertex_colors=colors).with_smooth_normals()
    seen = RayMesh(mesh).render(orbit(config), background=1.0)
    best = max(
        (likeness(seen.rgb, seen.alpha, *real(pair, k, config)) for k in range(config.references)), key=lambda b: b[0]
    )
    judged = judge_views(judge, seen.rgb.movedim(-1, 1), Wanted(0, *pair, True))
    record = {"iou": best[0], "color_error": best[1], "solid": mesh.check().watertight, "seconds": seconds}
    return {**record, "two_fronts": judged["two_fronts"]}, seen.rgb[0]


def real(pair: tuple[str, str], number: int, config: TurboBench) -> tuple[Tensor, Tensor]:
    """(sRGB (8, H, W, 3), coverage (8, H, W, 1)) of an instance."""
    program = ObjectProgram(*pair, seed=TRUE_SEED + number)
    return true_looks(program, program.seed, orbit(config))


def likeness(rgb: Tensor, alpha: Tensor, true_rgb: Tensor, true_alpha: Tensor) -> tuple[float, float]:
    """(intersection over union of the silhouettes, mean absolute colour error where both are)."""
    mine, true = alpha > 0.5, true_alpha > 0.5
    both, either = mine & true, mine | true
    error = (rgb - true_rgb).abs().mean(-1, keepdim=True)[both]
    return float(both.sum() / either.sum().clamp_min(1)), float(error.mean()) if len(error) else 1.0


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The measures of one row."""
    coloured = [r["color_error"] for r in records if "color_error" in r]
    return {
        "iou": spread([r["iou"] for r in records]),
        "color_error": spread(coloured or [1.0]),
        "solid": share([r["solid"] for r in records]),
        "two_fronts": share([r.get("two_fronts", False) for r in records]),
        "seconds": spread([r["seconds"] for r in records]),
        **{key: round(float(np.mean([r[key] for r in records])), 1) for key in TRAINED if key in records[0]},
    }
