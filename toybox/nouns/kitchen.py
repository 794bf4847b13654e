"""Things of the kitchen. Frame of every builder: z up, front along +x, left along +y."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..parts import Blueprint, Vec, arc, bar, box, capsule, carve, cylinder, ellipsoid, hull, lathe, prism, sphere
from ..solid import Solid
from . import Noun
from .solids import DRAWINGS, PLATES, badge, plaque


def _wall(profile: Sequence[Vec], z: float) -> tuple[float, float]:
    """Radius and elevation (degrees) of the normal of an outer wall [(radius, z), ...], z rising, at height z."""
    points = np.asarray(profile, float)
    i = int(np.clip(np.searchsorted(points[:, 1], z) - 1, 0, len(points) - 2))
    (r0, z0), (r1, z1) = points[i], points[i + 1]
    radius = r0 + (r1 - r0) * (z - z0) / (z1 - z0)
    return float(radius), float(np.degrees(np.arctan2(r0 - r1, z1 - z0)))


def _vessel(outer: Sequence[Vec], thickness: float, floor: float) -> list[Vec]:
    """Lathe profile of an open vessel with an outer wall [(radius, z), ...] and a floor at height `floor`."""
    inner = [(r - thickness, z) for r, z in outer if z > floor][::-1]
    bottom = _wall(outer, floor)[0] - thickness
    return [(0.0, outer[0][1]), *outer, *inner, (bottom, floor), (0.0, floor)]


def _hoop(inner: float, outer: float, low: float, high: float) -> Solid:
    """Flat ring about z between two radii and two heights."""
    return lathe([(inner, low), (outer, low), (outer, high), (inner, high), (inner, low)], sides=36)


def _loop(path: Sequence[Vec] | np.ndarray, radius: float | Sequence[float], normal: Vec, sides: int = 14) -> Solid:
    """Closed round tube (one radius, or one per point) along a polyline in the plane with the given unit normal."""
    points = np.asarray(path, float)
    steps = np.diff(points, axis=0)
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    tangents = np.concatenate([steps[:1], steps[:-1] + steps[1:], steps[-1:]])
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    across = np.cross(normal, tangents)
    stretch = 1.0 / np.einsum("ij,ij->i", tangents, np.concatenate([steps[:1], steps]))  # mitred bends keep the width
    turns = 2 * np.pi * np.arange(sides) / sides
    flat = (stretch[:, None] * np.cos(turns))[..., None] * across[:, None]
    radii = np.broadcast_to(radius, len(points))[:, None, None]
    rings = points[:, None] + radii * (flat + np.sin(turns)[:, None] * np.asarray(normal, float))
    n = len(points)
    ends = np.arange(sides)
    following = np.roll(ends, -1)
    starts = sides * np.arange(n - 1)[:, None]
    a, b = (starts + ends).ravel(), (starts + following).ravel()
    last = (n - 1) * sides
    faces = np.concatenate(
        [
            np.stack([a, b, b + sides], 1),
            np.stack([a, b + sides, a + sides], 1),
            np.stack([following, ends, np.full(sides, n * sides)], 1),
            np.stack([last + ends, last + following, np.full(sides, n * sides + 1)], 1),
        ]
    )
    return Solid(np.concatenate([rings.reshape(-1, 3), points[[0, -1]]]), faces).outward()


def _badge_on(bp: Blueprint, rng: np.random.Generator, outer: Sequence[Vec], z: float, width: float) -> None:
    """Badge on the front of an outer wall, at height z."""
    radius, tilt = _wall(outer, z)
    badge(bp, rng, (radius, 0, z), width, tilt)


def _around(bp: Blueprint, name: str, radius: float, z: float, sides: Sequence[str]) -> None:
    """Keypoints of the given sides of a circle at height z."""
    where = {"front": (1, 0), "back": (-1, 0), "left": (0, 1), "right": (0, -1)}
    for side in sides:
        bp.point(f"{name} {side}", (radius * where[side][0], radius * where[side][1], z))


def mug(rng: np.random.Generator) -> Blueprint:
    """Mug with its handle on the right, and a drink."""
    bp = Blueprint()
    height = rng.uniform(1.75, 2.3)
    foot = rng.uniform(0.72, 1.0)
    belly = rng.uniform(0.0, 0.1)
    outer = [(foot - 0.08, 0), (foot, 0.1), (0.5 * (1 + foot) + belly, 0.45 * height), (1.0, height)]
    bp.add("cup", "body", lathe(_vessel(outer, 0.13, 0.2), sides=36))
    level = rng.uniform(0.78, 0.9) * height
    drink = _wall(outer, level)[0] - 0.08
    bp.add("drink", "dark", cylinder(drink, 0.06, (0, 0, level)))
    if rng.random() < 0.5:
        bp.add("rim", "trim", _hoop(0.84, 1.05, height - 0.1, height + 0.03))
    reach = rng.uniform(0.52, 0.68)
    middle = rng.uniform(0.48, 0.58) * height
    thick = rng.uniform(0.12, 0.17)
    tall = rng.uniform(0.27, 0.33) * height
    wall = _wall(outer, middle)[0] - 0.06
    if rng.random() < 0.35:
        path: np.ndarray | list[tuple[float, float, float]] = [
            (0, -wall, middle + tall),
            (0, -wall - reach, middle + tall),
            (0, -wall - reach, middle - 0.6 * tall),
            (0, -wall, middle - tall),
        ]
    else:
        path = arc((0, 0, 0), 1.0, 90, 270, "yz", 11) * [1, reach, tall] + [0, -wall, middle]
    bp.add("handle", ("body", "trim")[rng.integers(2)], _loop(path, thick, (1, 0, 0)))
    _badge_on(bp, rng, outer, 0.5 * height, rng.uniform(0.76, 0.86))
    bp.point("handle", (0, -wall - reach - thick, middle))
    _around(bp, "rim", 1.0, height, ("front", "back", "left", "right"))
    _around(bp, "bottom", foot, 0.1, ("front", "back", "left"))
    return bp


def teapot(rng: np.random.Generator) -> Blueprint:
    """Teapot, spout to the front, handle at the back."""
    bp = Blueprint()
    tall = rng.uniform(0.78, 1.05)
    bp.add("pot", "body", ellipsoid((1, 1, tall), (0, 0, tall), detail=3))
    bp.add("foot", "trim", cylinder(0.55, 0.2, (0, 0, 0.06)))
    lid = rng.uniform(0.42, 0.55)
    base = tall * (1 + np.sqrt(1 - lid**2)) - 0.03
    dome = rng.uniform(0.15, 0.3)
    bp.add(
        "lid",
        "trim",
        lathe(
            [(0, base - 0.1), (lid, base - 0.1), (lid, base + 0.08), (0.6 * lid, base + dome), (0, base + dome + 0.04)]
        ),
    )
    knob = rng.uniform(0.13, 0.19)
    bp.add("knob", ("body", "light")[rng.integers(2)], sphere(knob, (0, 0, base + dome + knob), 2))
    wide = rng.uniform(0.16, 0.2)
    tip = np.array([rng.uniform(1.6, 1.8), 0, tall * rng.uniform(1.4, 1.6)])
    path = [(0.7, 0, 0.7 * tall), (1.2, 0, 0.85 * tall), (0.78 * tip[0], 0, 0.72 * tip[2]), tip]
    bp.add("spout", "body", _loop(path, [1.9 * wide, 1.5 * wide, 1.1 * wide, wide], (0, 1, 0), 20))
    along = np.array([0.8, 0, 0.6])
    bp.add("spout lip", "light", bar(tip - 0.05 * along, tip + (wide + 0.06) * along, 1.15 * wide, 1.55 * wide))
    bp.add("spout hole", "dark", bar(tip, tip + (wide + 0.08) * along, 1.15 * wide))
    collar = list(PLATES.values())[rng.integers(len(PLATES))]
    tilt = -12.0
    at = (np.cos(np.deg2rad(-tilt)), 0, tall * (1 - np.sin(np.deg2rad(-tilt))))
    bp.add("collar", "light", plaque(collar, at, rng.uniform(0.5, 0.56), 0.05, 0.2, tilt))
    reach = rng.uniform(0.55, 0.75)
    rise = rng.uniform(0.5, 0.62) * tall
    thick = rng.uniform(0.12, 0.16)
    loop = arc((0, 0, 0), 1.0, 80, 280, "xz", 11) * [reach, 1, rise] + [-0.88, 0, 1.05 * tall]
    bp.add("handle", ("body", "trim")[rng.integers(2)], _loop(loop, thick, (0, 1, 0)))
    bp.point("spout tip", tip + (wide + 0.07) * along)
    bp.point("knob", (0, 0, base + dome + 2 * knob))
    bp.point("handle", (-0.88 - reach - thick, 0, 1.05 * tall))
    bp.point("handle top", (loop[1][0], 0, loop[1][2] + thick))
    bp.point("left side", (0, 1, tall))
    bp.point("right side", (0, -1, tall))
    bp.point("lid left", (0, lid, base))
    bp.point("lid right", (0, -lid, base))
    return bp


def bottle(rng: np.random.Generator) -> Blueprint:
    """Bottle with a label wrapped around its front."""
    bp = Blueprint()
    body = rng.uniform(1.7, 2.4)
    shoulder = rng.uniform(0.35, 0.8)
    neck = rng.uniform(0.34, 0.46)
    neck_height = rng.uniform(0.5, 0.9)
    top = body + shoulder + neck_height
    bend = np.linspace(0, 0.5 * np.pi, 6)[1:]
    round_off = rng.random() < 0.5
    ease = np.sin(bend) if round_off else 0.5 * (1 - np.cos(2 * bend))
    shoulders = [
        (neck + (1 - neck) * (np.cos(b) if round_off else 1 - e), body + shoulder * (b / bend[-1]))
        for b, e in zip(bend, ease)
    ]
    profile = [(0, 0), (0.88, 0), (1, 0.12), (1, body), *shoulders, (neck, top), (0, top)]
    bp.add("bottle", "body", lathe(profile, sides=36))
    cap_height = rng.uniform(0.28, 0.45)
    cap = neck + rng.uniform(0.06, 0.14)
    slot = ("trim", "light", "dark", "metal")[rng.integers(4)]
    bp.add("cap", slot, cylinder(cap, cap_height, (0, 0, top), sides=24))
    bp.add("neck ring", "trim", cylinder(neck + 0.07, 0.13, (0, 0, body + shoulder + 0.12), sides=24))
    half = np.deg2rad(rng.uniform(34, 42))
    tall = rng.uniform(0.75, 1.0)
    middle = rng.uniform(0.5, 0.58) * body
    turns = np.linspace(-half, half, 12)
    outline = [(0.4, 0.0), *zip(1.035 * np.cos(turns), 1.035 * np.sin(turns))]
    bp.add("label", "light", prism(outline, tall, (0, 0, middle)))
    drawing = list(DRAWINGS.values())[rng.integers(len(DRAWINGS))]
    bp.add("label drawing", "dark", *(plaque(o, (1.0, 0, middle), 0.46, 0.06, 0.15) for o in drawing))
    if rng.random() < 0.6:
        bp.add("foot band", "trim", cylinder(1.03, 0.16, (0, 0, 0.16), sides=36))
    bp.point("cap top", (0, 0, top + 0.5 * cap_height))
    bp.point("label", (1.05, 0, middle))
    _around(bp, "shoulder", 1.0, body, ("front", "back", "left", "right"))
    _around(bp, "bottom", 1.0, 0.14, ("back", "left", "right"))
    return bp


def pan(rng: np.random.Generator) -> Blueprint:
    """Cooking pan with a long handle on the right."""
    bp = Blueprint()
    height = rng.uniform(0.7, 0.95)
    foot = rng.uniform(0.78, 0.96)
    outer = [(foot - 0.05, 0), (foot, 0.06), (1.0, height)]
    bp.add("pan", "body", lathe(_vessel(outer, 0.1, 0.14), sides=40))
    bp.add("rim", "body", _hoop(0.88, 1.05, height - 0.05, height + 0.04))
    thick = rng.uniform(0.11, 0.14)
    length = rng.uniform(0.95, 1.3)
    rise = rng.uniform(0.05, 0.4)
    start = np.array([0, -0.95, 0.75 * height])
    knee = start - (0, 0.35 * length, -0.3 * rise)
    end = start - (0, length, -rise)
    slot = ("dark", "wood", "trim")[rng.integers(3)]
    bp.add("handle neck", "metal", capsule(start, knee, 0.85 * thick))
    bp.add("handle", slot, capsule(knee, end, 1.4 * thick))
    bp.add("handle end", "light", sphere(1.45 * thick, end, 2))
    if rng.random() < 0.4:
        ear = rng.uniform(0.25, 0.35)
        bp.add("ear", "body", _loop(arc((0, 0.98, 0.7 * height), ear, -80, 80, "yx", 9), 0.09, (0, 0, 1)))
    food = rng.integers(3)
    if food == 0:
        bp.add("egg white", "light", ellipsoid((0.55, 0.5, 0.1), (0.05, 0.1, 0.16), detail=2))
        bp.add("egg yolk", "accent", ellipsoid((0.22, 0.22, 0.16), (0.05, 0.1, 0.2), detail=2))
    elif food == 1:
        bp.add("pancake", "skin", ellipsoid((0.62, 0.62, 0.12), (0, 0, 0.18), detail=2))
    _badge_on(bp, rng, outer, 0.47 * height, 0.86 * height)
    bp.point("handle end", end - (0, 1.45 * thick, 0))
    bp.point("handle start", start - (0, 0.1, -0.85 * thick))
    _around(bp, "rim", 1.05, height, ("front", "back", "left", "right"))
    _around(bp, "bottom", foot, 0.06, ("front", "back", "left"))
    return bp


def bowl(rng: np.random.Generator) -> Blueprint:
    """Round bowl on a foot, empty or filled."""
    bp = Blueprint()
    height = rng.uniform(0.8, 1.15)
    power = rng.uniform(0.42, 0.6)
    steps = np.linspace(0, 1, 8)
    outer = [(0.42 + 0.58 * s**power, 0.14 + (height - 0.14) * s) for s in steps]
    bp.add("bowl", "body", lathe(_vessel(outer, 0.1, 0.3), sides=36))
    bp.add("foot", "trim", cylinder(rng.uniform(0.46, 0.58), 0.24, (0, 0, 0.12)))
    if rng.random() < 0.6:
        bp.add("rim", ("body", "trim")[rng.integers(2)], _hoop(0.92, 1.03, height - 0.04, height + 0.02))
    filling = rng.integers(4)
    if filling == 1:
        bp.add("rice", "light", ellipsoid((0.76, 0.76, 0.16), (0, 0, height - 0.3)))
    elif filling == 2:
        bp.add("soup", "skin", cylinder(0.8, 0.06, (0, 0, height - 0.26)))
        spots = [(0.45 * np.cos(a), 0.45 * np.sin(a), height - 0.23) for a in rng.uniform(0, 6.3) + np.arange(3) * 2.1]
        bp.add("soup greens", "leaf", *(ellipsoid((0.16, 0.12, 0.07), p, detail=1) for p in spots))
    elif filling == 3:
        angles = rng.uniform(0, 6.3) + np.arange(4) * np.pi / 2
        spots = [(0.4 * np.cos(a), 0.4 * np.sin(a), height - 0.16) for a in angles]
        for number, (spot, slot) in enumerate(zip(spots, ("body", "light", "accent", "leaf"))):
            bp.add(f"fruit {number + 1}", slot, sphere(rng.uniform(0.24, 0.31), spot, 2))
    at = 0.57 * height
    _badge_on(bp, rng, outer, at, rng.uniform(0.58, 0.66))
    _around(bp, "rim", 1.0, height, ("front", "back", "left", "right"))
    _around(bp, "belly", _wall(outer, at)[0], at, ("back", "left", "right"))
    return bp


def toaster(rng: np.random.Generator) -> Blueprint:
    """Toaster with two slots, dials on the front and a lever on the right."""
    bp = Blueprint()
    width, depth, height = rng.uniform(1.9, 2.4), rng.uniform(1.0, 1.3), rng.uniform(1.25, 1.6)
    bevel = rng.uniform(0.12, 0.3)
    shell = box((depth, width, height), (0, 0, 0.5 * height), bevel=bevel)
    length = width - 0.6
    rows = (-0.2 * depth, 0.2 * depth)
    bp.add("shell", "body", carve(shell, *(box((0.2, length, 0.6), (x, 0, height)) for x in rows)))
    bp.add("slots", "dark", *(box((0.18, length - 0.02, 0.06), (x, 0, height - 0.2)) for x in rows))
    base = rng.uniform(0.12, 0.2)
    bp.add("base", "trim", box((depth + 0.06, width + 0.06, base), (0, 0, 0.5 * base), bevel=0.03))
    feet = [
        cylinder(0.13, 0.14, (sx * 0.32 * depth, sy * 0.38 * width, -0.05), sides=16)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    bp.add("feet", "dark", *feet)
    pop = rng.uniform(0.2, 0.4)
    slice_width = min(0.85 * length, 1.1)
    crown = [(-0.5, -0.9), (0.5, -0.9), (0.5, -0.25), (0.56, -0.12), (0.46, 0)]
    crown += [(-x, y) for x, y in crown[:1:-1]]
    for x, name in zip(rows, ("back", "front")):
        if name == "front" or rng.random() < 0.7:
            toast = prism(np.array(crown) * [slice_width, 1.0], 0.16, (x, 0, height + pop), (90, 0, 90))
            bp.add(f"{name} toast", "skin", toast)
    front = 0.5 * depth
    middle = 0.54 * height
    panel = rng.uniform(0.48, 0.6)
    bp.add("panel", "light", box((0.12, panel * width, 0.42 * height), (front - 0.01, 0, middle), bevel=0.03))
    dials = int(rng.integers(1, 4))
    spots = np.linspace(-1, 1, dials) * 0.3 * panel * width if dials > 1 else np.zeros(1)
    radius = min(0.16 * height, 0.13 * panel * width) if dials > 1 else 0.17 * height
    bp.add("dials", "dark", *(cylinder(radius, 0.2, (front, y, middle), (0, 90, 0), 20) for y in spots))
    lever = rng.uniform(0.5, 0.75) * height
    bp.add("lever", "dark", box((0.36, 0.24, 0.16), (0, -0.5 * width - 0.08, lever), bevel=0.04))
    bp.point("lever", (0, -0.5 * width - 0.2, lever))
    bp.point("panel left", (front + 0.05, 0.45 * panel * width, middle + 0.17 * height))
    bp.point("panel right", (front + 0.05, -0.45 * panel * width, middle + 0.17 * height))
    bp.point("toast top", (rows[1], 0, height + pop))
    bp.point("top left", (0, 0.5 * width - bevel, height))
    bp.point("top right", (0, bevel - 0.5 * width, height))
    bp.point("back centre", (-front, 0, middle))
    bp.point("left centre", (0, 0.5 * width, middle))
    return bp


def jug(rng: np.random.Generator) -> Blueprint:
    """Jug, lip to the front, big handle at the back."""
    bp = Blueprint()
    height = rng.uniform(2.3, 3.0)
    belly = rng.uniform(0.3, 0.42) * height
    waist = rng.uniform(0.52, 0.64)
    brim = rng.uniform(0.66, 0.78)
    neck = 0.78 * height
    outer = [
        (0.6, 0),
        (0.66, 0.08),
        (0.9, 0.55 * belly),
        (1, belly),
        (0.93, 0.5 * (belly + 0.6 * height)),
        (waist + 0.12, 0.66 * height),
        (waist, neck),
        (brim, height),
    ]
    bp.add("jug", "body", lathe(_vessel(outer, 0.1, 0.6 * height), sides=36))
    bp.add("drink", "light", cylinder(waist - 0.06, 0.06, (0, 0, 0.84 * height), sides=24))
    reach = rng.uniform(0.5, 0.75)
    lip = np.array(
        [
            (0.55 * brim, -0.4, height),
            (0.55 * brim, 0.4, height),
            (0.8 * waist, 0, 0.72 * height),
            (brim + reach, -0.1, height + 0.14),
            (brim + reach, 0.1, height + 0.14),
            (brim + reach - 0.1, 0, height - 0.05),
        ]
    )
    bp.add("lip", "trim", hull(lip))
    out = rng.uniform(0.55, 0.75)
    thick = rng.uniform(0.12, 0.16)
    upper, lower = 0.88 * height, 0.8 * belly
    if rng.random() < 0.5:
        corners = [(-waist, 0, upper), (-0.75 - out, 0, upper + 0.1), (-0.95 - out, 0, 0.6 * height), (-0.85, 0, lower)]
        path = np.array(corners)
    else:
        path = arc((0, 0, 0), 1.0, 90, 262, "xz", 11) * [out + 0.3, 1, 0.5 * (upper - lower)]
        path = path - (0.7, 0, -0.5 * (upper + lower))
    bp.add("handle", ("body", "trim")[rng.integers(2)], _loop(path, thick, (0, 1, 0)))
    bp.add("foot", "trim", cylinder(0.72, 0.14, (0, 0, 0.07)))
    if rng.random() < 0.5:
        bp.add("neck band", "trim", cylinder(waist + 0.05, 0.16, (0, 0, neck), sides=36))
    _badge_on(bp, rng, outer, 1.02 * belly, rng.uniform(0.72, 0.85))
    bp.point("lip tip", (brim + reach, 0, height + 0.14))
    outermost = min(path, key=lambda p: p[0])
    bp.point("handle", np.asarray(outermost) - [thick, 0, 0])
    _around(bp, "rim", brim, height, ("left", "right", "back"))
    _around(bp, "belly", 1.0, belly, ("left", "right", "back"))
    bp.point("bottom front", (0.72, 0, 0.07))
    return bp


NOUNS: dict[str, Noun] = {
    "mug": Noun(mug, ("mug", "cup"), (0.09, 0.14), "kitchen"),
    "teapot": Noun(teapot, ("teapot", "kettle"), (0.14, 0.25), "kitchen"),
    "bottle": Noun(bottle, ("bottle", "flask"), (0.2, 0.35), "kitchen"),
    "pan": Noun(pan, ("pan", "skillet", "frying pan"), (0.08, 0.14), "kitchen"),
    "bowl": Noun(bowl, ("bowl",), (0.07, 0.14), "kitchen"),
    "toaster": Noun(toaster, ("toaster",), (0.18, 0.26), "kitchen"),
    "jug": Noun(jug, ("jug", "pitcher"), (0.2, 0.32), "kitchen"),
}
