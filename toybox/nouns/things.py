"""Everyday things: hammer, guitar, drum, clock, camera, book, gift, umbrella."""

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
    carve,
    cone,
    cylinder,
    hull,
    lathe,
    mirror_y,
    place,
    prism,
    sphere,
    torus,
)
from ..solid import joined
from . import Noun


def _figure(kind: str, size: float) -> np.ndarray:
    """The outline (N, 2) of a star, heart, bolt or disc within radius `size`."""
    t = np.linspace(0, 2 * np.pi, 10 if kind == "star" else 24, endpoint=False)
    if kind == "star":
        r = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        return size * np.stack([-r * np.sin(t), r * np.cos(t)], -1)
    if kind == "heart":
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return size / 15 * np.stack([-16 * np.sin(t) ** 3, y + 2], -1)
    if kind == "bolt":
        return size * np.array([(0.25, 1), (-0.55, -0.15), (-0.05, -0.15), (-0.3, -1), (0.55, 0.2), (0.05, 0.2)])
    return 0.6 * size * np.stack([np.cos(t), np.sin(t)], -1)


def badge(
    b: Blueprint, rng: Generator, at: Vec, radius: float, lift: float = 0.0, depth: float = 0.1, proud: float = 0.03
) -> None:
    """A light round plate with a dark drawing, facing +x tilted up by `lift` degrees, and the keypoint "badge".

    The plate's outer face lies `proud` outside of `at`, a point of the surface; its inner one `depth` inside.
    """
    figure = prism(_figure(str(rng.choice(["star", "heart", "bolt", "disc"])), 0.72 * radius), 0.04, rotate=(90, 0, 90))
    figure = figure.shifted((proud, 0, 0))
    plate = cylinder(radius, depth + proud, (0.5 * (proud - depth), 0, 0), (0, 90, 0))
    b.add("badge plate", "light", place(plate, at, (0, -lift, 0)))
    b.add("badge drawing", "dark", place(figure, at, (0, -lift, 0)))
    tilt = np.deg2rad(lift)
    b.point("badge", np.asarray(at, float) + (proud + 0.02) * np.array([np.cos(tilt), 0, np.sin(tilt)]))


def hammer(rng: Generator) -> Blueprint:
    """A hammer standing on its handle: claw hammer, mallet or sledge."""
    u, b = rng.uniform, Blueprint()
    kind = str(rng.choice(["claw", "mallet", "sledge"]))
    tall, hr, half, grip = u(1.0, 1.4), u(0.2, 0.27), u(0.42, 0.56), u(0.35, 0.5)
    z = tall + 0.6 * hr
    b.add("handle", "body", bar((0, 0, 0.04), (0, 0, tall), 0.115, 0.095))
    b.add("grip", "trim", lathe([(0, 0), (0.15, 0), (0.17, 0.08), (0.13, 0.2), (0.145, grip), (0, grip + 0.02)]))
    b.point("grip top", (0.145, 0, grip))
    b.point("handle bottom", (0, 0, 0))
    b.point("handle middle", (0.105, 0, 0.5 * tall))
    depth = 1.7 * hr if kind != "mallet" else 2 * hr
    left = half
    if kind == "mallet":
        b.add("head", "body", cylinder(hr, 2 * half, (0, 0, z), (90, 0, 0)))
        b.add("bands", "metal", *mirror_y(cylinder(1.06 * hr, 0.07, (0, half - 0.1, z), (90, 0, 0))))
    elif kind == "sledge":
        b.add("head", "body", box((depth, 2 * half, 2 * hr), (0, 0, z), bevel=0.3 * hr))
        b.add("bands", "trim", *mirror_y(box((1.08 * depth, 0.08, 2.12 * hr), (0, half - 0.16, z), bevel=0.3 * hr)))
    else:
        b.add("head", "body", box((depth, 1.1 * half, 1.7 * hr), (0, 0, z), bevel=0.2 * hr))
        b.add("neck", "metal", cylinder(0.62 * hr, 0.3, (0, 0.62 * half, z), (90, 0, 0)))
        b.add("strike face", "body", cylinder(1.02 * hr, 0.24, (0, left, z), (90, 0, 0)))
        y = -0.5 * half
        side = [
            (y, 0.8 * hr),
            (y - 0.35, 0.55 * hr),
            (y - 0.62, -0.35 * hr),
            (y - 0.66, -0.75 * hr),
            (y - 0.5, -0.35 * hr),
            (y - 0.28, -0.3 * hr),
            (y, -0.75 * hr),
        ]
        prong = prism(side, 0.4 * depth, (0.3 * depth, 0, z), (90, 0, 90))
        b.add("claw", "body", prong, place(prong, (-0.6 * depth, 0, 0)))
        b.point("claw tip", (0.3 * depth, y - 0.66, z - 0.75 * hr))
        left += 0.12
    b.point("strike face", (0, left, z))
    b.point("head top", (0, 0, z + (0.85 if kind == "claw" else 1.0) * hr))
    badge(b, rng, (0.5 * depth, 0, z), 0.72 * hr, proud=0.04)
    return b


def guitar(rng: Generator) -> Blueprint:
    """A guitar standing on its lower bout, strings to the front."""
    u, b = rng.uniform, Blueprint()
    wide, waist, upper, deep, tall = u(0.47, 0.56), u(0.25, 0.33), u(0.32, 0.4), u(0.22, 0.32), u(0.95, 1.1)
    t = np.array([0, 0.02, 0.07, 0.15, 0.27, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 0.99, 1.0])
    w = np.array([0.3, 0.45, 0.72, 0.92, 1.0, 0.86, 0, 0, 0, 1.0, 0.85, 0.6, 0.35, 0.25])
    w *= np.where(t < 0.45, wide, upper)
    w[6:9] = (0.6 * wide + 0.4 * waist - 0.02, waist, 0.5 * (waist + upper))
    right = np.stack([w, t * tall], -1)
    solid = prism(np.concatenate([right, right[::-1] * [-1, 1]]), deep, (0, 0, 0), (90, 0, 90))
    if u() < 0.45:
        solid = carve(solid, cylinder(0.2, 1.0, (0, upper, tall + 0.01), (0, 90, 0)))
    b.add("body", "body", solid)
    x, hole = 0.5 * deep, u(0.12, 0.15)
    b.add("rosette", "light", cylinder(hole + 0.05, 0.06, (x, 0, 0.6 * tall), (0, 90, 0)))
    b.add("sound hole", "dark", cylinder(hole, 0.1, (x, 0, 0.6 * tall), (0, 90, 0)))
    b.point("sound hole", (x + 0.05, 0, 0.6 * tall))
    b.add("bridge", "dark", box((0.12, 0.36, 0.09), (x, 0, 0.24 * tall), bevel=0.02))
    b.point("bridge", (x + 0.06, 0, 0.24 * tall))
    top = tall + u(0.45, 0.66)
    b.add("neck", "body", box((0.12, 0.17, top - 0.7 * tall), (x - 0.04, 0, 0.5 * (top + 0.7 * tall))))
    low = 0.72 * tall
    b.add("fingerboard", "dark", box((0.07, 0.13, top - low), (x + 0.04, 0, 0.5 * (top + low))))
    for k, z in enumerate(np.linspace(tall + 0.1, top - 0.1, 4)):
        b.add(f"fret {k}", "light", box((0.05, 0.13, 0.035), (x + 0.06, 0, z)))
    b.add("strings", "light", box((0.03, 0.035, top - 0.24 * tall), (x + 0.075, 0, 0.5 * (top + 0.24 * tall))))
    head = [(-0.1, 0), (0.1, 0), (0.17, 0.12), (0.13, 0.38), (0, 0.34 + u(0, 0.1)), (-0.13, 0.38), (-0.17, 0.12)]
    b.add("headstock", "trim", prism(head, 0.13, (x - 0.04, 0, top), (90, 0, 90)))
    for k in range(3):
        peg = cylinder(0.045, 0.14, (x - 0.04, 0.19, top + 0.11 + 0.1 * k), (90, 0, 0), 10)
        b.add(f"pegs {k}", "light", *mirror_y(peg))
    b.point("headstock top", (x - 0.04, 0.13, top + 0.38))
    b.point("left side", (0, wide, 0.27 * tall))
    b.point("right side", (0, -wide, 0.27 * tall))
    b.point("bottom", (0, 0, 0))
    b.point("back", (-x, 0, 0.3 * tall))
    return b


def drum(rng: Generator) -> Blueprint:
    """A drum with rims, a badge on the shell and two sticks on its skin."""
    u, b = rng.uniform, Blueprint()
    r, h, feet = u(0.5, 0.62), u(0.55, 0.85), u() < 0.4
    low = 0.12 if feet else 0.0
    b.add("shell", "body", cylinder(r, h, (0, 0, low + h / 2), sides=40))
    for name, z in (("lower rim", low + 0.07), ("upper rim", low + h - 0.05)):
        b.add(name, "trim", cylinder(1.07 * r, 0.14, (0, 0, z), sides=40))
    b.add("drum skin", "light", cylinder(0.74 * r, 0.08, (0, 0, low + h + 0.01), sides=40))
    b.point("skin", (-0.3 * r, 0, low + h + 0.04))
    if feet:
        for k, a in enumerate(np.deg2rad([60, 180, 300])):
            b.add(f"foot {k}", "dark", cylinder(0.08, 0.16, (0.8 * r * np.cos(a), 0.8 * r * np.sin(a), 0.08), sides=14))
    n = int(rng.integers(5, 8))
    for k, a in enumerate(np.linspace(50, 310, n)):
        c, s = np.cos(np.deg2rad(a)), np.sin(np.deg2rad(a))
        foot = np.array([1.03 * r * c, 1.03 * r * s, low + 0.05])
        b.add(f"rod {k}", "trim", bar(foot, foot + [0, 0, h - 0.08], 0.04, sides=10))
    badge(b, rng, (r, 0, low + 0.48 * h), 0.26 * min(2 * r, 1.3 * h), depth=0.16, proud=0.04)
    turn, z, reach = u(15, 40), low + h + 0.09, u(0.7, 0.85)
    for name, way, up in (("left stick", turn, 0.0), ("right stick", -turn, 0.07)):
        v = reach * r * np.array([np.cos(np.deg2rad(way)), np.sin(np.deg2rad(way)), 0])
        c = np.array([0, 0, z + up])
        b.add(name, "wood", bar(c - 1.1 * v, c + v, 0.05, 0.04, sides=12), sphere(0.075, c + v, detail=2))
        b.point(name + " tip", c + v * (1 + 0.075 / np.linalg.norm(v)))
    b.point("front of the rim", (1.07 * r, 0, low + h - 0.05))
    b.point("left of the rim", (0, 1.07 * r, low + h - 0.05))
    b.point("right of the rim", (0, -1.07 * r, low + h - 0.05))
    b.point("back of the rim", (-1.07 * r, 0, low + h - 0.05))
    return b


def clock(rng: Generator) -> Blueprint:
    """An alarm clock: round or square case, dial with hands, two bells, feet."""
    u, b = rng.uniform, Blueprint()
    r, d, ratio, square = u(0.48, 0.54), u(0.32, 0.46), u(0.64, 0.7), u() < 0.35
    z = r + 0.14
    if square:
        b.add("case", "body", box((d, 2 * r, 2 * r), (0, 0, z), bevel=0.1))
    else:
        b.add("case", "body", cylinder(r, d, (0, 0, z), (0, 90, 0), 40))
        b.add("bezel", "trim", torus(0.93 * r, 0.08, (d / 2, 0, z), (0, 90, 0)))
    x, face = d / 2, ratio * r
    b.add("dial", "light", cylinder(face, 0.08, (x, 0, z), (0, 90, 0), 36))
    for k, a in enumerate(np.deg2rad([0, 90, 180, 270])):
        p = (x + 0.03, 0.8 * face * np.sin(a), z + 0.8 * face * np.cos(a))
        b.add(f"mark {k}", "dark", box((0.06, 0.06, 0.06), p))
    hour, minute = np.deg2rad(u(0, 360)), np.deg2rad(u(0, 360))
    for name, a, length, thick in (("hour hand", hour, 0.5, 0.045), ("minute hand", minute, 0.75, 0.036)):
        tip = np.array([x + 0.06, length * face * np.sin(a), z + length * face * np.cos(a)])
        b.add(name, "dark", capsule((x + 0.06, 0, z), tip, thick))
        b.point(f"{name} tip", tip + (tip - [x + 0.06, 0, z]) / (length * face) * thick)
    b.add("pin", "metal", cylinder(0.05, 0.12, (x + 0.08, 0, z), (0, 90, 0), 14))
    b.point("dial centre", (x + 0.14, 0, z))
    lean, bell = (30.0 if not square else 18.0), u(0.19, 0.25)
    a = np.deg2rad(lean)
    at = np.array([0, 0.28, z + r + 0.06])
    if not square:
        at = np.array([0, r * np.sin(a) * 1.05 + 0.06, z + r * np.cos(a) * 1.03 + 0.03])
    turn = np.linspace(0.2, 1.4, 5)
    dome = lathe([(0, 0), (bell, 0), *np.stack([bell * np.cos(turn), bell * np.sin(turn)], -1), (0, bell)])
    b.add("bells", "body", *mirror_y(place(dome, at, (-lean, 0, 0))))
    up = np.array([0, np.sin(a), np.cos(a)])
    b.point("left bell", at + bell * up)
    b.point("right bell", (at + bell * up) * [1, -1, 1])
    b.add("bell posts", "metal", *mirror_y(bar(at - 0.12 * up, at + 0.02 * up, 0.06)))
    top = at[2] + 0.95 * bell
    b.add("hammer", "metal", bar((0, 0, z + 0.9 * r), (0, 0, top), 0.04), sphere(0.07, (0, 0, top), detail=2))
    foot = np.array([0, 0.62 * r, 0.03])
    b.add("feet", "trim", *mirror_y(bar(foot * [1, 0.8, 1] + [0, 0, 0.3], foot, 0.09, 0.07), sphere(0.085, foot, 2)))
    b.point("left foot", foot + [0, 0, -0.085])
    b.point("right foot", foot * [1, -1, 1] + [0, 0, -0.085])
    key = box((0.07, 0.3, 0.12), (-x - 0.16, 0, z))
    b.add("winder", "metal", cylinder(0.05, 0.2, (-x - 0.05, 0, z), (0, 90, 0), 12), key)
    return b


def camera(rng: Generator) -> Blueprint:
    """A camera: box body, long lens, flash, shutter button, hump or viewfinder."""
    u, b = rng.uniform, Blueprint()
    w, h, d, reach = u(1.0, 1.25), u(0.62, 0.8), u(0.34, 0.46), u(0.14, 0.42)
    lens, shift, hump = u(0.24, 0.29), u(-0.08, 0.08), u() < 0.55
    x, c = d / 2, np.array([0, shift, 0.47 * h])
    b.add("case", "body", box((d, w, h), (0, 0, h / 2), bevel=0.07))
    b.add("top plate", "trim", box((0.96 * d, 0.9 * w, 0.1), (0, 0, h), bevel=0.04))
    b.add("lens barrel", "body", cylinder(lens, reach + 0.1, c + [x + reach / 2 - 0.05, 0, 0], (0, 90, 0), 36))
    b.add("lens ring", "metal", cylinder(lens + 0.035, 0.08, c + [x + 0.03, 0, 0], (0, 90, 0), 36))
    b.add("lens front", "dark", cylinder(0.86 * lens, 0.06, c + [x + reach, 0, 0], (0, 90, 0), 36))
    b.add("lens glass", "glass", sphere(0.42 * lens, c + [x + reach - 0.15 * lens, 0, 0]))
    b.point("lens", c + [x + reach + 0.27 * lens, 0, 0])
    if hump:
        outline = [(-0.3, 0), (0.3, 0), (0.19, 0.24), (-0.19, 0.24)]
        b.add("hump", "body", prism(outline, 0.9 * d, (0, shift, h), (90, 0, 90)))
        b.add("flash", "light", box((0.08, 0.28, 0.11), (0.45 * d, shift, h + 0.12)))
        b.point("flash", (0.45 * d + 0.04, shift, h + 0.12))
    else:
        b.add("flash cube", "body", box((0.7 * d, 0.3, 0.26), (0, 0.3 * w, h + 0.13), bevel=0.03))
        b.add("flash", "light", box((0.08, 0.22, 0.16), (0.35 * d, 0.3 * w, h + 0.13)))
        b.point("flash", (0.35 * d + 0.04, 0.3 * w, h + 0.13))
    b.add("view window", "glass", box((0.08, 0.15, 0.11), (x, 0.34 * w, 0.83 * h)))
    b.add("lamp", "signal", cylinder(0.045, 0.07, (x, -0.38 * w, 0.83 * h), (0, 90, 0), 14))
    b.add("grip", "trim", box((0.2, 0.15, 0.72 * h), (x, -0.39 * w, 0.38 * h), bevel=0.05))
    b.point("grip", (x + 0.1, -0.39 * w, 0.38 * h))
    b.add("shutter button", "metal", cylinder(0.09, 0.12, (0, -0.36 * w, h + 0.08), sides=18))
    b.point("shutter button", (0, -0.36 * w, h + 0.14))
    if u() < 0.7:
        b.add("dial", "trim", cylinder(0.1, 0.14, (0, -0.17 * w if not hump else 0.36 * w, h + 0.08), sides=18))
    b.add("strap rings", "metal", *mirror_y(torus(0.08, 0.035, (0, w / 2 + 0.05, 0.78 * h), (90, 0, 0))))
    b.point("left side", (0, w / 2, 0.4 * h))
    b.point("right side", (0, -w / 2, 0.4 * h))
    b.point("back", (-x, 0, h / 2))
    b.point("bottom", (0, 0, 0))
    return b


def book(rng: Generator) -> Blueprint:
    """A thick hardcover standing upright, title label on the front board."""
    u, b = rng.uniform, Blueprint()
    w, h, d = u(0.72, 0.9), u(1.0, 1.2), u(0.32, 0.5)
    board, x = 0.32 * d, 0.5 * d
    for name, s in (("front board", 1), ("back board", -1)):
        b.add(name, "body", box((board, w, h), (s * (x - board / 2), 0, h / 2), bevel=0.03))
    b.add("spine", "body", cylinder(x, h, (0, 0, 0), sides=24))
    spine = b.parts.pop().vertices * [1, 0.35, 1] + [0, -w / 2 + 0.02, h / 2]
    b.add("spine", "body", hull(spine))
    b.add("pages", "light", box((d - 1.7 * board, w - 0.07, h - 0.1), (0, -0.02, h / 2)))
    for k in range(int(rng.integers(1, 4))):
        band = hull((spine - [0, -w / 2, h / 2]) * [1.08, 1.15, 0.06] + [0, -w / 2, h * (0.2 + 0.3 * k)])
        b.add(f"spine band {k}", "trim", band)
    lh, lz, lw = u(0.26, 0.36) * h, 0.66 * h, u(0.52, 0.68) * w
    label = (0.08, lw, lh)
    b.add("label", "light", box(label, (x, 0.03, lz), bevel=0.02))
    rows = int(rng.integers(2, 4))
    for k in range(rows):
        z = lz + lh * (0.5 - (k + 0.75) / (rows + 0.5))
        b.add(f"title line {k}", "dark", box((0.08, lw * (0.76 if k == 0 else 0.5), 0.17 * lh), (x + 0.02, 0.03, z)))
    b.point("label", (x + 0.04, 0.03, lz + 0.47 * lh))
    if u() < 0.6:
        t = np.linspace(0, 2 * np.pi, 11)[:-1]
        r = np.where(np.arange(10) % 2 == 0, 0.14, 0.065)
        star = np.stack([-r * np.sin(t), r * np.cos(t)], -1)
        b.add("emblem", "accent", prism(star, 0.08, (x, 0.03, 0.25 * h), (90, 0, 90)))
    if u() < 0.6:
        y = w / 2 - 0.085
        b.add("corners", "metal", *(box((0.1, 0.15, 0.15), (x - 0.01, y, z)) for z in (0.085, h - 0.085)))
    b.add("bookmark", "trim", box((0.06, 0.13, 0.2), (0, 0.2 * w, h + 0.02)))
    b.point("bookmark", (0, 0.2 * w, h + 0.12))
    for name, z in (("top", h), ("bottom", 0.0)):
        b.point(f"front {name} corner", (x - board / 2, w / 2, z))
        b.point(f"back {name} corner", (-x + board / 2, w / 2, z))
    b.point("spine middle", (0, -w / 2 + 0.02 - 0.35 * x, h / 2))
    return b


def gift(rng: Generator) -> Blueprint:
    """A gift box: lid, ribbon cross, bow, and a tag on the front."""
    u, b = rng.uniform, Blueprint()
    w, d, h, lid, band = u(0.7, 1.0), u(0.7, 0.95), u(0.55, 0.95), u(0.16, 0.22), u(0.12, 0.15)
    slot = str(rng.choice(["light", "dark"]))
    b.add("box", "body", box((d, w, h), (0, 0, h / 2)))
    b.add("lid", "body", box((d + 0.1, w + 0.1, lid), (0, 0, h - lid / 2 + 0.06), bevel=0.02))
    b.add("lid edge", "trim", box((d + 0.07, w + 0.07, 0.06), (0, 0, h - lid + 0.05)))
    top = h + 0.06
    b.add(
        "ribbon",
        slot,
        box((d + 0.04, band, h), (0, 0, h / 2)),
        box((band, w + 0.04, h), (0, 0, h / 2)),
        box((d + 0.14, band, lid + 0.04), (0, 0, h - lid / 2 + 0.06)),
        box((band, w + 0.14, lid + 0.04), (0, 0, h - lid / 2 + 0.06)),
    )
    loop, lift = u(0.17, 0.24), u(18, 38)
    ring = torus(0.72 * loop, 0.3 * loop).scaled((0.85, 1.3, 1.9))
    a = np.deg2rad(lift)
    at = np.array([0, 1.3 * loop * np.cos(a), top + 0.08 + 1.3 * loop * np.sin(a)])
    b.add("bow loops", "trim", *mirror_y(place(place(ring, rotate=(0, 90, 0)), at, (lift, 0, 0))))
    b.add("bow knot", slot, sphere(0.12, (0, 0, top + 0.08), detail=2))
    b.point("bow knot", (0, 0, top + 0.2))
    s = min(u(0.32, 0.37) * w, 0.85 * (h - lid))
    z = 0.5 * (h - lid) - 0.07 * s
    tag = np.array([(-0.5, -0.42), (0.5, -0.42), (0.5, 0.3), (0.22, 0.58), (-0.22, 0.58), (-0.5, 0.3)]) * s
    b.add("tag rim", "dark", prism(tag * 1.16, 0.09, (d / 2 + 0.02, 0, z), (90, 0, 90)))
    b.add("tag", "light", prism(tag, 0.1, (d / 2 + 0.04, 0, z), (90, 0, 90)))
    kind = str(rng.choice(["heart", "star"]))
    b.add("tag drawing", "dark", prism(_figure(kind, 0.34 * s), 0.1, (d / 2 + 0.06, 0, z), (90, 0, 90)))
    b.point("tag", (d / 2 + 0.11, 0, z))
    for x, where in ((1, "front"), (-1, "back")):
        b.point(f"{where} left lid corner", (x * (d / 2 + 0.04), w / 2 + 0.04, top - 0.02))
        b.point(f"{where} right lid corner", (x * (d / 2 + 0.04), -w / 2 - 0.04, top - 0.02))
        b.point(f"{where} left foot corner", (x * d / 2, w / 2, 0))
        b.point(f"{where} right foot corner", (x * d / 2, -w / 2, 0))
    return b


def umbrella(rng: Generator) -> Blueprint:
    """An open umbrella standing on its hooked handle, emblem on the front panel."""
    u, b = rng.uniform, Blueprint()
    r, rise, tall, sides = u(0.8, 0.95), u(0.42, 0.6), u(1.15, 1.4), int(rng.choice([8, 10]))
    turn = 180.0 / sides
    t = np.linspace(0.0, 0.5 * np.pi, 7)[:-1]
    outer = np.stack([r * np.cos(t), rise * np.sin(t)], -1)
    inner = outer * [0.93, 0.88]
    canopy = lathe([(0, 0.88 * rise), *inner[::-1], *outer, (0, rise)], (0, 0, tall), (0, 0, turn), sides)
    b.add("canopy", "body", canopy)
    points = [(p[0], 0, p[1]) for p in (*outer[::2], (0.0, rise))]
    pieces = [bar(p, q, 0.035, sides=6) for p, q in zip(points[:-1], points[1:])]
    rib = joined([*pieces, sphere(0.065, points[0], detail=1)])
    b.add("ribs", "trim", *(place(rib, (0, 0, tall), (0, 0, turn * (2 * k + 1))) for k in range(sides)))
    for k, name in zip((0, sides // 2 - 1, sides // 2, -1), ("front left", "back left", "back right", "front right")):
        a = np.deg2rad(turn) + 2 * np.pi * k / sides
        b.point(f"{name} rib end", ((r + 0.065) * np.cos(a), (r + 0.065) * np.sin(a), tall))
    b.add("tip", "metal", cone(0.07, 0.2, (0, 0, tall + rise - 0.03), top=0.03))
    b.point("tip", (0, 0, tall + rise + 0.17))
    hook = u(0.13, 0.18)
    b.add("shaft", "metal", bar((0, 0, hook + 0.1), (0, 0, tall + 0.9 * rise), 0.045))
    curve = arc((hook, 0, hook + 0.06), hook, 180, 340, count=5)
    path = [np.array([0, 0, hook + 0.36]), *curve]
    b.add("handle", "trim", *[capsule(p, q, 0.075) for p, q in zip(path[:-1], path[1:])])
    b.point("handle bottom", (hook, 0, -0.015))
    b.point("handle end", curve[-1] + [0.0, 0, 0.075])
    apothem, w = np.cos(np.deg2rad(turn)), np.deg2rad(34)
    at = (apothem * r * np.cos(w), 0, tall + rise * np.sin(w))
    lift = np.rad2deg(np.arctan2(np.sin(w) / rise, np.cos(w) / (apothem * r)))
    badge(b, rng, at, 0.27 * r, lift, depth=0.05, proud=0.05)
    return b


NOUNS: dict[str, Noun] = {
    "hammer": Noun(hammer, ("hammer", "mallet"), (0.3, 0.6), "things"),
    "guitar": Noun(guitar, ("guitar", "ukulele"), (0.6, 1.1), "things"),
    "drum": Noun(drum, ("drum", "snare drum"), (0.35, 0.6), "things"),
    "clock": Noun(clock, ("clock", "alarm clock"), (0.25, 0.5), "things"),
    "camera": Noun(camera, ("camera", "photo camera"), (0.2, 0.4), "things"),
    "book": Noun(book, ("book", "novel"), (0.3, 0.5), "things"),
    "gift": Noun(gift, ("gift", "present", "gift box"), (0.3, 0.7), "things"),
    "umbrella": Noun(umbrella, ("umbrella", "parasol"), (0.8, 1.3), "things"),
}
