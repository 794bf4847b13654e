"""A picture of every representation, made of the same toy, and one of every rule, cut from what its bench drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..geometry.cameras import Camera
from ..geometry.fields import FieldConfig, GridConfig, HeadConfig
from ..geometry.meshes import Mesh
from ..geometry.shapes import GaussianConfig, ShapeConfig, TetrahedraConfig, VolumeShapeConfig, convert
from ..geometry.solid import make_solid
from ..geometry.volume import VolumeConfig
from ..toybox.orbits import toy, true_mesh
from ..utils.errors import InputError
from ..utils.files import read_json
from ..utils.pictures import Picture, grid, load_image, normals_to_rgb, save_image, to_rgb8

RULES = "score-distillation"  # the experiment whose picture has a row for each rule
SIDES = (20.0, 110.0, 200.0)  # degrees of azimuth
SHAPES = {
    "volume": ShapeConfig(
        "volume",
        VolumeShapeConfig(
            FieldConfig("grid", head=HeadConfig(beta=(0.01,), beta_min=0.01), grid=GridConfig((17, 33, 65), (0, 0, 0))),
            VolumeConfig(0.02),
        ),
    ),
    "triangles": ShapeConfig("triangles"),
    "tetrahedra": ShapeConfig("tetrahedra", tetrahedra=TetrahedraConfig(resolution=64)),
    "gaussians": ShapeConfig("gaussians", gaussians=GaussianConfig(count=8000)),
}


def colored_toy(words: str = "a red chair") -> Mesh:
    """A toy whose colours tell where one is: red grows to the front, green to the left, blue upwards."""
    solid, _ = make_solid(true_mesh(toy(words)))
    low, high = solid.bounds
    place = (solid.vertices - low) / (high - low).clamp_min(1e-6)
    return Mesh(solid.vertices, solid.faces, vertex_colors=0.15 + 0.7 * place)


@torch.no_grad()
def representation_pictures(out: Path, size: int = 128) -> list[Path]:
    """shape-NAME.png: colours above normals from three sides, as the representation itself draws them."""
    mesh, camera, written = colored_toy(), Camera.orbit(list(SIDES), 20.0, 3.2, 34.0, size), []
    for name, target in SHAPES.items():
        seen = convert(mesh, target).render(camera, ("rgb", "alpha", "normal"), 1.0)
        tiles = [*map(to_rgb8, seen.rgb.clamp(0, 1)), *(normals_to_rgb(n.numpy()) for n in seen.normal)]
        written.append(save_image(out / f"shape-{name}.png", grid(tiles, len(SIDES))))
    return written


def rule_pictures(results: Path, out: Path) -> list[Path]:
    """rule-NAME.png: the row of each rule in the picture that its bench left in `results`.

    Raises InputError where the picture has not as many rows as the table.
    """
    rows: list[dict[str, Any]] = read_json(results / f"{RULES}.json")["table"]
    sheet = to_rgb8(load_image(results / f"{RULES}.png"))
    height = (sheet.shape[0] - 2) / len(rows)
    if height != int(height):
        raise InputError(f"{RULES}.png is {sheet.shape[0]} px high, which is not {len(rows)} rows; run the bench again")
    cut = [sheet[row * int(height) : (row + 1) * int(height) + 2] for row in range(len(rows))]
    multi = rows[0]["prior"]
    names = [row["rule"] + ("" if row["prior"] == multi else "-words") for row in rows]
    return [save_image(out / f"rule-{name}.png", _whole(strip)) for name, strip in zip(names, cut, strict=True)]


def _whole(strip: Picture) -> Picture:
    """Without white columns at its end."""
    used = np.flatnonzero((strip < 255).any(axis=(0, 2)))
    return strip[:, : int(used[-1]) + 3] if len(used) else strip
