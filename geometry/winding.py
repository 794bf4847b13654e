"""What lies inside: winding numbers by rays, shells and which of them lie in others, thickness of walls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d
from numpy.typing import NDArray

from .report import edge_table, face_components, merge_positions, signed_volume

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DIRECTIONS = np.array([[0.6123, 0.3517, 0.7081], [-0.4391, 0.8236, -0.3589], [0.2177, -0.6791, -0.7011]])


@dataclass(frozen=True)
class Shell:
    """A piece of surface that hangs together by edges."""

    faces: int
    area: float  # metres^2
    volume: float  # metres^3, signed: negative for a cavity
    inside: int | None  # index of a shell that it lies in


@dataclass(frozen=True)
class Crossings:
    """Hits of rays with a mesh."""

    rays: Ints  # (H,) index of the ray
    faces: Ints  # (H,)
    distances: Floats  # (H,) in lengths of the direction
    signs: Floats  # (H,) +1 where the ray leaves through the face, -1 where it enters


class Caster:
    """A mesh ready for counting what rays cross."""

    def __init__(self, positions: Floats, faces: Ints) -> None:
        self.triangles = positions[faces]
        self.normals = np.cross(
            self.triangles[:, 1] - self.triangles[:, 0], self.triangles[:, 2] - self.triangles[:, 0]
        )
        self.scene = open3d.t.geometry.RaycastingScene()
        self.scene.add_triangles(
            open3d.core.Tensor(np.ascontiguousarray(positions, dtype=np.float32)),
            open3d.core.Tensor(np.ascontiguousarray(faces, dtype=np.uint32)),
        )

    def crossings(self, origins: Floats, directions: Floats) -> Crossings:
        """All hits of rays from origins (N, 3) along directions (N, 3)."""
        rays = np.concatenate([origins, np.broadcast_to(directions, origins.shape)], axis=1).astype(np.float32)
        hit = self.scene.list_intersections(open3d.core.Tensor(np.ascontiguousarray(rays)))
        ray, face = hit["ray_ids"].numpy().astype(np.int64), hit["primitive_ids"].numpy().astype(np.int64)
        signs = np.sign((self.normals[face] * rays[ray, 3:]).sum(axis=1))
        return Crossings(ray, face, hit["t_hit"].numpy().astype(np.float64), signs)

    def winding(self, points: Floats) -> Ints:
        """Winding number (N,) at points (N, 3) of a closed mesh: the middle one of three directions."""
        counts = []
        for direction in DIRECTIONS:
            found = self.crossings(points, direction)
            counts.append(np.bincount(found.rays, weights=found.signs, minlength=len(points)))
        return np.median(counts, axis=0).round().astype(np.int64)

    def columns(self, points: Floats) -> Floats:
        """Winding number (X, Y, Z) on a lattice of points (X, Y, Z, 3), counted along its third axis."""
        start, step = points[:, :, 0], points[0, 0, 1] - points[0, 0, 0]
        found = self.crossings((start - 0.5 * step).reshape(-1, 3), step)
        passed = np.zeros((start.shape[0] * start.shape[1], points.shape[2] + 1))
        below = np.clip(np.ceil(found.distances - 0.5), 0, points.shape[2]).astype(np.int64)  # samples before the hit
        np.add.at(passed, (found.rays, below), found.signs)
        return passed[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:].reshape(points.shape[:3])

    def sheets(self, count: int, offset: float, seed: int = 0) -> tuple[Ints, Floats, Floats]:
        """Faces (N,) drawn without repetition and the points (N, 3) `offset` metres outside and inside of them."""
        areas = np.linalg.norm(self.normals, axis=1)
        able = np.flatnonzero(areas > 0)
        chosen = able if len(able) <= count else np.random.default_rng(seed).choice(able, count, replace=False)
        middle, unit = self.triangles[chosen].mean(axis=1), self.normals[chosen] / areas[chosen, None]
        return chosen, middle + offset * unit, middle - offset * unit

    def thickness(self, count: int = 4000) -> tuple[Floats, Floats]:
        """(metres to the opposite wall (N,), area of the face (N,)) of faces drawn, measured against the normal."""
        offset = 1e-6 * float(np.ptp(self.triangles.reshape(-1, 3), axis=0).max())
        chosen, _, inside = self.sheets(count, offset)
        areas = np.linalg.norm(self.normals[chosen], axis=1)
        inward = -self.normals[chosen] / areas[:, None]
        rays = np.concatenate([inside, inward], axis=1).astype(np.float32)
        hit = self.scene.cast_rays(open3d.core.Tensor(np.ascontiguousarray(rays)))
        distance = hit["t_hit"].numpy().astype(np.float64)
        seen = np.isfinite(distance)
        return distance[seen] + offset, 0.5 * areas[seen]


def misplaced_share(positions: Floats, faces: Ints, count: int = 2000) -> float:
    """Share in [0, 1] of faces drawn with a winding number other than 0 just outside and 1 just inside."""
    caster = Caster(positions, faces)
    offset = 1e-5 * float(np.ptp(positions[faces].reshape(-1, 3), axis=0).max())
    chosen, outside, inside = caster.sheets(count, offset)
    numbers = caster.winding(np.concatenate([outside, inside]))
    wrong = (numbers[: len(chosen)] != 0) | (numbers[len(chosen) :] != 1)
    return float(wrong.mean()) if len(chosen) else 1.0


def shells_of(positions: Floats, faces: Ints) -> tuple[Ints, list[Shell]]:
    """Shell index (F,) of each face, and the shells."""
    welded_positions, welded = merge_positions(positions, faces)
    labels = face_components(edge_table(welded, len(welded_positions))[0], len(welded))
    count = int(labels.max()) + 1 if len(labels) else 0
    triangles = positions[faces]
    areas = 0.5 * np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(labels, minlength=count))[:-1]) if count else []
    holders = _holders(positions, faces, labels, groups)
    shells = [
        Shell(len(group), float(areas[group].sum()), signed_volume(triangles[group]), holder)
        for group, holder in zip(groups, holders, strict=True)
    ]
    return labels, shells


def _holders(positions: Floats, faces: Ints, labels: Ints, groups: list[Ints]) -> list[int | None]:
    """For each shell one that it lies in, judged at one of its corners, or None."""
    count = len(groups)
    if count < 2:
        return [None] * count
    points = np.stack([positions[faces[group[0], 0]] for group in groups])
    caster, votes = Caster(positions, faces), np.zeros((count, count))
    for direction in DIRECTIONS:
        found = caster.crossings(points, direction)
        inner = np.zeros((count, count))
        np.add.at(inner, (found.rays, labels[found.faces]), found.signs)
        votes += inner.round() != 0
    np.fill_diagonal(votes, 0)
    return [int(row.argmax()) if row.max() >= 2 else None for row in votes]
