"""The commands of the fault run, as small as they get, and the files they start from."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ..core.priors import load_prior
from ..core.priors.embedded import EmbeddedPrior
from ..core.priors.orbits import OrbitPrior
from ..core.priors.temporal import TemporalConfig
from ..geometry.camera_files import save_nerfstudio
from ..geometry.cameras import Camera
from ..geometry.environment import write_hdr
from ..geometry.meshes import Mesh
from ..geometry.points import PointCloud
from ..tasks.materials import MaterialGenerator, MaterialPrior
from ..tasks.sim2real import SensorConfig, SensorSimulator, SensorStage
from ..utils.configs import CONFIGS, read_yaml
from ..utils.files import atomic_path, write_bytes, write_text
from ..utils.pictures import save_image

SIDE = 32


@dataclass(frozen=True)
class Verb:
    """A command and files that are there, among others, when it is done."""

    words: tuple[str, ...]
    files: tuple[str, ...]
    stages: int | None = None
    """at most so many places where faults strike; None: as many as the run asks for"""
    rewrites: bool = False
    """whether, typed again when its files are there, it writes them again: from what it keeps, or because it remembers
    nothing and is done in a moment"""


def _verb(line: str, *files: str, stages: int | None = None, rewrites: bool = False) -> Verb:
    """A line whose words are parted by spaces; ~ stands for a space inside one."""
    return Verb(tuple(word.replace("~", " ") for word in line.split()), files, stages, rewrites)


MESH = "text-to-mesh a~red~chair --recipe mesh.yaml --steps 8 --frames 2 --view-size 16 -o out/chair.glb"
SPLATS = "text-to-splats a~red~chair --recipe splats.yaml --steps 4 --frames 2 --view-size 16 -o out/chair.ply"
FIT = "fit toybox:a~red~cube --steps 6 --views 4 --size 32 --count 40 --frames 2 -o out/cube.ply"
BENCH = "judge"  # of the quickest ones
SET = "toybox --render --groups 4 --size 16 --workers 1 -o out"
RECIPE = """objective: vae
train: [set]
val: [set]
model: {widths: [4, 8], norm_groups: 4, image_size: 8, validation_images: 2}
trainer: {steps: 6, batch: 2, save_every: 2, log_every: 2}
"""
DISTILL = (
    *("--set", "pairs.count=2", "pairs.steps=2", "stages.adapter.trainer.steps=4"),
    *("stages.adapter.trainer.batch=2", "stages.adapter.trainer.warmup=0", "stages.adapter.trainer.save_every=2"),
)
VERBS: dict[str, Verb] = {
    "depth": _verb("depth photos -o out --steps 1", *(f"out/p{i}-depth.npz" for i in range(2))),
    "normals": _verb("normals photos/p0.png -o out --steps 1", "out/p0-normals.npz"),
    "pointcloud": _verb("pointcloud photos -o out --steps 1", *(f"out/p{i}-pointcloud.ply" for i in range(2))),
    "match": _verb(
        "match photos/p0.png photos/p1.png --encoder none -o out", "out/p0-p1-match.npz", "out/p0-p1-match.png"
    ),
    "transfer": _verb(
        "transfer photos/p0.png photos/p1.png --points points.json --encoder none -o out/t.json", "out/t.json"
    ),
    "calibrate": _verb("calibrate photos --focal 30 -o out", *(f"out/p{i}-calibrate.json" for i in range(2))),
    "geometry": _verb(
        "geometry photos/p0.png -o out --steps 1",
        *(f"out/p0-geometry{end}" for end in (".npz", ".json", ".ply", ".glb")),
    ),
    "text-to-image": _verb(
        "text-to-image --prompts prompts.txt --steps 2 -o out", "out/a-red-chair-seed0.png", "out/a-blue-dog-seed0.png"
    ),
    "text-to-mesh": _verb(MESH, "out/chair.glb", "out/chair.report.json", "out/chair-sheet.png", stages=2),
    "image-to-views": _verb(
        "image-to-views cut.png --orbit orbit --frames 2 --steps 2 -o out",
        "out/cut-views-00.png",
        "out/transforms.json",
    ),
    "image-to-mesh": _verb(
        "image-to-mesh cut.png --orbit orbit --frames 2 --steps 2 --fuse-steps 2 --faces 300 --texture 16 "
        "--view-size 16 --turntable 0 -o out/cut.glb",
        "out/cut.glb",
        "out/cut.report.json",
        "out/cut-views.png",
        stages=4,
    ),
    "edit": _verb("edit photos/p0.png --source a~chair --target a~dog --steps 2 -o out/e.png", "out/e.png"),
    "restore": _verb("restore photos/p0.png --task deblur:1 --steps 2 -o out/r.png", "out/r.png"),
    "calibrate-solver": _verb(
        "calibrate-solver --what gaussian --samples 16 --sample-steps 2 -o out/g.safetensors", "out/g.safetensors"
    ),
    "search-solver": _verb(
        "search-solver --nfe 2 --budget 16 --images 2 --reference-steps 3 -o out/s.safetensors", "out/s.safetensors"
    ),
    "text-to-splats": _verb(SPLATS, "out/chair.ply", "out/chair.report.json", "out/chair-sheet.png", stages=2),
    "fit": _verb(FIT, "out/cube.ply", "out/cube-sheet.png", stages=2),
    "render": _verb(
        "render mesh.glb --size 32 --views 2 --frames 2 -o out",
        "out/mesh-view.png",
        "out/mesh-sheet.png",
        rewrites=True,
    ),
    "bench": Verb(("bench", BENCH, "--quick", "-o", "out"), (f"out/{BENCH}.json",), stages=2, rewrites=True),
    "toybox --render": _verb(SET, "out/shard-00000.npz", "out/job.json"),
    "toybox": _verb("toybox --count 2 --size 16 -o out/s.png", "out/s.png"),
    "train": Verb(
        ("train", "vae.yaml", "-o", "out"),
        ("out/export/config.json", "out/export/diffusion_pytorch_model.safetensors"),
        stages=2,
        rewrites=True,
    ),
    "convert": _verb("convert mesh.glb out/m.obj", "out/m.obj", "out/m.report.json"),
    "convert, points": _verb("convert points.ply out/p.ply", "out/p.ply"),
    "convert, cameras": _verb("convert cameras.json out/model", "out/model/cameras.txt", "out/model/images.txt"),
    "relight": _verb("relight mesh.glb --light sky.hdr --size 16 -o out/r.png", "out/r.png"),
    "inverse-render": _verb(
        "inverse-render mesh.glb --mesh mesh.glb --prior none --views 2 --size 16 --steps 2 --texture 16 -o out/o.glb",
        "out/o.glb",
        "out/o-light.hdr",
        stages=6,
    ),
    "sim2real": _verb(
        "sim2real rooms --prior sensor --steps 1 -o out",
        *(f"out/r{i}-sim2real{end}" for i in range(2) for end in (".npz", "-16bit.png")),
    ),
    "materials": _verb(
        "materials red~bricks --prior surfaces --steps 1 --size 32 --format png,npz,glb -o out",
        *(f"out/red-bricks-seed0{end}" for end in ("-albedo.png", "-sheet.png", ".npz", ".glb")),
    ),
    "distill": Verb(
        (*["distill", "lora-distillation", "--pairs", "pairs", "--out", "out"], *DISTILL),
        ("out/export/distill.json", "out/export/pytorch_lora_weights.safetensors"),
        stages=2,
        rewrites=True,
    ),
    "inspect": _verb("inspect mesh.glb -o out/m.json", "out/m.json"),
    "inspect --repair": _verb("inspect mesh.glb --repair out/m.ply", "out/m.ply"),
}


def inputs(folder: Path) -> None:
    """Two pictures and one without background, key points, two prompts, a mesh, a light, points, cameras, depth maps, a
    small rendered set, and weights as they are before they learn anything."""
    rng = np.random.default_rng(0)
    for i in range(2):
        save_image(folder / "photos" / f"p{i}.png", rng.random((SIDE, SIDE + 8, 3)).astype(np.float32))
    disc = np.hypot(*np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]) < 0.7
    save_image(folder / "cut.png", np.dstack([rng.random((SIDE, SIDE, 3)), disc]).astype(np.float32))
    write_text(folder / "points.json", '{"left": [3.5, 4.5], "right": [30, 20]}')
    write_text(folder / "prompts.txt", "a red chair\na blue dog\n")
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    Mesh(corners, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])).save(folder / "mesh.glb")
    write_bytes(folder / "sky.hdr", write_hdr(rng.random((4, 8, 3))))
    PointCloud(corners, corners / 3).save(folder / "points.ply")
    cameras = Camera.orbit([0.0, 90.0], 10.0, 2.0, 40.0, 16, 12)
    save_nerfstudio(folder / "cameras.json", cameras, ["a.png", "b.png"])
    for i in range(2):
        depth_m = 1 + i + rng.random((16, 24)).astype(np.float32)
        with atomic_path(folder / "rooms" / f"r{i}.npz") as path:
            np.savez(path, depth_m=depth_m)
    for name in ("sensor", "surfaces", "orbit"):
        (folder / name).symlink_to(_untrained() / name)
    write_text(folder / "vae.yaml", RECIPE)
    for name, recipe in recipes().items():
        write_text(folder / f"{name}.yaml", yaml.safe_dump(recipe))
    for name, data in _rendered().items():
        write_bytes(folder / "set" / name, data)


def recipes() -> dict[str, dict[str, Any]]:
    """The packaged recipes of a mesh and of splats with few rays, a coarse shape and frequent checkpoints: the files
    are written in the same order, in a fifth of the time."""
    mesh, splats = (read_yaml(CONFIGS / name / "toybox.yaml") for name in ("text-to-mesh", "text-to-splats"))
    mesh["score"]["target_steps"] = 2
    mesh["optimise"] |= {"checkpoint_every": 3}
    mesh["optimise"]["fit"] |= {"steps": 2, "rays": 512, "sets": 1}
    mesh["optimise"]["shape"]["volume"]["field"]["grid"] |= {"sides": [17], "starts": [0]}
    splats["optimise"] |= {"checkpoint_every": 2}
    splats["optimise"]["shape"]["gaussians"]["count"] = 200
    for one in (mesh, splats):
        one["mesh"] |= {"resolution": 24, "faces": 300, "texture": 64}
    return {"mesh": mesh, "splats": splats}


@functools.cache
def _rendered() -> dict[str, bytes]:
    """The files of a rendered set, for the training."""
    from ..toybox.dataset import RenderJob, render_set

    with tempfile.TemporaryDirectory() as folder:
        render_set(RenderJob("object", "train", 2, 8), folder, 1)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@functools.cache
def _untrained() -> Path:
    """A sensor, a prior of surfaces and one of orbits that have learnt nothing, in a folder that goes with this
    process."""
    folder = Path(tempfile.mkdtemp(prefix="unproject-untrained-"))
    atexit.register(shutil.rmtree, folder)
    prior = load_prior("toybox")
    assert isinstance(prior, EmbeddedPrior)
    SensorSimulator([SensorStage(prior, SensorConfig())], "toybox").save(folder / "sensor")
    MaterialGenerator(MaterialPrior.from_prior(prior)).save(folder / "surfaces", "toybox")
    OrbitPrior(prior, TemporalConfig(share=0.1, rank=0)).save_adapter(folder / "orbit", "toybox")
    return folder
