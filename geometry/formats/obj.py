"""Wavefront OBJ to pieces, one a material, in double precision; relative indices count back from their own line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...utils.errors import InputError
from ...utils.files import is_there
from .border import text_of
from .mtl import Material, read_mtl
from .piece import Floats, Ints, Notes, Piece
from .polygons import fan_starts

PASSED = {"o", "g", "s", "vp", "mg", "lod", "bevel", "c_interp", "d_interp", "shadow_obj", "trace_obj"}
CURVES = {"curv", "curv2", "surf", "cstype", "deg", "bmat", "step", "parm", "trim", "hole", "scrv", "sp", "end", "con"}
Corner = tuple[int, int, int]  # position, texture coordinate, normal; from 0, -1 where there is none


@dataclass
class _Text:
    """What the lines say."""

    positions: list[list[str]] = field(default_factory=list)
    uv: list[list[str]] = field(default_factory=list)
    normals: list[list[str]] = field(default_factory=list)
    polygons: dict[str, list[list[Corner]]] = field(default_factory=dict)
    libraries: list[str] = field(default_factory=list)


def read_obj(data: bytes, path: Path, notes: Notes) -> list[Piece]:
    """The triangles of a file, grouped by material. Raises InputError for numbers and indices that make no sense."""
    text = _parse(text_of(data).replace("\\\n", " "), notes)
    positions, colors = _positions(text.positions, notes)
    uv = _table(text.uv, 2, "vt") if text.uv else None
    normals = _table(text.normals, 3, "vn") if text.normals else None
    materials = _materials(text, path, notes)
    pieces = []
    for name, polygons in text.polygons.items():
        material = materials.get(name)
        if material is None and name:
            notes.add(f"material {name!r}, which no library holds")
        starts = fan_starts([[corner[0] for corner in p] for p in polygons], positions, notes).tolist()
        turned = [p[start:] + p[:start] for p, start in zip(polygons, starts, strict=True)]
        corners = np.array([[p[0], p[i], p[i + 1]] for p in turned for i in range(1, len(p) - 1)], dtype=np.int64)
        if len(corners):
            pieces.append(_piece(corners, positions, colors, uv, normals, material, notes))
    return pieces


def _parse(text: str, notes: Notes) -> _Text:
    found = _Text()
    others: Counter[str] = Counter()
    material = ""
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key = words[0]
        if key == "v":
            found.positions.append(words[1:])
        elif key == "vt":
            found.uv.append(words[1:3] if len(words) > 2 else [*words[1:], "0"])
        elif key == "vn":
            found.normals.append(words[1:4])
        elif key in ("f", "fo"):
            counts = (len(found.positions), len(found.uv), len(found.normals))
            found.polygons.setdefault(material, []).append([_corner(word, counts) for word in words[1:]])
        elif key == "usemtl":
            material = line.split(None, 1)[1].strip() if len(words) > 1 else ""
        elif key == "mtllib":
            found.libraries.append(line.split(None, 1)[1].strip() if len(words) > 1 else "")
        elif key not in PASSED:
            others[key] += 1
    for key, what in (("l", "lines"), ("p", "points")):
        if others.pop(key, 0):
            notes.add(f"{what} (only triangles are read)")
    curves = [key for key in others if key in CURVES]
    if curves:
        notes.add(f"free-form surfaces ({', '.join(curves)})")
    if set(others) - set(curves):
        notes.add(f"statements {', '.join(sorted(set(others) - set(curves)))[:120]}")
    return found


def _corner(word: str, counts: tuple[int, int, int]) -> Corner:
    """v, v/vt, v//vn or v/vt/vn; negative ones count back from the last that was read."""
    parts = word.split("/")
    made = [-1, -1, -1]
    try:
        for i, part in enumerate(parts[:3]):
            if part:
                value = int(part)
                made[i] = value - 1 if value > 0 else counts[i] + value
                if value == 0 or made[i] < 0:
                    raise ValueError
    except ValueError:
        raise InputError(f"face corner {word[:40]!r} makes no sense; indices count from 1") from None
    return made[0], made[1], made[2]


def _positions(rows: list[list[str]], notes: Notes) -> tuple[Floats, Floats | None]:
    """x y z [w | r g b [a]]; colours of 0 to 255 are recognised by their size, those of some vertices alone named."""
    if not rows:
        return np.zeros((0, 3)), None
    widths = Counter(map(len, rows))
    width = min(widths)
    if width < 3:
        raise InputError(f"a vertex has {width} coordinates; three are needed")
    coloured = sum(count for wide, count in widths.items() if wide >= 6)
    if width < 6 and coloured:
        notes.add(f"the colours of {coloured} of {len(rows)} vertices, of which the others have none")
    table = _table(rows, min(width, 6), "v")
    if width in (4, 5):
        if not np.all(table[:, 3] == 1):
            raise InputError("vertices with a weight other than 1 (rational curves) are not read; export triangles")
        return table[:, :3], None
    if width == 3:
        return table, None
    colors = table[:, 3:6] / (255.0 if table[:, 3:6].max() > 1 else 1.0)
    return table[:, :3], colors.clip(0, 1)


def _table(rows: list[list[str]], width: int, key: str) -> Floats:
    try:
        table = np.array([row[:width] for row in rows], dtype=np.float64)
    except ValueError:
        table = np.zeros(0)
    if table.shape != (len(rows), width):
        odd = next((row for row in rows if not _are_numbers(row[:width], width)), rows[0])
        raise InputError(f"the line {' '.join([key, *odd])[:60]!r} holds something else than {width} numbers")
    return table


def _are_numbers(words: list[str], count: int) -> bool:
    try:
        return len(list(map(float, words))) == count
    except ValueError:
        return False


def _materials(text: _Text, path: Path, notes: Notes) -> dict[str, Material]:
    materials: dict[str, Material] = {}
    for library in dict.fromkeys(text.libraries):
        whole = path.parent / library.replace("\\", "/")
        names = [whole] if is_there(whole) else [path.parent / word.replace("\\", "/") for word in library.split()]
        for name in names:
            if is_there(name):
                materials |= read_mtl(name, notes)
            else:
                notes.add(f"the material library {name.name[:80]}, which is not there")
    return materials


def _piece(
    corners: Ints,
    positions: Floats,
    colors: Floats | None,
    uv: Floats | None,
    normals: Floats | None,
    material: Material | None,
    notes: Notes,
) -> Piece:
    """corners: (F, 3, 3), each corner with its three indices."""
    for column, table, what in ((0, positions, "vertices"), (1, uv, "texture coordinates"), (2, normals, "normals")):
        if corners[..., column].max() >= (0 if table is None else len(table)):
            raise InputError(f"faces point to {what} which do not exist")
    with_normals = normals is not None and bool((corners[..., 2] >= 0).all())
    keys = corners[..., [0, 2]] if with_normals else corners[..., [0, 0]]
    used, faces = np.unique(keys.reshape(-1, 2), axis=0, return_inverse=True)
    piece = Piece(positions[used[:, 0]], faces.reshape(-1, 3).astype(np.int64))
    if with_normals and normals is not None:
        piece.normals = normals[used[:, 1]]
    if colors is not None:
        piece.colors = colors[used[:, 0]]
    if material is None:
        return piece
    if material.textures and uv is not None and bool((corners[..., 1] >= 0).all()):
        piece.uv = uv * material.scale + material.offset
        piece.uv_faces, piece.textures = corners[..., 1], dict(material.textures)
    elif material.textures:
        notes.add("textures of faces without texture coordinates")
    if "base_color" in piece.textures:
        if colors is not None:
            notes.add("vertex colours beside a texture")
        piece.colors = None
    elif colors is None and material.color is not None:
        piece.colors = np.tile(material.color, (len(piece.positions), 1))
    return piece
