"""Plants: tree, flower, cactus, mushroom, palm."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from ..parts import (
    Blueprint,
    Vec,
    arc,
    bar,
    box,
    capsule,
    cone,
    cylinder,
    ellipsoid,
    hull,
    lathe,
    mirror_y,
    place,
    prism,
    sphere,
)
from . import Noun
from .figures import blob, eyes, pair, surface
from .things import badge


def _bird_box(b: Blueprint, at: Vec, size: float) -> None:
    """A white nesting box with a dark roof and hole, its front `size` wide centred on `at`."""
    s, p = 0.5 * size, np.asarray(at, float)
    b.add("bird box", "light", box((0.5, 2 * s, 2 * s), p - [0.25, 0, 0]))
    gable = [(-1.35 * s, 0.8 * s), (1.35 * s, 0.8 * s), (0, 1.9 * s)]
    b.add("bird box roof", "dark", prism(gable, 0.58, p - [0.24, 0, 0], (90, 0, 90)))
    b.add("bird box hole", "dark", cylinder(0.5 * s, 0.1, p + [0, 0, 0.1 * s], (0, 90, 0), 20))
    b.point("bird box hole", p + [0.05, 0, 0.1 * s])
    b.point("bird box roof", p + [0.05, 0, 1.9 * s])


def tree(rng: Generator) -> Blueprint:
    """A tree: ball crown, tall crown or stacked fir cones on a trunk, a nesting box in front."""
    u, b = rng.uniform, Blueprint()
    kind, leg, tr = str(rng.choice(["round", "tall", "fir"])), u(0.3, 0.5), u(0.13, 0.17)
    b.add("trunk", "wood", lathe([(0, 0), (1.6 * tr, 0), (1.05 * tr, 0.14), (tr, leg + 0.3), (0, leg + 0.3)]))
    b.point("trunk front", (1.05 * tr, 0, 0.14))
    pair(b, "root", (0, 1.6 * tr, 0))
    if kind == "fir":
        n, r, z = int(rng.integers(3, 5)), u(0.55, 0.68), leg
        step = u(0.34, 0.42)
        for k in range(n):
            rk = r * (1 - 0.62 * k / (n - 0.4))
            profile = [(0, 0.06), (0.97 * rk, 0), (rk, 0.07), (0.3 * rk, 0.9 * step + 0.1), (0, 1.35 * step)]
            b.add(f"branches {k}", "body" if k % 2 == 0 else "trim", lathe(profile, (0, 0, z + step * k)))
        b.point("tree top", (0, 0, z + step * (n - 1) + 1.35 * step))
        b.point("left branch", (0, r, z + 0.07))
        b.point("right branch", (0, -r, z + 0.07))
        _bird_box(b, (0.86 * r, 0, z + 0.3), 0.34)
        return b
    radii = np.array([0.5, u(0.5, 0.6), u(0.42, 0.5)]) if kind == "round" else np.array([0.46, 0.46, u(0.7, 0.85)])
    c = np.array([0, 0, leg + 0.85 * radii[2]])
    b.add("crown", "body", ellipsoid(radii, c))
    for k, a in enumerate(np.deg2rad([70, 140, 220, 290]) + u(-0.15, 0.15, 4)):
        way = np.array([np.cos(a), np.sin(a), u(-0.25, 0.3)])
        r = u(0.27, 0.36)
        b.add(f"leaf ball {k}", ("body", "trim")[k % 2], place(sphere(r, detail=2), c + way * radii * 0.75))
    r = u(0.26, 0.36)
    b.add("top ball", "body", sphere(r, c + [-0.05, 0, 0.8 * radii[2]], detail=2))
    b.point("tree top", c + [-0.05, 0, 0.8 * radii[2] + r])
    b.point("crown front", surface(c, radii, 0, 0.4 * radii[2]))
    for k, (y, z) in enumerate(((0.3, 0.25), (-0.28, 0.35), (0.24, -0.45))):
        b.add(f"fruit {k}", "trim", blob((0.08, 0.08, 0.08), surface(c, radii, y, z * radii[2])))
    dz = -0.25 * radii[2]
    _bird_box(b, surface(c, radii, 0, dz) + [0.08, 0, 0], u(0.32, 0.38))
    return b


def flower(rng: Generator) -> Blueprint:
    """A potted flower: ring of petals around a smiling disc, stem with leaves."""
    u, b = rng.uniform, Blueprint()
    n, r, centre, stem = int(rng.integers(6, 10)), u(0.46, 0.56), u(0.21, 0.25), u(0.28, 0.45)
    pot, ph, tilt = u(0.27, 0.33), u(0.32, 0.42), u(5, 20)
    b.add("pot", "body", lathe([(0, 0), (0.75 * pot, 0), (pot, ph), (0, ph)]))
    b.add("pot rim", "trim", cylinder(1.12 * pot, 0.1, (0, 0, ph)))
    b.add("soil", "wood", cylinder(0.9 * pot, 0.04, (0, 0, ph + 0.05)))
    c = np.array([0.06, 0, ph + stem + 0.85 * r])
    b.add("stem", "leaf", bar((0, 0, ph), c - [0.06, 0, 0], 0.06))
    for name, s, z in (("left leaf", 1, u(0.3, 0.5)), ("right leaf", -1, u(0.2, 0.4))):
        at = np.array([0, s * 0.2, ph + 0.06 + z * stem])
        b.add(name, "leaf", blob((0.1, 0.19, 0.06), at, (s * 32, 0, 0)))
        b.point(name, at + 0.19 * np.array([0, s * np.cos(np.deg2rad(32)), np.sin(np.deg2rad(32))]))
    width = min(0.2, 0.95 * r * np.sin(np.pi / n))

    def put(name: str, slot: str, *solids: object) -> None:
        """Adds solids given in the flower head's own frame."""
        b.add(name, slot, *(place(s, c, (0, -tilt, 0)) for s in solids))

    def spot(name: str, xyz: Vec) -> None:
        a = np.deg2rad(tilt)
        x, y, z = xyz
        b.point(name, c + [x * np.cos(a) - z * np.sin(a), y, x * np.sin(a) + z * np.cos(a)])

    long = 0.5 * (r - 0.5 * centre)
    petal = ellipsoid((0.12, width, long), detail=2)
    for k, a in enumerate(np.arange(n) * 360 / n):
        t = np.deg2rad(a)
        offset = (r - long) * np.array([0, -np.sin(t), np.cos(t)])
        put(f"petal {k}", "body" if k % 2 or n % 2 else "trim", place(petal, offset, (a, 0, 0)))
    spot("top petal", (0, 0, r))
    put("head back", "body", ellipsoid((0.2, 1.1 * centre, 1.1 * centre), (-0.03, 0, 0), detail=2))
    colour = str(rng.choice(["light", "accent"]))
    put("head disc", colour, cylinder(centre, 0.2, (0.1, 0, 0), (0, 90, 0)))
    eye = (0.2, 0.38 * centre, 0.25 * centre)
    put("eyes", "dark", *mirror_y(blob((0.05, 0.17 * centre, 0.22 * centre), eye)))
    smile = arc((0.2, 0, -0.02), 0.55 * centre, 200, 340, "yz", 5)
    put("smile", "dark", *(capsule(p, q, 0.032) for p, q in zip(smile[:-1], smile[1:])))
    spot("left eye", (0.25, eye[1], eye[2]))
    spot("right eye", (0.25, -eye[1], eye[2]))
    spot("mouth", (0.232, 0, -0.02 - 0.55 * centre))
    b.point("pot front", (1.12 * pot, 0, ph))
    b.point("pot back", (-1.12 * pot, 0, ph))
    return b


def cactus(rng: Generator) -> Blueprint:
    """A potted cactus: ribbed column with raised arms, a face, a blossom."""
    u, b = rng.uniform, Blueprint()
    r, tall, pot, ph = u(0.26, 0.32), u(0.7, 1.0), u(0.3, 0.36), u(0.24, 0.32)
    b.add("pot", "wood", lathe([(0, 0), (0.78 * pot, 0), (pot, ph), (0, ph)]))
    b.add("pot rim", "trim", cylinder(1.1 * pot, 0.1, (0, 0, ph)))
    b.point("pot front", (1.1 * pot, 0, ph))
    b.point("pot back", (-1.1 * pot, 0, ph))
    top = ph + tall
    b.add("column", "body", capsule((0, 0, ph), (0, 0, top), r))
    for k, a in enumerate(np.linspace(48, 312, int(rng.integers(6, 9)))):
        v = 0.97 * r * np.array([np.cos(np.deg2rad(a)), np.sin(np.deg2rad(a)), 0])
        b.add(f"rib {k}", "trim", bar(v + [0, 0, ph], v + [0, 0, top + 0.1 * r], 0.045, 0.03, 8))
    arms = (("left", 1), ("right", -1)) if u() < 0.75 else (("left", 1),)
    for name, s in arms:
        ar, z, out, up = u(0.12, 0.15), ph + tall * u(0.3, 0.6), u(0.24, 0.32), u(0.22, 0.45)
        elbow = np.array([0, s * (r + out), z])
        b.add(f"{name} arm", "body", capsule((0, 0, z), elbow, ar), capsule(elbow, elbow + [0, 0, up], ar))
        b.point(f"{name} arm tip", elbow + [0, 0, up + ar])
        b.point(f"{name} elbow", elbow + [0, s * ar, 0])
    head = np.array([0, 0, ph + 0.72 * tall])
    eyes(b, head, (r, r, 10.0), 0.45 * r, 0.06, 0.1)
    dots = [(r * np.cos(a), r * np.sin(a), head[2] - 0.18 + 0.5 * a * a) for a in np.deg2rad([-28, -10, 10, 28])]
    b.add("smile", "dark", *(blob((0.04, 0.065, 0.04), p) for p in dots))
    b.point("mouth", (r * np.cos(0.175) + 0.02, 0, head[2] - 0.165))
    bloom = np.array([0, 0, top + 0.98 * r])
    style = int(rng.integers(3))
    if style < 2:
        spots = [bloom + [0.1 * np.cos(a), 0.1 * np.sin(a), 0.03] for a in np.deg2rad(np.arange(5) * 72.0)]
        b.add("blossom", "skin" if style else "light", *(blob((0.085, 0.085, 0.06), p) for p in spots))
        b.add("blossom heart", "accent", blob((0.07, 0.07, 0.08), bloom + [0, 0, 0.05]))
        b.point("top", bloom + [0, 0, 0.13])
    else:
        b.add(
            "spine tuft",
            "light",
            *(
                cone(0.05, 0.2, bloom + [1e-3 * s, -1e-3 * t, -0.03], (t, s, 0), sides=8)
                for t, s in ((0, 0), (35, 0), (-35, 0), (0, 35), (0, -35))
            ),
        )
        b.point("top", bloom + [0, 0, 0.17])
    return b


def mushroom(rng: Generator) -> Blueprint:
    """A mushroom house: dotted cap on a pale stem with a door in front."""
    u, b = rng.uniform, Blueprint()
    r, rise, stem, tall, lip = u(0.62, 0.78), u(0.45, 0.68), u(0.27, 0.33), u(0.46, 0.58), u(0.05, 0.12)
    b.add(
        "stem",
        "light",
        lathe(
            [
                (0, 0),
                (1.2 * stem, 0),
                (1.22 * stem, 0.1),
                (stem, 0.6 * tall),
                (0.95 * stem, tall + 0.1),
                (0, tall + 0.1),
            ]
        ),
    )
    t = np.linspace(0.0, 0.5 * np.pi, 9)[:-1]
    outer = np.stack([r * np.cos(t), rise * np.sin(t)], -1)
    b.add("cap", "body", lathe([(0, 0.02), (0.75 * r, -lip), (0.95 * r, -0.7 * lip), *outer, (0, rise)], (0, 0, tall)))
    b.add("gills", "trim", cone(stem, 0.1, (0, 0, tall - 0.07), top=0.75 * r))
    k = 0
    for lift, n, size in ((22, int(rng.integers(5, 7)), 0.12), (54, 4, 0.11), (90, 1, 0.12)):
        for a in np.arange(n) * 2 * np.pi / n + u(0, 6.28):
            e = np.deg2rad(lift)
            at = np.array([r * np.cos(e) * np.cos(a), r * np.cos(e) * np.sin(a), tall + rise * np.sin(e)])
            lean = np.rad2deg(np.arctan2(np.cos(e) / r, np.sin(e) / rise))
            b.add(f"dot {k}", "light", blob((size, size, 0.045), at, (0, lean, np.rad2deg(a))))
            k += 1
    b.point("cap top", (0, 0, tall + rise + 0.045))
    for name, xyz in (("front", (r, 0)), ("left", (0, r)), ("back", (-r, 0)), ("right", (0, -r))):
        b.point(f"cap {name} edge", (*xyz, tall))
    x, w, h = 1.1 * stem, 0.62 * stem, 0.72 * tall
    side = np.deg2rad(np.linspace(0, 180, 9))
    door = np.array([(-w, 0), (w, 0), *np.stack([w * np.cos(side), h - w + w * np.sin(side)], -1)])
    b.add("door frame", "dark", prism(door * [1.2, 1.08], 0.3, (x - 0.03, 0, 0), (90, 0, 90)))
    b.add("door", "wood", prism(door, 0.3, (x, 0, 0.02), (90, 0, 90)))
    b.add("door knob", "lamp", sphere(0.05, (x + 0.17, -0.55 * w, 0.45 * h), detail=1))
    b.add("door window", "glass", cylinder(0.42 * w, 0.1, (x + 0.13, 0, h - w), (0, 90, 0), 18))
    b.point("door knob", (x + 0.22, -0.55 * w, 0.45 * h))
    b.point("door top", (x + 0.15, 0, h))
    if u() < 0.6:
        y, z = float(rng.choice([-1, 1])) * 0.4 * r, tall + rise * 0.8
        b.add("chimney", "trim", cylinder(0.09, 0.4, (-0.1, y, z)), cylinder(0.12, 0.09, (-0.1, y, z + 0.2)))
        b.point("chimney top", (-0.1, y, z + 0.245))
    return b


def palm(rng: Generator) -> Blueprint:
    """A palm in a tub: curved ringed trunk, drooping fronds, coconuts, an emblem on the tub."""
    u, b = rng.uniform, Blueprint()
    pot, ph, tall, bend = u(0.38, 0.44), u(0.42, 0.5), u(0.85, 1.1), u(-0.25, 0.25)
    n, reach, droop = int(rng.integers(7, 10)), u(0.66, 0.8), u(0.06, 0.26)
    if u() < 0.5:
        b.add("tub", "body", lathe([(0, 0), (0.82 * pot, 0), (pot, ph), (0, ph)]))
        b.add("tub rim", "trim", cylinder(1.1 * pot, 0.11, (0, 0, ph)))
        x = 0.9 * pot
    else:
        b.add("tub", "body", box((1.8 * pot, 1.8 * pot, ph), (0, 0, ph / 2), bevel=0.04))
        b.add("tub rim", "trim", box((2 * pot, 2 * pot, 0.11), (0, 0, ph), bevel=0.03))
        x = 0.9 * pot
    badge(b, rng, (x, 0, 0.46 * ph), 0.42 * ph, depth=0.1, proud=0.1)
    s = np.linspace(0, 1, 6)
    spine = np.stack([0 * s, bend * s**2, ph + tall * s], -1)
    for k, (p, q) in enumerate(zip(spine[:-1], spine[1:])):
        b.add(f"trunk {k}", "wood", bar(p - [0, 0, 0.02], q, 0.085, 0.115, 14))
    crown = spine[-1]
    tip_points = []
    turn = u(0, 2 * np.pi / n)
    for k, a in enumerate(turn + 2 * np.pi * np.arange(n) / n):
        out, side = np.array([np.cos(a), np.sin(a), 0]), np.array([-np.sin(a), np.cos(a), 0])
        long = reach * u(0.9, 1.08)
        rows = [(0.0, 0.0, 0.07), (0.42 * long, 0.26, 0.18), (0.78 * long, 0.17, 0.15), (long, -droop, 0.035)]
        rings = [
            np.array([crown + d * out + [0, 0, z] + v for v in (w * side, -w * side, [0, 0, 0.09], [0, 0, -0.03])])
            for d, z, w in rows
        ]
        solids = [hull(np.concatenate([p, 1.02 * q - 0.02 * p])) for p, q in zip(rings[:-1], rings[1:])]
        b.add(f"frond {k}", ("body", "trim")[k % 3 == 2], *solids)
        tip_points.append(crown + long * out + [0, 0, -droop])
    b.add("heart", "body", cone(0.16, 0.36, crown))
    b.point("top", crown + [0, 0, 0.36])
    for k, a in enumerate(np.deg2rad([20.0, 140.0, 260.0])):
        b.add(f"coconut {k}", "wood", blob((0.1, 0.1, 0.1), crown + [0.15 * np.cos(a), 0.15 * np.sin(a), -0.05]))
    for k in range(0, n, 2):
        b.point(f"frond tip {k + 1}", tip_points[k])
    b.point("trunk foot", (0.085, 0, ph + 0.06))
    return b


NOUNS: dict[str, Noun] = {
    "tree": Noun(tree, ("tree", "fir"), (1.2, 2.4), "plants"),
    "flower": Noun(flower, ("flower", "daisy", "blossom"), (0.4, 0.8), "plants"),
    "cactus": Noun(cactus, ("cactus",), (0.4, 0.9), "plants"),
    "mushroom": Noun(mushroom, ("mushroom", "toadstool"), (0.3, 0.8), "plants"),
    "palm": Noun(palm, ("palm", "palm tree"), (1.0, 2.0), "plants"),
}
