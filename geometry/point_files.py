"""Point clouds in files: PLY, GLB, OBJ, text and USD; written atomically in parts, re-opened and compared.

GLB is turned to glTF's axes (y up, front +z) and back; the others keep our world. See docs/files.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..utils.errors import InputError, UnprojectError
from ..utils.files import atomic_path
from .cameras import to_gltf_points
from .colors import linear_from_srgb
from .far import near_origin
from .formats.border import file_bytes, floats, levels, parsing, positions_of
from .formats.gltf_data import split_chunks
from .formats.piece import Floats, Notes, finite_or_none
from .formats.plain import read_xyz
from .formats.ply import read_points_ply
from .formats.ply_data import columns_of, ply_header, vertex_rows
from .formats.point_clouds import read_glb_points, read_obj_points
from .formats.usd import USD_SUFFIXES, check_usd, write_usd_points
from .glb import Builder, container
from .stored import NO_ORIGIN, Origin, StoredPoints

WRITABLE = (".ply", ".glb", ".obj", ".xyz", *USD_SUFFIXES)
READABLE = (".ply", ".glb", ".obj", ".xyz")
PART = 1 << 16  # points at a time
POINTS = 0  # glTF's mode


def save_points(cloud: StoredPoints, path: str | Path) -> Path:
    """Writes the format of the suffix, one of WRITABLE, and reads it back.

    Positions are float32, in PLY double where an origin has to be added. Raises InputError for an unknown suffix, an
    empty cloud or positions that are not finite, UnprojectError when the file reads back wrong.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in WRITABLE:
        raise InputError(
            f"cannot write a point cloud as {path.suffix or path.name!r}; use one of {', '.join(WRITABLE)}"
        )
    if not len(cloud.points):
        raise InputError(f"the point cloud for {path.name} is empty")
    if not all(bool(torch.isfinite(part).all()) for part in cloud.points.split(PART)):
        raise InputError(f"the point cloud for {path.name} has NaN or infinite positions; drop them first")
    with atomic_path(path) as temporary:
        if kind == ".ply":
            _write_ply(cloud, temporary)
            same = _same_ply(cloud, temporary)
        elif kind in USD_SUFFIXES:
            write_usd_points(cloud, temporary)
            same = check_usd(temporary, len(cloud.points), None)
        else:
            writers: dict[str, Callable[[StoredPoints, Path], None]] = {
                ".glb": _write_glb,
                ".obj": _write_obj,
                ".xyz": _write_xyz,
            }
            writers[kind](cloud, temporary)
            same = _same(cloud, temporary)
        if not same:
            raise UnprojectError(f"{path} read back differently from what was written; the disk may be failing")
    return path


def read_points(path: str | Path) -> tuple[Tensor, Tensor | None, Tensor | None, Origin]:
    """Points, sRGB colours and normals (N, 3) of a file, and the origin of the points.

    What else it holds is named in one warning. Raises InputError for anything unusable.
    """
    path = Path(path)
    data, notes = file_bytes(path, READABLE, "point cloud"), Notes(path)
    with parsing(path):
        points, colors, normals = _parse(data, path, notes)
    if not np.isfinite(points).all():
        raise InputError(f"{path} holds points that are not finite")
    colors, normals = finite_or_none(colors, "colours", notes), finite_or_none(normals, "normals", notes)
    near, origin = near_origin(points, str(path))
    notes.say()
    return near, _tensor(colors), _tensor(normals), origin


def _parse(data: bytes, path: Path, notes: Notes) -> tuple[Floats, Floats | None, Floats | None]:
    kind = path.suffix.lower()
    if kind == ".ply":
        return read_points_ply(data, notes)
    if kind == ".glb":
        return read_glb_points(*split_chunks(data), path, notes)
    return read_obj_points(data, notes) if kind == ".obj" else read_xyz(data)


def _parts(cloud: StoredPoints) -> Iterator[tuple[NDArray[Any], NDArray[np.float32] | None, NDArray[np.uint8] | None]]:
    """(positions, normals, colours of 8 bits) of some points at a time."""
    for start in range(0, len(cloud.points), PART):
        rows = slice(start, start + PART)
        normals = None if cloud.normals is None else cloud.normals[rows]
        colors = None if cloud.colors is None else cloud.colors[rows]
        yield positions_of(cloud.points[rows], cloud.origin), floats(normals), levels(colors)


def _write_ply(cloud: StoredPoints, path: Path) -> None:
    with open(path, "wb") as file:
        for number, part in enumerate(_parts(cloud)):
            columns = columns_of(*part)
            if number == 0:
                file.write(ply_header(columns, len(cloud.points)))
            file.write(vertex_rows(columns).data)


def _same_ply(cloud: StoredPoints, path: Path) -> bool:
    """Whether a file holds the points to the bit; read some rows at a time."""
    with open(path, "rb") as file:
        for number, part in enumerate(_parts(cloud)):
            columns = columns_of(*part)
            if number == 0:
                header = ply_header(columns, len(cloud.points))
                if file.read(len(header)) != header:
                    return False
            rows = vertex_rows(columns)
            if file.read(rows.nbytes) != rows.tobytes():
                return False
        return not file.read(1)


def _write_glb(cloud: StoredPoints, path: Path) -> None:
    """Points of a glTF mesh; colours linear floats, an origin as the node's translation."""
    builder = Builder()
    attributes = {"POSITION": builder.floats(to_gltf_points(cloud.points), with_bounds=True)}
    if cloud.normals is not None:
        attributes["NORMAL"] = builder.floats(to_gltf_points(cloud.normals))
    if cloud.colors is not None:
        attributes["COLOR_0"] = builder.floats(linear_from_srgb(cloud.colors.float().clamp(0, 1)))
    x, y, z = cloud.origin
    moved = {} if cloud.origin == NO_ORIGIN else {"translation": [y, z, x]}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "unproject"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "points", **moved}],
        "meshes": [{"primitives": [{"attributes": attributes, "mode": POINTS}], "name": "points"}],
        "accessors": builder.accessors,
    }
    path.write_bytes(container(document, builder))


def _write_obj(cloud: StoredPoints, path: Path) -> None:
    """`v x y z [r g b]` in [0, 1] and `vn`, as many as points."""
    digits = 9 if cloud.origin == NO_ORIGIN else 15
    with open(path, "w", encoding="ascii") as file:
        for positions, _, rgb in _parts(cloud):
            table = positions if rgb is None else np.concatenate([positions, rgb / 255], axis=1)
            _write_rows(file, "v ", table, [f"%.{digits}g"] * 3 + ["%.6g"] * (table.shape[1] - 3))
        for _, normals, _ in _parts(cloud):
            if normals is not None:
                _write_rows(file, "vn ", normals, ["%.6g"] * 3)


def _write_xyz(cloud: StoredPoints, path: Path) -> None:
    """A line of text for each point: x y z, then r g b from 0 to 255, then nx ny nz, as far as there are such."""
    digits = 9 if cloud.origin == NO_ORIGIN else 15
    with open(path, "w", encoding="ascii") as file:
        for positions, normals, rgb in _parts(cloud):
            table = [part for part in (positions, rgb, normals) if part is not None]
            form = [f"%.{digits}g"] * 3 + ["%d"] * 3 * (rgb is not None) + ["%.6g"] * 3 * (normals is not None)
            _write_rows(file, "", np.concatenate(table, axis=1), form)


def _write_rows(file: Any, key: str, table: NDArray[Any], form: list[str]) -> None:
    line = key + " ".join(form) + "\n"
    file.write("".join([line % tuple(row) for row in table.tolist()]))


def _same(cloud: StoredPoints, path: Path) -> bool:
    """Whether a file holds as many points, in the same box to float precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points, colors, normals, origin = read_points(path)
    if len(points) != len(cloud.points) or (colors is None) != (cloud.colors is None):
        return False
    boxes = []
    for values, start in ((points, origin), (cloud.points.cpu(), cloud.origin)):
        corners = torch.stack([values.amin(dim=0), values.amax(dim=0)]).double()
        boxes.append(corners + torch.tensor(start, dtype=torch.float64))
    tolerance = 1e-6 * float(boxes[1].abs().max()) + 1e-9
    return float((boxes[0] - boxes[1]).abs().max()) <= tolerance and (normals is None) == (cloud.normals is None)


def _tensor(array: NDArray[np.float64] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array.astype(np.float32))
