"""Built objects: one program turned into arrays the renderer reads.

Object coordinates: the canonical frame (z up, front +x), centred, farthest vertex at radius 0.85.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

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


def crease_normals(vertices: np.ndarray, faces: np.ndarray, crease_deg: float = CREASE_DEG) -> np.ndarray:
    """Unit corner normals (F, 3, 3): area-weighted mean over the faces at the vertex within `crease_deg` of this face."""
    edges = vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    area_normals = np.cross(*edges)
    unit = area_normals / np.maximum(np.linalg.norm(area_normals, axis=1, keepdims=True), 1e-12)
    _, merged = np.unique(np.round(vertices, 5), axis=0, return_inverse=True)
    corner_vertex = merged.reshape(-1)[faces].reshape(-1)
    count = len(corner_vertex)
    at_vertex = sparse.csr_matrix((np.ones(count), (corner_vertex, np.arange(count))))
    pairs = (at_vertex.T @ at_vertex).tocoo()  # corners that share a position
    close = (unit[pairs.row // 3] * unit[pairs.col // 3]).sum(1) > np.cos(np.deg2rad(crease_deg))
    mix = sparse.csr_matrix((np.ones(close.sum()), (pairs.row[close], pairs.col[close])), shape=(count, count))
    normals = mix @ np.repeat(area_normals, 3, axis=0)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
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
    normals = [crease_normals(p.vertices, p.faces) for p in blueprint.parts]
    phase, scale = float(rng.random()), float(rng.uniform(0.85, 1.2))
    return ToyObject(
        program=program,
        vertices=vertices.astype(np.float32),
        faces=faces,
        corner_normals=np.concatenate(normals),
        face_part=np.repeat(np.arange(len(sizes)), sizes),
        face_slot=np.repeat([SLOTS.index(p.slot) for p in blueprint.parts], sizes),
        part_names=tuple(p.name for p in blueprint.parts),
        looks=object_looks(program.colour, program.pattern, program.finish, phase, scale),
        keypoints=blueprint.keypoints,
    )
