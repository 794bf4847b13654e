"""What may be saved where normal maps are drawn and fused, without losing the shape: steps, solvers, caches, fusion.

Maps of one seed are nearly the same object under every deterministic solver, so each setting is compared with what the
packaged one makes of the same seed; another seed says how far apart two meshes of a prompt are anyway.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from ..geometry.meshes import Mesh
from ..pipelines.direct25_mesh import Direct25TextToMesh
from ..pipelines.drawn_quality import drawn_with
from ..pipelines.mesh_quality import Drawn, spending
from ..toybox.judge import Judge
from ..utils.errors import UnprojectError
from .kept_shapes import kept, summary
from .text_to_mesh import MeshBench, Wanted, judge_views, judged_views, prompts

REFERENCE, OTHER_SEED = "as packaged", "as packaged, another seed"


@dataclass(frozen=True)
class DrawnBench:
    """Sizes of the experiment."""

    prompts: int = 6
    samples: int = 20_000  # points of a surface
    size: int = 64  # px of silhouettes
    steps: int | None = None  # of every drawing, for a quick look


@dataclass(frozen=True)
class Setting:
    """What is changed."""

    drawn: Drawn = field(default_factory=Drawn)
    shift: int = 0  # of the seed


def settings() -> dict[str, Setting]:
    """By name, the reference first; those of `--quality` as they are packaged."""
    return {
        REFERENCE: Setting(),
        OTHER_SEED: Setting(shift=1000),
        "12 steps": Setting(Drawn(steps=12)),
        "unipc, 12 steps": Setting(Drawn(steps=12, solver="unipc")),
        "unipc, 6 steps": Setting(Drawn(steps=6, solver="unipc")),
        "deep:3": Setting(Drawn(cache="deep:3")),
        "40 steps of fusion": Setting(Drawn(fusion=40)),
        "fast": Setting(spending().drawn.fast),
        "best": Setting(spending().drawn.best),
    }


def drawn_table(config: DrawnBench, judge: Judge, seed: int) -> list[dict[str, Any]]:
    """A row for every setting, of the same prompts and seeds; the prior draws the maps, whose steps are asked about."""
    pipe = Direct25TextToMesh.from_pretrained("toybox", student=None)
    packaged, references = pipe.config, dict[int, Mesh]()
    wanted = prompts(MeshBench(test_prompts=config.prompts, heldout_prompts=0))
    table = []
    for name, setting in settings().items():
        pipe.config = drawn_with(packaged, setting.drawn)
        rows = []
        for one in wanted:
            row, mesh = measured(pipe, one, seed + one.index + setting.shift, config, judge, references)
            if name == REFERENCE and mesh is not None:
                references[one.index] = mesh
            rows.append(row)
        table.append({"setting": name, **summary(rows)})
    return table


def measured(
    pipe: Direct25TextToMesh,
    one: Wanted,
    seed: int,
    config: DrawnBench,
    judge: Judge,
    references: dict[int, Mesh],
) -> tuple[dict[str, Any], Mesh | None]:
    """(record, mesh) of a prompt; the first mesh of a prompt is its own reference. A failed run is a result."""
    began = time.process_time()
    row: dict[str, Any] = {"right": False, "nfe": 0}
    mesh: Mesh | None = None
    with contextlib.suppress(UnprojectError):
        made = pipe(one.prompt, seed=seed, num_inference_steps=config.steps)
        mesh, row["nfe"] = made.mesh, made.nfe
    row["seconds"] = time.process_time() - began
    reference = references.get(one.index, mesh)
    if reference is not None:
        row |= kept(mesh, reference, config.samples, config.size)
    if mesh is not None:
        seen = judge_views(judge, judged_views(mesh, MeshBench()), one)
        row["right"] = seen["judged_noun"] == one.noun and seen["judged_colour"] == one.colour
    return row, mesh
