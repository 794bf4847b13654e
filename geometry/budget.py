"""A number of triangles as a hard upper bound."""

from __future__ import annotations

from pathlib import Path

from ..utils.errors import UnprojectError
from .meshes import Mesh


def check_written(path: Path, faces: int) -> None:
    """Raises UnprojectError when a mesh file holds more than `faces` triangles."""
    found = len(Mesh.load(path).faces)
    if found > faces:
        raise UnprojectError(f"{path} has {found} triangles, more than the {faces} asked for")
