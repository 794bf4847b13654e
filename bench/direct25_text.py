"""Direct2.5 from text beside score distillation: the same prompts and seeds, shapes, diversity, cost.

Shapes are compared with the nearest of several toybox instances of the same noun and colour, and judged from eight
sides. Diversity is the mean chamfer distance between what different seeds made of one prompt. Where a student draws the
maps, a third way leaves that to the prior. The rows wait for a prior that draws normal maps: the
experiment refuses others by name.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..core.priors import Prior, load_prior, multi_view_sibling
from ..generate.view_normals import NormalsDraw, check_draws_normals
from ..generate.view_texture import NormalTexture
from ..geometry.cameras import Camera, orbit_distance
from ..geometry.meshes import Mesh
from ..geometry.metrics import compare_meshes
from ..geometry.raycast import RayMesh
from ..geometry.solid import examine
from ..pipelines.direct25_mesh import Direct25Output, Direct25TextToMesh, find_weights
from ..pipelines.map_student import USUAL, map_student
from ..pipelines.text_to_mesh import MadeMesh, TextToMesh
from ..toybox.judge import Judge
from ..utils.errors import InputError, UnprojectError
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .intervals import share, spread
from .runner import Context
from .text_to_mesh import MeshBench, Wanted, judge_views, judged_views, nearest_reference, prompts

DISTILLED, DIRECT, PLAIN = "score distillation", "direct25", "direct25, maps by the prior"
FOV_DEG = 32.0


@dataclass(frozen=True)
class TextBench:
    """Sizes of the experiment."""

    prompts: int = 8
    seeds: int = 2
    steps: int | None = None  # of score distillation; None: the recipe's
    references: int = 6  # toybox instances the nearest of which is compared
    samples: int = 20_000  # points a mesh between seeds
    pictured: int = 8


QUICK = TextBench(1, 2, 6, references=1, samples=2000, pictured=1)


def run(context: Context) -> dict[str, Any]:
    """All ways on all prompts and seeds. Raises InputError for a prior that draws no normal maps."""
    config = QUICK if context.quick else TextBench()
    prior = drawer(context.prior)
    found = find_weights(context.prior, None)
    texture = None if found is None else NormalTexture.load(found, prior)
    direct = Direct25TextToMesh(prior, texture=texture, student=map_student(context.prior, prior, USUAL))
    distil = TextToMesh(prior)
    ways: dict[str, Callable[[str, int], MadeMesh]] = {
        DISTILLED: lambda words, seed: distil(words, seed=seed, num_inference_steps=config.steps),
        DIRECT: lambda words, seed: direct(words, seed=seed),
    }
    if direct.student is not None:
        plain = Direct25TextToMesh(prior, texture=texture)
        ways[PLAIN] = lambda words, seed: plain(words, seed=seed)
    wanted = prompts(MeshBench(test_prompts=config.prompts, heldout_prompts=0))
    seeds, judge = [context.seed + k for k in range(config.seeds)], Judge.from_pretrained()
    table, shown = [], []
    for way, make in ways.items():
        records = [[measured(make, one, seed, config, judge) for seed in seeds] for one in wanted]
        table.append({"way": way, **summary(records, config, context.seed)})
        shown += [pictured(per_seed[0]["mesh"]) for per_seed in records[: config.pictured]]
    for row in table[1:]:
        row["time_share"] = round(row["seconds"]["mean"] / table[0]["seconds"]["mean"], 4)
    save_image(context.picture(), grid(shown, columns=min(config.pictured, len(wanted))))
    reads = "an adapter that reads normals" if found else "renders of the bare mesh, redrawn"
    return {"config": asdict(config), "seeds": seeds, "table": table, "texture": reads}


def drawer(name: str) -> Prior:
    """The prior of several views that a name means. Raises InputError where it draws no normal maps."""
    prior = load_prior(multi_view_sibling(name) or name)
    try:
        check_draws_normals(prior, NormalsDraw().words)
    except InputError as error:
        raise InputError(f"the rows of direct25-text wait for a prior that draws normal maps. {error}") from error
    return prior


def measured(
    make: Callable[[str, int], MadeMesh], one: Wanted, seed: int, config: TextBench, judge: Judge
) -> dict[str, Any]:
    """A mesh, how near it is to the nearest instance, what the judge sees in it, and its cost; a failed run has no
    mesh."""
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what paints, which the record tells once
            made = make(one.prompt, seed)
    except UnprojectError as error:  # a collapse is a result
        return {"mesh": None, "failed": str(error), "seconds": time.process_time() - began}
    record: dict[str, Any] = {"mesh": made.mesh, "seconds": time.process_time() - began, "nfe": made.nfe}
    record |= nearest_reference(made.mesh, one, config.references) | {"solid": not examine(made.mesh).faults}
    seen = judge_views(judge, judged_views(made.mesh, MeshBench()), one)
    record |= {"noun": seen["judged_noun"] == one.noun, "colour": seen["judged_colour"] == one.colour}
    record["two_fronts"] = seen["two_fronts"]
    if isinstance(made, Direct25Output):
        record |= {"angle_deg": made.agreement["angle_deg"], "iou": made.agreement["iou"]}
    return record


def summary(records: list[list[dict[str, Any]]], config: TextBench, seed: int) -> dict[str, Any]:
    """The measures of one row, of prompts by seeds. Raises UnprojectError where nothing came out."""
    every = [record for per_seed in records for record in per_seed]
    made = [record for record in every if record["mesh"] is not None]
    if not made:
        raise UnprojectError(f"no mesh came out of {len(every)} runs: {every[0]['failed']}")
    row = {name: spread([r[name] for r in made]) for name in ("f_score", "chamfer", "nfe")}
    row |= {name: spread([r[name] for r in made]) for name in ("angle_deg", "iou") if name in made[0]}
    apart = [distance for per_seed in records for distance in between(per_seed, config.samples, seed)]
    row |= {"diversity": spread(apart)} if apart else {}
    row |= {name: share([bool(r.get(name)) for r in every]) for name in ("noun", "colour", "solid")}
    row |= {"two_fronts": share([r["two_fronts"] for r in made]), "seconds": spread([r["seconds"] for r in every])}
    return {**row, "failed": len(every) - len(made)}


def between(records: list[dict[str, Any]], samples: int, seed: int) -> list[float]:
    """Chamfer distances between the meshes of one prompt."""
    meshes = [record["mesh"] for record in records if record["mesh"] is not None]
    pairs = itertools.combinations(meshes, 2)
    return [compare_meshes(a, b, samples, generator(seed))["chamfer"] for a, b in pairs]


def pictured(mesh: Mesh | None, size: int = 128) -> np.ndarray:
    """A quarter from the front, as painted; white where there is nothing."""
    if mesh is None:
        return np.ones((size, size, 3), np.float32)
    camera = Camera.orbit(35.0, 15.0, orbit_distance(0.95, FOV_DEG), FOV_DEG, size)
    rgb: torch.Tensor = RayMesh(mesh).render(camera, ("rgb",), 1.0, supersample=2).rgb[0]
    return rgb.clamp(0, 1).numpy()
