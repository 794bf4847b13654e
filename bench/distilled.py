"""Shapes optimised at a given number of network rows, and what the judge and the toybox say of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.priors import Prior
from ..generate.finish import surface_of
from ..generate.guides import make_guide
from ..generate.normal_guide import NormalGuide
from ..generate.optimise import Optimisation
from ..generate.views import draw_cameras
from ..geometry.representation import MeshConfig
from ..pipelines.text_to_shape import MeshRecipe
from ..toybox.judge import Judge
from ..utils.errors import UnprojectError
from ..utils.seeds import generator
from .text_to_mesh import MeshBench, Wanted, cameras, judge_views, nearest_reference, true_views

BEHIND = 0.85  # sRGB, grey behind what is judged
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the run, at which rows are counted
ROUGH = MeshConfig(resolution=64, visibility_views=24, faces=4000)


@dataclass
class Made:
    """One optimisation."""

    work: Optimisation | None  # None: it failed
    failed: str
    seconds: float
    nfe: int
    views: Tensor  # (8, 3, H, W), all grey where it failed


def rows_of_a_step(recipe: MeshRecipe, prior: Prior) -> float:
    """Network rows of a step, the mean over a run: inversions are longer where noise is much."""
    guide = make_guide(recipe.score, prior, "a red cube", None, recipe.optimise.views.views)
    draw = generator(0)
    camera = draw_cameras(recipe.optimise.views, recipe.optimise.guided_px, draw)
    images = torch.rand(camera.batch, 3, camera.height, camera.width, generator=draw)
    before = guide.nfe
    for share in SHARES:
        with torch.no_grad():
            guide(images, camera, share, draw)
            if guide.twin is not None:
                guide.twin.loss(draw)
    return (guide.nfe - before) / len(SHARES)


def at_rows(recipe: MeshRecipe, prior: Prior, rows: int) -> MeshRecipe:
    """The recipe with as many steps as so many network rows allow, which keeps no checkpoints."""
    steps = max(1, round(rows / rows_of_a_step(recipe, prior)))
    return replace(recipe, optimise=replace(recipe.optimise, steps=steps, checkpoint_every=0))


def made(recipe: MeshRecipe, prior: Prior, prompt: str, seed: int, size: int = 64, first: Made | None = None) -> Made:
    """Optimises, from a first stage's shape where one is given, whose cost counts; a collapse is a result."""
    if first is not None and first.work is None:
        return first
    views = recipe.optimise.views.views
    guide = make_guide(recipe.score, prior, prompt, None, views)
    normals = NormalGuide(recipe.normals, recipe.score, prior, prompt, views) if recipe.normals.used else None
    work = Optimisation(recipe.optimise, guide, seed, prior.device, normals=normals)
    began, failed, spent = time.perf_counter(), "", 0 if first is None else first.nfe
    if first is not None and first.work is not None:
        work.shape.restore(dict(first.work.shape.state_dict()), "the first stage")
        began -= first.seconds
    try:
        work.run()
    except UnprojectError as error:
        failed = str(error)
    took = time.perf_counter() - began
    if failed:
        return Made(None, failed, took, spent + work.nfe, torch.full((8, 3, size, size), BEHIND))
    return Made(work, "", took, spent + work.nfe, seen_of(work, size))


def seen_of(work: Optimisation, size: int) -> Tensor:
    """Eight sides (8, 3, H, W) over light grey."""
    return work.picture(cameras(MeshBench(view_size=size)), BEHIND).rgb.permute(0, 3, 1, 2).clamp(0, 1).cpu()


def chroma(views: Tensor, behind: float = BEHIND) -> float:
    """Mean of max - min over the channels of what differs from the grey background."""
    spread = views.amax(1) - views.amin(1)
    object_ = (views - behind).abs().amax(1) > 0.03
    return float(spread[object_].mean()) if bool(object_.any()) else 0.0


def judged(judge: Judge, one: Made, wanted: Wanted, true: Tensor) -> dict[str, Any]:
    """Verdicts, and the distance of its saturation to that of true renders (8, 3, H, W)."""
    found = judge_views(judge, one.views, wanted)
    found["right"] = found["judged_noun"] == wanted.noun and found["judged_colour"] == wanted.colour
    found["saturation_error"] = abs(chroma(one.views) - chroma(true))
    return {**found, "seconds": one.seconds, "nfe": one.nfe, "failed": one.failed}


def geometry(one: Made, wanted: Wanted, references: int = 2) -> dict[str, float]:
    """Chamfer distance and F-score to the nearest toybox instance; the worst where there is no surface."""
    worst = {"chamfer": 2.0, "f_score": 0.0}
    if one.work is None:
        return worst
    try:
        found = nearest_reference(surface_of(one.work.shape, ROUGH), wanted, references)
    except UnprojectError:
        return worst
    return {name: float(found[name]) for name in worst}


def true_of(wanted: Wanted, seed: int) -> Tensor:
    """Eight sides (8, 3, H, W) of a toybox instance, over light grey where nothing is."""
    return true_views(wanted, MeshBench(), seed)
