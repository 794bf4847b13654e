"""The park bench. Frame: z up, front along +x, left along +y."""

from __future__ import annotations

import numpy as np

from ..parts import Blueprint, bar, box, mirror_y, place
from .solids import badge, corners


def bench(rng: np.random.Generator) -> Blueprint:
    """Park bench with slats, a plaque on the back's front, with or without arms."""
    bp = Blueprint()
    w, d = rng.uniform(2.0, 2.6), rng.uniform(0.75, 0.95)
    z, tall = rng.uniform(0.65, 0.8), rng.uniform(0.75, 0.95)
    lean = rng.uniform(6, 14)
    each = d / int(rng.integers(2, 4))
    xs = np.arange(-0.5 * (d - each), 0.5 * d, each)
    bp.add("seat slats", "body", *(box((each - 0.05, w, 0.14), (x, 0, z), bevel=0.03) for x in xs))
    origin = np.array([-0.5 * d, 0, z])
    high = rng.uniform(0.52, 0.64) * (tall - 0.1)  # the upper of two slats carries the plaque
    at, low = tall - 0.5 * high, tall - 0.1 - high
    slats = [box((0.13, w, high - 0.06), (0, 0, at), bevel=0.03), box((0.13, w, low - 0.06), (0, 0, 0.1 + 0.5 * low))]
    bp.add("back slats", "body", *(place(s, origin, (0, -lean, 0)) for s in slats))
    slot = ("trim", "dark", "metal")[rng.integers(3)]
    y = 0.5 * w - 0.22
    frame = [
        bar((0.5 * d - 0.1, y, 0), (0.5 * d - 0.12, y, z), 0.09, sides=14),
        bar((-0.5 * d, y, 0), (0.1 - 0.5 * d, y, z), 0.09, sides=14),
        box((d - 0.05, 0.14, 0.12), (0, y, z - 0.1)),
        place(box((0.1, 0.15, tall), (-0.08, y, 0.5 * tall)), origin, (0, -lean, 0)),
    ]
    bp.add("frames", slot, *mirror_y(*frame))
    arm = z + 0.38
    if rng.random() < 0.65:
        rest = box((d, 0.16, 0.12), (0.02, 0.5 * w - 0.08, arm), bevel=0.03)
        post = box((0.14, 0.14, arm - z), (0.4 * d, 0.5 * w - 0.08, 0.5 * (z + arm)))
        bp.add("arms", "body", *mirror_y(rest, post))
    angle = np.deg2rad(lean)
    forward = np.array([np.cos(angle), 0, np.sin(angle)])
    upward = np.array([-np.sin(angle), 0, np.cos(angle)])
    spot = origin + 0.065 * forward + at * upward
    plate = box((0.08, rng.uniform(0.62, 0.78), high - 0.1))
    bp.add("plaque", "light", place(plate, spot, (0, -lean, 0)))
    badge(bp, rng, spot + 0.03 * forward, 0.92 * high, lean)
    corners(bp, 0.5 * d - 0.05, 0.5 * w - 0.22, 0.0, "{} foot")
    for s, side in ((1, "left"), (-1, "right")):
        bp.point(f"seat {side} end", (xs[0], s * 0.5 * w, z))
        bp.point(f"back {side} end", origin + at * upward + (0, s * 0.5 * w, 0))
    return bp
