"""Points without triangles in the formats of meshes: GLB of the mode POINTS, OBJ of vertices alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import InputError
from .border import text_of
from .gltf import FROM_GLTF, SPLATS, check_required, placed_meshes
from .gltf_data import Accessors
from .piece import Floats, Notes, srgb

POINTS = 0
Cloud = tuple[Floats, Floats | None, Floats | None]  # positions, sRGB colours, normals, each (N, 3)


def read_glb_points(document: dict[str, Any], blob: bytes, path: Path, notes: Notes) -> Cloud:
    """All points of the default scene. Raises InputError when there are none, and for splats."""
    check_required(document, path)
    accessors = Accessors(document, blob, path.parent)
    parts: list[Cloud] = []
    for mesh, matrix in placed_meshes(document, notes):
        for primitive in document["meshes"][mesh].get("primitives", []):
            if SPLATS in primitive.get("extensions", {}):
                raise InputError(f"{path} holds Gaussian splats, which are more than points; load them as splats")
            if primitive.get("mode", 4) != POINTS:
                notes.add("triangles and lines (only points are read)")
                continue
            parts.append(_placed(primitive["attributes"], matrix, accessors, notes))
    if not parts:
        raise InputError(f"{path} holds no points")
    return _joined(parts, notes)


def has_only_points(document: dict[str, Any]) -> bool:
    """Whether a glTF draws points, and nothing else but them and splats."""
    modes = [one.get("mode", 4) for mesh in document.get("meshes", []) for one in mesh.get("primitives", [])]
    return bool(modes) and all(mode == POINTS for mode in modes)


def read_obj_points(data: bytes, notes: Notes) -> Cloud:
    """The vertices of an OBJ without faces, with colours behind the positions and as many `vn`."""
    rows: dict[str, list[list[str]]] = {"v": [], "vn": []}
    for line in text_of(data).splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in rows:
            rows[words[0]].append(words[1:])
        elif words[0] not in ("o", "g", "s", "p", "mtllib", "usemtl"):
            notes.add(f"lines {words[0]}")
    if not rows["v"]:
        raise InputError("it has no vertices")
    table = np.array(rows["v"], dtype=np.float64)
    normals = np.array(rows["vn"], dtype=np.float64) if len(rows["vn"]) == len(table) else None
    if rows["vn"] and normals is None:
        notes.add("normals of another number than points")
    if table.shape[1] not in (3, 4, 6):
        raise InputError(f"its vertices have {table.shape[1]} numbers; they have 3, or 6 with colours")
    colors = table[:, 3:] / (255 if table[:, 3:].max(initial=0) > 1 else 1) if table.shape[1] == 6 else None
    return table[:, :3], colors, normals


def _placed(attributes: dict[str, int], matrix: Floats, accessors: Accessors, notes: Notes) -> Cloud:
    positions = accessors.array(attributes["POSITION"]).astype(np.float64)
    positions = (positions @ matrix[:3, :3].T + matrix[:3, 3])[:, FROM_GLTF]
    colors = normals = None
    if "COLOR_0" in attributes:
        rgba = accessors.array(attributes["COLOR_0"], colors=True).astype(np.float64)
        colors = srgb(rgba[:, :3])
        if rgba.shape[1] == 4 and rgba[:, 3].min(initial=1.0) < 1:
            notes.add("the transparency of points")
    if "NORMAL" in attributes and abs(np.linalg.det(matrix[:3, :3])) > 0:
        normals = accessors.array(attributes["NORMAL"]).astype(np.float64) @ np.linalg.inv(matrix[:3, :3])
        normals = (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30))[:, FROM_GLTF]
    return positions, colors, normals


def _joined(parts: list[Cloud], notes: Notes) -> Cloud:
    """One cloud; colours and normals where every part has them."""
    whole: list[Floats | None] = []
    for name, columns in zip(("positions", "colours", "normals"), zip(*parts)):
        present = [column for column in columns if column is not None]
        if present and len(present) < len(parts):
            notes.add(f"{name}, which some points lack")
        whole.append(np.concatenate(present) if len(present) == len(parts) else None)
    assert whole[0] is not None
    return whole[0], whole[1], whole[2]
