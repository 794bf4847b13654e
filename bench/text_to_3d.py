"""Every way from words to a mesh in one table: same prompts, same judge, same finish, and real instances as ceiling.

A way is an entry of WAYS: its name and what loads it, a function of the prior's name that gives a function of a prompt
and a seed. One that raises InputError when it is loaded, for want of weights, is a row that says what it waits for.
Every way runs in a process of its own, whose peak memory is measured; meshes are kept under runs/bench, so that an
interrupted run goes on.

texture_psnr compares the pictures of the mesh, which no light is added to, with the nearest toybox instance lit anew by
several lights, where both are seen, and takes the light that agrees best: textures hold whatever light was painted.
All ways together take about 25 minutes of one core, nine of them score distillation.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.meshes import Mesh
from ..geometry.raycast import RayMesh
from ..toybox.judge import Judge
from ..toybox.objects import build
from ..toybox.programs import ObjectProgram
from ..toybox.reading import read_picture
from ..utils.errors import InputError
from ..utils.files import weights_root, write_json
from ..utils.pictures import grid, load_image, save_image
from .intervals import share, spread
from .runner import Context, helper
from .score_distillation import diversity
from .text_to_mesh import (
    TRUE_SEED,
    Drawn,
    Make,
    MeshBench,
    Wanted,
    cameras,
    fingerprint,
    judge_views,
    kept_one,
    kept_views,
    prompts,
    true_looks,
    true_views,
)

REAL, OPTIMISED = "real instances", "score distillation"
SIDES = (1, 3, 5)  # of the eight views, shown


@dataclass(frozen=True)
class Way:
    """One way from words to a mesh."""

    name: str
    load: Callable[[str], Make]  # of the prior's name; InputError: what it needs is not there


@dataclass(frozen=True)
class Text3dBench:
    """Sizes of the experiment."""

    meshes: MeshBench
    diverse: int = 2  # prompts that are made with several seeds
    seeds: int = 3  # of each of them
    lights: int = 4  # in which the truth is lit
    refine: int = 15  # steps of score distillation from the planes
    work: str = "runs/bench/text-to-3d"


FULL = Text3dBench(MeshBench(test_prompts=6, heldout_prompts=2))
QUICK = Text3dBench(MeshBench(1, 0, 6, view_size=64, references=1), 1, 1, 1, 1, "runs/bench/text-to-3d-quick")


def of_pipeline(load: Callable[[str], Any], **settings: Any) -> Callable[[str], Make]:
    """A way out of what loads a pipeline that is called with a prompt and a seed."""

    def loaded(prior: str) -> Make:
        pipe = load(prior)

        def make(wanted: Wanted, seed: int) -> Drawn:
            out = pipe(wanted.prompt, seed=seed, **settings)
            return Drawn(out.mesh, out.nfe)

        return make

    return loaded


def optimiser(prior: str) -> Any:
    """Score distillation."""
    from ..pipelines.text_to_mesh import TextToMesh

    return TextToMesh.from_pretrained(prior)


def planes(prior: str) -> Any:
    """TriplaneTurbo."""
    from ..pipelines.turbo_mesh import TurboTextToMesh

    return TurboTextToMesh.from_pretrained(prior)


def one_pass(prior: str) -> Any:
    """Amortised score distillation."""
    from ..pipelines.amortised_mesh import AmortisedTextToMesh

    return AmortisedTextToMesh.from_pretrained(prior)


def maps(prior: str) -> Any:
    """Direct2.5."""
    from ..pipelines.direct25_mesh import Direct25TextToMesh

    return Direct25TextToMesh.from_pretrained(prior)


def pictured(config: MeshBench) -> Callable[[str], Make]:
    """Meshes of the front of toybox instances, as pictures with their masks, those of the row of instances."""

    def load(prior: str) -> Make:
        from ..pipelines.image_to_mesh import ImageToMesh

        pipe = ImageToMesh.from_pretrained(prior, reader=read_picture)

        def make(wanted: Wanted, seed: int) -> Drawn:
            program = ObjectProgram(wanted.noun, wanted.colour, seed=TRUE_SEED + seed)
            rgb, alpha = true_looks(program, TRUE_SEED + seed, cameras(config)[0])
            picture, mask = ((255 * one).round().byte().numpy() for one in (rgb[0], alpha[0, ..., 0]))
            out = pipe(picture, mask, seed=seed, elevation_deg=config.elevation_deg)
            return Drawn(out.mesh, sum(out.nfe.values()))

        return make

    return load


def generators(prior: str) -> str:
    """Changes with the weights of what draws shapes, so that old meshes are never taken for new ones."""
    found = hashlib.sha256()
    for path in sorted(weights_root().glob(f"{prior}-*/**/*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()[:8]


def instances(config: MeshBench) -> Callable[[str], Make]:
    """Toybox instances of the prompts, no two of which are compared with each other's own."""

    def make(wanted: Wanted, seed: int) -> Drawn:
        toy = build(ObjectProgram(wanted.noun, wanted.colour, seed=TRUE_SEED + seed))
        mesh = Mesh(torch.from_numpy(toy.vertices), torch.from_numpy(toy.faces))
        return Drawn(mesh, 0, true_views(wanted, config, TRUE_SEED + seed))

    return lambda prior: make


def ways(config: Text3dBench) -> dict[str, Way]:
    """All of them by name, the ceiling first."""
    steps = config.meshes.steps
    listed = (
        Way(REAL, instances(config.meshes)),
        Way(OPTIMISED, of_pipeline(optimiser, num_inference_steps=steps)),
        Way("direct25", of_pipeline(maps)),
        Way("turbo", of_pipeline(planes)),
        Way("turbo, refined", of_pipeline(planes, refine=config.refine)),
        Way("amortised", of_pipeline(one_pass)),
        Way("image-to-mesh from a render", pictured(config.meshes)),
    )
    return {way.name: way for way in listed}


def jobs(config: Text3dBench, seed: int) -> list[tuple[Wanted, int]]:
    """Every prompt with the first seed, the first ones with several."""
    wanted = prompts(config.meshes)
    more = [(one, seed + k) for one in wanted[: config.diverse] for k in range(1, config.seeds)]
    return [*((one, seed) for one in wanted), *more]


@functools.cache
def _loaded(name: str, prior: str, config: Text3dBench) -> Make:
    """A way that is ready, once a process."""
    return ways(config)[name].load(prior)


def waits_for(name: str, prior: str, config: Text3dBench) -> str:
    """What a way lacks, in words; empty where it is ready."""
    try:
        _loaded(name, prior, config)
    except InputError as error:
        return " ".join(str(error).split()).split(" and give ")[0]
    return ""


def make_one(name: str, wanted: Wanted, seed: int, prior: str, config: Text3dBench, place: str) -> dict[str, Any]:
    """The record of one mesh of a way, made when it is not there."""
    folder = Path(place)
    record = kept_one(_loaded(name, prior, config), wanted, seed, config.meshes, folder)
    if "failed" in record or "texture_psnr" in record:
        return record
    mesh = Mesh.load(folder / "mesh.glb")
    record["texture_psnr"] = texture_psnr(kept_views(folder), mesh, wanted, int(record["nearest"]), config)
    write_json(folder / "result.json", record)
    return record


def texture_psnr(views: Tensor, mesh: Mesh, wanted: Wanted, nearest: int, config: Text3dBench) -> float:
    """dB of the views (8, 3, H, W) of a mesh against a toybox instance by its number, in the best of several lights,
    where both are seen; 0 where nothing is."""
    orbit = cameras(config.meshes)
    mine = RayMesh(mesh).render(orbit, ("alpha",)).alpha > 0.5
    program, found = ObjectProgram(wanted.noun, wanted.colour, seed=nearest), [0.0]
    for light in range(config.lights):
        rgb, alpha = true_looks(program, light, orbit)
        both = (mine & (alpha > 0.5))[..., 0]
        if bool(both.any()):
            error = (views.movedim(1, -1) - rgb)[both].square().mean()
            found.append(float(-10 * torch.log10(error.clamp_min(1e-10))))
    return max(found)


def made_by(name: str, prior: str, seed: int, config: Text3dBench, root: Path) -> list[dict[str, Any]]:
    """All records of a way, from a fresh process."""
    listed = jobs(config, seed)
    places = [_place(root, name, one, number) for one, number in listed]
    n = len(listed)
    fresh = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=helper, initargs=(os.getpid(),))
    with fresh as pool:
        wanted, seeds = zip(*listed, strict=True)
        return list(pool.map(make_one, [name] * n, wanted, seeds, [prior] * n, [config] * n, map(str, places)))


def _place(root: Path, name: str, wanted: Wanted, seed: int) -> Path:
    return root / "".join(c if c.isalnum() else "-" for c in name) / f"{wanted.index:03d}-{seed}"


def row_of(
    name: str, records: Sequence[dict[str, Any]], judge: Judge, config: Text3dBench, seed: int, root: Path
) -> dict[str, Any]:
    """One line of the table; a mesh that failed counts as wrong, and has no size, colour or cost."""
    listed = jobs(config, seed)
    for record, (one, number) in zip(records, listed, strict=True):
        if "failed" not in record:
            record |= judge_views(judge, kept_views(_place(root, name, one, number)), one)
    made = [r for r in records if "failed" not in r]
    row: dict[str, Any] = {
        "generator": name,
        "noun": share([r.get("judged_noun") == r["noun"] for r in records]),
        "colour": share([r.get("judged_colour") == r["colour"] for r in records]),
        "two_fronts": share([bool(r.get("two_fronts", True)) for r in records]),
        "solid": share([bool(r.get("solid", False)) for r in records]),
        "failed": len(records) - len(made),
    }
    if made:
        columns = ("f_score", "chamfer", "texture_psnr", "seconds", "peak_memory_mb", "forwards")
        row |= {column: spread([r[column] for r in made]) for column in columns}
    if apart := _diversity(name, judge, config, seed, root):
        row["diversity"] = spread(apart)
    return row


def _diversity(name: str, judge: Judge, config: Text3dBench, seed: int, root: Path) -> list[float]:
    """How far the seeds of a prompt are apart, for each prompt of which two or more came out."""
    found = []
    for one in prompts(config.meshes)[: config.diverse]:
        seeds = [seed + k for k in range(config.seeds)]
        places = [_place(root, name, one, number) for number in seeds]
        views = [kept_views(place) for place in places if (place / "views.png").exists()]
        if len(views) > 1:
            true = torch.stack([true_views(one, config.meshes, TRUE_SEED + number) for number in seeds])
            found.append(diversity(judge, views, true))
    return found


def save_sheet(path: Path, names: Sequence[str], config: Text3dBench, seed: int, root: Path) -> None:
    """Three sides of every prompt, a row for each way."""
    tiles, labels = [], []
    for name in names:
        for one in prompts(config.meshes):
            views = _place(root, name, one, seed) / "views.png"
            size = config.meshes.view_size
            strip = load_image(views) if views.exists() else np.ones((size, 8 * size, 3), np.float32)
            tiles.append(np.concatenate([strip[:, k * size : (k + 1) * size] for k in SIDES], axis=1))
            labels.append(f"{name}: {one.prompt}")
    save_image(path, grid(tiles, columns=len(prompts(config.meshes)), labels=labels))


def run(context: Context) -> dict[str, Any]:
    """The table of all ways that are ready, the names of those that wait, and a picture."""
    config = QUICK if context.quick else FULL
    root = Path(config.work) / f"{fingerprint(optimiser(context.prior), config.meshes)}-{generators(context.prior)}"
    judge, table, told, ready = Judge.from_pretrained(), [], {}, []
    for name in ways(config):
        reason = waits_for(name, context.prior, config)
        _loaded.cache_clear()
        if reason:
            table.append({"generator": name, "waits": reason})
            continue
        told[name] = made_by(name, context.prior, context.seed, config, root)
        table.append(row_of(name, told[name], judge, config, context.seed, root))
        ready.append(name)
    save_sheet(context.picture(), ready, config, context.seed, root)
    seeds = sorted({number for _, number in jobs(config, context.seed)})
    return {"config": asdict(config), "seeds": seeds, "table": table, "meshes": told}
