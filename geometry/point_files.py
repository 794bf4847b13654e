"""Point clouds in files: PLY, GLB, OBJ, text and USD; written atomically and in parts, re-opened and compared.

GLB is turned to glTF's axes (y up, front +z) and back; the others keep our world. See docs/files.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..utils.errors import InputError, UnprojectError
from ..utils.files import atomic_path
from . import point_parts
from .far import near_origin
from .formats.border import file_bytes, parsing
from .formats.gltf_data import split_chunks
from .formats.piece import Floats, Notes, finite_or_none
from .formats.plain import read_xyz
from .formats.ply import read_points_ply
from .formats.point_clouds import read_glb_points, read_obj_points
from .formats.usd import USD_SUFFIXES, check_usd, write_usd_points
from .point_parts import WRITERS, write_parts
from .stored import Origin, StoredPoints

WRITABLE = (".ply", ".glb", ".obj", ".xyz", *USD_SUFFIXES)
READABLE = (".ply", ".glb", ".obj", ".xyz")


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
    if not all(bool(torch.isfinite(part).all()) for part in cloud.points.split(point_parts.PART)):
        raise InputError(f"the point cloud for {path.name} has NaN or infinite positions; drop them first")
    with atomic_path(path) as temporary:
        if kind in USD_SUFFIXES:
            write_usd_points(cloud, temporary)
            same = check_usd(temporary, len(cloud.points), None)
        else:
            same = write_parts(WRITERS[kind](cloud), temporary)
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


def _tensor(array: NDArray[np.float64] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array.astype(np.float32))
