"""Creatures: dog, cat, duck, fish, elephant, penguin, robot, snowman, rabbit, turtle, owl."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from ..parts import Blueprint, bar, box, capsule, cone, ellipsoid, hull, lathe, mirror_y, place, prism, sphere, torus
from . import Noun
from .figures import blob, eyes, owl, pair, penguin, robot, snowman, surface, unit


def _four_legs(b: Blueprint, xs: tuple[float, float], y: float, top: float, radius: float, toe: str) -> None:
    """Four legs down to z = 0 with feet that point forward, and one keypoint per foot."""
    for x, where in zip(xs, ("back", "front")):
        legs = mirror_y(bar((x, y, 0.5 * radius), (x, y, top), radius * 1.05, 0.9 * radius))
        b.add(f"{where} legs", "body", *legs)
        foot = blob((1.35 * radius, 1.15 * radius, 0.8 * radius), (x + 0.3 * radius, y, 0.75 * radius))
        b.add(f"{where} feet", toe, *mirror_y(foot))
        b.point(f"{where} left foot", (x + 1.65 * radius, y, 0.75 * radius))
        b.point(f"{where} right foot", (x + 1.65 * radius, -y, 0.75 * radius))


def dog(rng: Generator) -> Blueprint:
    """A standing dog: floppy ears, snout, raised tail."""
    u, b = rng.uniform, Blueprint()
    half, girth, leg, hr = u(0.32, 0.52), u(0.27, 0.34), u(0.32, 0.52), u(0.32, 0.40)
    snout, ear, lr = u(0.2, 0.34), u(0.22, 0.34), u(0.1, 0.135)
    z = leg + 0.85 * girth
    b.add("torso", "body", capsule((-half, 0, z), (half, 0, z + 0.03), girth))
    _four_legs(b, (-half - 0.02, half + 0.02), 0.62 * girth, z, lr, "trim")
    head, radii = np.array([half + 0.3, 0, z + 0.42]), np.array([0.95, 0.95, 1.0]) * hr
    b.add("neck", "body", capsule((half, 0, z), head, 0.7 * girth))
    b.add("head", "body", ellipsoid(radii, head))
    muzzle = head + [0.62 * hr + 0.5 * snout, 0, -0.3 * hr]
    b.add("snout", str(rng.choice(["body", "light"])), blob((0.7 * snout + 0.1, 0.5 * hr, 0.42 * hr), muzzle))
    tip = muzzle + [0.7 * snout + 0.08, 0, 0.16 * hr]
    b.add("nose", "dark", blob((0.09, 0.11, 0.085), tip))
    b.point("nose", tip + [0.09, 0, 0])
    b.add("tongue", "signal", box((0.12, 0.13, 0.05), muzzle + [0.6 * snout, 0, -0.42 * hr], (0, 25, 0), 0.02))
    eyes(b, head, radii, 0.42 * hr, 0.32 * hr, 0.09)
    out = head + [-0.05, 0.98 * hr, 0.42 * hr - 0.6 * ear]
    b.add("ears", "trim", *mirror_y(blob((0.16, 0.075, ear), out, (14, 0, 0))))
    pair(b, "ear", out + [0, 0.075, 0])
    root, lift = np.array([-half - 0.8 * girth, 0, z + 0.3 * girth]), u(0.25, 0.5)
    end = root + [-u(0.1, 0.3), 0, lift]
    b.add("tail", "body", capsule(root + [0.1, 0, -0.1], root, 0.075), capsule(root, end, 0.07))
    b.point("tail tip", end + [0, 0, 0.07])
    collar = np.array([half, 0, z]) * 0.5 + head * 0.5
    way = (head - [half, 0, z]) / np.linalg.norm(head - [half, 0, z])
    b.add("collar", "dark", bar(collar - 0.05 * way, collar + 0.05 * way, 0.77 * girth))
    b.point("top of the head", head + [0, 0, hr])
    return b


def cat(rng: Generator) -> Blueprint:
    """A sitting cat: pointed ears, whiskers, tail raised beside the body."""
    u, b = rng.uniform, Blueprint()
    wide, tall, hr, ear = u(0.36, 0.46), u(0.5, 0.68), u(0.36, 0.44), u(0.28, 0.4)
    side, tail = float(rng.choice([-1, 1])), u(0.5, 0.85)
    b.add(
        "torso",
        "body",
        lathe(
            [(0, 0), (wide, 0.02), (1.06 * wide, 0.2), (0.85 * wide, 0.6 * tall), (0.58 * wide, tall), (0, tall + 0.06)]
        ),
    )
    b.add("haunches", "body", *mirror_y(blob((0.3, 0.17, 0.25), (0.08, 0.85 * wide, 0.24))))
    x, y = 0.8 * wide, 0.14
    b.add("front legs", "body", *mirror_y(capsule((0.5 * wide, y, 0.65 * tall), (x, y, 0.1), 0.105)))
    b.add("paws", "light", *mirror_y(blob((0.16, 0.12, 0.09), (x + 0.08, y, 0.09))))
    pair(b, "front paw", (x + 0.24, y, 0.09))
    head, radii = np.array([0.16, 0, tall + 0.7 * hr]), np.array([0.82, 1.12, 0.9]) * hr
    b.add("head", "body", ellipsoid(radii, head))
    base = head + [-0.05, 0.62 * hr, 0.45 * hr]
    tip = base + [0, 0.2 * ear, 0.38 * hr + ear]
    corners = np.array(
        [
            base + [0.1, -0.2, 0],
            base + [0.1, 0.18, -0.05],
            base + [-0.1, 0, 0],
            tip + [-0.04, 0, 0],
            tip + [0.04, 0.03, 0],
            tip + [0.04, -0.03, 0],
        ]
    )
    b.add("ears", "body", *mirror_y(hull(corners)))
    inner = (corners - corners.mean(0)) * 0.62 + corners.mean(0) + [0.06, 0, -0.02]
    b.add("inner ears", "skin", *mirror_y(hull(inner)))
    pair(b, "ear tip", tip)
    eyes(b, head, radii, 0.44 * hr, 0.16 * hr, 0.12, 0.62)
    p = surface(head, radii, 0, -0.3 * hr)
    b.add("muzzle", "light", *mirror_y(blob((0.09, 0.11, 0.08), p + [0, 0.08, -0.02])))
    b.add("nose", "dark", blob((0.06, 0.07, 0.05), p + [0.09, 0, 0.06]))
    b.point("nose", p + [0.15, 0, 0.06])
    for k, dz in enumerate((0.07, -0.09)):
        a = p + [0.02, 0.12, 0.25 * dz]
        b.add(f"whiskers {k}", "dark", *mirror_y(bar(a, a + [-0.02, 0.95 * hr, dz], 0.024, 0.016, sides=8)))
    root = np.array([-0.75 * wide, side * 0.1, 0.12])
    knee, end = root + [-0.32, side * 0.2, 0.1], root + [-0.42, side * 0.3, tail]
    b.add("tail", "body", capsule(root, knee, 0.1), capsule(knee, end, 0.09))
    b.add("tail end", "trim", capsule(0.75 * end + 0.25 * knee, end + [0, 0, 0.03], 0.1))
    b.point("tail tip", end + [0, 0, 0.13])
    b.point("top of the head", head + [0, 0, radii[2]])
    return b


def duck(rng: Generator) -> Blueprint:
    """A duck: boat body with upturned tail, round head, flat bill."""
    u, b = rng.uniform, Blueprint()
    length, wide, hr, neck, bill = u(0.62, 0.8), u(0.4, 0.52), u(0.28, 0.36), u(0.1, 0.34), u(0.2, 0.32)
    radii, z = np.array([length, wide, u(0.36, 0.44)]), 0.5
    b.add("torso", "body", ellipsoid(radii, (0, 0, z)))
    tip = np.array([-length - 0.18, 0, z + 0.42])
    b.add(
        "tail",
        "body",
        hull(
            np.array(
                [
                    tip + [0, 0.06, 0],
                    tip - [0, 0.06, 0],
                    [-0.5 * length, 0.3, z + 0.1],
                    [-0.5 * length, -0.3, z + 0.1],
                    [-0.9 * length, 0, z - 0.1],
                    [-0.4 * length, 0, z + 0.3],
                ]
            )
        ),
    )
    b.point("tail tip", tip)
    head = np.array([0.55 * length, 0, z + radii[2] + neck + 0.6 * hr])
    b.add("neck", "body", capsule((0.5 * length, 0, z + 0.1), head, 0.6 * hr))
    b.add("head", "body", sphere(hr, head))
    mouth = head + [0.95 * hr, 0, -0.2 * hr]
    b.add("upper bill", "accent", blob((bill, 0.6 * hr, 0.07), mouth + [0.05, 0, 0.05], (0, -8, 0)))
    b.add("lower bill", "accent", blob((0.8 * bill, 0.5 * hr, 0.06), mouth + [0.02, 0, -0.05], (0, 10, 0)))
    b.point("bill tip", mouth + [0.05 + bill * 0.99, 0, 0.05 + bill * 0.14])
    eyes(b, head, (hr, hr, hr), 0.48 * hr, 0.3 * hr, 0.1)
    wing = (-0.12, 0.9 * wide, z + 0.08)
    tilt = u(5, 20)
    b.add("wings", "trim", *mirror_y(blob((0.62 * length, 0.1, 0.24), wing, (0, tilt, 0))))
    pair(b, "wing", np.add(wing, [0, 0.1, 0]))
    b.add("legs", "accent", *mirror_y(bar((0.05, 0.2, 0.03), (0.05, 0.2, 0.3), 0.07)))
    foot = prism([(-0.1, -0.06), (0.3, -0.19), (0.36, 0), (0.3, 0.19), (-0.1, 0.06)], 0.09, (0.05, 0.22, 0.045))
    b.add("feet", "accent", *mirror_y(foot))
    pair(b, "foot", (0.41, 0.22, 0.045))
    if u() < 0.5:
        b.add("tuft", "trim", capsule(head + [0, 0, 0.9 * hr], head + [-0.16, 0, hr + 0.13], 0.06))
    b.point("top of the head", head + [0, 0, hr])
    return b


def fish(rng: Generator) -> Blueprint:
    """A fish: tall flat body, forked tail, back fin, thick lips."""
    u, b = rng.uniform, Blueprint()
    radii, tail, fin = np.array([u(0.68, 0.88), u(0.3, 0.38), u(0.42, 0.6)]), u(0.36, 0.52), u(0.18, 0.32)
    z = radii[2] + 0.2
    c = np.array([0, 0, z])
    b.add("torso", "body", ellipsoid(radii, c))
    x, fork = -radii[0] + 0.18, u(0.1, 0.3)
    b.add(
        "tail fin",
        "body",
        prism(
            [
                (x, 0.1),
                (x - 0.34, tail),
                (x - 0.52, tail),
                (x - 0.52 + fork, 0),
                (x - 0.52, -tail),
                (x - 0.34, -tail),
                (x, -0.1),
            ],
            0.13,
            c,
            (90, 0, 0),
        ),
    )
    b.point("tail top", (x - 0.43, 0, z + tail))
    b.point("tail bottom", (x - 0.43, 0, z - tail))
    top = radii[2] - 0.06
    b.add(
        "back fin",
        "trim",
        prism(
            [(0.42, 0.8 * top), (0.15, top + fin), (-0.35, top + 0.8 * fin), (-0.5, 0.6 * top), (0, 0.5)],
            0.12,
            c,
            (90, 0, 0),
        )
        if fin < 0.25
        else hull(
            np.array(
                [
                    [0.4, 0, z + 0.75 * top],
                    [-0.5, 0.06, z + 0.6 * top],
                    [-0.5, -0.06, z + 0.6 * top],
                    [-0.42, 0.06, z + top + fin],
                    [-0.42, -0.06, z + top + fin],
                    [0, 0, z + top + fin],
                ]
            )
        ),
    )
    b.add(
        "belly fins",
        "trim",
        *mirror_y(
            hull(
                np.array(
                    [
                        [0.2, 0.05, z - 0.6 * top],
                        [-0.15, 0.05, z - 0.6 * top],
                        [0.2, 0.12, z - 0.6 * top],
                        [-0.2, 0.3, 0],
                        [0.0, 0.3, 0],
                        [0.0, 0.2, 0],
                        [-0.2, 0.2, 0],
                    ]
                )
            )
        ),
    )
    pair(b, "belly fin", (-0.1, 0.25, 0))
    side = np.array([0.0, 0.95 * radii[1], z - 0.08])
    b.add("side fins", "trim", *mirror_y(blob((0.24, 0.06, 0.14), side + [-0.05, 0.08, 0], (0, -20, 28))))
    stripes = int(rng.integers(0, 3))
    for k, at in enumerate((-0.12, 0.18)[:stripes]):
        size = np.sqrt(1 - (at / radii[0]) ** 2) + 0.05
        b.add(f"stripe {k}", "light", ellipsoid((0.14, radii[1] * size, radii[2] * size), c + [at, 0, 0]))
    eyes(b, c, radii, 0.6 * radii[1], 0.25 * radii[2], 0.15)
    lips = surface(c, radii, 0, -0.22 * radii[2])
    b.add("lips", "light", torus(0.11, 0.055, lips + [0.02, 0, 0], (0, 95, 0)))
    b.add("mouth", "dark", blob((0.06, 0.1, 0.1), lips))
    b.point("mouth", lips + [0.06, 0, 0])
    b.point("left flank", c + [0, radii[1], 0])
    b.point("right flank", c - [0, radii[1], 0])
    return b


def elephant(rng: Generator) -> Blueprint:
    """An elephant: barrel body, pillar legs, fan ears, trunk and tusks."""
    u, b = rng.uniform, Blueprint()
    radii, leg = np.array([u(0.66, 0.82), u(0.44, 0.52), u(0.45, 0.54)]), u(0.3, 0.42)
    hr, ear = u(0.36, 0.42), u(0.36, 0.5)
    z = leg + 0.8 * radii[2]
    b.add("torso", "body", ellipsoid(radii, (0, 0, z)))
    lr, xs = u(0.15, 0.19), (-0.55 * radii[0], 0.5 * radii[0])
    for x, where in zip(xs, ("back", "front")):
        b.add(f"{where} legs", "body", *mirror_y(bar((x, 0.27, 0.03), (x, 0.27, z), 1.1 * lr, lr)))
        b.add(f"{where} toes", "light", *mirror_y(blob((0.08, 0.75 * lr, 0.07), (x + lr, 0.27, 0.075))))
        b.point(f"{where} left foot", (x + lr + 0.08, 0.27, 0.075))
        b.point(f"{where} right foot", (x + lr + 0.08, -0.27, 0.075))
    head = np.array([radii[0] + 0.08, 0, z + 0.3])
    hrad = np.array([hr, 0.95 * hr, 1.05 * hr])
    b.add("head", "body", ellipsoid(hrad, head))
    fan = head + [-0.08, 0.8 * hr + 0.62 * ear, 0.05]
    b.add("ears", "body", *mirror_y(blob((0.075, ear, 1.15 * ear), fan, (0, 0, u(-25, -8)))))
    b.add("inner ears", "skin", *mirror_y(blob((0.05, 0.6 * ear, 0.72 * ear), fan + [0.06, 0, 0], (0, 0, -14))))
    pair(b, "ear", fan + [0, 0, 1.15 * ear])
    down, curl, up = 0.55 * z, u(0.2, 0.4), u(0.05, 0.4)
    path = head + np.array(
        [
            [0.75 * hr, 0, -0.15],
            [hr + 0.16, 0, -0.2 - 0.5 * down],
            [hr + 0.26, 0, -0.2 - down],
            [hr + 0.26 + curl, 0, -0.2 - down + up],
        ]
    )
    for k, r in enumerate((0.17, 0.14, 0.12)):
        b.add(f"trunk {k}", "body", capsule(path[k], path[k + 1], r))
    b.add("nostril", "dark", sphere(0.07, path[3] + 0.09 * unit(path[3] - path[2]), detail=2))
    b.point("trunk tip", path[3] + 0.16 * unit(path[3] - path[2]))
    tusk = head + [0.7 * hr, 0.24, -0.55 * hr]
    b.add("tusks", "light", *mirror_y(bar(tusk, tusk + [0.38, 0.07, -0.04], 0.085, 0.035)))
    pair(b, "tusk tip", tusk + [0.38, 0.07, -0.04])
    eyes(b, head, hrad, 0.5 * hr, 0.28 * hr, 0.1)
    b.add("tail", "body", bar((-0.95 * radii[0], 0, z + 0.1), (-radii[0] - 0.14, 0, z - 0.36), 0.05))
    b.add("tail tuft", "dark", blob((0.07, 0.07, 0.11), (-radii[0] - 0.14, 0, z - 0.4)))
    b.point("tail end", (-radii[0] - 0.14, 0, z - 0.51))
    return b


def rabbit(rng: Generator) -> Blueprint:
    """A sitting rabbit: long upright ears, big feet, puff tail."""
    u, b = rng.uniform, Blueprint()
    wide, tall, hr, ear, splay = u(0.38, 0.48), u(0.42, 0.52), u(0.34, 0.4), u(0.32, 0.48), u(4, 22)
    c = np.array([0, 0, tall])
    b.add("torso", "body", ellipsoid((wide, wide, tall), c))
    b.add("chest", "light", ellipsoid((0.5 * wide, 0.52 * wide, 0.55 * tall), c + [0.56 * wide, 0, -0.04], detail=2))
    head, hrad = np.array([0.1, 0, 2 * tall + 0.45 * hr]), np.array([0.95, 1.06, 0.92]) * hr
    b.add("head", "body", ellipsoid(hrad, head))
    way = np.array([-0.06, np.sin(np.deg2rad(splay)), np.cos(np.deg2rad(splay))])
    mid = head + [-0.06, 0.42 * hr, 0.62 * hr] + way * 0.85 * ear
    b.add("ears", "body", *mirror_y(blob((0.085, 0.155, ear), mid, (-splay, -3, 0))))
    b.add("inner ears", "skin", *mirror_y(blob((0.06, 0.09, 0.74 * ear), mid + [0.05, 0, 0], (-splay, -3, 0))))
    pair(b, "ear tip", mid + way * ear)
    eyes(b, head, hrad, 0.42 * hr, 0.16 * hr, 0.1, 0.75)
    p = surface(head, hrad, 0, -0.28 * hr)
    b.add("cheeks", "light", *mirror_y(blob((0.1, 0.12, 0.1), p + [0, 0.09, -0.03])))
    b.add("nose", "dark", blob((0.06, 0.075, 0.05), p + [0.09, 0, 0.06]))
    b.add("teeth", "light", box((0.06, 0.13, 0.13), p + [0.05, 0, -0.14]))
    b.point("nose", p + [0.15, 0, 0.06])
    b.add("feet", "body", *mirror_y(blob((0.34, 0.15, 0.12), (0.26, 0.27, 0.12), (0, 0, 8))))
    b.add("haunches", "body", *mirror_y(blob((0.27, 0.17, 0.27), (0, 0.72 * wide, 0.28))))
    pair(b, "foot", (0.6, 0.27 + 0.34 * np.sin(0.14), 0.12))
    arm = np.array([0.5 * wide, 0.62 * wide, 1.35 * tall])
    paw = arm + [0.24, -0.06, u(-0.3, -0.12)]
    b.add("arms", "body", *mirror_y(capsule(arm, paw, 0.1)))
    pair(b, "paw", paw + [0.1, 0, 0])
    b.add("tail", "light", sphere(u(0.14, 0.2), (-wide - 0.02, 0, 0.26), detail=2))
    b.point("top of the head", head + [0, 0, hrad[2]])
    return b


def turtle(rng: Generator) -> Blueprint:
    """A turtle: domed shell with plates, stubby legs, stretched head."""
    u, b = rng.uniform, Blueprint()
    rx, ry, rise, hr, leg = u(0.62, 0.76), u(0.54, 0.64), u(0.42, 0.62), u(0.22, 0.29), u(0.16, 0.26)
    z = leg + 0.08
    dome = lathe([(0, 0), (1, 0), *((np.cos(t), np.sin(t)) for t in np.linspace(0.15, 1.4, 8)), (0, 1)])
    dome = dome.scaled((rx, ry, rise))
    b.add("shell", "body", place(dome, (0, 0, z)))
    b.add("shell rim", "trim", blob((rx + 0.09, ry + 0.09, 0.12), (0, 0, z)))
    sides, k = int(rng.integers(5, 7)), 0
    for t, n in ((90.0, 1), (42.0, sides)):
        for a in np.arange(n) * 2 * np.pi / n + np.pi / n:
            s, e = np.cos(np.deg2rad(t)), np.sin(np.deg2rad(t))
            at = np.array([rx * s * np.cos(a), ry * s * np.sin(a), z + rise * e])
            b.add(f"plate {k}", "trim", blob((0.17, 0.17, 0.06), at, (0, 0.9 * (90 - t), np.rad2deg(a))))
            k += 1
    b.point("shell top", (0, 0, z + rise + 0.06))
    head = np.array([rx + 0.2 + u(0, 0.14), 0, z + u(0.12, 0.42)])
    hrad = np.array([1.15, 1.0, 0.95]) * hr
    b.add("neck", "body", capsule((0.75 * rx, 0, z), head, 0.15))
    b.add("head", "body", ellipsoid(hrad, head))
    eyes(b, head, hrad, 0.55 * hr, 0.36 * hr, 0.1)
    smile = surface(head, hrad, 0, -0.35 * hr)
    b.add("mouth", "dark", blob((0.04, 0.55 * hr, 0.035), smile + [-0.02, 0, 0]))
    b.point("mouth", smile + [0.02, 0, 0])
    for x, where, turn in ((0.58 * rx, "front", 30), (-0.58 * rx, "back", 150)):
        out = np.array([x + 0.12 * np.cos(np.deg2rad(turn)), 0.74 * ry, 0.13])
        b.add(f"{where} legs", "body", *mirror_y(capsule((x, 0.5 * ry, z), out, 0.13)))
        pair(b, f"{where} foot", out + [0, 0, -0.13])
    b.add("tail", "body", cone(0.11, 0.34, (-rx, 0, z - 0.03), (0, -100, 0)))
    b.point("tail tip", (-rx - 0.34 * np.cos(np.deg2rad(10)), 0, z - 0.03 - 0.34 * np.sin(np.deg2rad(10))))
    return b


NOUNS: dict[str, Noun] = {
    "dog": Noun(dog, ("dog", "puppy", "hound"), (0.4, 0.8), "creatures"),
    "cat": Noun(cat, ("cat", "kitten", "kitty"), (0.35, 0.55), "creatures"),
    "duck": Noun(duck, ("duck", "duckling"), (0.3, 0.5), "creatures"),
    "fish": Noun(fish, ("fish", "goldfish"), (0.2, 0.45), "creatures"),
    "elephant": Noun(elephant, ("elephant",), (0.8, 1.6), "creatures"),
    "penguin": Noun(penguin, ("penguin",), (0.5, 1.0), "creatures"),
    "robot": Noun(robot, ("robot", "android"), (0.5, 1.4), "creatures"),
    "snowman": Noun(snowman, ("snowman",), (0.8, 1.6), "creatures"),
    "rabbit": Noun(rabbit, ("rabbit", "bunny", "hare"), (0.35, 0.6), "creatures"),
    "turtle": Noun(turtle, ("turtle", "tortoise"), (0.25, 0.5), "creatures"),
    "owl": Noun(owl, ("owl",), (0.35, 0.65), "creatures"),
}
