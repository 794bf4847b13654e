"""PLY meshes, point clouds and splats: colours by their type, doubles kept, columns that are left out named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...utils.decoding import decode_layers
from ...utils.errors import InputError
from .mtl import find_texture
from .piece import Floats, Ints, Notes, Piece
from .ply_data import Element, Header, read_elements
from .polygons import fan_starts

COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
ALPHAS = ("alpha", "diffuse_alpha", "a")
NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))
COORDINATES = (("texture_u", "texture_v"), ("u", "v"), ("s", "t"))
CORNERS = ("vertex_indices", "vertex_index")
DC = ("f_dc_0", "f_dc_1", "f_dc_2")
SH_C0 = 0.28209479177387814  # spherical harmonic of degree 0; colour = 0.5 + SH_C0 f_dc


def read_points_ply(data: bytes, notes: Notes) -> tuple[Floats, Floats | None, Floats | None]:
    """Positions (N, 3), sRGB colours and normals of the vertices. Raises InputError for anything unusable."""
    _, elements = read_elements(data)
    vertex = _vertex(elements)
    used: set[str] = set()
    positions, colors, normals = _xyz(vertex, used), _colors(vertex, used, notes), _normals(vertex, used)
    if is_splat(vertex):
        colors, normals = _splat_colors(vertex, used), None
        used |= {"nx", "ny", "nz"}
        notes.add("Gaussian splats (read as points, coloured by 0.5 + 0.2821 f_dc)")
    _name_columns(vertex, used, notes)
    for name, element in elements.items():
        if name != "vertex" and element.length:
            notes.add(f"{element.length} rows of element {name}")
    return positions, colors, normals


def read_mesh_ply(data: bytes, path: Path, notes: Notes) -> list[Piece]:
    """The triangles of the file as one piece; none when it has no faces."""
    header, elements = read_elements(data)
    vertex, used = _vertex(elements), set[str]()
    positions = _xyz(vertex, used)
    faces, owner = _faces(elements, positions, notes)
    if not len(faces):
        return []
    piece = Piece(positions, faces, _normals(vertex, used), colors=_colors(vertex, used, notes))
    _add_texture(piece, header, elements, owner, path, (used, notes))
    face = elements.get("face")
    taken: set[str] = set()
    of_faces = None if face is None else _colors(face, taken, notes)
    if of_faces is not None and piece.colors is None and not piece.textures:
        piece = _split(piece, of_faces[owner])
    elif of_faces is not None:
        notes.add("the colours of faces")
    _name_columns(vertex, used, notes)
    if face is not None:
        _name_columns(face, taken | {*CORNERS, "texcoord", "texnumber"}, notes)
    for name, element in elements.items():
        if name not in ("vertex", "face", "tristrips") and element.length:
            notes.add(f"{element.length} rows of element {name}")
    return [piece]


def is_splat(vertex: Element) -> bool:
    """Whether the vertices are 3D Gaussians."""
    return {*DC, "opacity", "scale_0", "rot_0"} <= set(vertex.names)


def _vertex(elements: dict[str, Element]) -> Element:
    vertex = elements.get("vertex")
    if vertex is not None and "packed_position" in vertex.names:
        raise InputError("it holds compressed splats (packed_position), which are not read; save it uncompressed")
    if vertex is None or not vertex.length or not {"x", "y", "z"} <= set(vertex.names):
        raise InputError("it has no vertices with x, y and z")
    return vertex


def _xyz(vertex: Element, used: set[str]) -> Floats:
    used |= {"x", "y", "z"}
    return np.stack([np.asarray(vertex.columns[name], np.float64) for name in "xyz"], axis=1)


def _triple(element: Element, choices: Any) -> tuple[str, ...] | None:
    """The first of the choices that is there, in the file's spelling."""
    spelled = {name.lower(): name for name in element.names}
    found = next((names for names in choices if set(names) <= spelled.keys()), None)
    return None if found is None else tuple(spelled[name] for name in found)


def _colors(element: Element, used: set[str], notes: Notes) -> Floats | None:
    """sRGB (N, 3): integers by their type's maximum, floats as they are."""
    names = _triple(element, COLORS)
    if names is None or not element.length:
        return None
    used |= set(names)
    alpha = _triple(element, [(name,) for name in ALPHAS])
    columns = [np.asarray(element.columns[name]) for name in names]
    top = float(np.iinfo(columns[0].dtype).max) if columns[0].dtype.kind in "ui" else 1.0
    values = np.stack(columns, axis=1).astype(np.float64)
    if (columns[0].dtype.itemsize > 2 or columns[0].dtype.kind == "i") and 1 < values.max() <= 255:
        notes.add(f"the type of the colours ({columns[0].dtype.name}, but with values of up to 255, read as 0 to 255)")
        top = 255.0
    if alpha is not None:
        used |= set(alpha)
        if np.asarray(element.columns[alpha[0]]).astype(np.float64).min() < top:
            notes.add("the transparency of vertices")
    return np.asarray((values / top).clip(0, 1))


def _splat_colors(vertex: Element, used: set[str]) -> Floats:
    used |= set(DC)
    waves = np.stack([np.asarray(vertex.columns[name], np.float64) for name in DC], axis=1)
    return np.asarray((0.5 + SH_C0 * waves).clip(0, 1))


def _normals(vertex: Element, used: set[str]) -> Floats | None:
    names = _triple(vertex, NORMALS)
    if names is None:
        return None
    used |= set(names)
    return np.stack([np.asarray(vertex.columns[name], np.float64) for name in names], axis=1)


def _faces(elements: dict[str, Element], positions: Floats, notes: Notes) -> tuple[Ints, Ints]:
    """Triangles (F, 3), polygons as fans, and the row of the element that each comes from."""
    face, strips = elements.get("face"), elements.get("tristrips")
    rows: list[Any] = []
    if face is not None and face.length:
        names = [name for name in CORNERS if name in face.columns]
        if not names:
            raise InputError(f"its faces have no {CORNERS[0]}")
        rows = face.columns[names[0]]
        if isinstance(rows, np.ndarray) and rows.shape[1] == 3:
            return rows.astype(np.int64), np.arange(len(rows))
    owners = [i for i, row in enumerate(rows) for _ in range(len(row) - 2)]
    rows = [[int(value) for value in row] for row in rows]
    rows = [row[start:] + row[:start] for row, start in zip(rows, fan_starts(rows, positions, notes), strict=True)]
    triangles = [(row[0], row[k], row[k + 1]) for row in rows for k in range(1, len(row) - 1)]
    if strips is not None and strips.length and not triangles:
        triangles = [t for column in strips.columns.values() for row in column for t in _strip(row)]
        owners = [0] * len(triangles)
    return np.array(triangles, np.int64).reshape(-1, 3), np.array(owners, np.int64)


def _strip(row: Any) -> list[tuple[int, int, int]]:
    """Triangles of strips that are parted by -1; every other one is turned."""
    found, start = [], 0
    for i, value in enumerate(row):
        if value < 0:
            start = i + 1
        elif i - start >= 2:
            a, b, c = (int(v) for v in row[i - 2 : i + 1])
            found.append((a, b, c) if (i - start) % 2 == 0 else (b, a, c))
    return found


def _split(piece: Piece, colors: Floats) -> Piece:
    """Every corner its own vertex, with the colour of its face (F, 3); equal ones are welded again later."""
    index = piece.faces.reshape(-1)
    normals = None if piece.normals is None else piece.normals[index]
    faces = np.arange(len(index)).reshape(-1, 3)
    return Piece(piece.positions[index], faces, normals, colors=np.repeat(colors, 3, axis=0))


def _add_texture(
    piece: Piece, header: Header, elements: dict[str, Element], owner: Ints, path: Path, told: tuple[set[str], Notes]
) -> None:
    """The picture that the header names, with coordinates of corners or vertices."""
    used, notes = told
    vertex, face = elements["vertex"], elements.get("face")
    names = _triple(vertex, COORDINATES)
    corners = None if face is None else face.columns.get("texcoord")
    if header.texture is None:
        if corners is not None or names is not None:
            notes.add("texture coordinates (the file names no picture, or several)")
            used |= set(names or ())
        return
    place = find_texture(path.parent, header.texture)
    if place is None:
        notes.add(f"texture {header.texture}, which is not there")
        used |= set(names or ())
        return
    if corners is not None:
        if any(len(row) != 6 for row in corners) or len(owner) != len(corners):
            notes.add("the texture of faces with more than three corners")
            return
        uv = np.asarray(corners, np.float64).reshape(-1, 2)
        piece.uv, piece.uv_faces = uv, np.arange(len(uv)).reshape(-1, 3)
    elif names is not None:
        used |= set(names)
        piece.uv = np.stack([np.asarray(vertex.columns[name], np.float64) for name in names], axis=1)
        piece.uv_faces = piece.faces.copy()
    else:
        notes.add(f"texture {header.texture}, for which there are no coordinates")
        return
    image = decode_layers(place.read_bytes(), str(place)).rgb
    piece.textures = {"base_color": np.rint(image * 255).astype(np.uint8)}
    if piece.colors is not None:
        notes.add("vertex colours beside a texture")
        piece.colors = None


def _name_columns(element: Element, used: set[str], notes: Notes) -> None:
    left = [name for name in element.names if name not in used]
    rest = [name for name in left if not name.startswith("f_rest_")]
    if len(left) > len(rest):
        rest.append(f"f_rest_0 ... ({len(left) - len(rest)} columns)")
    if rest:
        notes.add(f"columns of {element.name}: {', '.join(rest)}")
