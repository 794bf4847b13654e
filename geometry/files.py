"""Mesh files at the border of the project: written atomically, re-opened, compared; hostile ones rejected.

GLB is turned to glTF's axes (y up, front +z) and back; OBJ, STL and PLY keep our world (z up, front +x). What each
format holds, and what is refused or left out by name, stands in docs/files.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..utils.errors import InputError, UnprojectError
from ..utils.files import atomic_path, write_text
from .formats.border import file_bytes, floats, levels, parsing, picture_name, positions_of
from .formats.gltf import read_gltf
from .formats.join import joined
from .formats.obj import read_obj
from .formats.piece import Notes, Piece
from .formats.plain import read_off, read_stl
from .formats.ply import read_mesh_ply
from .formats.ply_data import ply_bytes
from .formats.usd import USD_SUFFIXES, check_usd, write_usd_mesh
from .glb import write_glb
from .report import collapsed_mask
from .stored import NO_ORIGIN, TEXTURES, StoredMesh

WRITABLE = (".glb", ".obj", ".stl", ".ply")  # and USD, which is not read
READABLE = (*WRITABLE, ".gltf", ".off")
OBJ_MATERIAL = "newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 1\n"  # how our libraries begin
MAP_KEYS = {"base_color": "map_Kd", "roughness": "map_Pr", "metallic": "map_Pm", "normal": "norm"}
M = TypeVar("M", bound=StoredMesh)


def save_mesh(mesh: M, path: str | Path, load: Callable[[Path], StoredMesh]) -> Path:
    """Writes the mesh in the format of the suffix and verifies the file by reading it back with `load`.

    Raises InputError for an unknown suffix or an empty or non-finite mesh, UnprojectError when it reads back wrong.
    """
    path = Path(path)
    known = (*WRITABLE, *USD_SUFFIXES)
    if path.suffix.lower() not in known:
        raise InputError(f"cannot write a mesh as {path.suffix or path.name!r}; use one of {', '.join(known)}")
    mesh = _clean(mesh, path)
    _name_losses(mesh, path)
    if path.suffix.lower() == ".stl":
        mesh = replace(mesh, origin=NO_ORIGIN)
    if path.suffix.lower() in USD_SUFFIXES:
        return _save_usd(mesh, path)
    texture_names = _write_obj_materials(mesh, path) if path.suffix.lower() == ".obj" else {}
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encode(mesh, path, texture_names))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _verify(mesh, load(temporary), path)
    return path


def _save_usd(mesh: StoredMesh, path: Path) -> Path:
    with atomic_path(path) as temporary:
        write_usd_mesh(mesh, temporary, path)
        if not check_usd(temporary, len(mesh.vertices), len(mesh.faces)):
            raise UnprojectError(f"{path} read back differently from what was written; nothing was kept")
    return path


def read_mesh(path: str | Path) -> Piece:
    """All triangles of a file as one piece in our axes; what else it holds is named in one warning.

    Raises InputError for anything unusable.
    """
    path = Path(path)
    data, notes = file_bytes(path, READABLE, "mesh"), Notes(path)
    with parsing(path):
        pieces = _parse(path, data, notes)
        for piece in pieces:
            _check_arrays(piece.positions, piece.faces, path)
            piece.drop_what_is_not_finite(notes)
    if not pieces:
        raise InputError(f"{path} holds no triangles; for a point cloud use PointCloud.load")
    with parsing(path):
        whole = joined(pieces, notes)
    notes.say()
    return whole


def _parse(path: Path, data: bytes, notes: Notes) -> list[Piece]:
    suffix = path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        pieces = read_gltf(data, path, notes)
    elif suffix == ".obj":
        pieces = read_obj(data, path, notes)
    elif suffix == ".ply":
        pieces = read_mesh_ply(data, path, notes)
    else:
        pieces = read_stl(data, notes) if suffix == ".stl" else read_off(data, notes)
    return [piece for piece in pieces if len(piece.faces)]


def _check_arrays(vertices: object, faces: object, path: Path) -> None:
    positions, index = np.asarray(vertices), np.asarray(faces)
    if not np.isfinite(positions).all():
        raise InputError(f"{path} has NaN or infinite vertex positions")
    if index.min() < 0 or index.max() >= len(positions):
        raise InputError(f"{path} has faces that point to vertices which do not exist")


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
    if suffix == ".ply":
        plain = mesh.with_vertex_colors() if mesh.textures else mesh
        arrays = (positions_of(plain.vertices, plain.origin), floats(plain.vertex_normals), levels(plain.vertex_colors))
        return ply_bytes(*arrays, plain.faces.numpy())
    bare = replace(mesh, uv=None, uv_faces=None, textures={}, vertex_colors=None)
    return bytes(bare.to_trimesh().export(file_type="stl"))


def _name_losses(mesh: StoredMesh, path: Path) -> None:
    """A warning for what the format cannot hold."""
    suffix, lost = path.suffix.lower(), []
    textured = mesh.uv is not None and bool(mesh.textures)
    maps = [name.replace("_", " ") for name in mesh.textures if name != "base_color"]
    if suffix == ".stl":
        if textured or mesh.vertex_colors is not None:
            lost.append("STL holds no colours")
        if mesh.origin != NO_ORIGIN:
            x, y, z = mesh.origin
            lost.append(f"STL holds float32: positions are written relative to ({x:.12g}, {y:.12g}, {z:.12g})")
    elif suffix == ".ply" and textured:
        lost.append(f"PLY holds no texture: it became the colours of {len(mesh.vertices)} vertices")
        if maps:
            lost.append(f"{', '.join(maps)} left out")
    elif suffix in (".glb", ".obj", *USD_SUFFIXES) and textured and mesh.vertex_colors is not None:
        lost.append("vertex colours beside a texture are left out")
    if lost:
        warnings.warn(f"{path.name}: {'; '.join(lost)}", UserWarning, stacklevel=4)


def _verify(mesh: StoredMesh, back: StoredMesh, path: Path) -> None:
    """Same face count and the same bounds in the world to float precision."""
    tolerance = 1e-5 * max(mesh.diagonal, 1e-12) + 1e-6 * float(mesh.vertices.abs().max())
    if len(back.faces) != len(mesh.faces) or float((back.world_bounds - mesh.world_bounds).abs().max()) > tolerance:
        raise UnprojectError(f"{path} read back differently from what was written; nothing was kept")


def written_beside(path: Path) -> list[Path]:
    """What a mesh in this file may be written with: the library (first) and pictures of OBJ, the pictures of USD."""
    suffix = path.suffix.lower()
    if suffix == ".obj":
        return [path.with_suffix(".mtl"), *(path.with_name(picture_name(path, name)) for name in MAP_KEYS)]
    layers = set(USD_SUFFIXES) - {".usdz"}
    return [path.with_name(picture_name(path, name)) for name in TEXTURES] if suffix in layers else []


def _write_obj_materials(mesh: StoredMesh, path: Path) -> dict[str, str]:
    """Writes NAME.mtl and its pictures beside the OBJ; returns {texture: file name}, empty without uv textures.

    The library is written first: where it is ours and the OBJ is missing, all of them are what a stopped run left.
    """
    if mesh.uv is None or not mesh.textures:
        return {}
    images = {name: mesh.textures[name] for name in TEXTURES if name in mesh.textures}
    packed = images.pop("metallic_roughness", None)
    if packed is not None:  # glTF packs roughness in green, metallic in blue; OBJ wants two pictures
        images |= {"roughness": packed[..., 1], "metallic": packed[..., 2]}
    names = {name: picture_name(path, name) for name in images}
    maps = "".join(f"{MAP_KEYS[name]} {file}\n" for name, file in names.items())
    write_text(path.with_suffix(".mtl"), OBJ_MATERIAL + maps)
    for name, pixels in images.items():
        with atomic_path(path.with_name(names[name])) as temporary:
            Image.fromarray(pixels).save(temporary)
    return names


def _obj_text(mesh: StoredMesh, material: str | None) -> str:
    """Wavefront text: `v x y z [r g b]`, `vt` from the bottom left, `vn`, 1-based `f v/vt/vn`."""
    blocks = [f"mtllib {material}\nusemtl surface"] if material else []
    tinted = mesh.vertex_colors is not None and not material
    places = torch.from_numpy(positions_of(mesh.vertices, mesh.origin))
    columns = [places, mesh.vertex_colors.to(places)] if tinted and mesh.vertex_colors is not None else [places]
    blocks.append(_rows("v", torch.cat(columns, dim=1), 9 if mesh.origin == NO_ORIGIN else 15))
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


def _rows(key: str, values: Tensor, digits: int = 9) -> str:
    line = f"{key} " + " ".join([f"%.{digits}g"] * values.shape[1])
    return "\n".join(line % tuple(row) for row in values.tolist())
