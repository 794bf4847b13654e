"""Parts of a toy object, and the solids they are made of.

Canonical frame: right-handed, z up, the object's front looks along +x, its right hand is -y.
Builders work in any convenient unit; `Blueprint.normalised` centres and scales the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import manifold3d
import numpy as np
import trimesh

from .solid import Solid, Vec, euler, joined, revolve, unit_box, unit_sphere, z_to

# Material slots a part may name. "body" takes the colour, pattern and finish of the caption, "trim" a darker
# shade of the same colour; the others have fixed looks, listed in `materials.SLOT_LOOKS`.
SLOTS = ("body", "trim", "dark", "light", "metal", "wood", "glass", "leaf", "accent", "lamp", "signal", "skin")


@dataclass(frozen=True)
class Part:
    """One named solid. vertices (V, 3) float64, faces (F, 3) int64 with outward winding."""

    name: str
    slot: str
    vertices: np.ndarray
    faces: np.ndarray


@dataclass
class Blueprint:
    """The parts and named keypoints (3-vectors) of one object, collected by a builder."""

    parts: list[Part] = field(default_factory=list)
    keypoints: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, slot: str, *solids: Solid) -> None:
        """Adds the solids as one part."""
        if slot not in SLOTS:
            raise ValueError(f"slot {slot!r} of part {name!r} is unknown; have {', '.join(SLOTS)}")
        whole = joined(solids)
        self.parts.append(Part(name, slot, whole.vertices, whole.faces))

    def point(self, name: str, xyz: Vec) -> None:
        """Names a keypoint, on or just outside the surface."""
        self.keypoints[name] = np.asarray(xyz, float)

    def transformed(self, matrix: np.ndarray) -> Blueprint:
        """A copy under a 4x4 affine map with positive determinant."""

        def move(p: np.ndarray) -> np.ndarray:
            return p @ matrix[:3, :3].T + matrix[:3, 3]

        parts = [Part(p.name, p.slot, move(p.vertices), p.faces) for p in self.parts]
        return Blueprint(parts, {k: move(v) for k, v in self.keypoints.items()})

    def normalised(self, radius: float = 0.85) -> Blueprint:
        """Bounding-box centre at the origin, farthest vertex at `radius`."""
        points = np.concatenate([p.vertices for p in self.parts])
        centre = 0.5 * (points.min(0) + points.max(0))
        scale = radius / np.linalg.norm(points - centre, axis=1).max()
        matrix = np.diag([scale, scale, scale, 1.0])
        matrix[:3, 3] = -scale * centre
        return self.transformed(matrix)

    def mesh(self) -> trimesh.Trimesh:
        """All parts as one mesh."""
        return trimesh.util.concatenate([trimesh.Trimesh(p.vertices, p.faces, process=False) for p in self.parts])


# --- solids; all closed, outward winding ------------------------------------------------------------------


def _from_manifold(solid: manifold3d.Manifold) -> Solid:
    mesh = solid.to_mesh()
    return Solid(np.asarray(mesh.vert_properties, float)[:, :3], np.asarray(mesh.tri_verts, np.int64))


def _to_manifold(solid: Solid) -> manifold3d.Manifold:
    merged = trimesh.Trimesh(solid.vertices, solid.faces, process=True)
    return manifold3d.Manifold(
        manifold3d.Mesh(np.asarray(merged.vertices, np.float32), np.asarray(merged.faces, np.uint32))
    )


def place(solid: Solid, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0)) -> Solid:
    """A copy turned by rotate = degrees about x, then y, then z, and moved to `at`."""
    turned = solid.turned(euler(rotate)) if any(rotate) else solid
    return turned.shifted(at)


def box(size: Vec, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), bevel: float = 0.0) -> Solid:
    """Box of full size (x, y, z), centred on `at`; `bevel` cuts 45-degree edges of that width."""
    if bevel <= 0:
        return place(unit_box().scaled(size), at, rotate)
    half = 0.5 * np.asarray(size, float)
    b = min(bevel, 0.45 * float(np.min(size)))
    corners = [
        np.array([sx, sy, sz]) * (half - b * np.array([ax != 0, ax != 1, ax != 2]))
        for sx in (-1, 1)
        for sy in (-1, 1)
        for sz in (-1, 1)
        for ax in range(3)
    ]
    return place(hull(np.array(corners)), at, rotate)


def hull(points: np.ndarray) -> Solid:
    """Convex hull of (N, 3) points."""
    return _from_manifold(manifold3d.Manifold.hull_points(np.asarray(points, float)))


def cylinder(radius: float, height: float, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), sides: int = 28) -> Solid:
    """Cylinder along z, centred on `at`."""
    half = 0.5 * abs(height)
    return place(revolve(np.array([(0, -half), (radius, -half), (radius, half), (0, half)], float), sides), at, rotate)


def cone(
    radius: float, height: float, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), top: float = 0.0, sides: int = 28
) -> Solid:
    """Cone (or frustum with radius `top`) along +z, base centred on `at`."""
    profile = [(0.0, 0.0), (radius, 0.0), (top, height), (0.0, height)]
    return lathe(profile if top > 0 else [*profile[:2], (0.0, height)], at, rotate, sides)


def sphere(radius: float, at: Vec = (0, 0, 0), detail: int = 3) -> Solid:
    """Icosphere."""
    return unit_sphere(detail).scaled(radius).shifted(at)


def ellipsoid(radii: Vec, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), detail: int = 3) -> Solid:
    """Ellipsoid with semi-axes (x, y, z)."""
    return place(unit_sphere(detail).scaled(radii), at, rotate)


def capsule(start: Vec, end: Vec, radius: float) -> Solid:
    """Round-ended bar from start to end."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    quarter = np.linspace(0.0, 0.5 * np.pi, 9)
    angles = np.concatenate([-quarter[::-1], quarter])
    profile = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    profile[:, 1] += np.repeat([-0.5, 0.5], 9) * np.linalg.norm(b - a)
    return revolve(profile, 10).turned(z_to(b - a)).shifted(0.5 * (a + b))


def bar(start: Vec, end: Vec, radius: float, top: float | None = None, sides: int = 20) -> Solid:
    """Flat-ended rod from start to end; `top` is the radius at the end (tapered when given)."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    rod = cone(radius, float(np.linalg.norm(b - a)), top=radius if top is None else top, sides=sides)
    return rod.turned(z_to(b - a)).shifted(a)


def torus(major: float, minor: float, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0)) -> Solid:
    """Ring around z."""
    angles = np.linspace(0, 2 * np.pi, 15)
    return place(revolve(minor * np.stack([np.cos(angles), np.sin(angles)], 1) + [major, 0.0], 36), at, rotate)


def lathe(profile: Sequence[Vec], at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), sides: int = 28) -> Solid:
    """Solid of revolution about z of a profile [(radius, z), ...] that starts and ends on the axis, bottom first."""
    return place(revolve(np.asarray(profile, float), sides).outward(), at, rotate)


def prism(outline: Sequence[Vec], depth: float, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0)) -> Solid:
    """A 2-D outline [(x, y), ...] (any simple polygon) extruded along z, centred in z on `at`.

    `rotate=(90, 0, 0)` turns the outline's (x, y) into the world's (x, z): a side view; `rotate=(90, 0, 90)` into
    (y, z): a front view.
    """
    points = np.asarray(outline, float)
    area = 0.5 * np.sum(points[:, 0] * np.roll(points[:, 1], -1) - points[:, 1] * np.roll(points[:, 0], -1))
    section = manifold3d.CrossSection([points if area > 0 else points[::-1]])
    return place(_from_manifold(section.extrude(depth)).shifted((0, 0, -0.5 * depth)), at, rotate)


def tube(path: Sequence[Vec], radius: float | Sequence[float], sides: int = 14) -> Solid:
    """A round tube through a polyline, with round joints; `radius` one number or one per point."""
    points = np.asarray(path, float)
    radii = np.broadcast_to(np.asarray(radius, float), len(points))
    solids = [bar(a, b, ra, rb, sides) for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:])]
    return joined([*solids, *(sphere(float(r), p, detail=2) for p, r in zip(points, radii))])


def arc(centre: Vec, radius: float, start_deg: float, end_deg: float, plane: str = "xz", count: int = 12) -> np.ndarray:
    """Points (count, 3) of a circular arc in the named plane, for `tube`."""
    angles = np.deg2rad(np.linspace(start_deg, end_deg, count))
    points = np.tile(np.asarray(centre, float), (count, 1))
    points[:, "xyz".index(plane[0])] += radius * np.cos(angles)
    points[:, "xyz".index(plane[1])] += radius * np.sin(angles)
    return points


def carve(solid: Solid, *holes: Solid) -> Solid:
    """solid minus holes (exact boolean)."""
    result = _to_manifold(solid)
    for hole in holes:
        result = result - _to_manifold(hole)
    return _from_manifold(result)


def mirror_y(*solids: Solid) -> list[Solid]:
    """The solids and their mirror images in y."""
    return [*solids, *(solid.mirrored_y() for solid in solids)]
