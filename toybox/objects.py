"""Built objects: one program turned into arrays the renderer reads.

Object coordinates: the canonical frame (z up, front +x), centred, farthest vertex at radius 0.85.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from .catalogue import NOUNS
from .materials import Look, object_looks
from .parts import SLOTS
from .programs import ObjectProgram

RADIUS = 0.85  # of the bounding sphere of a canonical object
CREASE_DEG = 38.0
SHAPE_SCALES = {"": (1.0, 1.0, 1.0), "tall": (0.88, 0.88, 1.42), "wide": (0.92, 1.42, 0.86), "long": (1.45, 0.9, 0.88)}


@dataclass(frozen=True)
class ToyObject:
    """Geometry and looks of one object, in canonical object coordinates."""

    program: ObjectProgram
    vertices: np.ndarray  # (V, 3) float32
    faces: np.ndarray  # (F, 3) int64
    corner_normals: np.ndarray  # (F, 3, 3) float32, unit
    face_part: np.ndarray  # (F,) int64, index into part_names
    face_slot: np.ndarray  # (F,) int64, index into parts.SLOTS
    part_names: tuple[str, ...]
    looks: dict[str, Look]
    keypoints: dict[str, np.ndarray] = field(default_factory=dict)


def _same_place(vertices: np.ndarray, vertex_part: np.ndarray) -> np.ndarray:
    """A number (V,) shared by the vertices of one part at the same place to 5 digits."""
    cells = np.round(vertices * 1e5).astype(np.int64)
    cells -= cells.min(0)
    spans = cells.max(0) + 1
    key = ((vertex_part * spans[0] + cells[:, 0]) * spans[1] + cells[:, 1]) * spans[2] + cells[:, 2]
    return np.unique(key, return_inverse=True)[1].reshape(-1)


def crease_normals(
    vertices: np.ndarray, faces: np.ndarray, vertex_part: np.ndarray | int = 0, crease_deg: float = CREASE_DEG
) -> np.ndarray:
    """Unit corner normals (F, 3, 3): area-weighted mean over the faces at the vertex within `crease_deg` of this face.

    vertices (V, 3) within a few units of each other; vertices of different parts (V,) are never shared.
    """
    corners = vertices[faces]
    area_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    unit = area_normals / np.maximum(np.linalg.norm(area_normals, axis=1, keepdims=True), 1e-12)
    corner_vertex = _same_place(vertices, np.broadcast_to(vertex_part, len(vertices)))[faces].reshape(-1)
    order = np.argsort(corner_vertex, kind="stable")
    valence = np.bincount(corner_vertex)
    start = (np.cumsum(valence) - valence)[corner_vertex]
    degree = valence[corner_vertex]  # (3F,) corners that share the place of this corner
    row = np.repeat(np.arange(len(degree)), degree)
    within = np.arange(len(row)) - np.repeat(np.cumsum(degree) - degree, degree)
    column = order[start[row] + within]
    close = np.einsum("nc,nc->n", unit[row // 3], unit[column // 3]) > np.cos(np.deg2rad(crease_deg))
    row, column = row[close], column[close]
    normals = np.stack([np.bincount(row, area_normals[column // 3, i], len(degree)) for i in range(3)], axis=1)
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return normals.reshape(-1, 3, 3).astype(np.float32)


@functools.lru_cache(maxsize=64)
def build(program: ObjectProgram) -> ToyObject:
    """Builds the object of a program; a pure function."""
    rng = np.random.default_rng(program.seed)
    stretch = np.diag([*SHAPE_SCALES[program.shape], 1.0])
    blueprint = NOUNS[program.noun].build(rng).transformed(stretch).normalised(RADIUS)
    offsets = np.cumsum([0, *(len(p.vertices) for p in blueprint.parts)])
    vertices = np.concatenate([p.vertices for p in blueprint.parts])
    faces = np.concatenate([p.faces + o for p, o in zip(blueprint.parts, offsets[:-1], strict=True)])
    sizes = [len(p.faces) for p in blueprint.parts]
    vertex_part = np.repeat(np.arange(len(sizes)), np.diff(offsets))
    phase, scale = float(rng.random()), float(rng.uniform(0.85, 1.2))
    return ToyObject(
        program=program,
        vertices=vertices.astype(np.float32),
        faces=faces,
        corner_normals=crease_normals(vertices, faces, vertex_part),
        face_part=np.repeat(np.arange(len(sizes)), sizes),
        face_slot=np.repeat([SLOTS.index(p.slot) for p in blueprint.parts], sizes),
        part_names=tuple(p.name for p in blueprint.parts),
        looks=object_looks(program.colour, program.pattern, program.finish, phase, scale),
        keypoints=blueprint.keypoints,
    )
