"""TriplaneTurbo on the embedded priors: K = 4 against K = 1 and against the network's own noise at equal updates.

Every setting trains adapters of its own from the packaged recipe with the same prompts, seeds and number of updates;
runs are kept under runs/bench, so that an interrupted one goes on. Shapes of noun-colour pairs that no training saw are
compared with exact renders of toybox instances, the nearest of several. One setting lacks the multi-view teacher: the
two-front rate has to rise.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.training.trainer import Trainer
from ..generate.finish import surface_of
from ..generate.lessons import Prompts
from ..generate.render_teacher import TeacherConfig
from ..generate.turbo_start import StartConfig
from ..generate.turbo_train import PRDConfig, PRDObjective
from ..geometry.cameras import Camera, orbit_distance
from ..geometry.meshes import Mesh
from ..geometry.raycast import RayMesh
from ..pipelines.drawn_mesh import FINISH
from ..scripts.turbo_recipe import TurboRecipe
from ..toybox.judge import Judge
from ..toybox.programs import ObjectProgram
from ..utils.configs import CONFIGS, load_config, read_yaml
from ..utils.errors import UnprojectError
from ..utils.pictures import grid, save_image
from .embedded_prior import heldout_pairs, plain_prompt
from .intervals import share, spread
from .runner import Context
from .text_to_mesh import AZIMUTHS, TRUE_SEED, Wanted, judge_views, true_looks

FULL_K, ONE, OWN, LONELY = "K = 4", "K = 1", "K = 4, the network's own noise", "K = 4, no multi-view teacher"
FOV_DEG, ELEVATION_DEG = 40.0, 15.0


@dataclass(frozen=True)
class TurboBench:
    """Sizes of the experiment."""

    updates: int = 100  # of every setting and seed
    seeds: tuple[int, ...] = (0,)
    heldout: int = 12  # noun-colour pairs
    references: int = 4  # instances, the nearest of which is compared
    size: int = 64  # px of the views
    volume_px: int = 48
    work: str = "runs/bench/triplane-turbo"


QUICK = TurboBench(updates=1, heldout=2, references=1, size=32, volume_px=24)


def run(context: Context) -> dict[str, Any]:
    """Every setting trained and measured; the table and a picture."""
    config = replace(QUICK, work=f"{QUICK.work}-quick") if context.quick else TurboBench()
    values = read_yaml(CONFIGS / "train" / "triplane-turbo.yaml")
    values.pop("objective")
    recipe = load_config(TurboRecipe, values)
    priors: dict[str, Prior] = {name: load_prior(name) for name in {context.prior, recipe.model.joint.prior}}
    pairs, judge = heldout_pairs(config.heldout), Judge.from_pretrained()
    table, shown = [], []
    for name, model in settings(recipe.model, config).items():
        records: list[dict[str, Any]] = []
        for seed in config.seeds:
            objective, cost = trained(name, model, recipe, context.prior, priors, config, seed)
            made = [measured(objective, pair, judge, config, seed) for pair in pairs]
            records += [{**record, **cost} for record, _ in made]
        shown += [views for _, views in made[:6]]
        table.append({"setting": name, **summary(records)})
    save_image(context.picture(), grid(shown, columns=min(6, len(pairs))))
    return {"config": asdict(config), "seeds": list(config.seeds), "table": table, "recipe": asdict(recipe.model)}


def settings(model: PRDConfig, config: TurboBench) -> dict[str, PRDConfig]:
    """The recipe at the sizes of the experiment, with teachers from the first update, and what is changed in it."""
    base = replace(
        model,
        schedule=max(config.updates, 1),
        volume_px=config.volume_px,
        start=StartConfig(),
        taught=0,
        mesh=(0.0,),
        normals=TeacherConfig(),
    )
    single = replace(base.turbo, steps=1)
    lonely = replace(base, joint=TeacherConfig())
    return {
        FULL_K: base,
        ONE: replace(base, turbo=single),
        OWN: replace(base, fresh=False),
        LONELY: lonely,
    }


def trained(
    name: str,
    model: PRDConfig,
    recipe: TurboRecipe,
    prior: str,
    priors: dict[str, Prior],
    config: TurboBench,
    seed: int,
) -> tuple[PRDObjective, dict[str, Any]]:
    """(a trained generator with its averaged weights, processor seconds and network rows)."""
    trainer_config = replace(recipe.trainer, steps=config.updates, batch=1, seed=seed, preview_every=0)
    teachers = {key: priors[one.prior] for key, one in model.teachers.items() if one.prior}
    objective = PRDObjective(model, priors[prior], teachers, seed=seed)
    folder = Path(config.work) / f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}"
    before, began = sum(one.nfe for one in priors.values()), time.process_time()
    trainer = Trainer(trainer_config, objective, Prompts(recipe.prompts.read()), folder, "cpu")
    trainer.run(resume=True)
    rows = sum(one.nfe for one in priors.values()) - before + objective.turbo.asked.nfe
    with trainer.averaged():
        weights = {name: value.clone() for name, value in objective.turbo.state().items()}
    objective.turbo.take(weights, name)
    return objective, {"train_seconds": time.process_time() - began, "train_rows": rows}


def orbit(config: TurboBench) -> Camera:
    """Eight sides."""
    return Camera.orbit(AZIMUTHS, ELEVATION_DEG, orbit_distance(0.95, FOV_DEG), FOV_DEG, config.size)


def measured(
    objective: PRDObjective, pair: tuple[str, str], judge: Judge, config: TurboBench, seed: int
) -> tuple[dict[str, Any], Tensor]:
    """(how near a shape is to the real thing, its front) for one noun and colour."""
    began, turbo = time.process_time(), objective.turbo
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
        "train_seconds": round(float(np.mean([r["train_seconds"] for r in records])), 1),
        "train_rows": int(np.mean([r["train_rows"] for r in records])),
    }
