"""Meshes of others, through everything that is done to a mesh: what each step leaves of the surface and its colours.

Distances are Hausdorff's in shares of the diagonal: to the repaired solid, to a quarter of the faces, and after writing
and reading. A mesh without colours of its own gets a smooth field of them. Pictures are photographs from all around;
every eighth is held out, the others are baked onto a decimated mesh, and fitted by splats.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ..generate.splat_fit import SplatFit
from ..geometry.bake import bake_views
from ..geometry.extract import decimate
from ..geometry.inspection import inspect_mesh
from ..geometry.meshes import Mesh
from ..geometry.metrics import hausdorff
from ..geometry.posed import PosedImages, around, bytes_of
from ..geometry.raycast import STUDIO, Light, RayMesh
from ..geometry.similarity import psnr
from ..geometry.solid import faults, make_solid
from ..geometry.unwrap import unwrap
from ..pipelines.images_to_splats import load_recipe
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .intervals import digits
from .real_depth import real_root
from .runner import Context
from .solids import real_meshes

FORMATS = (".glb", ".obj", ".ply", ".stl")
FOV_DEG = 34.0
FEWEST = 12  # faces of what is decimated
SHOWN = 1  # held-out view of the picture


@dataclass(frozen=True)
class RealMeshBench:
    """Sizes of the experiment."""

    meshes: int | None = None  # the first of them; None: all
    most_faces: int = 6000  # of what is charted, baked and photographed
    views: int = 40
    size: int = 96  # px
    texture: int = 1024
    large: dict[str, int] = field(default_factory=lambda: {"spot": 2048})  # textures of some meshes, besides
    steps: int = 400  # of the fit
    samples: int = 20_000  # points of each surface


QUICK = RealMeshBench(1, 600, 16, 48, 128, {}, 30, 2000)


def run(context: Context) -> dict[str, Any]:
    """A row for each mesh. Raises InputError where there is none."""
    config = QUICK if context.quick else RealMeshBench()
    found = list(real_meshes())[: config.meshes]
    if not found:
        raise InputError(f"no meshes lie in {real_root() / 'meshes'}; name the folder of the real data: UNPROJECT_REAL")
    rows, tiles = [], []
    for name, mesh in found:
        row, pictures = row_of(name, mesh, config, context.seed)
        rows.append(row)
        tiles += pictures
    labels = [text for row in rows for text in (row["mesh"], "decimated", "baked", "splats")]
    save_image(context.picture(), grid(tiles, 4, labels=labels))
    return {"config": asdict(config), "seeds": [context.seed], "table": rows}


def row_of(name: str, mesh: Mesh, config: RealMeshBench, seed: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Numbers of one mesh, and a held-out view: true, decimated, baked, of the splats."""
    began = time.process_time()
    row: dict[str, Any] = {"mesh": name, "faces": len(mesh.faces), **repaired(mesh, config, seed)}
    small = quarter(mesh)
    row["quarter_hausdorff"] = None if small is None else apart(small, mesh, config, seed)
    row |= round_trips(mesh, config, seed)
    mesh = coloured(mesh if len(mesh.faces) <= config.most_faces else decimate(mesh, config.most_faces))
    pictures = pictured(mesh, config)
    learnt, held = pictures.split()
    painted = painted_from(mesh, learnt, config.texture)
    row |= baked(painted, held)
    if name in config.large:
        side = config.large[name]
        row |= {f"{key}_{side}": value for key, value in baked(painted_from(mesh, learnt, side), held).items()}
    fitted = SplatFit(pictures, load_recipe("default", checkpoint_every=0, steps=config.steps), seed)
    fitted.run()
    row |= {
        "fit_psnr": digits(float(np.mean([one["psnr"] for one in fitted.measured(held)]))),
        "splats": len(fitted.cloud),
        "seconds": digits(time.process_time() - began),
    }
    one = held[[SHOWN % len(held)]]
    with torch.no_grad():
        drawn = fitted.shape.render(fitted.planes(one.cameras), ("rgb",), 1.0).rgb[0]
    shown = [one.picture([0], 1.0)[0], pictured_by(small or mesh, one, STUDIO)[0], pictured_by(painted, one)[0], drawn]
    return row, [picture.numpy() for picture in shown]


def apart(a: Mesh, b: Mesh, config: RealMeshBench, seed: int) -> float:
    """Hausdorff's distance in shares of the diagonal of b."""
    return digits(hausdorff(a, b, config.samples, generator(seed)) / b.diagonal)


def repaired(mesh: Mesh, config: RealMeshBench, seed: int) -> dict[str, Any]:
    """Whether it is a solid, whether it is one after repair, and how far that is."""
    before = faults(mesh)
    if not before:
        return {"solid": True, "repaired": True, "repair_hausdorff": 0.0}
    try:
        solid, _ = make_solid(mesh)
    except InputError as error:
        return {"solid": False, "repaired": False, "repair_hausdorff": None, "why": str(error)}
    return {"solid": False, "repaired": not faults(solid), "repair_hausdorff": apart(solid, mesh, config, seed)}


def quarter(mesh: Mesh) -> Mesh | None:
    """The mesh with a quarter of its faces; None where that is less than a box has, and for open surfaces whose borders
    hold more than that."""
    if len(mesh.faces) // 4 < FEWEST:
        return None
    try:
        return decimate(mesh, len(mesh.faces) // 4)
    except InputError:
        return None


def round_trips(mesh: Mesh, config: RealMeshBench, seed: int) -> dict[str, Any]:
    """The largest distance after writing and reading, over formats."""
    worst = 0.0
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what a format cannot keep besides the surface
        for suffix in FORMATS:
            worst = max(worst, apart(Mesh.load(mesh.save(Path(folder) / f"mesh{suffix}")), mesh, config, seed))
    return {"files_hausdorff": worst}


def coloured(mesh: Mesh) -> Mesh:
    """With colours: its own, or a field of them that is smooth on the scale of the mesh."""
    if mesh.textures or mesh.vertex_colors is not None:
        return mesh
    low, high = mesh.bounds
    place = (mesh.vertices - 0.5 * (low + high)) / max(mesh.diagonal, 1e-12)
    return replace(mesh, vertex_colors=0.5 + 0.4 * torch.sin(9 * place + torch.tensor([0.0, 1.0, 2.0])))


def pictured(mesh: Mesh, config: RealMeshBench) -> PosedImages:
    """The plain colours from all around, below as well as above."""
    low, high = mesh.bounds
    centre = 0.5 * (low + high)
    radius = float((mesh.vertices - centre).norm(dim=-1).max())
    cameras = around(config.views, config.size, radius / np.sin(np.radians(0.5 * FOV_DEG)), FOV_DEG, (-75.0, 75.0))
    shift = torch.zeros(4, 4)
    shift[:3, 3] = centre
    cameras = replace(cameras, c2w=cameras.c2w + shift, near=0.01 * radius, far=20 * radius)
    seen = RayMesh(mesh).render(cameras, background=0.0, supersample=2)
    plain = seen.rgb / seen.alpha.clamp_min(1e-3)
    return PosedImages(cameras, bytes_of(plain), bytes_of(seen.alpha))


def painted_from(mesh: Mesh, pictures: PosedImages, size: int) -> Mesh:
    """New charts with the colours that the pictures show."""
    bare = unwrap(Mesh(mesh.vertices, mesh.faces), size)
    return bake_views(bare, pictures.images.float() / 255, pictures.cameras, size)


def baked(painted: Mesh, held: PosedImages) -> dict[str, Any]:
    """Charts, and what the texture is like: dB on pictures held out, share unseen, jumps at borders of charts."""
    texture = inspect_mesh(painted)["texture"]
    jump = texture["seam_jump"]
    seen = psnr(pictured_by(painted, held), held.picture(range(len(held)), 1.0)).mean()
    return {
        "charts": texture["charts"],
        "unseen": digits(texture["unseen_share"]),
        "seam_jump": None if jump is None else digits(jump["mean"]),
        "bake_psnr": digits(float(seen)),
    }


def pictured_by(mesh: Mesh, pictures: PosedImages, light: Light | None = None) -> torch.Tensor:
    """What the cameras of pictures see of it, over white."""
    return RayMesh(mesh).render(pictures.cameras, ("rgb",), 1.0, light, supersample=2).rgb.clamp(0, 1)
