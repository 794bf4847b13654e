"""The triangle solids that parts are made of: a small immutable mesh, spheres and solids of revolution.

trimesh would do, but it spends most of a small solid's time on bookkeeping; a toy object is made of dozens of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import trimesh

Vec = Sequence[float] | np.ndarray
SAME = 1e-8  # points of a profile closer than this are one; triangles smaller than this in area are left out


@dataclass(frozen=True)
class Solid:
    """A closed surface: vertices (V, 3) float64, faces (F, 3) int64 with outward winding. Never changed in place."""

    vertices: np.ndarray
    faces: np.ndarray

    @property
    def volume(self) -> float:
        """Signed volume, positive for outward winding."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    def shifted(self, by: Vec) -> Solid:
        """Moved by a vector."""
        return Solid(self.vertices + np.asarray(by, float), self.faces)

    def scaled(self, factors: Vec | float) -> Solid:
        """Scaled about the origin by one positive factor or one for each axis."""
        return Solid(self.vertices * np.asarray(factors, float), self.faces)

    def turned(self, rotation: np.ndarray) -> Solid:
        """Turned about the origin by a rotation matrix (3, 3)."""
        return Solid(self.vertices @ rotation.T, self.faces)

    def mirrored_y(self) -> Solid:
        """The mirror image in the plane y = 0, again with outward winding."""
        return Solid(self.vertices * [1.0, -1.0, 1.0], self.faces[:, ::-1])

    def outward(self) -> Solid:
        """With the winding that makes the volume positive."""
        return self if self.volume >= 0 else Solid(self.vertices, self.faces[:, ::-1])


def joined(solids: Iterable[Solid]) -> Solid:
    """Several solids as one, unmerged."""
    solids = list(solids)
    if len(solids) == 1:
        return solids[0]
    starts = np.cumsum([0, *(len(s.vertices) for s in solids)])
    faces = [s.faces + start for s, start in zip(solids, starts)]
    return Solid(np.concatenate([s.vertices for s in solids]), np.concatenate(faces))


def euler(degrees: Vec) -> np.ndarray:
    """Rotation (3, 3) by degrees about the fixed axes x, then y, then z."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array(
        [
            [cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa],
            [sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa],
            [-sb, cb * sa, cb * ca],
        ]
    )


def z_to(direction: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) that turns +z into `direction`."""
    return np.asarray(trimesh.geometry.align_vectors([0, 0, 1], direction))[:3, :3]


@functools.lru_cache(maxsize=8)
def unit_sphere(detail: int) -> Solid:
    """Icosphere of radius 1."""
    mesh = trimesh.creation.icosphere(subdivisions=detail, radius=1.0)
    return Solid(np.array(mesh.vertices, float), np.array(mesh.faces, np.int64))


@functools.lru_cache(maxsize=1)
def unit_box() -> Solid:
    """Cube of side 1 about the origin."""
    mesh = trimesh.creation.box()
    return Solid(np.array(mesh.vertices, float), np.array(mesh.faces, np.int64))


@functools.lru_cache(maxsize=32)
def _circle(sides: int) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, sides + 1)[:-1]
    return np.stack([np.cos(angles), np.sin(angles)], 1)


@functools.lru_cache(maxsize=256)
def _turned_faces(names: tuple[int, ...], on_axis: tuple[bool, ...], kept: tuple[bool, ...], sides: int) -> np.ndarray:
    """Faces (F, 3) over the vertices of `revolve`: the first slice whole, the others without the points on the axis.

    names: profile position -> first position of the same point; kept: which of the triangles of a slice, two for
    each profile edge, have an area.
    """
    whole = list(dict.fromkeys(names))
    moving = [n for n in whole if not on_axis[n]]
    table = np.empty((sides, len(names)), np.int64)  # vertex of profile position p in slice t
    for position, name in enumerate(names):
        table[:, position] = whole.index(name)
        if not on_axis[name]:
            table[1:, position] = len(whole) + len(moving) * np.arange(sides - 1) + moving.index(name)
    following = np.roll(table, -1, axis=0)
    a, b, c, d = table[:, :-1], following[:, :-1], table[:, 1:], following[:, 1:]
    triangles = np.stack([np.stack([a, b, c], -1), np.stack([c, b, d], -1)], 2)  # (sides, edges, 2, 3)
    return triangles.reshape(sides, -1, 3)[:, list(kept)].reshape(-1, 3)


def revolve(profile: np.ndarray, sides: int) -> Solid:
    """Solid of revolution about z of a profile (P, 2) of (radius, z); each edge becomes a ring of triangle pairs.

    The profile starts and ends on the axis or is a closed loop, and goes counter-clockwise in (radius, z) for
    outward winding.
    """
    close = (np.abs(profile[:, None] - profile[None]) < SAME).all(-1)
    names = tuple(close.argmax(1).tolist())
    on_axis = tuple((np.abs(profile[:, 0]) < SAME).tolist())
    circle = _circle(sides)
    rings = np.empty((sides, len(profile), 3))  # slice, profile position, xyz
    rings[..., :2] = profile[:, :1] * circle[:, None]
    rings[..., 2] = profile[:, 1]
    low, high = rings[:2, :-1], rings[:2, 1:]  # of the first two slices
    one = np.cross(low[1] - low[0], high[0] - low[0])
    two = np.cross(low[1] - high[0], high[1] - high[0])
    kept = 0.5 * np.linalg.norm(np.stack([one, two], 1).reshape(-1, 3), axis=1) > SAME
    whole = list(dict.fromkeys(names))
    moving = [n for n in whole if not on_axis[n]]
    vertices = np.concatenate([rings[0, whole], rings[1:, moving].reshape(-1, 3)])
    return Solid(vertices, _turned_faces(names, on_axis, tuple(kept.tolist()), sides))
