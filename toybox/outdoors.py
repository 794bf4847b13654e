"""What is seen through the windows of lived-in rooms, and the sun that comes in through them.

Metres, z up, in the room's frame. What is outside shines a little of itself: the sky's light on it is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .fixtures import box, moved, muted
from .materials import Look
from .scenes import Panel, Surface
from .walls import wall_frame

REACH_M = 15.0  # half the side of the ground
MASONRY = ("tiles", "plaster", "wood", "paper")
THINGS = ("cloth", "carpet", "plaster", "print")


@dataclass(frozen=True)
class Outdoors:
    """The world around a room."""

    surfaces: tuple[Surface, ...]
    sun_direction: np.ndarray | None  # unit, towards the sun
    sun: np.ndarray  # (3,) irradiance of what faces it
    sky: np.ndarray  # (3,) radiance


def outdoors(
    size: np.ndarray, open_walls: Sequence[int], panels: Sequence[Panel], rng: np.random.Generator
) -> Outdoors:
    """Ground, fronts of houses and things in front of the walls that have openings; often a sun that shines in."""
    power = float(np.median([panel.radiance.mean() for panel in panels]))
    glow = power * float(np.exp(rng.uniform(np.log(0.08), np.log(0.7))))
    drop = 0.02 if rng.random() < 0.5 else float(rng.uniform(2.5, 12.0))
    ground = _outside_look(("carpet", "tiles", "planks", "plaster"), glow, rng)
    middle = np.array([*(0.5 * size[:2]), -drop])
    flat = Surface(
        "outside",
        middle - [REACH_M, REACH_M, 0],
        np.array([2 * REACH_M, 0, 0]),
        np.array([0, 2 * REACH_M, 0]),
        ground,
    )
    surfaces = [flat]
    for wall in open_walls:
        yaw, corner, long = wall_frame(wall, size)
        surfaces += moved(_before(long, glow, rng), yaw, corner - [0, 0, drop])
    direction = None
    if rng.random() < 0.85:
        azimuth = np.deg2rad(wall_frame(int(rng.choice(list(open_walls))), size)[0] - 90.0 + rng.uniform(-65, 65))
        high = np.deg2rad(rng.uniform(15, 55))
        direction = np.array([np.cos(high) * np.cos(azimuth), np.cos(high) * np.sin(azimuth), np.sin(high)])
    warm = np.array([1.0, rng.uniform(0.85, 1.0), rng.uniform(0.65, 1.0)])
    sun = np.pi * power * rng.uniform(0.5, 4.0) * warm
    return Outdoors(tuple(surfaces), direction, sun, np.full(3, power))


def _before(long: float, glow: float, rng: np.random.Generator) -> list[Surface]:
    """In front of one wall, y < 0: perhaps a fence or, farther away, a house, a railing, boxes of any size."""
    out: list[Surface] = []
    if rng.random() < 0.7:
        away, wide = float(np.exp(rng.uniform(np.log(1.2), np.log(12.0)))), float(rng.uniform(4, 25))
        high = float(rng.uniform(0.8, 3.2) if away < 5 else rng.uniform(2.0, 9.0))
        front = box("outside", (-wide / 2, -3, 0), (wide / 2, 0, high), _outside_look(MASONRY, glow, rng))
        out += _clear(moved(front, float(rng.normal(0, 12)), (long * rng.uniform(0, 1), 0, 0)), away)
    if rng.random() < 0.3:
        look, away = _outside_look(("wood", "plaster"), glow, rng), float(rng.uniform(0.7, 2.0))
        out += box("outside", (-1.0, -away - 0.04, 0.95), (long + 1, -away, 1.0), look)
        for x in np.arange(-1.0, long + 1, rng.uniform(0.12, 1.0)):
            out += box("outside", (x, -away - 0.03, 0), (x + 0.03, -away - 0.01, 0.95), look)
    for _ in range(int(rng.integers(0, 6))):
        extent, look = np.exp(rng.normal(-0.3, 0.6, 3)), _outside_look(THINGS, glow, rng)
        one = box("outside", (-extent[0], -extent[1], 0), (extent[0], extent[1], 2 * extent[2]), look)
        one = moved(one, float(rng.uniform(0, 90)), (rng.uniform(-3, long + 3), 0, 0))
        out += _clear(one, float(rng.uniform(1.0, 10.0)))
    return out


def _clear(surfaces: list[Surface], away: float) -> list[Surface]:
    """Shifted so that the nearest corner is `away` from the wall, outside."""
    nearest = max(float(s.corner[1] + max(s.span_u[1], 0) + max(s.span_v[1], 0)) for s in surfaces)
    return moved(surfaces, 0, (0, -away - nearest, 0))


def _outside_look(textures: Sequence[str], glow: float, rng: np.random.Generator) -> Look:
    emission, albedo = glow * float(rng.uniform(0.5, 1.5)), muted(rng, 0.9)
    texture = str(rng.choice(list(textures)))
    return Look(albedo, 0.95, 0.0, texture=texture, phase=float(rng.random()), emission=emission)
