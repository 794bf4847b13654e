"""Solids and outlines shared by the builders of vehicles and buildings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..parts import Blueprint, box, cylinder, hull, mirror_y, prism, sphere
from ..solid import Solid

ALONG_X = (0, 90, 0)  # turns a solid's z axis to +x
ALONG_Y = (90, 0, 0)  # turns a solid's z axis to -y; turns an outline (x, y) to the side view (x, z)
FRONT_VIEW = (90, 0, 90)  # turns an outline (x, y) to the world's (y, z), extruded along x


def copies(solid: Solid, spots: Sequence[Sequence[float]]) -> Solid:
    """The solid (V vertices) moved by each of the spots (N, 3), as one mesh of N * V vertices."""
    shifts = np.asarray(spots, float)[:, None]
    vertices = (shifts + solid.vertices[None]).reshape(-1, 3)
    steps = len(solid.vertices) * np.arange(len(shifts))[:, None, None]
    return Solid(vertices, (steps + solid.faces[None]).reshape(-1, 3))


def pane(quad: np.ndarray, u: Sequence[float], v: Sequence[float], thick: float = 0.04) -> Solid:
    """A window on a wall: quad (4, 3) runs bottom start, bottom end, top end, top start; u, v are ranges in 0..1."""
    a, b, c, d = np.asarray(quad, float)
    spots = [(1 - s) * (1 - t) * a + s * (1 - t) * b + s * t * c + (1 - s) * t * d for s in u for t in v]
    normal = np.cross(b - a, d - a)
    normal *= thick / np.linalg.norm(normal)
    return hull(np.array([p + side * normal for p in spots for side in (-1, 1)]))


def cabin(
    x: Sequence[float], z: Sequence[float], width: float, rake: Sequence[float], taper: float
) -> tuple[Solid, dict[str, np.ndarray]]:
    """A cabin narrowing upwards and its walls (4, 3): x, z ranges; rake = inset of the top at (back, front)."""
    y, t = 0.5 * width, 0.5 * width - taper
    (x0, x1), (z0, z1), (back, front) = x, z, rake
    walls = {
        "front": np.array([(x1, y, z0), (x1, -y, z0), (x1 - front, -t, z1), (x1 - front, t, z1)]),
        "back": np.array([(x0, y, z0), (x0, -y, z0), (x0 + back, -t, z1), (x0 + back, t, z1)]),
        "left": np.array([(x0, y, z0), (x1, y, z0), (x1 - front, t, z1), (x0 + back, t, z1)]),
    }
    return hull(np.concatenate([walls["front"], walls["back"]])), walls


def gable(half: float, low: float, eaves: float, ridge: float) -> list[tuple[float, float]]:
    """The outline (y, z) of a wall with a pointed top."""
    return [(-half, low), (half, low), (half, eaves), (0, ridge), (-half, eaves)]


def roof(half: float, eaves: float, ridge: float, thick: float, over: float) -> list[tuple[float, float]]:
    """The outline (y, z) of a bent roof slab lying on the gable (half, eaves, ridge), jutting out by `over`."""
    rim, low = half + over, eaves - over * (ridge - eaves) / half
    return [(-rim, low), (0, ridge), (rim, low), (rim, low + thick), (0, ridge + thick), (-rim, low + thick)]


def arch(half: float, height: float, count: int = 9) -> list[tuple[float, float]]:
    """The outline (y, z) of a round-topped opening standing on z = 0."""
    angles = np.linspace(0, np.pi, count)
    return [(-half, 0), (half, 0), *[(half * np.cos(t), height - half + half * np.sin(t)) for t in angles]]


def wheels(
    b: Blueprint, name: str, x: float, y: float, radius: float, width: float, hub: str = "light", share: float = 0.52
) -> None:
    """A left and a right wheel standing on z = 0, centred at (x, +-y), with hubs and a keypoint on each."""
    tyre = cylinder(radius, width, (x, y, radius), ALONG_Y, 24)
    cap = cylinder(share * radius, width * 1.12, (x, y, radius), ALONG_Y, 18)
    b.add(f"{name} wheels", "dark", *mirror_y(tyre))
    b.add(f"{name} hubs", hub, *mirror_y(cap))
    for side, sign in (("left", 1), ("right", -1)):
        b.point(f"{name} {side} wheel", (x, sign * (y + 0.56 * width), radius))


def lights(b: Blueprint, front: float, back: float, y: float, z: float, radius: float) -> None:
    """Round headlights and small tail lights, with the keypoints of the headlights."""
    b.add("headlights", "lamp", *mirror_y(cylinder(radius, 0.16, (front, y, z), ALONG_X, 20)))
    b.add("tail lights", "signal", *mirror_y(box((0.08, 1.1 * radius, 1.5 * radius), (back, y, z))))
    b.point("left headlight", (front + 0.08, y, z))
    b.point("right headlight", (front + 0.08, -y, z))


def door(
    b: Blueprint, x: float, z: float, half: float, height: float, arched: bool, slot: str = "wood", deep: float = 0.12
) -> None:
    """A framed door on the wall at x looking along +x, sill at z, with knob and keypoints."""

    def shape(grow: float) -> list[tuple[float, float]]:
        w, h = half + grow, height + grow
        return arch(w, h) if arched else [(-w, 0), (w, 0), (w, h), (-w, h)]

    b.add("door frame", "light", prism(shape(0.3 * half), deep, (x, 0, z), FRONT_VIEW))
    b.add("door", slot, prism(shape(0.0), deep + 0.06, (x + 0.01, 0, z), FRONT_VIEW))
    b.add("door knob", "accent", sphere(0.17 * half, (x + 0.5 * deep + 0.04, -0.6 * half, z + 0.45 * height), 1))
    b.point("door", (x + 0.5 * deep + 0.04, 0, z + 0.5 * height))
    b.point("door sill", (x + 0.5 * deep + 0.04, 0, z + 0.02))


def window(size: float, x: float, y: float, z: float, tall: float = 1.0) -> tuple[Solid, Solid]:
    """Frame and pane of a window on a wall at x looking along +x."""
    frame = box((0.1, size * 1.4, size * tall * 1.35), (x, y, z))
    return frame, box((0.15, size, size * tall), (x, y, z))
