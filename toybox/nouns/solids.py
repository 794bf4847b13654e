"""Geometric primitives with a badge on the front, and the badge itself.

Frame of every builder: z up, front along +x, left along +y.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..parts import Blueprint, Vec, box, cylinder, hull, lathe, place, prism, torus
from ..solid import Solid
from . import Noun

Outline = Sequence[Vec] | np.ndarray


# --- badge ------------------------------------------------------------------------------------------------


def disc(radius: float, at: Vec = (0, 0), stretch: float = 1.0, sides: int = 24) -> np.ndarray:
    """Outline (sides, 2) of an ellipse, `stretch` times as high as wide."""
    turns = 2 * np.pi * np.arange(sides) / sides
    return np.asarray(at, float) + radius * np.stack([np.cos(turns), stretch * np.sin(turns)], 1)


def star(points: int, outer: float, inner: float) -> np.ndarray:
    """Outline (2 * points, 2) of a star with one tip up."""
    turns = np.pi / 2 + np.pi * np.arange(2 * points) / points
    radii = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return radii[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)


def heart(radius: float) -> np.ndarray:
    """Outline (28, 2) of a heart that fills a circle of the radius."""
    t = 2 * np.pi * np.arange(28) / 28
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t) + 2
    return radius / 17.0 * np.stack([x, y], 1)


def _smile() -> np.ndarray:
    lower = np.deg2rad(np.linspace(195, 345, 10))
    upper = np.deg2rad(np.linspace(335, 205, 10))
    under = 0.58 * np.stack([np.cos(lower), np.sin(lower)], 1)
    over = 0.40 * np.stack([np.cos(upper), np.sin(upper)], 1) + [0, -0.02]
    return np.concatenate([under, over])


def _crescent() -> np.ndarray:
    outer = np.deg2rad(np.linspace(60, 300, 16))
    inner = np.deg2rad(np.linspace(275, 85, 12))
    out = 0.68 * np.stack([np.cos(outer), np.sin(outer)], 1)
    back = 0.52 * np.stack([np.cos(inner), np.sin(inner)], 1) + np.array([0.30, 0.0])
    return np.concatenate([out, back]) + np.array([0.1, 0.0])


PLATES: dict[str, np.ndarray] = {
    "round": disc(1.0, sides=28),
    "square": 0.92 * np.array([(1, 0.7), (0.7, 1), (-0.7, 1), (-1, 0.7), (-1, -0.7), (-0.7, -1), (0.7, -1), (1, -0.7)]),
    "hexagon": 1.05 * disc(1.0, sides=6),
    "scalloped": np.stack(
        [(1.0 + 0.09 * np.cos(8 * t)) * np.array([np.cos(t), np.sin(t)]) for t in 2 * np.pi * np.arange(48) / 48]
    ),
}

DRAWINGS: dict[str, tuple[np.ndarray, ...]] = {
    "star": (star(5, 0.80, 0.38),),
    "dot": (disc(0.5),),
    "heart": (heart(0.68),),
    "face": (disc(0.17, (-0.33, 0.27), 1.5, 14), disc(0.17, (0.33, 0.27), 1.5, 14), _smile()),
    "crescent": (_crescent(),),
    "cross": (
        np.array(
            [
                (a, b)
                for a, b in 0.22
                * np.array(
                    [
                        (1, 3),
                        (-1, 3),
                        (-1, 1),
                        (-3, 1),
                        (-3, -1),
                        (-1, -1),
                        (-1, -3),
                        (1, -3),
                        (1, -1),
                        (3, -1),
                        (3, 1),
                        (1, 1),
                    ]
                )
            ]
        ),
    ),
    "bolt": (np.array([(0.25, 0.8), (-0.45, -0.1), (-0.05, -0.1), (-0.25, -0.8), (0.45, 0.15), (0.05, 0.15)]),),
    "triangle": (np.array([(0, 0.72), (-0.66, -0.44), (0.66, -0.44)]),),
}


def plaque(outline: Outline, at: Vec, scale: float, lift: float, sink: float, tilt: float = 0.0) -> Solid:
    """Slab with a (y, z) outline whose face looks along +x, `tilt` degrees upwards.

    It reaches from `sink` behind the surface point `at` to `lift` in front of it.
    """
    slab = prism(scale * np.asarray(outline, float), lift + sink, (0.5 * (lift - sink), 0, 0), (90, 0, 90))
    return place(slab, at, (0, -tilt, 0))


def badge(
    blueprint: Blueprint, rng: np.random.Generator, at: Vec, width: float, tilt: float = 0.0, sink: float = 0.12
) -> None:
    """Adds a light plate with a dark drawing at the surface point `at`, and the keypoint "badge".

    width in the unit of the object; tilt: elevation of the surface normal in degrees; sink: depth of the plate below
    the surface point as a fraction of the width (covers the bulge of round surfaces).
    """
    plate = list(PLATES.values())[rng.integers(len(PLATES))]
    drawing = list(DRAWINGS.values())[rng.integers(len(DRAWINGS))]
    half = 0.5 * width
    blueprint.add("badge", "light", plaque(plate, at, half, 0.05 * width, sink * width, tilt))
    blueprint.add("badge drawing", "dark", *(plaque(o, at, half, 0.08 * width, 0.0, tilt) for o in drawing))
    angle = np.deg2rad(tilt)
    blueprint.point("badge", np.asarray(at, float) + 0.07 * width * np.array([np.cos(angle), 0, np.sin(angle)]))


# --- builders ---------------------------------------------------------------------------------------------


def corners(bp: Blueprint, x: float, y: float, z: float, pattern: str) -> None:
    """Keypoints at (+-x, +-y, z); {} in the pattern of their names becomes "front left" and so on."""
    for sx, front in ((1, "front"), (-1, "back")):
        for sy, side in ((1, "left"), (-1, "right")):
            bp.point(pattern.format(f"{front} {side}"), (sx * x, sy * y, z))


def cube(rng: np.random.Generator) -> Blueprint:
    """Cube, plain, with corner caps, or with framed edges."""
    bp = Blueprint()
    bevel = rng.uniform(0.06, 0.22)
    style = ("plain", "corners", "frame")[rng.integers(3)]
    cap = rng.uniform(0.30, 0.42)
    bp.add("cube", "body", box((2, 2, 2), bevel=bevel))
    signs = [(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    outer = 1.0 - bevel / 1.5
    if style == "corners":
        at = 1.04 - 0.5 * cap
        solids = [box((cap, cap, cap), at * np.array(s), bevel=0.3 * cap) for s in signs]
        bp.add("corner caps", "trim", *solids)
        outer = 1.04 - 0.2 * cap
    if style == "frame":
        edge = 0.42 * cap
        at = 1.03 - 0.5 * edge
        bars = []
        for axis in range(3):
            size = np.full(3, edge)
            size[axis] = 2.06
            for a in (-at, at):
                for b in (-at, at):
                    bars.append(box(size, np.insert([a, b], axis, 0.0), bevel=0.15 * edge))
        bp.add("edges", "trim", *bars)
        outer = 1.03 - 0.1 * edge
    badge(bp, rng, (1, 0, 0), rng.uniform(0.75, 1.0))
    corners(bp, outer, outer, outer, "top {} corner")
    corners(bp, outer, outer, -outer, "bottom {} corner")
    bp.point("top centre", (0, 0, 1))
    return bp


def ball(rng: np.random.Generator) -> Blueprint:
    """Sphere with an optional belt, cap or pair of hoops, on an optional stand."""
    bp = Blueprint()
    style = ("plain", "cap", "belt", "poles")[rng.integers(4)]
    band = rng.uniform(0.10, 0.16)
    turns = np.deg2rad(np.linspace(-90, 90, 23)[1:-1])
    bp.add("sphere", "body", lathe([(0, -1), *zip(np.cos(turns), np.sin(turns)), (0, 1)], sides=40))
    top = 1.0
    if style == "belt":
        edge = np.sqrt(1 - band**2)
        bp.add("belt", "trim", lathe([(0, -band), (edge + 0.02, -band), (1.025, 0), (edge + 0.02, band), (0, band)]))
    if style in ("cap", "poles"):
        span = np.deg2rad(np.linspace(90 - rng.uniform(28, 38), 90, 7))
        top = 1.025
        profile = [(0.0, top * np.sin(span[0])), *zip(top * np.cos(span[:-1]), top * np.sin(span[:-1])), (0.0, top)]
        bp.add("cap", "trim", lathe(profile))
        if style == "poles":
            bp.add("lower cap", "trim", lathe(profile, rotate=(180, 0, 0)))
    if rng.random() < 0.4:
        stand = rng.uniform(0.45, 0.6)
        bp.add("stand", "trim", lathe([(0, -1.1), (stand, -1.1), (stand, -0.92), (0.85 * stand, -0.8), (0, -0.8)]))
        bp.point("stand front", (stand, 0, -1.0))
    tilt = rng.uniform(8, 20)
    angle = np.deg2rad(tilt)
    badge(bp, rng, (np.cos(angle), 0, np.sin(angle)), rng.uniform(0.62, 0.78), tilt)
    for name, xyz in {"top": (0, 0, top), "back": (-1, 0, 0), "left side": (0, 1, 0), "right side": (0, -1, 0)}.items():
        bp.point(name, xyz)
    diagonal = np.sqrt(0.5)
    bp.point("lower front", (diagonal, 0, -diagonal))
    bp.point("lower back", (-diagonal, 0, -diagonal))
    return bp


def drum(rng: np.random.Generator) -> Blueprint:
    """Upright cylinder, plain or with rims."""
    bp = Blueprint()
    height = rng.uniform(1.9, 3.0)
    bevel = rng.uniform(0.03, 0.12)
    half = 0.5 * height
    profile = [(0, -half), (1 - bevel, -half), (1, bevel - half), (1, half - bevel), (1 - bevel, half), (0, half)]
    bp.add("cylinder", "body", lathe(profile, sides=40))
    style = ("plain", "rims", "lid")[rng.integers(3)]
    rim = rng.uniform(0.13, 0.22)
    if style == "rims":
        bp.add("lower rim", "trim", cylinder(1.05, rim, (0, 0, 0.5 * rim - half + 0.02), sides=40))
        bp.add("upper rim", "trim", cylinder(1.05, rim, (0, 0, half - 0.5 * rim - 0.02), sides=40))
    if style == "lid":
        bp.add("lid", "trim", cylinder(rng.uniform(0.5, 0.7), 0.12, (0, 0, half), sides=32))
    badge(bp, rng, (1, 0, rng.uniform(0.0, 0.25) * half), rng.uniform(0.74, 0.86))
    bp.point("bottom front", (1, 0, rim - half + 0.05))
    for name, z in (("top", half - bevel), ("middle", 0.0)):
        for where, x, y in (("left", 0, 1), ("right", 0, -1), ("back", -1, 0)):
            bp.point(f"{name} {where}", (x, y, z))
    bp.point("top centre", (0, 0, half + (0.06 if style == "lid" else 0.0)))
    return bp


def spire(rng: np.random.Generator) -> Blueprint:
    """Cone with its tip up, on an optional base, with an optional band or cap."""
    bp = Blueprint()
    height = rng.uniform(1.9, 2.9)
    blunt = rng.uniform(0.03, 0.12)
    bp.add(
        "cone",
        "body",
        lathe([(0, 0), (1, 0), (blunt, height * (1 - blunt)), (0.5 * blunt, height), (0, height)], sides=40),
    )
    style = ("plain", "band", "cap")[rng.integers(3)]
    slope = (1 - blunt) / (height * (1 - blunt))

    def radius(z: float) -> float:
        return 1.0 - slope * z

    if style == "band":
        low, high = 0.62 * height, 0.62 * height + rng.uniform(0.2, 0.3)
        bp.add("band", "trim", lathe([(0, low), (radius(low) + 0.03, low), (radius(high) + 0.03, high), (0, high)]))
    if style == "cap":
        low = rng.uniform(0.72, 0.8) * height
        bp.add("cap", "trim", lathe([(0, low), (radius(low) + 0.04, low), (blunt + 0.03, height), (0, height + 0.03)]))
    base = 0.0
    if rng.random() < 0.6:
        base = rng.uniform(0.10, 0.16)
        bp.add("base", "trim", cylinder(rng.uniform(1.04, 1.15), base, (0, 0, 0.5 * base), sides=40))
    tilt = float(np.degrees(np.arctan(slope)))
    at = rng.uniform(0.29, 0.36) * height
    badge(bp, rng, (radius(at), 0, at), rng.uniform(0.72, 0.8), tilt, 0.25)
    bp.point("tip", (0, 0, height))
    middle = 0.5 * height
    for name, z in (("lower", 0.25), ("middle", middle)):
        for where, x, y in (("left", 0, 1), ("right", 0, -1), ("back", -1, 0)):
            bp.point(f"{name} {where}", (x * radius(z), y * radius(z), z))
    return bp


def pyramid(rng: np.random.Generator) -> Blueprint:
    """Four-sided pyramid, one side to the front, with an optional plinth and capstone."""
    bp = Blueprint()
    height = rng.uniform(1.4, 2.3)
    foot = rng.uniform(0.08, 0.16)
    style = ("plain", "capstone", "ledge")[rng.integers(3)]
    square = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)], float)

    def layer(half: float, z: float) -> np.ndarray:
        return np.column_stack([half * square, np.full(4, z)])

    bp.add("pyramid", "body", hull(np.concatenate([layer(1, -foot), layer(1, 0), [(0, 0, height)]])))
    if style == "capstone":
        low = rng.uniform(0.68, 0.78)
        bp.add("capstone", "trim", hull(np.concatenate([layer(1.06 - low, low * height), [(0, 0, height + 0.04)]])))
    if style == "ledge":
        for level in (0.0, 0.60):
            half = 1.06 - level
            slab = [layer(half, level * height - 0.05), layer(half, level * height + 0.05)]
            bp.add(f"ledge {1 + (level > 0)}", "trim", hull(np.concatenate(slab)))
    plinth = 1.0
    if style != "ledge" and rng.random() < 0.6:
        plinth = rng.uniform(1.08, 1.18)
        bp.add("plinth", "trim", box((2 * plinth, 2 * plinth, 0.16), (0, 0, -foot)))
    at = rng.uniform(0.25, 0.32)
    badge(bp, rng, (1 - at, 0, at * height), rng.uniform(0.72, 0.84), float(np.degrees(np.arctan(1 / height))))
    bp.point("tip", (0, 0, height))
    corners(bp, plinth, plinth, -foot, "bottom {} corner")
    bp.point("middle back", (-0.5, 0, 0.5 * height))
    bp.point("middle left", (0, 0.5, 0.5 * height))
    bp.point("middle right", (0, -0.5, 0.5 * height))
    return bp


def ring(rng: np.random.Generator) -> Blueprint:
    """Upright ring whose hole looks to the front, with optional bands and foot."""
    bp = Blueprint()
    minor = rng.uniform(0.36, 0.46)
    bp.add("ring", "body", torus(1, minor, rotate=(0, 90, 0)))
    bands = int(rng.integers(0, 4))
    angles = {0: [], 1: [], 2: [0, 180], 3: [0, 180, 270]}[bands]
    width = rng.uniform(0.12, 0.2)
    for number, degrees in enumerate(angles):
        angle = np.deg2rad(degrees)
        at = (0, np.cos(angle), np.sin(angle))
        bp.add(f"band {number + 1}", "trim", cylinder(minor + 0.035, 2 * width, at, (degrees, 0, 0), sides=24))
    low = -1 - minor
    if rng.random() < 0.5:
        bp.add("foot", "trim", box((1.5 * minor, rng.uniform(0.8, 1.1), 0.3), (0, 0, low + 0.04), bevel=0.06))
    badge(bp, rng, (minor * 0.98, 0, 1), 1.7 * minor, sink=0.3)
    bp.point("top", (0, 0, 1 + minor))
    bp.point("hole top", (0, 0, 1 - minor))
    bp.point("hole bottom", (0, 0, minor - 1 + (0.035 if bands == 3 else 0.0)))
    for side, y in (("left", 1), ("right", -1)):
        bp.point(f"{side} side", (0, y * (1 + minor), 0))
        bp.point(f"hole {side}", (0, y * (1 - minor), 0))
    bp.point("top back", (-minor, 0, 1))
    return bp


NOUNS: dict[str, Noun] = {
    "cube": Noun(cube, ("cube", "block"), (0.1, 0.4), "solids"),
    "sphere": Noun(ball, ("sphere", "orb"), (0.1, 0.4), "solids"),
    "cylinder": Noun(drum, ("cylinder",), (0.15, 0.5), "solids"),
    "cone": Noun(spire, ("cone",), (0.15, 0.5), "solids"),
    "pyramid": Noun(pyramid, ("pyramid",), (0.12, 0.4), "solids"),
    "ring": Noun(ring, ("ring", "torus"), (0.12, 0.4), "solids"),
}
