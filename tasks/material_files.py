"""A material in files: its maps, a sphere of it as GLB or USD, and MaterialX."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..geometry.meshes import Mesh
from ..utils.bands import write_npz, write_png
from ..utils.files import write_text
from ..utils.pictures import grid, save_image, to_uint8
from .formats import MATERIAL_MAPS, MATERIAL_USUAL

REPEATS = (4, 2)  # of the tile around a sphere and from pole to pole
HEIGHT_SCALE = 0.05  # of a MaterialX displacement, in sides of the tile


def save_material(arrays: dict[str, np.ndarray], base: Path, formats: Sequence[str] = MATERIAL_USUAL) -> list[Path]:
    """Writes one material, maps by name, float (H, W, 3) or (H, W); the normal in [-1, 1], the others in [0, 1].

    MaterialX refers to the maps as PNG, which are written along with it.
    """
    formats = tuple(dict.fromkeys([*(("png",) if "mtlx" in formats else ()), *formats]))
    written: list[Path] = []
    for kind in formats:
        if kind == "png":
            written += _pictures(arrays, base)
        elif kind == "npz":
            told = {"frame": np.array("x right, y up, z out of the surface"), "albedo_space": np.array("sRGB")}
            written.append(write_npz(_ending(base, ".npz"), {**arrays, **told}))
        elif kind == "mtlx":
            written.append(write_text(_ending(base, ".mtlx"), materialx(base.name)))
        else:
            written.append(sphere(arrays).save(_ending(base, f".{kind}")))
    return written


def _pictures(arrays: dict[str, np.ndarray], base: Path) -> list[Path]:
    shown = levels(arrays)
    written = []
    for name in MATERIAL_MAPS:
        if name == "height":
            values = np.rint(arrays["height"].clip(0, 1) * 65535).astype(np.uint16)
            written.append(write_png(_ending(base, "-height.png"), [values], len(values)))
        else:
            written.append(save_image(_ending(base, f"-{name}.png"), shown[name]))
    tiles = [
        np.repeat(one[..., None], 3, -1) if one.ndim == 2 else one for one in (shown[name] for name in MATERIAL_MAPS)
    ]
    tiled = [np.tile(shown["albedo"], (2, 2, 1))[::2, ::2]]
    return [*written, save_image(_ending(base, "-sheet.png"), grid([*tiles, *tiled], columns=len(tiles) + 1))]


def levels(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps as bytes: albedo sRGB, the normal (n + 1) / 2, the others as they are."""
    return {name: to_uint8((one + 1) / 2 if name == "normal" else one) for name, one in arrays.items()}


def sphere(arrays: dict[str, np.ndarray], rows: int = 48) -> Mesh:
    """A ball of radius .5 m around which the material repeats, with its textures."""
    vertices, faces, uv, uv_faces = _ball(rows, 2 * rows)
    shown = levels(arrays)
    ones = np.full_like(shown["roughness"], 255)
    textures = {
        "base_color": shown["albedo"],
        "metallic_roughness": np.stack([ones, shown["roughness"], shown["metallic"]], -1),
        "normal": shown["normal"],
    }
    repeated = uv * torch.tensor(REPEATS, dtype=torch.float32)
    return Mesh(vertices, faces, torch.nn.functional.normalize(vertices, dim=1), repeated, uv_faces, textures)


def _ball(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(vertices, faces, uv, uv faces) of a ball, one vertex at each pole; uv runs around and from south to north."""
    around = np.arange(columns) / columns * 2 * math.pi
    polar = np.arange(1, rows) / rows * math.pi  # from the north pole
    ring = np.stack(
        [
            np.outer(np.sin(polar), np.cos(around)),
            np.outer(np.sin(polar), np.sin(around)),
            np.outer(np.cos(polar), np.ones(columns)),
        ],
        -1,
    )
    vertices = 0.5 * np.concatenate([[[0, 0, 1.0]], ring.reshape(-1, 3), [[0, 0, -1.0]]])
    u, v = np.meshgrid(np.arange(columns + 1) / columns, 1 - np.arange(rows + 1) / rows)
    faces, uv_faces = [], []
    for i in range(rows):
        for j in range(columns):
            a, b, c, d = (_corner(i + di, j + dj, rows, columns) for di, dj in ((0, 0), (1, 0), (1, 1), (0, 1)))
            p, q, r, s = ((i + di) * (columns + 1) + j + dj for di, dj in ((0, 0), (1, 0), (1, 1), (0, 1)))
            if i < rows - 1:
                faces.append((a, b, c))
                uv_faces.append((p, q, r))
            if i > 0:
                faces.append((a, c, d))
                uv_faces.append((p, r, s))
    uv = np.stack([u.ravel(), v.ravel()], 1)
    return (
        torch.tensor(vertices, dtype=torch.float32),
        torch.tensor(faces),
        torch.tensor(uv, dtype=torch.float32),
        torch.tensor(uv_faces),
    )


def _corner(i: int, j: int, rows: int, columns: int) -> int:
    if i == 0:
        return 0
    return 1 + (rows - 1) * columns if i == rows else 1 + (i - 1) * columns + j % columns


def materialx(stem: str) -> str:
    """A MaterialX 1.38 document of a standard surface that reads STEM-albedo.png and its like beside it."""
    root = ElementTree.Element("materialx", version="1.38", colorspace="lin_rec709")
    graph = ElementTree.SubElement(root, "nodegraph", name="maps")
    inputs = {"albedo": "color3", "normal": "vector3", "roughness": "float", "metallic": "float", "height": "float"}
    for name, kind in inputs.items():
        image = ElementTree.SubElement(graph, "tiledimage", name=f"{name}_image", type=kind)
        file = ElementTree.SubElement(image, "input", name="file", type="filename", value=f"{stem}-{name}.png")
        if name == "albedo":
            file.set("colorspace", "srgb_texture")
    normal = ElementTree.SubElement(graph, "normalmap", name="normal_map", type="vector3")
    ElementTree.SubElement(normal, "input", name="in", type="vector3", nodename="normal_image")
    for name, kind in inputs.items():
        node = "normal_map" if name == "normal" else f"{name}_image"
        ElementTree.SubElement(graph, "output", name=f"{name}_out", type=kind, nodename=node)
    surface = ElementTree.SubElement(root, "standard_surface", name="surface", type="surfaceshader")
    for name, slot in {"albedo": "base_color", "roughness": "specular_roughness", "metallic": "metalness",
                       "normal": "normal"}.items():  # fmt: skip
        ElementTree.SubElement(surface, "input", name=slot, type=inputs[name], nodegraph="maps", output=f"{name}_out")
    lifted = ElementTree.SubElement(root, "displacement", name="relief", type="displacementshader")
    ElementTree.SubElement(lifted, "input", name="displacement", type="float", nodegraph="maps", output="height_out")
    ElementTree.SubElement(lifted, "input", name="scale", type="float", value=f"{HEIGHT_SCALE}")
    material = ElementTree.SubElement(root, "surfacematerial", name="material", type="material")
    ElementTree.SubElement(material, "input", name="surfaceshader", type="surfaceshader", nodename="surface")
    ElementTree.SubElement(material, "input", name="displacementshader", type="displacementshader", nodename="relief")
    ElementTree.indent(root)
    return '<?xml version="1.0"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _ending(base: Path, ending: str) -> Path:
    """BASE plus an ending; BASE may hold dots."""
    return base.with_name(base.name + ending)
