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

Vec = Sequence[float]

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

    def add(self, name: str, slot: str, *solids: trimesh.Trimesh) -> None:
        """Adds the solids as one part."""
        if slot not in SLOTS:
            raise ValueError(f"slot {slot!r} of part {name!r} is unknown; have {', '.join(SLOTS)}")
        mesh = trimesh.util.concatenate(solids) if len(solids) > 1 else solids[0]
        self.parts.append(Part(name, slot, np.asarray(mesh.vertices, float), np.asarray(mesh.faces, np.int64)))

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


def _from_manifold(solid: manifold3d.Manifold) -> trimesh.Trimesh:
    mesh = solid.to_mesh()
    return trimesh.Trimesh(np.asarray(mesh.vert_properties)[:, :3], np.asarray(mesh.tri_verts), process=False)


def _to_manifold(mesh: trimesh.Trimesh) -> manifold3d.Manifold:
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)
    return manifold3d.Manifold(
        manifold3d.Mesh(np.asarray(merged.vertices, np.float32), np.asarray(merged.faces, np.uint32))
    )


def place(mesh: trimesh.Trimesh, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0)) -> trimesh.Trimesh:
    """A copy turned by rotate = degrees about x, then y, then z, and moved to `at`."""
    matrix = trimesh.transformations.euler_matrix(*np.deg2rad(np.asarray(rotate, float)), axes="sxyz")
    matrix[:3, 3] = at
    moved = mesh.copy()
    moved.apply_transform(matrix)
    return moved


def box(size: Vec, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), bevel: float = 0.0) -> trimesh.Trimesh:
    """Box of full size (x, y, z), centred on `at`; `bevel` cuts 45-degree edges of that width."""
    size = np.asarray(size, float)
    if bevel <= 0:
        return place(trimesh.creation.box(extents=size), at, rotate)
    b = min(bevel, 0.45 * size.min())
    half = 0.5 * size
    corners = [
        np.array([sx, sy, sz]) * (half - b * np.array([ax != 0, ax != 1, ax != 2]))
        for sx in (-1, 1)
        for sy in (-1, 1)
        for sz in (-1, 1)
        for ax in range(3)
    ]
    return place(hull(np.array(corners)), at, rotate)


def hull(points: np.ndarray) -> trimesh.Trimesh:
    """Convex hull of (N, 3) points."""
    return _from_manifold(manifold3d.Manifold.hull_points(np.asarray(points, float)))


def cylinder(
    radius: float, height: float, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), sides: int = 28
) -> trimesh.Trimesh:
    """Cylinder along z, centred on `at`."""
    return place(trimesh.creation.cylinder(radius=radius, height=height, sections=sides), at, rotate)


def cone(
    radius: float, height: float, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), top: float = 0.0, sides: int = 28
) -> trimesh.Trimesh:
    """Cone (or frustum with radius `top`) along +z, base centred on `at`."""
    profile = [(0.0, 0.0), (radius, 0.0), (top, height), (0.0, height)]
    return lathe(profile if top > 0 else profile[:2] + [(0.0, height)], at, rotate, sides)


def sphere(radius: float, at: Vec = (0, 0, 0), detail: int = 3) -> trimesh.Trimesh:
    """Icosphere."""
    return place(trimesh.creation.icosphere(subdivisions=detail, radius=radius), at)


def ellipsoid(radii: Vec, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), detail: int = 3) -> trimesh.Trimesh:
    """Ellipsoid with semi-axes (x, y, z)."""
    mesh = trimesh.creation.icosphere(subdivisions=detail, radius=1.0)
    mesh.apply_scale(np.asarray(radii, float))
    return place(mesh, at, rotate)


def capsule(start: Vec, end: Vec, radius: float) -> trimesh.Trimesh:
    """Round-ended bar from start to end."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    mesh = trimesh.creation.capsule(height=float(np.linalg.norm(b - a)), radius=radius, count=[16, 10])
    mesh.apply_translation([0, 0, -0.5 * (mesh.bounds[0][2] + mesh.bounds[1][2])])
    mesh.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], b - a))
    mesh.apply_translation(0.5 * (a + b))
    return mesh


def bar(start: Vec, end: Vec, radius: float, top: float | None = None, sides: int = 20) -> trimesh.Trimesh:
    """Flat-ended rod from start to end; `top` is the radius at the end (tapered when given)."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    mesh = cone(radius, float(np.linalg.norm(b - a)), top=radius if top is None else top, sides=sides)
    mesh.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], b - a))
    mesh.apply_translation(a)
    return mesh


def torus(major: float, minor: float, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0)) -> trimesh.Trimesh:
    """Ring around z."""
    return place(trimesh.creation.torus(major, minor, major_sections=36, minor_sections=14), at, rotate)


def lathe(
    profile: Sequence[Vec], at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0), sides: int = 28
) -> trimesh.Trimesh:
    """Solid of revolution about z of a profile [(radius, z), ...] that starts and ends on the axis, bottom first."""
    mesh = trimesh.creation.revolve(np.asarray(profile, float), sections=sides)
    if mesh.volume < 0:
        mesh.invert()
    return place(mesh, at, rotate)


def prism(
    outline: Sequence[Vec], depth: float, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0)
) -> trimesh.Trimesh:
    """A 2-D outline [(x, y), ...] (any simple polygon) extruded along z, centred in z on `at`.

    `rotate=(90, 0, 0)` turns the outline's (x, y) into the world's (x, z): a side view; `rotate=(90, 0, 90)` into
    (y, z): a front view.
    """
    points = np.asarray(outline, float)
    area = 0.5 * np.sum(points[:, 0] * np.roll(points[:, 1], -1) - points[:, 1] * np.roll(points[:, 0], -1))
    section = manifold3d.CrossSection([points if area > 0 else points[::-1]])
    mesh = _from_manifold(section.extrude(depth))
    mesh.apply_translation([0, 0, -0.5 * depth])
    return place(mesh, at, rotate)


def tube(path: Sequence[Vec], radius: float | Sequence[float], sides: int = 14) -> trimesh.Trimesh:
    """A round tube through a polyline, with round joints; `radius` one number or one per point."""
    points = np.asarray(path, float)
    radii = np.broadcast_to(np.asarray(radius, float), len(points))
    solids = [bar(a, b, ra, rb, sides) for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:])]
    solids += [sphere(float(r), p, detail=2) for p, r in zip(points, radii)]
    return trimesh.util.concatenate(solids)


def arc(centre: Vec, radius: float, start_deg: float, end_deg: float, plane: str = "xz", count: int = 12) -> np.ndarray:
    """Points (count, 3) of a circular arc in the named plane, for `tube`."""
    angles = np.deg2rad(np.linspace(start_deg, end_deg, count))
    points = np.tile(np.asarray(centre, float), (count, 1))
    points[:, "xyz".index(plane[0])] += radius * np.cos(angles)
    points[:, "xyz".index(plane[1])] += radius * np.sin(angles)
    return points


def carve(solid: trimesh.Trimesh, *holes: trimesh.Trimesh) -> trimesh.Trimesh:
    """solid minus holes (exact boolean)."""
    result = _to_manifold(solid)
    for hole in holes:
        result = result - _to_manifold(hole)
    return _from_manifold(result)


def mirror_y(*solids: trimesh.Trimesh) -> list[trimesh.Trimesh]:
    """The solids and their mirror images in y."""
    twins = []
    for solid in solids:
        twin = solid.copy()
        twin.apply_transform(np.diag([1.0, -1.0, 1.0, 1.0]))
        twins.append(twin)
    return [*solids, *twins]
