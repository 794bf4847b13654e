"""STL and OFF by trimesh, which knows them; what it passes over is named or refused first."""

from __future__ import annotations

import io
import re

import numpy as np
import trimesh

from ...utils.errors import InputError
from .border import text_of
from .piece import Floats, Notes, Piece

STL_RECORD = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read_stl(data: bytes, notes: Notes) -> list[Piece]:
    """Triangles of binary or text STL. Colours in the attribute bytes are named. Raises InputError for cut files."""
    if b"\0" not in data[:84]:
        if b"endsolid" not in data.lower():
            raise InputError("it ends before its endsolid; the file is incomplete")
        return _pieces(text_of(data).encode(), "stl")
    count, whole = int.from_bytes(data[80:84], "little"), max(len(data) - 84, 0) // STL_RECORD.itemsize
    if whole < count:
        raise InputError(f"it ends after {whole} of its {count} triangles; the file is incomplete")
    table = np.frombuffer(data, STL_RECORD, count, 84)
    if table["attribute"].any() or b"COLOR=" in data[:80]:
        notes.add("colours in attribute bytes (they have no common meaning)")
    end = 84 + count * STL_RECORD.itemsize
    if len(data) > end:
        notes.add(f"{len(data) - end} bytes behind the triangles")
    return _pieces(data[:end], "stl") if count else []


def read_off(data: bytes, notes: Notes) -> list[Piece]:
    """Triangles of OFF. Raises InputError for its binary and other-dimensional kinds."""
    lines = [line.split("#", 1)[0].strip() for line in text_of(data).splitlines()]
    lines = [line for line in lines if line]
    head = re.match(r"(ST)?(C)?(N)?(4)?(n)?OFF\b(\s+BINARY)?", lines[0]) if lines else None
    if head is None:
        raise InputError("it does not begin with OFF")
    if head[4] or head[5] or head[6]:
        raise InputError(f"{lines[0][:20]!r} is a kind of OFF that is not read; export it as plain OFF")
    for group, what in ((1, "texture coordinates"), (2, "vertex colours"), (3, "normals")):
        if head[group]:
            notes.add(f"{what} of {lines[0].split()[0]}")
    rows = [line.split() for line in lines[-3:]]
    if any(row[0].isdigit() and len(row) > 1 + int(row[0]) > 3 for row in rows):
        notes.add("the colours of faces")
    return _pieces(text_of(data).encode(), "off")


def read_xyz(data: bytes) -> tuple[Floats, Floats | None, Floats | None]:
    """Positions, colours and normals of a text with a point on each line: 3 numbers; 6, colours from 0 to 255 or unit
    normals; or 9, both in this order. Raises InputError for other tables."""
    try:
        table = np.loadtxt(io.StringIO(text_of(data)), ndmin=2, comments=("#", "//"))
    except ValueError as error:
        raise InputError(f"it is no table of numbers: {error}") from error
    if not len(table) or table.shape[1] not in (3, 6, 9):
        raise InputError(f"its lines hold {table.shape[1]} numbers; 3, 6 or 9 are points, colours and normals")
    parts = [table[:, i : i + 3] for i in range(3, table.shape[1], 3)]
    normals = parts.pop() if parts and np.allclose(np.linalg.norm(parts[-1], axis=1), 1, atol=1e-3) else None
    if len(parts) > 1 or any(part.min() < 0 or part.max() > 255 for part in parts):
        raise InputError("its columns are neither colours from 0 to 255 nor unit normals")
    return table[:, :3], parts[0] / 255 if parts else None, normals


def _pieces(data: bytes, kind: str) -> list[Piece]:
    scene = trimesh.load_scene(io.BytesIO(data), file_type=kind, process=False)
    found = [g for g in scene.geometry.values() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
    return [Piece(np.array(g.vertices, np.float64), np.array(g.faces, np.int64)) for g in found]
