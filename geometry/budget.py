"""A number of triangles as a hard upper bound."""

from __future__ import annotations

from pathlib import Path

from ..utils.errors import InputError, UnprojectError
from .extract import decimate
from .meshes import Mesh

TRIES = 8


def at_most(mesh: Mesh, faces: int) -> Mesh:
    """`decimate`, aimed lower until no more than `faces` triangles are left: repairs after it may add some.

    Geometry only. Raises InputError when the shape cannot be had with so few.
    """
    reduced, aim = mesh, faces
    for _ in range(TRIES):
        reduced = decimate(mesh, aim)
        if len(reduced.faces) <= faces:
            return reduced
        aim = max(4, int(0.97 * aim * faces / len(reduced.faces)))
    raise InputError(f"faces={faces}: this shape needs more, {len(reduced.faces)} came out; ask for more")


def check_written(path: Path, faces: int) -> None:
    """Raises UnprojectError when a mesh file holds more than `faces` triangles."""
    found = len(Mesh.load(path).faces)
    if found > faces:
        raise UnprojectError(f"{path} has {found} triangles, more than the {faces} asked for")
