"""Splats fitted to toys photographed from all around: pictures held out, cost, and meshes against the true surface.

Density control and relocation fit the same pictures in the same number of steps. Poses that are a little wrong are
fitted as they are and with poses that may move. Seconds are processor seconds of all threads.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ..generate.splat_fit import SplatFit
from ..geometry.meshes import Mesh
from ..geometry.metrics import compare_meshes
from ..geometry.posed import PosedImages, moved, pose_errors
from ..geometry.solid import faults, make_solid
from ..geometry.splats.drawing import SplatView
from ..geometry.splats.surface import SurfaceConfig, surface_of
from ..geometry.turntable import film
from ..pipelines.images_to_splats import load_recipe
from ..toybox.orbits import posed_orbit, toy, true_mesh
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .intervals import digits, share, spread
from .runner import Context

RECIPES = ("default", "mcmc")
METHODS: tuple[Literal["tsdf", "levels"], ...] = ("tsdf", "levels")
WRONG = (0.01, 0.01)  # radians, and extents: deviations of disturbed poses
SHOWN = 3  # held-out view of the picture


@dataclass(frozen=True)
class FitBench:
    """Sizes of the experiment."""

    toys: tuple[str, ...] = ("a red chair", "a blue dog", "a green truck")
    views: int = 100
    size: int = 128
    steps: int | None = None  # None: the recipe's
    resolution: int = 160  # of the meshes
    fused: tuple[int, int] = (64, 320)  # views whose depth is fused, and their pixels
    samples: int = 50_000  # points of each surface
    poses: bool = True  # also disturbed ones, of the first toy


QUICK = FitBench(("a red chair",), 16, 48, 60, 40, (12, 64), 2000, False)


def run(context: Context) -> dict[str, Any]:
    """Fits every toy by every recipe, then one with wrong poses."""
    config = QUICK if context.quick else FitBench()
    found: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in RECIPES}
    tiles: list[np.ndarray] = []
    for index, words in enumerate(config.toys):
        scene = toy(words, context.seed + index)
        pictures, truth = posed_orbit(scene, config.views, config.size), outer(true_mesh(scene))
        shown = []
        for recipe in RECIPES:
            fitted, facts = fit(pictures, recipe, config, context.seed)
            found[recipe].append({"toy": words, **facts, **meshes(fitted, truth, config, context.seed)})
            shown.append(
                film(SplatView(fitted.cloud), fitted.planes(fitted.held.cameras[[SHOWN % len(fitted.held)]]))[0]
            )
        held = pictures.split()[1]
        tiles += [held.picture([SHOWN % len(held)], 1.0)[0].numpy(), *shown]
    table = [summary(recipe, rows) for recipe, rows in found.items()]
    if config.poses:
        table += wrong_poses(toy(config.toys[0], context.seed), config, context.seed)
    save_image(context.picture(), grid(tiles, 1 + len(RECIPES), labels=("true", *RECIPES) * len(config.toys)))
    return {"config": asdict(config), "seeds": [context.seed], "table": table, "fits": found}


def outer(mesh: Mesh) -> Mesh:
    """The surface of the solid that overlapping parts make together; as it is where they make none."""
    try:
        return make_solid(mesh)[0]
    except InputError:
        return mesh


def fit(
    pictures: PosedImages, recipe: str, config: FitBench, seed: int, **changes: Any
) -> tuple[SplatFit, dict[str, Any]]:
    """A fit, and what it cost and reached."""
    steps = {} if config.steps is None else {"steps": config.steps}
    began = time.process_time()
    fitted = SplatFit(pictures, load_recipe(recipe, checkpoint_every=0, **steps, **changes), seed)
    fitted.run()
    seconds = time.process_time() - began
    measured = fitted.measured(fitted.held)
    facts = {name: float(np.mean([one[name] for one in measured])) for name in ("psnr", "ssim")}
    return fitted, {**facts, "splats": len(fitted.cloud), "steps": fitted.config.steps, "seconds": seconds}


def meshes(fitted: SplatFit, truth: Mesh, config: FitBench, seed: int) -> dict[str, Any]:
    """F-score at 1 % of the diagonal, and whether it is a solid, by both ways to a mesh; 0 where there is none."""
    facts: dict[str, Any] = {}
    for method in METHODS:
        views, px = config.fused
        settings = SurfaceConfig(method=method, resolution=config.resolution, views=views, size=px)
        began = time.process_time()
        try:
            mesh = surface_of(fitted.cloud, settings)
            score = compare_meshes(mesh, truth, config.samples, generator(seed))["f_score"]
            facts |= {
                f"f_score_{method}": score,
                f"solid_{method}": not faults(mesh),
                f"faces_{method}": len(mesh.faces),
            }
        except InputError as error:
            facts |= {f"f_score_{method}": 0.0, f"solid_{method}": False, f"why_{method}": str(error)}
        facts[f"seconds_{method}"] = digits(time.process_time() - began)
    return facts


def summary(recipe: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"fit": recipe}
    for name in ("psnr", "ssim", "splats", "seconds", *(f"f_score_{m}" for m in METHODS)):
        row[name] = spread([float(one[name]) for one in rows])
    return row | {f"solid_{m}": share([one[f"solid_{m}"] for one in rows]) for m in METHODS}


def wrong_poses(scene: Any, config: FitBench, seed: int) -> list[dict[str, Any]]:
    """Rows of fits to disturbed poses, as they are and refined; held-out pictures keep the true ones."""
    pictures = posed_orbit(scene, config.views, config.size)
    steps = torch.randn(len(pictures), 6, generator=generator(seed))
    extent = pictures.extent
    steps *= torch.tensor([WRONG[0]] * 3 + [WRONG[1] * extent] * 3)
    steps[::8] = 0.0  # held out
    disturbed = replace(pictures, cameras=moved(pictures.cameras, steps))
    truth, rows = pictures.split()[0].cameras, []
    for name, refine in (("default, wrong poses", False), ("default, wrong poses refined", True)):
        fitted, facts = fit(disturbed, "default", config, seed, refine_poses=refine)
        with torch.no_grad():
            angle, shift = pose_errors(fitted.cameras(list(range(len(truth)))), truth)
        row = {"fit": name, **{key: digits(float(facts[key])) for key in ("psnr", "ssim", "splats", "seconds")}}
        rows.append(
            {**row, "degrees_off": digits(float(angle.rad2deg().mean())), "metres_off": digits(float(shift.mean()))}
        )
    return rows
