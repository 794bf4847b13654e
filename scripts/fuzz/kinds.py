"""The kinds of input, their readers, samples and shares of a run."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...core.sampling.calibration import Calibration, Fingerprint
from ...geometry.camera_files import save_colmap, save_nerfstudio
from ...geometry.cameras import Camera
from ...geometry.environment import write_hdr
from ...utils.configs import CONFIGS
from . import grammars, meshes, planted, readers
from .cases import Kind, Sample
from .pictures import pictures, texture

POSE = [[1, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]]


def cameras() -> list[Sample]:
    """Our own, NeRF-synthetic without sizes, a file with much beside the poses."""
    frames = [{"file_path": f"./photo{i}", "transform_matrix": POSE} for i in range(2)]
    synthetic = {
        "camera_angle_x": 0.69,
        "frames": [{**frame, "file_path": "./photo", "rotation": 0.1} for frame in frames],
    }
    more = {
        "fl_x": 50,
        "fl_y": 51.5,
        "cx": 31,
        "cy": 24,
        "w": 64,
        "h": 48,
        "k1": 0,
        "aabb_scale": 4,
        "applied_scale": 0.5,
    }
    applied = {"applied_transform": [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]], "ply_file_path": "a.ply"}
    with tempfile.TemporaryDirectory() as folder:
        own = save_nerfstudio(Path(folder, "a.json"), _three(), ["a.png", "b.png", "c.png"]).read_bytes()
    return [
        Sample("own.json", own),
        Sample("synthetic.json", json.dumps(synthetic).encode()),
        Sample("nerfstudio.json", json.dumps({"camera_model": "OPENCV", **more, **applied, "frames": frames}).encode()),
    ]


def _three() -> Camera:
    return Camera.orbit([0.0, 50.0, 200.0], [10.0, 20.0, -30.0], 2.0, 40.0, 32, 24)


@functools.cache
def model_files() -> Mapping[str, bytes]:
    """A COLMAP model as text."""
    with tempfile.TemporaryDirectory() as folder:
        save_colmap(folder, _three(), ["a.png", "b.png", "c.png"])
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def models() -> list[Sample]:
    """The files of a COLMAP model as text."""
    return [Sample(name, data) for name, data in model_files().items() if name != "points3D.txt"]


def binary_files() -> Mapping[str, bytes]:
    """A COLMAP model in binary: two images of one camera, one with a point."""
    camera = struct.pack("<QIiQQ4d", 1, 1, 1, 64, 48, 50, 51, 32, 24)
    images = struct.pack("<Q", 2)
    for i, points in ((1, 0), (2, 1)):
        images += struct.pack("<I7dI", i, 0.5, 0.5, 0.5, 0.5, i, 2, 3, 1) + b"photo%d.png\0" % i
        images += struct.pack("<Q", points) + struct.pack("<ddq", 1, 2, -1) * points
    return {"cameras.bin": camera, "images.bin": images}


def binary_models() -> list[Sample]:
    """The files of a COLMAP model in binary."""
    return [Sample(name, data) for name, data in binary_files().items()]


def configs() -> list[Sample]:
    """Packaged recipes, the registry of priors, records of runs, and a document that grows when it is told."""
    found = [Sample(f"recipe-{path.stem}.yaml", path.read_bytes()) for path in CONFIGS.glob("text-to-mesh/*.yaml")]
    found += [Sample(f"train-{path.stem}.yaml", path.read_bytes()) for path in CONFIGS.glob("train/*.yaml")]
    records = (
        {
            "command": "text-to-image",
            "config": {"prompt": "a red chair", "steps": None, "seed": 3},
            "notes": {"plan": {"steps": 9}},
        },
        {"command": "depth", "config": {"image": ["a.png"], "ensemble": 2}, "status": "done"},
        {"command": "text-to-mesh", "prompt": "a blue dog", "faces": 500},
    )
    found += [Sample(f"run{i}.json", json.dumps(record).encode()) for i, record in enumerate(records)]
    return [*found, Sample("priors.yaml", (CONFIGS / "priors.yaml").read_bytes()[:4000].rpartition(b"\n  ")[0])]


def tensors() -> list[Sample]:
    """A calibration; parts of checkpoints by the names of their tensors."""
    about = Fingerprint("0" * 16, "1" * 16, "none", "vp-2", (4, 8, 8), "guidance 3")
    with tempfile.TemporaryDirectory() as folder:
        made = Calibration("statistics", {"l": torch.arange(4.0)}, about, {"steps": 4})
        found = [Sample("calibration.safetensors", made.save(Path(folder, "a.safetensors")).read_bytes())]
    names = {
        "checkpoint": "model.diffusion_model.input_blocks.0.0.weight",
        "adapter": "lora_unet_down_blocks_0.lora_down.weight",
    }
    for name, tensor in names.items():
        header = json.dumps({tensor: {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
        found.append(Sample(f"{name}.safetensors", len(header).to_bytes(8, "little") + header + bytes(8)))
    return found


def prompts() -> list[Sample]:
    """Sentences of the grammar, of a person, of other scripts, and long ones."""
    texts = (
        "a red chair",
        "two blue dogs, seen from behind",
        "a small striped mug to the left of a wooden table, depth map",
    )
    others = (
        "Ein Stuhl mit Ölfarbe",
        "红色的椅子 ♥ 🪑",
        "a " * 200 + "chair",
        "(masterpiece:1.2), [chair|dog] --no hands",
        "a\tred\nchair",
    )
    return [Sample("prompt.txt", text.encode()) for text in (*texts, *others)]


def lines() -> list[Sample]:
    """Command lines that are understood."""
    found = (
        ["text-to-mesh", "a red chair", "--steps", "30", "--faces", "2000", "--guidance", "9.5", "-o", "chair.glb"],
        [
            "text-to-image",
            "a red chair",
            "--count",
            "2",
            "--solver",
            "dpm++",
            "--cache",
            "deep:3",
            "--size",
            "64",
            "--seed",
            "5",
        ],
        ["text-to-image", "--prompts", "words.txt", "--quality", "fast", "-o", "folder"],
        ["depth", "photo.png", "folder", "--ensemble", "2", "--recursive", "-o", "made"],
        ["normals", "photo.png", "-o", "made.png"],
        ["pointcloud", "photo.png", "--near", "0.5", "--far", "3", "--fov", "50", "-o", "cloud2.ply"],
        ["edit", "photo.png", "--source", "a red chair", "--target", "a blue chair", "--steps", "5"],
        ["restore", "photo.png", "--task", "inpaint", "--mask", "mask.png", "-o", "r.png"],
        ["convert", "mesh.glb", "made.obj", "--faces", "3"],
        ["inspect", "mesh.glb", "--strict"],
        ["calibrate-solver", "--what", "statistics", "--sample-steps", "5", "-o", "s.safetensors"],
        ["toybox", "--render", "--groups", "8", "--size", "16", "-o", "set"],
        ["bench", "sampling", "--quick", "--threads", "1"],
        ["--config", "run.json", "--seed", "9"],
    )
    return [Sample("words.json", json.dumps(line).encode()) for line in found]


def neighbours() -> dict[str, bytes]:
    """Files that command lines name."""
    record = {
        "command": "text-to-image",
        "config": {"prompt": "a red chair", "seed": 3},
        "notes": {"plan": {"steps": 9}},
    }
    flat = [Sample(name, data) for name, data in pictures() if name in ("rgb.png", "grey.png")]
    return {
        "photo.png": flat[0].data,
        "mask.png": flat[1].data,
        "mesh.glb": meshes.glbs()[0].data,
        "cloud.ply": meshes.clouds()[0].data,
        "words.txt": b"a red chair\na blue dog\n",
        "run.json": json.dumps(record).encode(),
        "cameras.json": cameras()[0].data,
        "folder/a.png": flat[0].data,
        "folder/b.png": flat[1].data,
    }


def libraries() -> list[Sample]:
    """A library of materials; the mesh stands beside it."""
    return [Sample("a.mtl", meshes.MTL)]


def beside_obj() -> dict[str, bytes]:
    """The mesh, its library and its texture."""
    return {"body.obj": meshes.OBJ, "a.mtl": meshes.MTL, "a.png": texture()}


def library(path: Path) -> None:
    """The mesh whose library a file is."""
    readers.mesh(path.with_name("body.obj"))


def everything() -> list[Sample]:
    """What `inspect` takes."""
    return [
        *meshes.glbs(),
        *meshes.plain_meshes(),
        *meshes.plys(),
        *meshes.clouds(),
        Sample("body.obj", meshes.OBJ),
        *pictures()[:6],
    ]


def depths() -> list[Sample]:
    """Depth in metres and in millimetres."""
    values = np.linspace(1, 3, 30, dtype=np.float32).reshape(5, 6)
    made = []
    for name, write in (("a.npz", lambda to: np.savez(to, depth_m=values, K=np.eye(3), valid=values > 2)),
                        ("a.npy", lambda to: np.save(to, values))):  # fmt: skip
        stream = io.BytesIO()
        write(stream)
        made.append(Sample(name, stream.getvalue()))
    stream = io.BytesIO()
    Image.fromarray((1000 * values).astype(np.uint16)).save(stream, "PNG")
    return [*made, Sample("a.png", stream.getvalue())]


def lights() -> list[Sample]:
    """Radiance pictures, flat and in runs."""
    flat = write_hdr(np.linspace(0, 3, 4 * 12 * 3).reshape(4, 12, 3))
    head = flat[: -4 * 12 * 4]
    row = bytes((2, 2, 0, 12)) + bytes((128 + 12, 130)) * 3 + bytes((4, 128, 129, 130, 131, 128 + 8, 127))
    return [Sample("a.hdr", flat), Sample("runs.hdr", head + 4 * row)]


def _objs() -> list[Sample]:
    return [Sample("body.obj", meshes.OBJ)]


def _photos() -> dict[str, bytes]:
    return {"photo.png": pictures()[0].data, "photo0.png": pictures()[0].data}


def _texture() -> dict[str, bytes]:
    return {"a.png": texture()}


KINDS = {
    kind.name: kind
    for kind in (
        Kind("picture", readers.picture, pictures, 0.15),
        Kind("gltf", readers.mesh, meshes.glbs, 0.15, planted=planted.in_gltf, grammar=grammars.gltfs),
        Kind("obj", readers.mesh, _objs, 0.08, beside_obj, planted.in_obj, grammars.objs, text=True),
        Kind("mtl", library, libraries, 0.04, beside_obj, planted.in_obj, text=True, names=False),
        Kind("stl-off", readers.mesh, meshes.plain_meshes, 0.05, text=True),
        Kind("ply", readers.either, meshes.plys, 0.08, _texture, planted.in_ply, grammars.plys, text=True),
        Kind("points", readers.either, meshes.clouds, 0.06, planted=planted.in_ply, grammar=grammars.plys, text=True),
        Kind("splats", readers.splats, meshes.splat_files, 0.08, planted=planted.in_splats),
        Kind("inspect", readers.looked_at, everything, 0.05, beside_obj),
        Kind("cameras", readers.cameras, cameras, 0.06, _photos, planted.in_cameras, grammars.transforms),
        Kind("colmap-text", readers.model, models, 0.03, model_files, planted.in_colmap, text=True, names=False),
        Kind("colmap-binary", readers.model, binary_models, 0.03, binary_files, names=False),
        Kind("config", readers.config, configs, 0.05, planted=planted.in_config, grammar=grammars.documents, text=True),
        Kind("depth", readers.depth, depths, 0.02),
        Kind("light", readers.light, lights, 0.02),
        Kind("safetensors", readers.tensors, tensors, 0.04, planted=planted.in_tensors, grammar=grammars.headers),
        Kind(
            "prompt",
            readers.prompt,
            prompts,
            0.03,
            planted=planted.in_prompt,
            grammar=grammars.prompts,
            text=True,
            names=False,
        ),
        Kind(
            "options", readers.options, lines, 0.03, neighbours, planted.in_options, grammars.command_lines, names=False
        ),
    )
}
