"""Text to mesh as the command makes them: 48 test prompts and 16 held-out noun-colour pairs, judged from eight sides.

Meshes are made by a worker process with one thread and kept under runs/bench, so that an interrupted run goes on where
it was; the judge then reads the views of all of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..geometry.cameras import Camera, orbit_distance
from ..geometry.meshes import Mesh
from ..geometry.metrics import compare_meshes
from ..geometry.raycast import RayMesh
from ..geometry.solid import faults
from ..geometry.validate import validate_glb
from ..toybox.captions import Meaning, Phrase, say
from ..toybox.judge import Judge
from ..toybox.objects import build
from ..toybox.programs import ObjectProgram
from ..toybox.render import Renderer
from ..toybox.scenes import object_scene
from ..utils.configs import to_dict
from ..utils.errors import UnprojectError
from ..utils.files import read_json, write_json
from ..utils.pictures import grid, load_image, save_image
from ..utils.threads import pin
from .embedded_prior import heldout_pairs, test_programs
from .intervals import share, spread
from .runner import Context

AZIMUTHS = tuple(range(0, 360, 45))
QUADRANTS = (0, 90, 180, 270)
TRUE_SEED = 1000  # of the first instance that is judged as the meshes are


@dataclass(frozen=True)
class MeshBench:
    """Sizes of the experiment."""

    test_prompts: int = 48
    heldout_prompts: int = 16
    steps: int | None = None  # None: the recipe's
    workers: int = 1
    view_size: int = 64
    elevation_deg: float = 15.0
    references: int = 6  # toybox instances of the same noun the nearest of which is compared
    work: str = "runs/bench/text-to-mesh"


@dataclass(frozen=True)
class Wanted:
    """One prompt and what it means."""

    index: int
    noun: str
    colour: str
    heldout: bool

    @property
    def prompt(self) -> str:
        return say(Meaning((Phrase(self.noun, self.colour),)))


def prompts(config: MeshBench) -> list[Wanted]:
    """Nouns and colours of the first test programs with distinct nouns, then held-out pairs."""
    chosen: dict[str, str] = {}
    for program in test_programs(40 * config.test_prompts):
        if len(chosen) < config.test_prompts:
            chosen.setdefault(program.noun, program.colour)
    wanted = [Wanted(i, n, c, False) for i, (n, c) in enumerate(chosen.items())]
    pairs = heldout_pairs(config.heldout_prompts, seed=1)
    return wanted + [Wanted(len(wanted) + i, n, c, True) for i, (n, c) in enumerate(pairs)]


def fingerprint(pipe: Any, config: MeshBench) -> str:
    """Changes with a pipeline's weights and settings and with the sizes, so that old meshes are never taken for new
    ones."""
    from ..core.training.latents import weights_hash

    settings = getattr(pipe, "recipe", None) or pipe.config
    asked = [pipe.prior, *filter(None, [getattr(pipe, "painter", None)])]
    nets = [weights_hash(net) for prior in asked for net in prior.modules().values()]
    described = json.dumps([nets, to_dict(settings), config.steps, config.view_size], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Drawn:
    """What a way of making meshes gave for one prompt."""

    mesh: Mesh
    calls: int  # network rows
    views: torch.Tensor | None = None  # (8, 3, H, W), where the mesh does not wear its own colours


Make = Callable[[Wanted, int], Drawn]  # of a prompt and a seed


def make_one(wanted: Wanted, prior: str, seed: int, config: MeshBench, folder: str) -> dict[str, Any]:
    """Makes, measures and keeps one mesh and its views; returns its record (an earlier one when it is there)."""
    pin(1)
    return kept_one(_maker(prior, config.steps), wanted, seed, config, Path(folder) / f"{wanted.index:03d}")


@functools.cache
def _usual(prior: str) -> Any:
    """The pipeline of the command, loaded once a process."""
    from ..pipelines.shortcuts import mesh_maker

    return mesh_maker(prior)


def _maker(prior: str, steps: int | None) -> Make:
    pipe = _usual(prior)

    def make(wanted: Wanted, seed: int) -> Drawn:
        out = pipe(wanted.prompt, seed=seed, num_inference_steps=steps)
        return Drawn(out.mesh, out.nfe)

    return make


def kept_one(make: Make, wanted: Wanted, seed: int, config: MeshBench, place: Path) -> dict[str, Any]:
    """What a way makes of a prompt, measured and kept in a folder of its own; an earlier record when it is there."""
    if (place / "result.json").exists():
        return dict(read_json(place / "result.json"))
    record: dict[str, Any] = {**asdict(wanted), "prompt": wanted.prompt, "seed": seed}
    began = time.perf_counter()
    try:
        out = make(wanted, seed)
    except UnprojectError as error:  # a collapse is a result
        record |= {"failed": str(error), "seconds": time.perf_counter() - began}
        write_json(place / "result.json", record)
        return record
    record |= {"seconds": time.perf_counter() - began, "forwards": out.calls, "report": out.mesh.check().to_dict()}
    out.mesh.save(place / "mesh.glb")
    checked = validate_glb(place / "mesh.glb")
    record["validator"] = None if checked is None else {k: checked[k] for k in ("errors", "warnings")}
    views = judged_views(out.mesh, config) if out.views is None else out.views
    save_image(place / "views.png", grid([v.permute(1, 2, 0).numpy() for v in views], columns=len(AZIMUTHS), pad=0))
    record |= {"solid": not faults(out.mesh), **nearest_reference(out.mesh, wanted, config.references)}
    record["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_json(place / "result.json", record)
    return record


def judged_views(mesh: Mesh, config: MeshBench) -> torch.Tensor:
    """Eight views (8, 3, H, W) over light grey, as the texture is (the prior paints its shading)."""
    background = torch.full((3,), 0.85)
    out = RayMesh(mesh).render(cameras(config), ("rgb", "alpha"), background, supersample=2)
    return out.rgb.permute(0, 3, 1, 2).clamp(0, 1)


def cameras(config: MeshBench) -> Camera:
    """The eight sides."""
    distance = orbit_distance(0.95, 32.0)
    return Camera.orbit(list(map(float, AZIMUTHS)), config.elevation_deg, distance, 32.0, config.view_size)


def kept_views(place: Path) -> torch.Tensor:
    """The views (8, 3, H, W) that make_one left."""
    strip = torch.from_numpy(load_image(place / "views.png"))
    return torch.stack(strip.chunk(len(AZIMUTHS), dim=1)).permute(0, 3, 1, 2)


def true_views(wanted: Wanted, config: MeshBench, seed: int) -> torch.Tensor:
    """The same eight sides (8, 3, H, W) of a toybox instance: what the judge makes of the real thing."""
    return true_looks(ObjectProgram(wanted.noun, wanted.colour, seed=seed), seed, cameras(config))[0].movedim(-1, 1)


def true_looks(program: ObjectProgram, light: int, orbit: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    """(sRGB (B, H, W, 3), coverage (B, H, W, 1)) of a toybox instance in the light and before the background of a
    seed."""
    renderer = Renderer(object_scene(program, np.random.default_rng(light)))
    poses = zip(orbit.c2w.numpy().astype(float), orbit.K.numpy().astype(float), strict=True)
    drawn = [renderer.render(c2w, K, orbit.width) for c2w, K in poses]
    rgb, alpha = (torch.from_numpy(np.stack([getattr(d, name) for d in drawn])).float() for name in ("rgb", "alpha"))
    return rgb, alpha.reshape(*rgb.shape[:3], 1)


def judge_views(judge: Judge, views: torch.Tensor, wanted: Wanted) -> dict[str, Any]:
    """Share of views and verdict of all views together for noun and colour, and the quadrants that show a front.

    A view shows a front when the judge reads its azimuth as within 45 degrees of it: whether a front is visible at all
    is no question for views from the side, which see half of it.
    """
    verdict = judge(views)
    noun = verdict.noun_probs.mean(0).argmax().item()
    colour = verdict.colour_probs.mean(0).argmax().item()
    front = (((verdict.azimuth_deg + 180) % 360 - 180).abs() <= 45).tolist()
    seen = [front[AZIMUTHS.index(q)] for q in QUADRANTS]
    return {
        "judged_noun": verdict.answers["noun"][int(noun)],
        "judged_colour": verdict.answers["colour"][int(colour)],
        "noun_views": float(np.mean([n == wanted.noun for n in verdict.nouns])),
        "colour_views": float(np.mean([c == wanted.colour for c in verdict.colours])),
        "front_quadrants": [q for q, s in zip(QUADRANTS, seen, strict=True) if s],
        "two_fronts": bool((seen[0] and seen[2]) or (seen[1] and seen[3])),
    }


def nearest_reference(mesh: Mesh, wanted: Wanted, count: int, scout: int = 10_000) -> dict[str, float]:
    """Chamfer distance and F-score to that of `count` toybox instances which `scout` points find to be the nearest,
    and its number."""
    references = []
    for seed in range(count):
        toy = build(ObjectProgram(wanted.noun, wanted.colour, seed=seed))
        references.append(Mesh(torch.from_numpy(toy.vertices), torch.from_numpy(toy.faces)))
    rough = [compare_meshes(mesh, one, scout, torch.Generator().manual_seed(0))["chamfer"] for one in references]
    nearest = int(np.argmin(rough))
    return {**compare_meshes(mesh, references[nearest], generator=torch.Generator().manual_seed(0)), "nearest": nearest}


def verdicts(name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the judge says, as the first part of a row."""
    return {
        "prompts": name,
        "noun": share([r.get("judged_noun") == r["noun"] for r in records]),
        "colour": share([r.get("judged_colour") == r["colour"] for r in records]),
        "two_fronts": share([bool(r.get("two_fronts", True)) for r in records]),
    }


def summary(name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table."""
    made = [r for r in records if "failed" not in r]
    validated = [r["validator"] for r in made if r["validator"] is not None]
    return {
        **verdicts(name, records),
        "watertight": share([bool(r.get("report", {}).get("watertight", False)) for r in records]),
        "largest_component": spread([r["report"]["largest_component_share"] for r in made]),
        "chamfer": spread([r["chamfer"] for r in made]),
        "f_score": spread([r["f_score"] for r in made]),
        "validator_errors": sum(v["errors"] for v in validated),
        "validator_warnings": sum(v["warnings"] for v in validated),
        "validated": len(validated),
        "failed": len(records) - len(made),
        "seconds": spread([r["seconds"] for r in made]),
        "peak_memory_mb": spread([r["peak_memory_mb"] for r in made]),
        "forwards": spread([r["forwards"] for r in made]),
    }


def run(context: Context) -> dict[str, Any]:
    """Makes every mesh that is not there yet, then the table and one picture of all of them."""
    config = MeshBench(2, 1, 20, references=2, work="runs/bench/text-to-mesh-quick") if context.quick else MeshBench()
    wanted = prompts(config)
    pipe = _usual(context.prior)
    folder = str(Path(config.work) / fingerprint(pipe, config))
    seeds = [context.seed + w.index for w in wanted]
    n = len(wanted)
    with ProcessPoolExecutor(config.workers) as pool:
        records = list(pool.map(make_one, wanted, [context.prior] * n, seeds, [config] * n, [folder] * n))
    judge = Judge.from_pretrained()
    for one, record in zip(wanted, records, strict=True):
        if "failed" not in record:
            record |= judge_views(judge, kept_views(Path(folder) / f"{one.index:03d}"), one)
    rows = [
        summary("test", [r for r in records if not r["heldout"]]),
        summary("held-out", [r for r in records if r["heldout"]]),
    ]
    rows.append(summary("all", records))
    rows.append(verdicts("the toybox's own", [_true_record(judge, one, config) for one in wanted]))
    save_sheet(context.picture(), records, Path(folder))
    spent = sum(r["seconds"] for r in records)  # "seconds" of the record counts only what this run had to make
    made = {"made_by": type(pipe).__name__, "mesh_seconds": round(spent, 1), "meshes": records}
    return {"config": asdict(config), "seeds": seeds, "table": rows, **made}


def _true_record(judge: Judge, wanted: Wanted, config: MeshBench) -> dict[str, Any]:
    views = true_views(wanted, config, TRUE_SEED + wanted.index)
    return {**asdict(wanted), **judge_views(judge, views, wanted)}


def save_sheet(path: Path, records: list[dict[str, Any]], folder: Path) -> None:
    """Front quarter, side and back of every mesh, named."""
    tiles, labels = [], []
    for record in records:
        views = folder / f"{record['index']:03d}" / "views.png"
        if views.exists():
            strip = load_image(views)
            side = strip.shape[0]
            tiles.append(np.concatenate([strip[:, k * side : (k + 1) * side] for k in (1, 3, 5)], axis=1))
            labels.append(record["prompt"])
    if tiles:
        save_image(path, grid(tiles, columns=6, labels=labels))
