"""Mesh and point files at the border of the project: written atomically, re-opened, compared; hostile ones rejected.

GLB is turned to glTF's axes (y up, front +z) and back; OBJ, STL and PLY keep our world (z up, front +x).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..utils.errors import InputError, UnprojectError
from ..utils.files import atomic_path, write_text
from .colors import srgb_from_linear
from .glb import read_colors, write_glb
from .report import collapsed_mask
from .stored import TEXTURES, StoredMesh, StoredPoints

WRITABLE = (".glb", ".obj", ".stl", ".ply")
READABLE = (*WRITABLE, ".gltf", ".off")
MAP_KEYS = {"base_color": "map_Kd", "roughness": "map_Pr", "metallic": "map_Pm", "normal": "norm"}
M = TypeVar("M", bound=StoredMesh)


class Pieces(NamedTuple):
    """What a mesh file holds."""

    parts: list[tuple[trimesh.Trimesh, NDArray[np.float64], Tensor | None]]  # mesh, world matrix, (V, 3) sRGB if exact
    gltf: bool  # in glTF's axes


def save_mesh(mesh: M, path: str | Path, load: Callable[[Path], StoredMesh]) -> Path:
    """Writes the mesh in the format of the suffix and verifies the file by reading it back with `load`.

    Raises InputError for an unknown suffix or an empty or non-finite mesh, UnprojectError when it reads back wrong.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITABLE:
        raise InputError(f"cannot write a mesh as {path.suffix or path.name!r}; use one of {', '.join(WRITABLE)}")
    mesh = _clean(mesh, path)
    texture_names = _write_obj_materials(mesh, path) if path.suffix.lower() == ".obj" else {}
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encode(mesh, path, texture_names))
        _verify(mesh, load(temporary), path)
    return path


def read_pieces(path: str | Path) -> Pieces:
    """All pieces of a scene. Raises InputError for anything unusable."""
    path = Path(path)
    data = _read(path, READABLE, "mesh")
    try:
        scene = trimesh.load_scene(str(path), file_type=path.suffix.lower()[1:], process=False)
        pieces = _pieces(scene)
    except Exception as error:  # parsers fail in many ways on damaged files
        raise InputError(f"{path} cannot be read as {path.suffix}: {str(error) or type(error).__name__}") from error
    if not pieces:
        raise InputError(f"{path} holds no triangles; for a point cloud use PointCloud.load")
    gltf = path.suffix.lower() in (".glb", ".gltf")
    exact = read_colors(data) if path.suffix.lower() == ".glb" and len(pieces) == 1 else None
    for piece, _ in pieces:
        _check_arrays(piece.vertices, piece.faces, path)
    return Pieces([(piece, matrix, _gltf_colors(piece, exact) if gltf else None) for piece, matrix in pieces], gltf)


def save_points(cloud: StoredPoints, path: str | Path) -> Path:
    """Writes a binary little-endian PLY: float32 xyz, float32 normals and uchar rgb when present."""
    path = Path(path)
    if path.suffix.lower() != ".ply":
        raise InputError(f"cannot write a point cloud as {path.suffix or path.name!r}; use .ply")
    if not len(cloud.points):
        raise InputError(f"the point cloud for {path.name} is empty")
    if not bool(torch.isfinite(cloud.points).all()):
        raise InputError(f"the point cloud for {path.name} has NaN or infinite positions; drop them first")
    columns = [("xyz", cloud.points, "<f4")]
    if cloud.normals is not None:
        columns.append(("normal", cloud.normals, "<f4"))
    if cloud.colors is not None:
        columns.append(("rgb", (cloud.colors.clamp(0, 1) * 255).round(), "u1"))
    names = {"xyz": ("x", "y", "z"), "normal": ("nx", "ny", "nz"), "rgb": ("red", "green", "blue")}
    kinds = {"<f4": "float", "u1": "uchar"}
    table = np.zeros(len(cloud.points), dtype=[(name, kind, (3,)) for name, _, kind in columns])
    for name, values, _ in columns:
        table[name] = values.detach().cpu().numpy()
    properties = "".join(f"property {kinds[kind]} {field}\n" for name, _, kind in columns for field in names[name])
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(cloud.points)}\n{properties}end_header\n"
    with atomic_path(path) as temporary:
        temporary.write_bytes(header.encode() + table.tobytes())
        if not torch.equal(read_points(temporary)[0], cloud.points.detach().cpu().float()):
            raise UnprojectError(f"{path} read back differently from what was written; the disk may be failing")
    return path


def read_points(path: str | Path) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Vertices, sRGB colours and normals (N, 3) of a PLY. Raises InputError for anything unusable."""
    path = Path(path)
    _read(path, (".ply",), "point cloud")
    try:
        geometry = trimesh.load_scene(str(path), file_type="ply", process=False).dump()[0]
        points = np.array(geometry.vertices, dtype=np.float32)
        raw = geometry.metadata.get("_ply_raw", {}).get("vertex", {}).get("data", {})
        rgb = np.stack([raw[n] for n in ("red", "green", "blue")], 1) if _has(raw, "red", "green", "blue") else None
        normals = np.stack([raw[n] for n in ("nx", "ny", "nz")], 1) if _has(raw, "nx", "ny", "nz") else None
    except Exception as error:  # parsers fail in many ways on damaged files
        raise InputError(f"{path} cannot be read as a PLY: {str(error) or type(error).__name__}") from error
    if not len(points) or not np.isfinite(points).all():
        raise InputError(f"{path} holds no points or non-finite ones")
    scale = 255.0 if rgb is not None and rgb.dtype.kind in "ui" else 1.0
    return (
        torch.from_numpy(points),
        None if rgb is None else torch.from_numpy(rgb.reshape(-1, 3).astype(np.float32) / scale),
        None if normals is None else torch.from_numpy(normals.reshape(-1, 3).astype(np.float32)),
    )


def _has(table: object, *names: str) -> bool:
    """Whether a structured array or mapping has all columns."""
    keys = getattr(getattr(table, "dtype", None), "names", None) or (table if isinstance(table, dict) else ())
    return all(name in keys for name in names)


def _read(path: Path, suffixes: tuple[str, ...], what: str) -> bytes:
    """The bytes of an existing, non-empty file with a known suffix."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"cannot read a {what} from {path.suffix or path.name!r}; use one of {', '.join(suffixes)}")
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give a {what} file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    if not data:
        raise InputError(f"{path} is empty")
    return data


def _check_arrays(vertices: object, faces: object, path: Path) -> None:
    positions, index = np.asarray(vertices), np.asarray(faces)
    if not np.isfinite(positions).all():
        raise InputError(f"{path} has NaN or infinite vertex positions")
    if index.min() < 0 or index.max() >= len(positions):
        raise InputError(f"{path} has faces that point to vertices which do not exist")


def _pieces(scene: trimesh.Scene) -> list[tuple[trimesh.Trimesh, NDArray[np.float64]]]:
    """(geometry, world matrix) of every node with triangles; several textured ones become one with an atlas."""
    nodes = [(scene.geometry[name], matrix) for matrix, name in (scene.graph[n] for n in scene.graph.nodes_geometry)]
    pieces = [(g, np.array(m)) for g, m in nodes if isinstance(g, trimesh.Trimesh) and len(g.faces)]
    if len(pieces) > 1 and any(getattr(g.visual, "uv", None) is not None for g, _ in pieces):
        return [(scene.to_mesh(), np.eye(4))]
    return pieces


def _gltf_colors(mesh: trimesh.Trimesh, exact: Tensor | None) -> Tensor | None:
    """sRGB vertex colours (V, 3) of a glTF mesh, whose COLOR_0 is linear; `exact` (V, 3) has more than 8 bits."""
    linear = exact
    if linear is None or len(linear) != len(mesh.vertices):
        colors = mesh.visual.vertex_colors if mesh.visual.kind == "vertex" else None
        if mesh.visual.kind == "texture" and "color" in mesh.visual.vertex_attributes:
            colors = mesh.visual.vertex_attributes["color"]
        if colors is None:
            return None
        raw = np.asarray(colors)[:, :3]
        scale = float(np.iinfo(raw.dtype).max) if raw.dtype.kind in "ui" else 1.0
        linear = torch.from_numpy(raw.astype(np.float32) / scale)
    return srgb_from_linear(linear.clamp(0, 1))


def _clean(mesh: M, path: Path) -> M:
    """On the CPU, without faces collapsed to an edge. Raises InputError for an empty or non-finite mesh."""
    if len(mesh.faces) == 0 or len(mesh.vertices) == 0:
        raise InputError(f"the mesh for {path.name} has no faces; nothing to write")
    vertices, faces = mesh.vertices.detach().cpu().numpy(), mesh.faces.cpu().numpy()
    _check_arrays(vertices, faces, path)
    keep = torch.from_numpy(~collapsed_mask(vertices[faces].astype(np.float64)))
    if not bool(keep.any()):
        raise InputError(f"the mesh for {path.name} has only degenerate faces")
    used, compact = torch.unique(mesh.faces.cpu()[keep], return_inverse=True)

    def kept(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach().cpu().float()

    def of_used(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach().cpu().float()[used]

    changes: dict[str, Any] = {
        "vertices": of_used(mesh.vertices),
        "faces": compact,
        "vertex_normals": of_used(mesh.vertex_normals),
        "uv": kept(mesh.uv),
        "uv_faces": None if mesh.uv_faces is None else mesh.uv_faces.cpu()[keep],
        "vertex_colors": of_used(mesh.vertex_colors),
    }
    return replace(mesh, **changes)


def _encode(mesh: StoredMesh, path: Path, texture_names: dict[str, str]) -> bytes:
    suffix = path.suffix.lower()
    if suffix == ".glb":
        return write_glb(mesh)
    if suffix == ".obj":
        return _obj_text(mesh, f"{path.stem}.mtl" if texture_names else None).encode()
    plain = mesh.with_vertex_colors() if mesh.textures else mesh
    encoded = plain.to_trimesh().export(file_type=suffix[1:])
    return encoded if isinstance(encoded, bytes) else str(encoded).encode()


def _verify(mesh: StoredMesh, back: StoredMesh, path: Path) -> None:
    """Same face count and the same bounds to float precision."""
    tolerance = 1e-5 * max(mesh.diagonal, 1e-12) + 1e-6 * float(mesh.vertices.abs().max())
    if len(back.faces) != len(mesh.faces) or float((back.bounds - mesh.bounds).abs().max()) > tolerance:
        raise UnprojectError(f"{path} read back differently from what was written; nothing was kept")


def _write_obj_materials(mesh: StoredMesh, path: Path) -> dict[str, str]:
    """Writes NAME.mtl and its pictures beside the OBJ; returns {texture: file name}, empty without uv textures."""
    if mesh.uv is None or not mesh.textures:
        return {}
    images = {name: mesh.textures[name] for name in TEXTURES if name in mesh.textures}
    packed = images.pop("metallic_roughness", None)
    if packed is not None:  # glTF packs roughness in green, metallic in blue; OBJ wants two pictures
        images |= {"roughness": packed[..., 1], "metallic": packed[..., 2]}
    names = {}
    for name, pixels in images.items():
        names[name] = f"{path.stem}_{name}.png"
        with atomic_path(path.with_name(names[name])) as temporary:
            Image.fromarray(pixels).save(temporary)
    lines = ["newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "d 1", "illum 1"]
    lines += [f"{MAP_KEYS[name]} {file}" for name, file in names.items()]
    write_text(path.with_suffix(".mtl"), "\n".join(lines) + "\n")
    return names


def _obj_text(mesh: StoredMesh, material: str | None) -> str:
    """Wavefront text: `v x y z [r g b]`, `vt` from the bottom left, `vn`, 1-based `f v/vt/vn`."""
    blocks = [f"mtllib {material}\nusemtl surface"] if material else []
    columns = [mesh.vertices] if mesh.vertex_colors is None else [mesh.vertices, mesh.vertex_colors]
    blocks.append(_rows("v", torch.cat(columns, dim=1)))
    corners = [mesh.faces + 1, None, None]
    if mesh.uv is not None and mesh.uv_faces is not None:
        blocks.append(_rows("vt", mesh.uv))
        corners[1] = mesh.uv_faces + 1
    if mesh.vertex_normals is not None:
        blocks.append(_rows("vn", mesh.vertex_normals))
        corners[2] = mesh.faces + 1
    parts = ["%d", "/%d" if corners[1] is not None else ("/" if corners[2] is not None else "")]
    corner = "".join(parts) + ("/%d" if corners[2] is not None else "")
    index = torch.stack([c for c in corners if c is not None], dim=-1).flatten(1)  # (F, 3 k)
    line = f"f {corner} {corner} {corner}"
    blocks.append("\n".join(line % tuple(row) for row in index.tolist()))
    return "\n".join(blocks) + "\n"


def _rows(key: str, values: Tensor) -> str:
    line = f"{key} " + " ".join(["%.9g"] * values.shape[1])
    return "\n".join(line % tuple(row) for row in values.tolist())
