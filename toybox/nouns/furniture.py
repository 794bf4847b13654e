"""Furniture. Frame of every builder: z up, front along +x, left along +y."""

from __future__ import annotations

import numpy as np

from ..parts import Blueprint, Vec, bar, box, capsule, cone, cylinder, lathe, mirror_y, place, prism, sphere
from ..solid import Solid
from . import Noun
from .bench import bench
from .solids import badge, corners, disc


def _legs(rng: np.random.Generator, x: float, y: float, height: float, thick: float, splay: float = 0.0) -> list[Solid]:
    """Four legs of half-thickness `thick` under the corners (+-x, +-y), from the floor to `height`."""
    style = rng.integers(3)
    low, high = (0.75 * thick, 1.35 * thick) if style == 1 else (thick, thick)
    legs = []
    for sx in (1, -1):
        leg = bar((sx * (x + splay), y + splay, 0.0), (sx * x, y, height), low, high, 16)
        if style == 0 and splay == 0:
            leg = box((2 * thick, 2 * thick, height), (sx * x, y, 0.5 * height))
        legs.append(leg)
    return mirror_y(*legs)


def _board(rng: np.random.Generator, width: float, height: float) -> np.ndarray:
    """Outline (N, 2) of a back or head board that stands on y = 0: chamfered, arched or eared."""
    half = 0.5 * width
    style = rng.integers(3)
    if style == 0:
        cut, drop = rng.uniform(0.08, 0.26) * width, rng.uniform(0.08, 0.24) * height
        top = [(half, height - drop), (half - cut, height), (cut - half, height), (-half, height - drop)]
    elif style == 1:
        turns = np.linspace(0, np.pi, 14)
        rise = rng.uniform(0.3, 0.5) * height
        top = list(zip(half * np.cos(turns), height - rise + rise * np.sin(turns)))
    else:
        ear = 0.2 * width
        top = [(half, height), (half - ear, height), (half - 1.5 * ear, 0.85 * height)]
        top += [(-x, y) for x, y in top[::-1]]
    return np.array([(-half, 0.0), (half, 0.0), *top])


def chair(rng: np.random.Generator) -> Blueprint:
    """Chair with a solid, slatted or spindled back, a badge on the back's front, with or without arms."""
    bp = Blueprint()
    w, d, z, tall = rng.uniform(0.9, 1.15), rng.uniform(0.85, 1.05), rng.uniform(0.75, 1.0), rng.uniform(0.95, 1.3)
    thick = rng.uniform(0.065, 0.09)
    splay = (0.0, 0.1)[rng.integers(2)]
    seat = rng.uniform(0.16, 0.24)
    bp.add("seat", "body", box((d, w, seat), (0, 0, z), bevel=0.04))
    bp.add(
        "legs",
        ("trim", "wood", "body")[rng.integers(3)],
        *_legs(rng, 0.5 * d - 1.3 * thick, 0.5 * w - 1.3 * thick, z - 0.3 * seat, thick, splay),
    )
    lean = rng.uniform(3, 12)
    origin = np.array([0.09 - 0.5 * d, 0, z])

    def back(solid: Solid) -> Solid:
        return place(solid, origin, (0, -lean, 0))

    def on_back(x: float, y: float, height: float) -> np.ndarray:
        a = np.deg2rad(lean)
        return origin + np.array([x * np.cos(a) - height * np.sin(a), y, x * np.sin(a) + height * np.cos(a)])

    style = rng.integers(3)
    rail, top = 0.42, tall
    if style == 0:
        outline = _board(rng, w, tall)
        top = float(np.interp(0.0, outline[:1:-1, 0], outline[:1:-1, 1]))
        bp.add("back", "body", back(prism(outline, 0.15, (0, 0, 0), (90, 0, 90))))
    elif style == 1:
        bp.add("back rail", "body", back(box((0.15, w, rail), (0, 0, tall - 0.5 * rail), bevel=0.04)))
        bp.add("back slat", "body", back(box((0.12, w - 0.1, 0.18), (0, 0, 0.5 * (tall - rail) + 0.05), bevel=0.03)))
        posts = [box((0.14, 0.14, tall - 0.1), (0, s * (0.5 * w - 0.08), 0.5 * tall - 0.05)) for s in (-1, 1)]
        bp.add("back posts", "body", *(back(p) for p in posts))
    else:
        bp.add("back rail", "body", back(box((0.16, w, rail), (0, 0, tall - 0.5 * rail), bevel=0.07)))
        spots = np.linspace(-0.5 * w + 0.1, 0.5 * w - 0.1, 4)
        rods = [cylinder(0.06, tall - 0.2, (0, y, 0.5 * tall - 0.1), sides=14) for y in spots]
        bp.add("spindles", "body", *(back(rod) for rod in rods))
    at = 0.62 * tall if style == 0 else tall - 0.5 * rail
    badge(bp, rng, on_back(0.075, 0, at), 0.36, lean)
    if rng.random() < 0.3:
        y = 0.5 * w - 0.03
        arm = [box((0.8 * d, 0.13, 0.1), (0, y, z + 0.45)), box((0.12, 0.12, 0.5), (0.33 * d, y, z + 0.22))]
        bp.add("arms", "body", *mirror_y(*arm))
    if rng.random() < 0.5:
        bp.add("cushion", "trim", box((0.78 * d, 0.8 * w, 0.14), (0.04, 0, z + 0.5 * seat + 0.03), bevel=0.05))
    corners(bp, 0.5 * d - 1.3 * thick + splay, 0.5 * w - 1.3 * thick + splay, 0.0, "{} foot")
    for s, side in ((1, "left"), (-1, "right")):
        bp.point(f"seat front {side}", (0.5 * d - 0.03, s * (0.5 * w - 0.03), z))
    bp.point("back top", on_back(0, 0, top))
    return bp


def sofa(rng: np.random.Generator) -> Blueprint:
    """Sofa of two or three seats with throw pillows."""
    bp = Blueprint()
    n = int(rng.integers(2, 4))
    each, d = rng.uniform(0.75, 0.95), rng.uniform(0.95, 1.15)
    arm, tall = rng.uniform(0.24, 0.36), rng.uniform(0.88, 1.08)
    inner = n * each
    w = inner + 2 * arm
    leg = rng.uniform(0.12, 0.24)
    bp.add("base", "body", box((d, w - 0.04, 0.36), (0, 0, leg + 0.18), bevel=0.04))
    at = (0.17 - 0.5 * d, 0, leg + 0.5 * tall + 0.12)
    bp.add("back", "body", box((0.34, inner + 0.3, tall + 0.25), at, bevel=0.1))
    arm_top = leg + rng.uniform(0.62, 0.75)
    rolled = rng.random() < 0.5
    y = 0.5 * (inner + arm)
    arms = [box((d + 0.04, arm, arm_top - leg), (0.02, y, 0.5 * (arm_top + leg)), bevel=0.06)]
    if rolled:
        arms.append(cylinder(0.62 * arm, d + 0.08, (0.03, y, arm_top - 0.05), (0, 90, 0), 20))
    bp.add("arms", "body", *mirror_y(*arms))
    slot = ("body", "trim")[rng.integers(2)]
    rows = (np.arange(n) - 0.5 * (n - 1)) * each
    for i, y in enumerate(rows):
        bp.add(f"seat cushion {i + 1}", slot, box((d - 0.22, each - 0.04, 0.24), (0.15, y, leg + 0.44), bevel=0.08))
        at = (0.4 - 0.5 * d, y, leg + 0.55 + 0.2 * tall)
        bp.add(f"back cushion {i + 1}", "body", box((0.24, each - 0.06, 0.56 * tall), at, (0, -10, 0), bevel=0.1))
    size = rng.uniform(0.38, 0.43)
    for i, s in enumerate((-1, 1) if rng.random() < 0.7 else (1,)):
        spot = (0.64 - 0.5 * d, s * (0.5 * inner - 0.36), leg + 0.54 + 0.5 * size)
        turn = (s * rng.uniform(3, 12), -18, 0)
        bp.add(f"pillow {i + 1}", "light", box((0.2, 1.25 * size, size), spot, turn, bevel=0.08))
    bp.add(
        "legs",
        ("wood", "dark", "metal")[rng.integers(3)],
        *_legs(rng, 0.5 * d - 0.14, 0.5 * w - 0.16, leg + 0.02, 0.08),
    )
    corners(bp, 0.5 * d - 0.14, 0.5 * w - 0.16, 0.0, "{} foot")
    for s, side in ((1, "left"), (-1, "right")):
        top = arm_top - 0.05 + 0.62 * arm if rolled else arm_top
        bp.point(f"{side} arm top", (0.1, s * 0.5 * (inner + arm), top))
    bp.point("back top", (0.17 - 0.5 * d, 0, leg + tall + 0.245))
    bp.point("base front", (0.5 * d, 0, leg + 0.15))
    return bp


def bed(rng: np.random.Generator) -> Blueprint:
    """Bed, foot end to the front, with headboard, blanket and pillows."""
    bp = Blueprint()
    double = rng.random() < 0.5
    w, length = (rng.uniform(1.5, 1.75) if double else rng.uniform(1.0, 1.2)), rng.uniform(1.95, 2.2)
    leg = rng.uniform(0.14, 0.28)
    half = 0.5 * length
    bp.add("frame", "trim", box((length, w, 0.24), (0, 0, leg + 0.12), bevel=0.03))
    bp.add("mattress", "light", box((length - 0.1, w - 0.08, 0.28), (0, 0, leg + 0.36), bevel=0.06))
    cover = rng.uniform(0.62, 0.74) * length
    top = leg + 0.56
    bp.add("blanket", "body", box((cover, w + 0.04, 0.44), (half - 0.5 * cover + 0.02, 0, top - 0.22), bevel=0.07))
    fold = half - cover + 0.08
    bp.add("blanket fold", "trim", box((0.24, w + 0.06, 0.36), (fold, 0, top - 0.14), bevel=0.07))
    bp.add("legs", ("trim", "wood")[rng.integers(2)], *_legs(rng, half - 0.14, 0.5 * w - 0.14, leg + 0.05, 0.09))
    tall = rng.uniform(1.0, 1.35)
    board = _board(rng, w + 0.08, tall - 0.1)
    bp.add("headboard", "body", prism(board, 0.15, (-half - 0.04, 0, 0.1), (90, 0, 90)))
    foot = rng.uniform(0.55, 0.72)
    if rng.random() < 0.6:
        foot = leg + rng.uniform(0.7, 0.8)
        bp.add("footboard", "body", box((0.14, w + 0.08, foot - 0.1), (half + 0.08, 0, 0.5 * foot + 0.05), bevel=0.05))
        front, height = half + 0.15, 0.5 * foot + 0.1
    else:
        front, height = half + 0.02, top - 0.22
    badge(bp, rng, (front, 0, height), 0.4)
    size = rng.uniform(0.55, 0.68)
    for i, y in enumerate((-0.24 * w, 0.24 * w) if double else (0.0,)):
        bp.add(f"pillow {i + 1}", "light", box((0.36, size, 0.2), (0.27 - half, y, leg + 0.58), (0, 25, 0), bevel=0.08))
    corners(bp, half - 0.14, 0.5 * w - 0.14, 0.0, "{} foot")
    bp.point("headboard left", (-half - 0.04, 0.5 * w + 0.04, 0.4 * tall))
    bp.point("headboard right", (-half - 0.04, -0.5 * w - 0.04, 0.4 * tall))
    bp.point("blanket middle", (half - 0.5 * cover, 0, top))
    return bp


def table(rng: np.random.Generator) -> Blueprint:
    """Table with a drawer on the front."""
    bp = Blueprint()
    w, d, h = rng.uniform(1.5, 2.1), rng.uniform(0.95, 1.3), rng.uniform(1.0, 1.25)
    thick = rng.uniform(0.13, 0.19)
    round_top = rng.random() < 0.4
    if round_top:
        bp.add("top", "body", prism(disc(0.5 * d + 0.1, stretch=w / d, sides=40), thick, (0, 0, h)))
    else:
        bp.add("top", "body", box((d + 0.1, w + 0.1, thick), (0, 0, h), bevel=(0.02, 0.06)[rng.integers(2)]))
    apron = rng.uniform(0.26, 0.34)
    x, y = (0.40 * d, 0.33 * w) if round_top else (0.46 * d, 0.46 * w)
    low = h - 0.5 * thick - apron
    bp.add("apron", "body", box((2 * x, 2 * y, apron), (0, 0, low + 0.5 * apron)))
    leg = rng.uniform(0.09, 0.13)
    slot = ("body", "trim", "wood")[rng.integers(3)]
    splay = 0.1 * float(rng.integers(2))
    bp.add("legs", slot, *_legs(rng, x - leg, y - leg, low + 0.05, leg, splay))
    if rng.random() < 0.35:
        bp.add("shelf", "trim", box((2 * x - 0.1, 2 * y - 0.1, 0.1), (0, 0, 0.3 * h)))
    front = rng.uniform(0.38, 0.48) * w
    middle = low + 0.44 * apron
    bp.add("drawer", "light", box((0.12, front, 0.84 * apron), (x, 0, middle), bevel=0.02))
    knobs = int(rng.integers(1, 3))
    spots = [0.0] if knobs == 1 else [-0.25 * front, 0.25 * front]
    bp.add("knobs", "dark", *(sphere(0.3 * apron, (x + 0.07, spot, middle), 2) for spot in spots))
    corners(bp, x - leg + splay, y - leg + splay, 0.0, "{} foot")
    bp.point("top centre", (0, 0, h + 0.5 * thick))
    edge = 0.5 * w + (0.1 * w / d if round_top else 0.05)
    bp.point("left edge", (0, edge, h))
    bp.point("right edge", (0, -edge, h))
    bp.point("front edge", (0.5 * d + (0.1 if round_top else 0.05), 0, h))
    bp.point("drawer", (x + 0.06, 0.4 * front, middle))
    return bp


def _shade_lamp(bp: Blueprint, rng: np.random.Generator) -> None:
    low, tall = rng.uniform(0.9, 1.3), rng.uniform(0.75, 1.0)
    wide, top = rng.uniform(0.75, 0.95), rng.uniform(0.4, 0.68)
    foot = rng.uniform(0.42, 0.52)
    bp.add("base", "trim", cone(foot, 0.18, top=0.8 * foot))
    if rng.random() < 0.5:
        fat = rng.uniform(0.28, 0.42)
        gourd = [(0, 0.1), (0.2, 0.12), (fat, 0.42 * low), (0.8 * fat, 0.62 * low), (0.12, low), (0, low)]
        bp.add("stem", "body", lathe(gourd))
    else:
        bp.add("stem", "metal", cylinder(0.09, low, (0, 0, 0.5 * low)))
        bp.add("stem bead", "body", sphere(rng.uniform(0.2, 0.28), (0, 0, 0.5 * low), 2))
    bp.add("bulb", "lamp", sphere(0.22, (0, 0, low - 0.02), 2))
    bp.add("shade", "body", cone(wide, tall, (0, 0, low), top=top, sides=36))
    bp.add("glow", "lamp", cylinder(0.75 * top, 0.06, (0, 0, low + tall)))
    bp.add("shade rim", "trim", cylinder(wide + 0.02, 0.1, (0, 0, low + 0.05), sides=36))
    bp.add("finial", "trim", sphere(0.13, (0, 0, low + tall + 0.08), 2))
    slope = (wide - top) / tall
    at = 0.48 * tall
    badge(bp, rng, (wide - slope * at, 0, low + at), rng.uniform(0.48, 0.58), float(np.degrees(np.arctan(slope))), 0.2)
    bp.point("finial", (0, 0, low + tall + 0.21))
    for name, x, y in (("front", 1, 0), ("back", -1, 0), ("left", 0, 1), ("right", 0, -1)):
        bp.point(f"shade {name}", (x * (wide + 0.02), y * (wide + 0.02), low + 0.06))
        bp.point(f"base {name}", (x * foot, y * foot, 0.0))


def _desk_lamp(bp: Blueprint, rng: np.random.Generator) -> None:
    foot = rng.uniform(0.5, 0.62)
    bp.add("base", "body", lathe([(0, 0), (foot, 0), (foot, 0.14), (0.5 * foot, 0.3), (0, 0.3)], (-0.1, 0, 0)))
    elbow = np.array([rng.uniform(-0.75, -0.45), 0, rng.uniform(0.85, 1.1)])
    neck = np.array([rng.uniform(-0.15, 0.1), 0, elbow[2] + rng.uniform(0.55, 0.8)])
    bp.add("lower arm", "trim", capsule((-0.1, 0, 0.2), elbow, 0.1))
    bp.add("upper arm", "trim", capsule(elbow, neck, 0.1))
    bp.add("elbow", "body", sphere(0.17, elbow, 2))
    dip = rng.uniform(12, 28)
    wide, deep = rng.uniform(0.55, 0.68), rng.uniform(0.6, 0.8)
    turn = (0, 90 + dip, 0)
    hood = [(0, -0.18), (0.2, -0.18), (0.26, 0.05), (wide, deep), (wide - 0.12, deep), (0.2, 0.15), (0, 0.15)]
    bp.add("hood", "body", lathe(hood, neck, turn, 32))
    axis = np.array([np.cos(np.deg2rad(dip)), 0, -np.sin(np.deg2rad(dip))])
    up = np.array([-axis[2], 0, axis[0]])
    bp.add("reflector", "light", place(cylinder(0.8 * wide, 0.05), neck + 0.8 * deep * axis, turn))
    bp.add("bulb", "lamp", sphere(0.38 * wide, neck + (0.8 * deep + 0.05) * axis, 2))
    bp.point("hood back", neck - 0.18 * axis)
    bp.point("hood top", neck + deep * axis + (wide - 0.02) * up)
    bp.point("hood bottom", neck + deep * axis - (wide - 0.02) * up)
    bp.point("hood left", neck + deep * axis + (0, wide - 0.02, 0))
    bp.point("hood right", neck + deep * axis - (0, wide - 0.02, 0))
    bp.point("bulb", neck + (0.8 * deep + 0.05 + 0.38 * wide) * axis)
    bp.point("elbow", elbow - (0.17, 0, 0))
    bp.point("base front", (foot - 0.1, 0, 0.05))


def lamp(rng: np.random.Generator) -> Blueprint:
    """Table lamp with a shade, or jointed desk lamp that shines to the front."""
    bp = Blueprint()
    (_shade_lamp if rng.random() < 0.6 else _desk_lamp)(bp, rng)
    return bp


def _books(bp: Blueprint, rng: np.random.Generator, floors: np.ndarray, gap: float, half: float, front: float) -> None:
    slots = ("light", "trim", "dark", "wood", "accent")
    books: dict[str, list[Solid]] = {}
    for floor in floors:
        y = -half
        stop = half - rng.uniform(0.0, 0.8) * half
        while y < stop - 0.2:
            wide, tall = rng.uniform(0.1, 0.2), rng.uniform(0.6, 0.9) * gap
            slot = slots[rng.choice(5, p=(0.34, 0.36, 0.12, 0.12, 0.06))]
            at = (front - 0.15 - rng.uniform(0.02, 0.08), y + 0.5 * wide, floor + 0.5 * tall)
            books.setdefault(slot, []).append(box((0.3, wide - 0.02, tall), at))
            y += wide
    for slot, solids in books.items():
        bp.add(f"books {slot}", slot, *solids)


def bookshelf(rng: np.random.Generator) -> Blueprint:
    """Open bookshelf with a closed back, filled with books."""
    bp = Blueprint()
    w, h, d = rng.uniform(1.1, 1.5), rng.uniform(1.7, 2.2), rng.uniform(0.5, 0.65)
    n, t, foot = int(rng.integers(3, 5)), rng.uniform(0.1, 0.14), rng.uniform(0.08, 0.2)
    bp.add("back", "body", box((0.08, w, h - foot), (0.04 - 0.5 * d, 0, 0.5 * (h + foot))))
    bp.add("sides", "body", *(box((d, t, h), (0, s * 0.5 * (w - t), 0.5 * h)) for s in (-1, 1)))
    levels = np.linspace(foot, h - t, n + 1)
    for i, z in enumerate(levels):
        bp.add(f"shelf {i + 1}", "body", box((d - 0.02, w - 0.02, t), (-0.01, 0, z + 0.5 * t)))
    top = h
    if rng.random() < 0.5:
        top = h + 0.08
        bp.add("crown", "trim", box((d + 0.1, w + 0.14, 0.12), (0, 0, h + 0.02), bevel=0.03))
    _books(bp, rng, levels[:-1] + t, levels[1] - levels[0] - t, 0.5 * w - t, 0.5 * d)
    corners(bp, 0.5 * d, 0.5 * w, 0.02, "{} foot")
    bp.point("top centre", (0, 0, top))
    bp.point("back centre", (-0.5 * d, 0, 0.5 * h))
    bp.point("left side", (0, 0.5 * w, 0.5 * h))
    bp.point("right side", (0, -0.5 * w, 0.5 * h))
    return bp


def cabinet(rng: np.random.Generator) -> Blueprint:
    """Cabinet with doors, drawers, or drawers above doors."""
    bp = Blueprint()
    w, h, d = rng.uniform(1.2, 1.7), rng.uniform(1.1, 1.6), rng.uniform(0.65, 0.85)
    leg = rng.uniform(0.14, 0.3)
    bp.add("carcass", "body", box((d, w, h), (0, 0, leg + 0.5 * h), bevel=0.03))
    board = box((d + 0.14, w + 0.14, 0.13), (0.02, 0, leg + h), bevel=0.03)
    bp.add("top board", ("body", "trim")[rng.integers(2)], board)
    legs = _legs(rng, 0.5 * d - 0.13, 0.5 * w - 0.15, leg + 0.02, 0.1)
    bp.add("legs", ("wood", "dark", "trim")[rng.integers(3)], *legs)
    front, wide, low, high = 0.5 * d, w - 0.12, leg + 0.06, leg + h - 0.1
    bp.add("seams", "dark", box((0.06, wide, high - low), (front, 0, 0.5 * (low + high))))
    style = rng.integers(3)
    split = (low, low + 0.62 * (high - low), high)[(1, 2, 0)[style]]
    fronts: list[tuple[float, float, float, float]] = []  # y, z, width, height
    knobs: list[Vec] = []
    if split > low:
        middle, tall = 0.5 * (low + split), split - low
        fronts += [(s * 0.25 * wide, middle, 0.5 * wide, tall) for s in (-1, 1)]
        knobs += [(front + 0.09, s * 0.09, middle) for s in (-1, 1)]
    if split < high:
        rows = 1 if style == 0 else int(rng.integers(3, 5))
        tall = (high - split) / rows
        levels = split + (np.arange(rows) + 0.5) * tall
        fronts += [(0.0, z, wide, tall) for z in levels]
        knobs += [(front + 0.09, s * 0.25 * wide, z) for z in levels for s in (-1, 1)]
    bp.add("fronts", "body", *(box((0.14, a - 0.06, b - 0.06), (front, y, z), bevel=0.02) for y, z, a, b in fronts))
    if split > low:
        for (y, z, a, b), side in zip(fronts[:2], ("right", "left")):
            pane = box((0.06, 0.38 * a, 0.55 * b), (front + 0.06, y + np.sign(y) * 0.06, z))
            bp.add(f"{side} panel", ("light", "glass")[int(style == 0)], pane)
    bp.add("knobs", "dark" if style == 1 else "light", *(sphere(0.09, k, 2) for k in knobs))
    corners(bp, 0.5 * d - 0.13, 0.5 * w - 0.15, 0.0, "{} foot")
    bp.point("top centre", (0, 0, leg + h + 0.065))
    bp.point("right knob", np.add(knobs[0], (0.09, 0, 0)))
    bp.point("left knob", np.add(knobs[1], (0.09, 0, 0)))
    bp.point("back centre", (-front, 0, leg + 0.5 * h))
    return bp


NOUNS: dict[str, Noun] = {
    "chair": Noun(chair, ("chair",), (0.8, 1.1), "furniture"),
    "sofa": Noun(sofa, ("sofa", "couch"), (0.7, 0.95), "furniture"),
    "bed": Noun(bed, ("bed",), (0.8, 1.2), "furniture"),
    "table": Noun(table, ("table", "desk"), (0.65, 0.85), "furniture"),
    "lamp": Noun(lamp, ("lamp", "table lamp"), (0.4, 0.7), "furniture"),
    "bookshelf": Noun(bookshelf, ("bookshelf", "bookcase"), (1.5, 2.1), "furniture"),
    "cabinet": Noun(cabinet, ("cabinet", "cupboard"), (0.9, 1.4), "furniture"),
    "bench": Noun(bench, ("bench", "park bench"), (0.75, 0.95), "furniture"),
}
