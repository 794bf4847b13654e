"""Buildings: house, castle, lighthouse, church, barn, windmill, tent, skyscraper. The entrance looks along +x."""

from __future__ import annotations

import numpy as np

from ..parts import Blueprint, bar, box, carve, cone, cylinder, hull, lathe, mirror_y, place, prism, sphere, torus
from ..solid import Solid
from . import Noun
from ._shapes import ALONG_X, FRONT_VIEW, arch, copies, door, gable, roof, window


def house(rng: np.random.Generator) -> Blueprint:
    """A family house with a pitched roof, a chimney and a front door."""
    b, gabled = Blueprint(), bool(rng.random() < 0.5)
    half_x, half_y = rng.uniform(0.75, 0.95), rng.uniform(0.9, 1.15)
    eaves, rise, over = rng.uniform(1.2, 1.55), rng.uniform(0.42, 0.6), 0.12
    across, along = (half_y, half_x) if gabled else (half_x, half_y)
    turn = FRONT_VIEW if gabled else (90, 0, 0)
    ridge = eaves + rise
    b.add("walls", "body", prism(gable(across, 0, eaves, ridge), 2 * along, rotate=turn))
    slab = roof(across, eaves, ridge, 0.16, over)
    b.add("roof", "body", prism(slab, 2 * (along + over), rotate=turn))
    spots = [(s, 0, 0) if gabled else (0, s, 0) for s in (-along - over, along + over)]
    verge = [prism([(1.02 * y, h + 0.02) for y, h in slab], 0.1, spot, turn) for spot in spots]
    b.add("roof rims", "trim", *verge)
    b.add("step", "light", box((0.24, 0.62, 0.1), (half_x + 0.1, 0, 0.05)))
    door(b, half_x, 0.08, 0.19, rng.uniform(0.6, 0.68), bool(rng.random() < 0.4))
    size, y, z = rng.uniform(0.27, 0.34), 0.62 * half_y, rng.uniform(0.56, 0.64)
    panes = [window(size, half_x, s * y, z) for s in (-1, 1)]
    if gabled:
        panes.append(window(0.8 * size, half_x, 0, eaves + 0.2 * rise))
    b.add("window frames", "light", *[frame for frame, _ in panes])
    b.add("window panes", "dark" if rng.random() < 0.5 else "glass", *[pane for _, pane in panes])
    columns = [(s * 0.4 * half_x, z) for s in ((-1, 1) if rng.random() < 0.5 else (0,))]
    b.add("side windows", "glass", *[box((0.26, 2 * half_y + 0.06, 0.28), (x, 0, h)) for x, h in columns])
    side, x = float(rng.choice((-1, 1))), -0.35 * half_x
    y, peak = side * 0.5 * half_y, ridge + rng.uniform(0.15, 0.35)
    b.add("chimney", "body", box((0.3, 0.3, peak - eaves), (x, y, 0.5 * (peak + eaves))))
    b.add("chimney top", "trim", box((0.4, 0.4, 0.12), (x, y, peak)))
    b.point("chimney top", (x, y, peak + 0.06))
    ends = [(along + over, 0), (-along - over, 0)] if gabled else [(0, along + over), (0, -along - over)]
    for name, (px, py) in zip(("front", "back") if gabled else ("left", "right"), ends):
        b.point(f"ridge {name} end", (px, py, ridge + 0.1))
    for name, sign in (("left", 1), ("right", -1)):
        b.point(f"front {name} corner", (half_x, sign * half_y, 0.02))
        b.point(f"back {name} corner", (-half_x, sign * half_y, 0.02))
    return b


def _battlement(half_x: float, half_y: float, z: float, size: float, count: int, x: float = 0.0) -> Solid:
    """Merlons around the rectangle of half sizes (half_x, half_y) centred on (x, 0) at height z."""
    spots = np.linspace(-1, 1, count)
    pairs = {(s, t) for s in spots for t in (-1.0, 1.0)} | {(t, s) for s in spots for t in (-1.0, 1.0)}
    places = [(x + s * half_x, t * half_y, z + 0.5 * size) for s, t in sorted(pairs)]
    return copies(box((size, size, 1.3 * size)), places)


def castle(rng: np.random.Generator) -> Blueprint:
    """Four corner towers, a wall, a keep and a gate in front."""
    b, pointed = Blueprint(), bool(rng.random() < 0.5)
    half, wall, r = rng.uniform(1.0, 1.2), rng.uniform(0.85, 1.1), rng.uniform(0.33, 0.42)
    tower, keep = wall + rng.uniform(0.3, 0.55), rng.uniform(0.42, 0.52) * half
    top = tower + rng.uniform(0.35, 0.6)
    court = box((2 * half - 0.5, 2 * half - 0.5, 1.0), (0, 0, wall + 0.2))
    b.add("walls", "body", carve(box((2 * half, 2 * half, wall), (0, 0, 0.5 * wall)), court))
    b.add("wall merlons", "body", _battlement(half - 0.11, half - 0.11, wall, 0.2, 6))
    b.add("keep", "body", box((2 * keep, 2 * keep, top), (-0.15, 0, 0.5 * top)))
    b.add("keep merlons", "body", _battlement(keep - 0.06, keep - 0.06, top, 0.2, 3, -0.15))
    spots = [(s * half, t * half) for s in (1, -1) for t in (1, -1)]
    b.add("towers", "body", copies(cylinder(r, tower, sides=20), [(x, y, 0.5 * tower) for x, y in spots]))
    b.add("tower rims", "trim", copies(cylinder(1.16 * r, 0.14, sides=20), [(x, y, tower) for x, y in spots]))
    rise = rng.uniform(0.6, 0.85)
    if pointed:
        b.add("tower roofs", "trim", copies(cone(1.25 * r, rise, sides=20), [(x, y, tower + 0.06) for x, y in spots]))
    else:
        rise = 0.28
        ring = 0.9 * r * np.array([(np.cos(a), np.sin(a)) for a in np.arange(6) * np.pi / 3])
        teeth = [(x + dx, y + dy, tower + 0.14) for x, y in spots for dx, dy in ring]
        b.add("tower merlons", "body", copies(box((0.17, 0.17, 0.24)), teeth))
    gate, high = rng.uniform(0.27, 0.33) * half, rng.uniform(0.66, 0.76) * wall
    frame = [(1.32 * y, 1.14 * z) for y, z in arch(gate, high)]
    b.add("gate frame", "light", prism(frame, 0.16, (half, 0, 0), FRONT_VIEW))
    b.add("gate", "dark", prism(arch(gate, high), 0.22, (half + 0.01, 0, 0), FRONT_VIEW))
    bars = [box((0.26, 0.07, 0.8 * high), (half + 0.01, s * gate, 0.4 * high)) for s in (-0.5, 0, 0.5)]
    b.add("portcullis", "wood", *bars, box((0.26, 1.8 * gate, 0.07), (half + 0.01, 0, 0.45 * high)))
    b.add("drawbridge", "wood", box((0.45, 1.8 * gate, 0.08), (half + 0.2, 0, 0.04)))
    slits = [box((0.1, 0.13, 0.32), (x + r, y, 0.68 * tower)) for x, y in spots[:2]]
    b.add("arrow slits", "dark", *slits, box((0.1, 0.2, 0.34), (keep - 0.15, 0, top - 0.3)))
    pole = top + rng.uniform(0.6, 0.8)
    b.add("flag pole", "wood", bar((-0.15, 0, top - 0.1), (-0.15, 0, pole), 0.055))
    flag = [(0, 0), (0.55, -0.17), (0, -0.34)]
    b.add("flag", "trim", prism(flag, 0.08, (-0.15, 0, pole), (90, 0, float(rng.uniform(110, 160)))))
    for (x, y), name in zip(spots, ("front left", "front right", "back left", "back right")):
        apex = (x, y, tower + 0.06 + rise) if pointed else (x, y, tower + 0.07)
        b.point(f"{name} tower top", apex)
    b.point("gate", (half + 0.14, 0, 0.45 * high))
    b.point("drawbridge end", (half + 0.42, 0, 0.08))
    b.point("flag pole top", (-0.15, 0, pole))
    return b


def lighthouse(rng: np.random.Generator) -> Blueprint:
    """A tapering round tower with a gallery, a lantern room, and a door in front."""
    b = Blueprint()
    r0, r1, tall = rng.uniform(0.56, 0.68), rng.uniform(0.34, 0.42), rng.uniform(2.1, 2.7)
    base = rng.uniform(0.14, 0.24)

    def radius(t: float) -> float:
        return r0 + (r1 - r0) * t

    b.add("tower", "body", cone(r0, tall, (0, 0, base), top=r1, sides=32))
    b.add("base", "trim", cylinder(1.28 * r0, base, (0, 0, 0.5 * base), sides=int(rng.choice((8, 32)))))
    for i, t in enumerate([(0.72,), (0.56, 0.84), (0.62,)][rng.integers(3)]):
        h = 0.07
        band = cone(1.03 * radius(t), h * tall, (0, 0, base + t * tall), top=1.03 * radius(t + h), sides=32)
        b.add(f"band {i + 1}", "light", band)
    z = base + tall
    b.add("gallery", "body", cone(r1, 0.12, (0, 0, z - 0.08), top=1.5 * r1), cylinder(1.5 * r1, 0.1, (0, 0, z + 0.08)))
    b.add("railing", "dark", torus(1.42 * r1, 0.045, (0, 0, z + 0.3)))
    posts = [(1.42 * r1 * np.cos(a), 1.42 * r1 * np.sin(a)) for a in np.arange(6) * np.pi / 3 + 0.5]
    b.add("railing posts", "dark", copies(cylinder(0.04, 0.3, sides=8), [(x, y, z + 0.15) for x, y in posts]))
    glass, dome = rng.uniform(0.34, 0.44), rng.uniform(0.36, 0.5)
    b.add("lantern room", "lamp", cylinder(0.72 * r1, glass, (0, 0, z + 0.1 + 0.5 * glass), sides=10))
    ribs = [(0.74 * r1 * np.cos(a), 0.74 * r1 * np.sin(a)) for a in np.arange(5) * 0.4 * np.pi]
    z += 0.5 * glass + 0.05
    b.add("lantern ribs", "dark", copies(cylinder(0.045, glass + 0.1, sides=8), [(x, y, z) for x, y in ribs]))
    z += 0.5 * glass + 0.05
    if rng.random() < 0.5:
        b.add("roof", "body", cone(1.15 * r1, dome, (0, 0, z)))
    else:
        curve = [(1.1 * r1 * np.cos(a), dome * np.sin(a)) for a in np.linspace(0, 1.5, 7)]
        b.add("roof", "body", lathe([(0, 0), *curve, (0, dome)], (0, 0, z)))
    b.add("ball", "metal", sphere(0.09, (0, 0, z + dome + 0.02), 2))
    b.point("top", (0, 0, z + dome + 0.1))
    high = rng.uniform(0.62, 0.74)
    x = radius(high / tall) + 0.02
    porch = prism(arch(0.24, high + 0.06), 0.5, (x - 0.2, 0, base), FRONT_VIEW)
    b.add("porch", "light", porch)
    b.add("door", "dark", prism(arch(0.165, high - 0.04), 0.5, (x - 0.15, 0, base), FRONT_VIEW))
    b.add("step", "trim", box((0.5, 0.6, 0.12), (1.1 * r0 + 0.05, 0, base - 0.02)))
    spot = 0.46
    b.add("window", "dark", box((0.2, 0.2, 0.28), (radius(spot) - 0.03, 0, base + spot * tall)))
    b.point("door", (x + 0.1, 0, base + 0.5 * high))
    b.point("window", (radius(spot) + 0.07, 0, base + spot * tall))
    for name, c, s in (("front", 1, 0), ("left", 0, 1), ("back", -1, 0), ("right", 0, -1)):
        b.point(f"gallery {name}", (1.5 * r1 * c, 1.5 * r1 * s, base + tall + 0.08))
    b.point("base back", (-1.28 * r0 * np.cos(np.pi / 8), 0, 0.5 * base))
    return b


def church(rng: np.random.Generator) -> Blueprint:
    """A nave with a pitched roof behind a steeple with a cross; the portal is at the foot of the steeple."""
    b = Blueprint()
    long, half, eaves = rng.uniform(1.7, 2.2), rng.uniform(0.58, 0.72), rng.uniform(0.85, 1.1)
    ridge, w = eaves + rng.uniform(0.5, 0.65), rng.uniform(0.38, 0.46)
    tower, spire = ridge + rng.uniform(0.35, 0.65), rng.uniform(0.7, 1.1)
    b.add("nave", "body", prism(gable(half, 0, eaves, ridge), long, (-0.5 * long, 0, 0), FRONT_VIEW))
    slab = prism(roof(half, eaves, ridge, 0.13, 0.1), long + 0.1, (-0.5 * long - 0.05, 0, 0), FRONT_VIEW)
    b.add("nave roof", "body", slab)
    b.add("ridge", "trim", box((long + 0.14, 0.14, 0.12), (-0.5 * long - 0.05, 0, ridge + 0.12)))
    x = 0.2
    front = x + w
    b.add("tower", "body", box((2 * w, 2 * w, tower), (x, 0, 0.5 * tower)))
    b.add("cornice", "trim", box((2.25 * w, 2.25 * w, 0.1), (x, 0, tower)))
    sides = int(rng.choice((4, 8)))
    cap = cone(1.45 * w if sides == 4 else 1.1 * w, spire, (0, 0, 0), sides=sides)
    b.add("spire", "body", place(cap, (x, 0, tower + 0.04), (0, 0, 180 / sides)))
    peak = tower + spire
    b.add("cross", "accent", box((0.1, 0.1, 0.46), (x, 0, peak + 0.18)), box((0.1, 0.34, 0.1), (x, 0, peak + 0.24)))
    door(b, front, 0, 0.55 * w, rng.uniform(0.6, 0.72), True)
    rose = rng.uniform(0.4, 0.5) * w
    z = 0.5 * (tower + 0.7)
    b.add("rose frame", "light", cylinder(1.35 * rose, 0.1, (front, 0, z), ALONG_X, 24))
    b.add("rose window", "dark", cylinder(rose, 0.16, (front, 0, z), ALONG_X, 20))
    b.add("rose tracery", "light", *[box((0.2, 2 * rose, 0.06), (front, 0, z), (a, 0, 0)) for a in (0, 90)])
    b.add("bell openings", "dark", box((0.5 * w, 2 * w + 0.06, 0.24), (x, 0, tower - 0.26)))
    count = int(rng.integers(2, 5))
    spots = -w - (np.arange(count) + 0.4) * (long - w) / count + 0.15
    panes = [prism(arch(0.1, 0.5), 2 * half + 0.08, (s, 0, 0.35 * eaves), (90, 0, 0)) for s in spots]
    b.add("nave windows", "glass", *panes)
    b.point("cross top", (x, 0, peak + 0.41))
    b.point("rose window", (front + 0.1, 0, z))
    b.point("ridge back end", (-long - 0.12, 0, ridge + 0.12))
    for name, sign in (("left", 1), ("right", -1)):
        b.point(f"back {name} corner", (-long, sign * half, 0.02))
        b.point(f"tower front {name} corner", (front, sign * w, 0.02))
    return b


def barn(rng: np.random.Generator) -> Blueprint:
    """A farm barn with a gambrel roof and a crossed double door, sometimes with a silo."""
    b = Blueprint()
    half, long = rng.uniform(0.85, 1.05), rng.uniform(1.5, 2.2)
    eaves, knee = rng.uniform(0.85, 1.05), rng.uniform(0.42, 0.55)
    ridge, inner = eaves + knee + rng.uniform(0.22, 0.35), rng.uniform(0.56, 0.66) * half
    line = [(half, eaves), (inner, eaves + knee), (0, ridge)]
    left = [(-y, z) for y, z in line[-2::-1]]
    wall = prism([(-half, 0), (half, 0), *line, *left], long, rotate=FRONT_VIEW)
    b.add("walls", "body", wall)
    shell = [(half + 0.12, eaves - 0.12), (inner + 0.03, eaves + knee), (0, ridge)]
    outer = [(half + 0.22, eaves - 0.08), (inner + 0.1, eaves + knee + 0.1), (0, ridge + 0.14)]
    slab = [*shell, *[(-y, z) for y, z in shell[-2::-1]], *[(-y, z) for y, z in outer[:2]], *outer[::-1]]
    b.add("roof", "body", prism(slab, long + 0.24, rotate=FRONT_VIEW))
    rim = [(1.02 * y, 1.015 * z) for y, z in slab]
    b.add("roof rims", "trim", *[prism(rim, 0.1, (s * (0.5 * long + 0.09), 0, 0), FRONT_VIEW) for s in (-1, 1)])
    x, w, high = 0.5 * long, rng.uniform(0.42, 0.5) * half, rng.uniform(0.72, 0.82)
    b.add("door frame", "light", box((0.1, 2 * w + 0.16, high + 0.1), (x, 0, 0.5 * high + 0.05)))
    b.add("door", "trim", box((0.16, 2 * w - 0.02, high - 0.04), (x, 0, 0.5 * high)))
    tilt = float(np.rad2deg(np.arctan2(high, w)))
    length = float(np.hypot(high, w))
    plank, pairs = (0.22, length - 0.08, 0.075), [(s, t) for s in (-1, 1) for t in (-1, 1)]
    planks = [box(plank, (x, s * 0.5 * w, 0.5 * high), (t * tilt, 0, 0)) for s, t in pairs]
    b.add("door planks", "light", *planks, box((0.22, 0.07, high), (x, 0, 0.5 * high)))
    loft = eaves + 0.42 * knee
    b.add("loft frame", "light", box((0.1, 0.5, 0.46), (x, 0, loft)))
    b.add("loft hatch", "dark", box((0.16, 0.34, 0.31), (x, 0, loft)))
    spots = [s * long for s in ((-0.25, 0.25) if rng.random() < 0.6 else (0,))]
    b.add("side windows", "glass", *[box((0.26, 2 * half + 0.06, 0.26), (s, 0, 0.55 * eaves)) for s in spots])
    if rng.random() < 0.45:
        r, tall, side = rng.uniform(0.32, 0.4), ridge + rng.uniform(0.1, 0.4), float(rng.choice((-1, 1)))
        at = (-0.15 * long, side * (half + r + 0.08))
        b.add("silo", "body", cylinder(r, tall, (*at, 0.5 * tall)))
        dome = [(1.06 * r * np.cos(a), 0.9 * r * np.sin(a)) for a in np.linspace(0, 1.5, 6)]
        b.add("silo dome", "body", lathe([(0, 0), *dome, (0, 0.9 * r)], (*at, tall)))
        b.point("silo top", (*at, tall + 0.9 * r))
    else:
        b.add("cupola", "body", box((0.34, 0.34, 0.4), (0, 0, ridge + 0.2)))
        b.add("cupola roof", "trim", cone(0.34, 0.26, (0, 0, ridge + 0.38), (0, 0, 45), sides=4))
        b.point("cupola top", (0, 0, ridge + 0.64))
    b.point("door", (x + 0.11, 0, 0.5 * high))
    b.point("loft hatch", (x + 0.08, 0, loft))
    b.point("ridge front end", (x + 0.12, 0, ridge + 0.12))
    b.point("ridge back end", (-x - 0.12, 0, ridge + 0.12))
    for name, sign in (("left", 1), ("right", -1)):
        b.point(f"front {name} corner", (x, sign * half, 0.02))
        b.point(f"back {name} corner", (-x, sign * half, 0.02))
    return b


def windmill(rng: np.random.Generator) -> Blueprint:
    """A tapering mill with a cap and four sails in front."""
    b = Blueprint()
    sides, r0, r1 = int(rng.choice((6, 8, 24))), rng.uniform(0.72, 0.85), rng.uniform(0.46, 0.54)
    tall, cap = rng.uniform(1.6, 2.0), rng.uniform(0.4, 0.55)
    flat = float(np.cos(np.pi / sides))
    turned = (0, 0, 180 / sides)
    b.add("tower", "body", place(cone(r0, tall, top=r1, sides=sides), (0, 0, 0), turned))
    b.add("plinth", "trim", place(cylinder(r0 + 0.07, 0.2, sides=sides), (0, 0, 0.1), turned))
    b.add("cap rim", "trim", cylinder(1.12 * r1, 0.12, (0, 0, tall)))
    if rng.random() < 0.5:
        b.add("cap", "body", cone(1.1 * r1, cap + 0.12, (0, 0, tall + 0.05)))
    else:
        curve = [(1.08 * r1 * np.cos(a), cap * np.sin(a)) for a in np.linspace(0, 1.5, 7)]
        b.add("cap", "body", lathe([(0, 0), *curve, (0, cap)], (0, 0, tall + 0.05)))
        b.add("cap ball", "trim", sphere(0.09, (0, 0, tall + cap + 0.06), 2))
    z, x = tall + 0.02, 1.1 * r1 + 0.2
    b.add("axle", "dark", bar((0, 0, z), (x + 0.1, 0, z), 0.1))
    reach, wide, turn = rng.uniform(1.15, 1.4), rng.uniform(0.26, 0.34), rng.uniform(15, 75)
    lattice = bool(rng.random() < 0.5)
    cells = 3 if lattice else 1
    size = 0.76 * reach / cells
    cell = box((0.07, wide, size - (0.06 if lattice else 0)))
    cloth = copies(cell, [(0, 0.5 * wide, 0.24 * reach + (i + 0.5) * size) for i in range(cells)])
    spar = box((0.12, 0.1, reach - 0.07), (0, 0, 0.5 * reach + 0.035))
    turns = turn + 90 * np.arange(4)
    for k, a in enumerate(np.deg2rad(turns)):
        b.point(f"sail {k + 1} tip", (x + 0.05, -reach * np.sin(a), z + reach * np.cos(a)))
    b.add("sails", "body", *[place(cloth, (x, 0, z), (a, 0, 0)) for a in turns])
    b.add("spars", "light", *[place(spar, (x, 0, z), (a, 0, 0)) for a in turns])
    b.add("hub", "accent", cylinder(0.15, 0.2, (x, 0, z), ALONG_X, 18))
    high, face = rng.uniform(0.52, 0.62), r0 * flat
    lean = (r0 - r1) * flat / tall
    door(b, face - 0.5 * lean * high, 0.05, 0.19, high, True, deep=0.16 + lean * high)
    at = 0.62 * tall
    b.add("window", "dark", box((0.16, 0.2, 0.24), (face - lean * at, 0, at)))
    b.point("hub", (x + 0.1, 0, z))
    b.point("plinth back", (-(r0 + 0.07) * flat, 0, 0.15))
    return b


def tent(rng: np.random.Generator) -> Blueprint:
    """A camping tent (ridge, pyramid or bell shaped) with an open flap in front."""
    b, style = Blueprint(), int(rng.integers(3))
    half, tall = rng.uniform(0.85, 1.1), rng.uniform(1.1, 1.4)
    if style == 0:
        long = rng.uniform(1.5, 2.2)
        x, lean, wide = 0.5 * long, 0.0, 0.36 * half
        b.add("canvas", "body", prism([(-half, 0), (half, 0), (0, tall)], long, rotate=FRONT_VIEW))
        slab = roof(half, 0.06, tall, 0.09, 0.0)
        b.add("hem", "trim", *[prism(slab, 0.13, (s * (x - 0.04), 0, 0), FRONT_VIEW) for s in (-1, 1)])
        b.add("ridge pole", "wood", bar((-x - 0.16, 0, tall), (x + 0.16, 0, tall), 0.06))
        b.point("ridge front end", (x + 0.16, 0, tall))
        b.point("ridge back end", (-x - 0.16, 0, tall))
        corners = [(s * x, t * half) for s in (1, -1) for t in (1, -1)]
    else:
        sides = 4 if style == 1 else 12
        r = half * (1.4 if style == 1 else 1.12)
        wall = 0.0 if style == 1 else rng.uniform(0.3, 0.45)
        x, wide = r * np.cos(np.pi / sides), 0.3 * half
        lean = x / tall if style == 1 else 0.0
        tall += wall
        cover = [(0, 0), (r, 0), (0, tall)]
        if style == 2:
            cover[2:2] = [(1.04 * r, wall), (0.5 * r, wall + 0.42)]
        b.add("canvas", "body", place(lathe(cover, sides=sides), (0, 0, 0), (0, 0, 180 / sides)))
        z = 0.0 if style == 1 else wall
        b.add("hem", "trim", place(cylinder(r * 1.04, 0.1, sides=sides), (0, 0, z + 0.05), (0, 0, 180 / sides)))
        b.add("pole", "wood", bar((0, 0, tall - 0.15), (0, 0, tall + 0.2), 0.06))
        flag = prism([(0, 0), (0.4, -0.12), (0, -0.24)], 0.07, (0, 0, tall + 0.2), (90, 0, float(rng.uniform(70, 160))))
        b.add("flag", "trim", flag)
        b.point("pole top", (0, 0, tall + 0.2))
        b.point("back hem", (-1.04 * x, 0, z + 0.05))
        angles = np.deg2rad((45, -45, 135, -135))
        corners = [(r * np.cos(a), r * np.sin(a)) for a in angles]
    high = (0.68, 0.6, 0.58)[style] * tall

    def opening(grow: float, out: float) -> Solid:
        w, h = wide + grow, high + 1.4 * grow
        ring = [(x + out, -w, 0), (x + out, w, 0), (x + out - lean * h, 0, h)]
        if style == 2:
            ring = [(x + out, -w, 0), (x + out, w, 0), (x + out, w, wall), (x + out, -w, wall), (0.62 * x + out, 0, h)]
        return hull(np.array([(px + d, y, z) for px, y, z in ring for d in (-0.3, 0)]))

    b.add("flap edge", "light", opening(0.07, 0.05))
    b.add("opening", "dark", opening(0.0, 0.09))
    b.add("pegs", "wood", *[cylinder(0.07, 0.16, (1.06 * px, 1.06 * py, 0.08), sides=12) for px, py in corners])
    for (px, py), name in zip(corners, ("front left", "front right", "back left", "back right")):
        b.point(f"{name} peg", (1.06 * px, 1.06 * py, 0.16))
    b.point("opening sill", (x + 0.09, 0, 0.02))
    return b


def skyscraper(rng: np.random.Generator) -> Blueprint:
    """A tower block with stepped storeys; a tall glass stripe and an entrance with a canopy are in front only."""
    b, steps = Blueprint(), int(rng.integers(1, 4))
    half_x, half_y = rng.uniform(0.46, 0.56), rng.uniform(0.5, 0.62)
    lobby, floors, storey = 0.5, int(rng.integers(7, 10)), rng.uniform(0.27, 0.32)
    columns = int(rng.integers(2, 4))
    b.add("lobby", "body", box((2.2 * half_x, 2.2 * half_y, lobby), (0, 0, 0.5 * lobby)))
    cuts = np.round(np.linspace(0, floors, steps + 1)).astype(int)
    z, front = lobby, half_x
    cores, bands, ribs = [], [], []
    for i in range(steps):
        hx, hy, count = half_x * (1 - 0.2 * i), half_y * (1 - 0.2 * i), int(cuts[i + 1] - cuts[i])
        tall = count * storey + 0.08
        cores.append(box((2 * hx, 2 * hy, tall), (0, 0, z + 0.5 * tall)))
        levels = [(0, 0, z + (k + 0.55) * storey) for k in range(count)]
        bands.append(copies(box((2 * hx + 0.03, 2 * hy + 0.03, 0.42 * storey)), levels))
        for s in np.linspace(-1, 1, columns + 1)[1:-1]:
            ribs.append(box((2 * hx + 0.07, 0.12, tall), (0, s * hy, z + 0.5 * tall)))
            ribs.append(box((0.12, 2 * hy + 0.07, tall), (s * hx, 0, z + 0.5 * tall)))
        posts = [(s * (hx - 0.04), t * (hy - 0.04)) for s in (-1, 1) for t in (-1, 1)]
        ribs.append(copies(box((0.15, 0.15, tall)), [(x, y, z + 0.5 * tall) for x, y in posts]))
        z += tall
        if i < steps - 1:
            b.point(f"ledge {i + 1} back", (-hx - 0.02, 0, z - 0.03))
    b.add("core", "body", *cores)
    b.add("windows", "glass", *bands)
    b.add("ribs", "body", *ribs)
    first = lobby + min(cuts[1], 0.5 * floors) * storey
    w, mid = rng.uniform(0.22, 0.28) * half_y, 0.5 * (first + lobby)
    b.add("stripe", "dark", box((0.1, 2 * w, first - lobby), (front + 0.03, 0, mid)))
    b.add("stripe edges", "light", *mirror_y(box((0.14, 0.06, first - lobby + 0.04), (front + 0.03, w, mid))))
    b.add("entrance frame", "light", box((0.1, 0.78 * half_y, 0.42), (1.1 * half_x, 0, 0.21)))
    b.add("entrance", "dark", box((0.16, 0.62 * half_y, 0.34), (1.1 * half_x, 0, 0.17)))
    b.add("canopy", "trim", box((0.34, 1.1 * half_y, 0.1), (1.1 * half_x + 0.12, 0, 0.47)))
    top = half_x * (1 - 0.2 * (steps - 1))
    b.add("roof slab", "trim", box((2 * top + 0.12, 2 * half_y / half_x * top + 0.12, 0.1), (0, 0, z)))
    style = int(rng.integers(3))
    if style == 0:
        b.add("spire", "trim", cone(0.7 * top, 0.55, (0, 0, z), (0, 0, 45), sides=4))
    else:
        b.add("roof house", "trim", box((top, top, 0.2), (-0.2 * top, 0, z + 0.1)))
    mast = z + rng.uniform(0.65, 0.85)
    if style < 2:
        b.add("mast", "metal", bar((0, 0, z), (0, 0, mast), 0.065, 0.045))
        b.point("mast top", (0, 0, mast))
    b.point("entrance", (1.1 * half_x + 0.08, 0, 0.18))
    b.point("canopy edge", (1.1 * half_x + 0.29, 0, 0.47))
    b.point("roof back", (-top - 0.06, 0, z))
    for name, sign in (("left", 1), ("right", -1)):
        b.point(f"front {name} corner", (1.1 * half_x, sign * 1.1 * half_y, 0.02))
        b.point(f"back {name} corner", (-1.1 * half_x, sign * 1.1 * half_y, 0.02))
    return b


NOUNS: dict[str, Noun] = {
    "house": Noun(house, ("house", "cottage"), (5.0, 9.0), "building"),
    "castle": Noun(castle, ("castle", "fortress"), (12.0, 24.0), "building"),
    "lighthouse": Noun(lighthouse, ("lighthouse",), (14.0, 34.0), "building"),
    "church": Noun(church, ("church", "chapel"), (12.0, 24.0), "building"),
    "barn": Noun(barn, ("barn",), (6.0, 10.0), "building"),
    "windmill": Noun(windmill, ("windmill",), (9.0, 17.0), "building"),
    "tent": Noun(tent, ("tent",), (1.2, 2.4), "building"),
    "skyscraper": Noun(skyscraper, ("skyscraper", "tower block"), (60.0, 200.0), "building"),
}
