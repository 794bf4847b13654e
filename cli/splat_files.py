"""What `convert` and `inspect` know of splats."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .folders import MESH_KINDS, POINT_KINDS
from .outputs import need_format
from .showing import Shown

if TYPE_CHECKING:
    from ..geometry.meshes import Mesh
    from ..geometry.splats import GaussianCloud

SPLATS = (".ply", ".splat", ".spz", ".glb")  # last suffixes of files of splats
Wanted = Literal["same", "points", "mesh"]


def holds_splats(path: Path) -> bool:
    """Whether a file holds Gaussian splats; of PLY and GLB only the header is read."""
    from ..geometry.splats.files import is_splat_file

    return path.suffix.lower() in SPLATS and path.is_file() and is_splat_file(path)


def check_format(suffix: str) -> None:
    """Raises MissingExtraError for a format whose package is not there, before work is spent on it."""
    from ..utils.errors import need_extra

    if suffix == ".spz" and find_spec("zstandard") is None:
        need_extra("zstandard", "spz")


def check_splats(source: Path, destination: Path, wanted: Wanted) -> None:
    """Raises InputError where splats cannot become what is wanted."""
    from ..geometry.splats.files import suffix_of

    suffix = destination.suffix.lower()
    if wanted == "points" and suffix not in POINT_KINDS:
        raise InputError(f"points become {', '.join(POINT_KINDS)}, not {destination}")
    if wanted == "mesh" and suffix not in MESH_KINDS:
        raise InputError(f"cannot write a mesh to {destination}; use {', '.join(MESH_KINDS)}")
    if wanted != "same":
        need_format(destination)
    if wanted == "same" and suffix in (".obj", ".stl"):
        raise InputError(f"{source} holds splats, which {suffix} cannot; --to mesh makes a mesh of them")
    if wanted == "same":
        check_format(suffix_of(destination))


def convert_splats(source: Path, destination: Path, wanted: Wanted, faces: int, record: RunRecord) -> Shown:
    """Splats to splats, points or a mesh; a warning names what is lost."""
    from ..geometry.splats import load_splats, save_splats
    from ..geometry.splats.files import losses, suffix_of

    if wanted == "points":
        return _points(source, destination, record)
    cloud = load_splats(source)
    data: dict[str, Any] = {"splats": len(cloud)}
    if wanted == "mesh":
        mesh = _mesh(cloud, faces)
        record.keep(mesh.save, destination)
        data |= {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}
        return Shown([f"{len(cloud)} splats, {len(mesh.faces)} triangles"], data=data)
    record.keep(lambda to: save_splats(cloud, to), destination)
    _warn(destination, losses(cloud, suffix_of(destination)))
    return Shown([f"{len(cloud)} splats, harmonics of degree {cloud.degree}"], data=data)


def inspect_splats(path: Path) -> dict[str, Any]:
    """Facts about a file of splats, its broken values included."""
    from ..geometry.splats.facts import facts_of
    from ..geometry.splats.files import read_splats

    return {"kind": "Gaussian splats", **facts_of(read_splats(path))}


def _points(source: Path, destination: Path, record: RunRecord) -> Shown:
    """The centres of all splats with finite places, whatever else is broken."""
    from ..geometry.points import PointCloud
    from ..geometry.splats.files import read_splats

    cloud = read_splats(source)
    fine = cloud.means.isfinite().all(1) & cloud.sh.isfinite().flatten(1).all(1)
    if not bool(fine.any()):
        raise InputError(f"{source} holds no places that are finite")
    record.keep(PointCloud(cloud.means[fine], cloud.colors[fine].clamp(0, 1)).save, destination)
    _warn(destination, ["points keep places and colours: sizes, orientations, opacities and harmonics are left out"])
    count = int(fine.sum())
    return Shown([f"{count} points"], data={"splats": len(cloud), "points": count})


def _mesh(cloud: GaussianCloud, faces: int) -> Mesh:
    from dataclasses import replace

    from ..geometry.splats.surface import SurfaceConfig, surface_of

    config = SurfaceConfig()
    return surface_of(cloud, replace(config, faces=faces) if faces else config)


def _warn(path: Path, lost: list[str]) -> None:
    if lost:
        warnings.warn(f"{path.name}: {'; '.join(lost)}", UserWarning, stacklevel=3)
