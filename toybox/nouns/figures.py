"""Upright figures (penguin, robot, snowman, owl) and the face helpers all creatures share."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import Generator

from ..parts import (
    Blueprint,
    Vec,
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
    sphere,
)
from ..solid import Solid


@lru_cache(maxsize=1)
def _unit_blob() -> Solid:
    """The unit ball as 12 meridians and 6 bands."""
    turn = np.linspace(0.0, np.pi, 7)
    radius = np.sin(turn)
    radius[[0, -1]] = 0.0
    return lathe(np.stack([radius, -np.cos(turn)], -1), sides=12)


def blob(radii: Vec, at: Vec = (0, 0, 0), rotate: Vec = (0, 0, 0)) -> Solid:
    """A coarse ellipsoid (120 faces) for small parts."""
    return place(_unit_blob().scaled(radii), at, rotate)


def surface(centre: Vec, radii: Vec, dy: float, dz: float, side: int = 1) -> np.ndarray:
    """The point of an ellipsoid's front (side=1) or back (-1) at offsets (dy, dz) from its centre."""
    rest = max(0.0, 1.0 - (dy / radii[1]) ** 2 - (dz / radii[2]) ** 2)
    return np.asarray(centre, float) + [side * radii[0] * np.sqrt(rest), dy, dz]


def eyes(b: Blueprint, centre: Vec, radii: Vec, dy: float, dz: float, size: float, pupil: float = 0.6) -> None:
    """Two white eyes with dark pupils on the front of a head ellipsoid, and their keypoints."""
    p = surface(centre, radii, dy, dz)
    b.add("eyes", "light", *mirror_y(blob((0.5 * size, size, size), p)))
    at = p + [0.35 * size, 0, 0]
    b.add("pupils", "dark", *mirror_y(blob((0.36 * size, pupil * size, pupil * size), at)))
    b.point("left eye", at + [0.36 * size, 0, 0])
    b.point("right eye", (at + [0.36 * size, 0, 0]) * [1, -1, 1])


def pair(b: Blueprint, name: str, xyz: Vec) -> None:
    """Keypoints "left <name>" at xyz and "right <name>" at its mirror image."""
    b.point(f"left {name}", xyz)
    b.point(f"right {name}", np.asarray(xyz, float) * [1, -1, 1])


def unit(v: np.ndarray) -> np.ndarray:
    """v / |v|."""
    return v / np.linalg.norm(v)


def penguin(rng: Generator) -> Blueprint:
    """A penguin: upright egg with a white belly, flippers, beak and webbed feet."""
    u, b = rng.uniform, Blueprint()
    radii, hr = np.array([u(0.4, 0.48), u(0.42, 0.52), u(0.6, 0.78)]), u(0.32, 0.4)
    spread, beak = u(14, 40), u(0.16, 0.28)
    c = np.array([0, 0, radii[2] + 0.06])
    b.add("torso", "body", ellipsoid(radii, c))
    b.add("belly", "light", ellipsoid(radii * [0.6, 0.68, 0.7], c + [0.46 * radii[0], 0, -0.1], (0, -4, 0)))
    head, hrad = c + [0.06, 0, radii[2] + 0.35 * hr], np.array([hr, 1.04 * hr, hr])
    b.add("head", "body", ellipsoid(hrad, head))
    b.add("face", "light", *mirror_y(blob(hrad * [0.45, 0.4, 0.45], head + [0.6 * hr, 0.34 * hr, 0.05])))
    eyes(b, head, hrad * 1.06, 0.36 * hr, 0.18 * hr, 0.09, 0.8)
    p = head + [0.9 * hr, 0, -0.15 * hr]
    b.add("beak", "accent", cone(0.13, beak + 0.1, p, (0, 97, 0)))
    b.point("beak tip", p + (beak + 0.1) * np.array([np.sin(np.deg2rad(97)), 0, np.cos(np.deg2rad(97))]))
    shoulder = c + [0, 0.86 * radii[1], 0.42 * radii[2]]
    reach = u(0.5, 0.62) * np.array([0, np.sin(np.deg2rad(spread)), -np.cos(np.deg2rad(spread))])
    flipper = blob((0.17, 0.08, 0.36), shoulder + 0.55 * reach, (spread, 0, 0))
    b.add("flippers", "body", *mirror_y(flipper))
    pair(b, "flipper tip", shoulder + 0.55 * reach + 0.36 * unit(reach))
    b.add("feet", "accent", *mirror_y(blob((0.26, 0.17, 0.07), (0.28, 0.22, 0.07), (0, 0, 12))))
    pair(b, "foot", (0.28 + 0.26 * np.cos(0.21), 0.22 + 0.26 * np.sin(0.21), 0.07))
    b.add("tail", "trim", cone(0.16, 0.36, (-0.8 * radii[0], 0, 0.26), (0, -115, 0)))
    if u() < 0.5:
        r = 0.86 * hr
        ring = [(0, -0.1), (r, -0.1), (r + 0.1, -0.03), (r + 0.1, 0.03), (r, 0.1), (0, 0.1)]
        b.add("scarf", "trim", lathe(ring, c + [0.04, 0, 0.86 * radii[2]]))
    b.point("top of the head", head + [0, 0, hr])
    b.point("belly", c + [1.06 * radii[0], 0, -0.1])
    return b


def robot(rng: Generator) -> Blueprint:
    """A toy robot: box torso with a dial, screen face, antennas, claw arms."""
    u, b = rng.uniform, Blueprint()
    w, d, h, leg = u(0.7, 0.95), u(0.5, 0.66), u(0.65, 0.9), u(0.26, 0.42)
    hw, hh, z = u(0.5, 0.75), u(0.42, 0.55), leg + h / 2
    b.add("torso", "body", box((d, w, h), (0, 0, z), bevel=0.06))
    style = str(rng.choice(["box", "round"]))
    top = leg + h + 0.1 + hh / 2
    b.add("neck", "metal", cylinder(0.15, 0.2, (0, 0, leg + h + 0.05)))
    front = 0.5 * d if style == "box" else 0.5 * hw
    if style == "box":
        b.add("head", "body", box((d, hw, hh), (0, 0, top), bevel=0.06))
    else:
        b.add(
            "head",
            "body",
            lathe(
                [(0, -hh / 2), (hw / 2, -hh / 2), (hw / 2, 0.15 * hh), (0.36 * hw, 0.42 * hh), (0, hh / 2)], (0, 0, top)
            ),
        )
    b.add("screen", "dark", box((0.16, 0.78 * hw, 0.6 * hh), (front - 0.05, 0, top - 0.02), bevel=0.03))
    eye = (front + 0.03, 0.19 * hw, top + 0.04)
    b.add("eyes", "lamp", *mirror_y(cylinder(0.125 * hw, 0.1, eye, (0, 90, 0))))
    pair(b, "eye", np.add(eye, [0.05, 0, 0]))
    b.add("mouth", "light", box((0.1, 0.36 * hw, 0.055), (front + 0.02, 0, top - 0.2 * hh)))
    for k, y in enumerate(((0.0,), (0.17, -0.17))[int(rng.integers(2))]):
        b.add(f"antenna {k}", "metal", bar((0, y, top + 0.4 * hh), (0, 1.5 * y, top + 0.5 * hh + 0.22), 0.035))
        b.add(f"antenna ball {k}", "trim", sphere(0.085, (0, 1.5 * y, top + 0.5 * hh + 0.25), detail=2))
        b.point(("antenna", "right antenna")[k], (0, 1.5 * y, top + 0.5 * hh + 0.335))
    b.add("ears", "trim", *mirror_y(cylinder(0.1, 0.1, (0, hw / 2 + 0.03, top), (90, 0, 0))))
    b.add("panel", "light", box((0.08, 0.55 * w, 0.42 * h), (d / 2, 0, z + 0.06), bevel=0.02))
    b.add("dial", "dark", cylinder(0.13 * h, 0.08, (d / 2 + 0.03, -0.1 * w, z + 0.06), (0, 90, 0)))
    b.add("button", "signal", cylinder(0.06, 0.08, (d / 2 + 0.03, 0.16 * w, z + 0.06), (0, 90, 0)))
    b.point("chest", (d / 2 + 0.04, 0, z + 0.06 + 0.19 * h))
    lift, shoulder = u(-0.35, 0.35), np.array([0, w / 2 + 0.1, leg + h - 0.16])
    elbow = shoulder + [0.0, 0.12, -0.3]
    hand = elbow + [0.3, 0, lift]
    b.add("shoulders", "metal", *mirror_y(sphere(0.13, shoulder, detail=2)))
    b.add("arms", "body", *mirror_y(capsule(shoulder, elbow, 0.1), capsule(elbow, hand, 0.1)))
    b.add("hands", "trim", *mirror_y(sphere(0.15, hand, detail=2)))
    pair(b, "hand", hand + [0.15, 0, 0])
    b.add("legs", "body", *mirror_y(box((0.26, 0.24, leg + 0.1), (0, 0.25 * w, leg / 2 + 0.05), bevel=0.03)))
    b.add("feet", "trim", *mirror_y(box((0.5, 0.3, 0.17), (0.08, 0.25 * w, 0.085), bevel=0.05)))
    pair(b, "foot", (0.33, 0.25 * w, 0.085))
    return b


def snowman(rng: Generator) -> Blueprint:
    """A snowman: stacked balls, hat, carrot nose, buttons, stick arms, scarf."""
    u, b = rng.uniform, Blueprint()
    big, ratio, count = u(0.5, 0.58), u(0.7, 0.8), int(rng.integers(2, 4))
    z, r, prev = 0.88 * big, big, 0.0
    names = ("bottom", "middle")
    for k in range(count - 1):
        if k:
            z, r = z + 0.72 * (prev + ratio * prev), ratio * prev
        b.add(f"{names[k]} ball", "body", ellipsoid((r, r, 0.92 * r), (0, 0, z)))
        prev = r
    hr = max(ratio * prev, 0.34)
    head = np.array([0, 0, z + 0.8 * (prev + 0.9 * hr)])
    b.add("head", "body", sphere(hr, head))
    for k, dz in enumerate((0.42, 0.02, -0.36)):
        p = surface((0, 0, z), (r, r, 0.92 * r), 0, dz * r)
        b.add(f"button {k}", "dark", blob((0.075, 0.075, 0.075), p))
        b.point(f"button {k + 1}", p + 0.075 * unit(p - [0, 0, z]))
    eye = surface(head, (hr, hr, hr), 0.38 * hr, 0.28 * hr)
    b.add("eyes", "dark", *mirror_y(blob((0.075, 0.075, 0.075), eye)))
    pair(b, "eye", eye + [0.075, 0, 0])
    nose, way = u(0.3, 0.46), (0, 92, 0)
    b.add("carrot", "accent", cone(0.1, nose, head + [0.85 * hr, 0, -0.05], way))
    b.point("nose tip", head + [0.85 * hr + nose, 0, -0.05 - 0.035 * nose])
    scarf = head[2] - 0.78 * hr
    b.add(
        "scarf",
        "trim",
        lathe(
            [
                (0, -0.1),
                (0.72 * hr, -0.1),
                (0.72 * hr + 0.1, -0.03),
                (0.72 * hr + 0.1, 0.03),
                (0.72 * hr, 0.1),
                (0, 0.1),
            ],
            (0, 0, scarf),
        ),
    )
    b.add("scarf end", "trim", box((0.1, 0.16, 0.4), (0.86 * r, 0.28 * hr + 0.06, scarf - 0.2), (8, -14, 0), 0.02))
    brim, crown, top = 0.8 * hr, u(0.24, 0.42), head[2] + 0.74 * hr
    if u() < 0.6:
        b.add("hat brim", "dark", cylinder(brim + 0.06, 0.08, (0, 0, top)))
        b.add("hat crown", "dark", cylinder(0.68 * brim, crown, (0, 0, top + crown / 2)))
        b.add("hat band", "trim", cylinder(0.71 * brim, 0.1, (0, 0, top + 0.08)))
        b.point("hat top", (0, 0, top + crown))
    else:
        b.add("wool hat", "trim", cone(0.86 * hr, crown + 0.1, (0, 0, top - 0.16), top=0.18))
        b.add("bobble", "light", sphere(0.13, (0, 0, top + crown), detail=2))
        b.point("hat top", (0, 0, top + crown + 0.13))
    shoulder, up = np.array([0, 0.85 * r, z + 0.25 * r]), u(0.05, 0.4)
    hand = shoulder + [0.1, 0.5, up]
    b.add(
        "arms",
        "wood",
        *mirror_y(
            bar(shoulder, hand, 0.05, 0.04),
            bar(hand * 0.8 + shoulder * 0.2, hand + [0.05, -0.06, 0.17], 0.035),
            bar(hand * 0.8 + shoulder * 0.2, hand + [0.05, 0.14, -0.02], 0.035),
        ),
    )
    pair(b, "hand", hand)
    return b


def owl(rng: Generator) -> Blueprint:
    """An owl: barrel body, ear tufts, huge ringed eyes, small beak, folded wings."""
    u, b = rng.uniform, Blueprint()
    radii, perch = np.array([u(0.4, 0.47), u(0.48, 0.56), u(0.62, 0.76)]), u() < 0.5
    tuft, eye = u(0.16, 0.3), u(0.17, 0.21)
    c = np.array([0, 0, radii[2] + (0.16 if perch else 0.06)])
    b.add("torso", "body", ellipsoid(radii, c))
    head, hrad = c + [0.02, 0, 0.62 * radii[2]], np.array([1.0, 1.02, 0.62]) * [radii[0], radii[1], radii[2]]
    b.add("head", "body", ellipsoid(hrad, head))
    base = head + [0, 0.55 * radii[1], 0.3 * radii[2]]
    tip = base + [0.02, 0.16, 0.2 + tuft]
    corners = [base + [0.16, 0, 0], base + [-0.16, 0, 0], base + [0, 0.17, -0.2], base + [0, -0.3, 0.05]]
    b.add("ear tufts", "body", *mirror_y(hull(np.array([*corners, tip + [0.03, 0, 0], tip - [0.03, 0, 0]]))))
    pair(b, "ear tuft", tip)
    p = surface(head, hrad, 0.36 * radii[1], 0.05)
    ring = p + [0.02, 0, 0]
    b.add("eye discs", "light", *mirror_y(cylinder(eye, 0.16, ring, (0, 90, 0))))
    b.add("eye rings", "accent", *mirror_y(cylinder(0.66 * eye, 0.2, ring + [0.01, 0, 0], (0, 90, 0))))
    b.add("pupils", "dark", *mirror_y(cylinder(0.46 * eye, 0.24, ring + [0.02, 0, 0], (0, 90, 0))))
    pair(b, "eye", ring + [0.14, 0, 0])
    q = surface(head, hrad, 0, -0.1)
    b.add(
        "beak",
        "accent",
        hull(
            np.array(
                [q + [0, 0.08, 0.06], q + [0, -0.08, 0.06], q + [0.13, 0, 0.02], q + [0.13, 0, -0.17], q + [0, 0, -0.1]]
            )
        ),
    )
    b.point("beak tip", q + [0.13, 0, -0.17])
    for k, (dy, dz) in enumerate(((0.15, -0.2), (-0.15, -0.2), (0.0, -0.36))):
        s = surface(c, radii, dy, dz * radii[2] / 0.7)
        b.add(f"feather {k}", "light", blob((0.045, 0.085, 0.06), s))
    wing = c + [-0.06, 0.94 * radii[1], -0.06]
    b.add("wings", "trim", *mirror_y(blob((0.3, 0.11, u(0.42, 0.54)), wing, (u(4, 14), 12, 0))))
    pair(b, "wing", wing + [0, 0.11, 0])
    b.add("tail", "trim", box((0.12, 0.36, 0.36), (-0.8 * radii[0], 0, c[2] - 0.8 * radii[2]), (0, 32, 0), 0.04))
    foot = (0.24, 0.2, c[2] - radii[2] + 0.02)
    b.add("feet", "accent", *mirror_y(blob((0.2, 0.14, 0.07), foot)))
    pair(b, "foot", np.add(foot, [0.2, 0, 0]))
    if perch:
        b.add("perch", "wood", cylinder(0.11, 1.2, (0.1, 0, 0.11), (90, 0, 0)))
        pair(b, "perch end", (0.1, 0.6, 0.11))
    b.point("top of the head", head + [0, 0, hrad[2]])
    return b
