"""Lived-in rooms: fixtures along the walls and on the floor, windows and lamps that light them, things lying about.

Metres, z up, a corner of the room at the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .catalogue import NOUNS
from .fixtures import (
    Style,
    bed,
    bookcase,
    box,
    couch,
    counter,
    cupboard,
    desk,
    draw_style,
    litter,
    moved,
    pick,
    seeded,
    turn_about_z,
)
from .materials import Look
from .objects import ToyObject, build
from .outdoors import outdoors
from .programs import InteriorProgram
from .scenes import Light, Panel, Placed, Scene, Surface, standing
from .walls import Fitted, Opening, door, on_wall, shell, wall_frame, window

Maker = Callable[[float, Style, np.random.Generator], list[Surface]]
ALONG: tuple[tuple[Maker, tuple[float, float], float], ...] = (  # maker, width in metres, weight
    (bookcase, (0.6, 2.4), 0.2),
    (cupboard, (0.5, 2.0), 0.24),
    (desk, (1.1, 2.2), 0.22),
    (counter, (1.5, 3.0), 0.09),
    (couch, (1.2, 2.4), 0.13),
    (lambda wide, style, rng: bed(style, rng), (1.9, 2.0), 0.07),
    (lambda wide, style, rng: [], (0.4, 1.2), 0.05),
)


def interior_scene(program: InteriorProgram, rng: np.random.Generator) -> Scene:
    """The room of a program."""
    size = np.array([rng.uniform(2.6, 7.0), rng.uniform(2.6, 7.0), rng.uniform(2.3, 3.2)])
    style = draw_style(rng)
    surfaces: list[Surface] = []
    panels: list[Panel] = []
    openings: list[tuple[Opening, ...]] = []
    spots: list[np.ndarray] = []
    for wall in range(4):
        fitted, tops = _along(wall, size, style, rng)
        surfaces, panels, spots = [*surfaces, *fitted.surfaces], [*panels, *fitted.panels], spots + tops
        openings.append(fitted.openings)
    surfaces = shell(size, style, openings, rng) + surfaces + _middle(size, style, rng, spots)
    lamps, lamp_surfaces = _lamps(size, rng, bool(panels))
    tint = np.array([1.0, rng.uniform(0.9, 1.0), rng.uniform(0.75, 1.0)])
    light = Light(None, None, np.zeros(3), np.zeros((9, 3)), (*panels, *lamps), rng.uniform(0.1, 0.3) * tint)
    open_walls, background = [wall for wall in range(4) if openings[wall]], np.ones(3)
    if open_walls:
        world = outdoors(size, open_walls, panels, rng)
        surfaces += world.surfaces
        light = replace(light, sun_direction=world.sun_direction, intensity=world.sun, sky=world.sky)
        background = np.ones(3) - rng.uniform(0, 0.5) * np.array([1.0, 0.5, 0.1])
    placed = tuple(_things(program, size, style, spots, rng))
    metres = (float(size[0]), float(size[1]), float(size[2]))
    return Scene(program, placed, light, background, (*surfaces, *lamp_surfaces), metres)


def _along(wall: int, size: np.ndarray, style: Style, rng: np.random.Generator) -> tuple[Fitted, list[np.ndarray]]:
    """What stands at, hangs on and opens one wall, from corner to corner, and places for things."""
    yaw, corner, long = wall_frame(wall, size)
    out: list[Surface] = []
    panels: list[Panel] = []
    holes: list[Opening] = []
    spots: list[np.ndarray] = []
    x = float(rng.uniform(0.02, 0.5))
    weights = np.array([w for *_, w in ALONG])
    while x < long - 0.5:
        if rng.random() < 0.08:
            out += moved(door(size[2], style, rng), 0, (x + 0.45, 0, 0))
            x += 1.0
            continue
        if rng.random() < 0.1 and long - x > 1.2:
            wide = float(rng.uniform(0.9, min(3.2, long - x - 0.2)))
            high = min(float(rng.uniform(2.0, 2.3)), float(size[2]) - 0.05)
            _hang(window(wide, 0.04, high, float(size[2]), style, rng), x + 0.05 + 0.5 * wide, out, panels, holes)
            x += wide + 0.15
            continue
        maker, widths, _ = ALONG[int(rng.choice(len(ALONG), p=weights / weights.sum()))]
        wide = float(min(rng.uniform(*widths), long - x - 0.02))
        if wide < widths[0]:
            x += 0.3
            continue
        made = maker(wide, style, rng)
        out += moved(made, 0, (x + 0.5 * wide, rng.uniform(0.0, 0.04), 0))
        top = max((max(s.corner[2], (s.corner + s.span_u + s.span_v)[2]) for s in made), default=0.0)
        if maker in (desk, cupboard) and top < 1.5:
            spots.append(np.array([x + rng.uniform(0.2, 0.8) * wide, 0.25, min(top, 0.78) if maker is desk else top]))
        if top < 1.25:
            hung = on_wall(wide, max(top, 0.9) + 0.12, float(size[2]), style, rng)
            _hang(hung, x + 0.5 * wide, out, panels, holes)
        x += wide + float(rng.choice([0.01, rng.uniform(0.0, 0.6)]))
    turned = [turn_about_z(yaw) @ s + corner for s in spots]
    shining = tuple(_panel_moved(p, yaw, corner) for p in panels)
    return Fitted(tuple(moved(out, yaw, corner)), shining, tuple(holes)), turned


def _hang(hung: Fitted, x: float, out: list[Surface], panels: list[Panel], holes: list[Opening]) -> None:
    """Adds what is in a piece of wall around x to the wall's lists."""
    out += moved(hung.surfaces, 0, (x, 0, 0))
    panels += [_panel_moved(p, 0.0, np.array([x, 0, 0])) for p in hung.panels]
    holes += [hole.shifted(x) for hole in hung.openings]


def _panel_moved(panel: Panel, yaw_deg: float, at: np.ndarray) -> Panel:
    turn = turn_about_z(yaw_deg)
    return Panel(turn @ panel.corner + at, turn @ panel.span_u, turn @ panel.span_v, panel.radiance)


def _middle(size: np.ndarray, style: Style, rng: np.random.Generator, spots: list[np.ndarray]) -> list[Surface]:
    """Tables, islands of desks and boxes away from the walls, at any angle."""
    out: list[Surface] = []
    for _ in range(int(rng.integers(0, 4))):
        at = np.array([*(size[:2] * rng.uniform(0.25, 0.75, 2)), 0.0])
        yaw = float(rng.choice([0, 90, rng.uniform(0, 360)]))
        kind = rng.random()
        if kind < 0.45:
            wide, high = float(rng.uniform(0.6, 1.8)), float(rng.uniform(0.35, 0.76))
            deep = float(wide * rng.uniform(0.45, 1.0))
            look = pick((style.wood, style.paint, style.dark), rng)
            one = box("furniture", (-wide / 2, -deep / 2, high - 0.035), (wide / 2, deep / 2, high), look)
            for x in (-wide / 2 + 0.03, wide / 2 - 0.08):
                for y in (-deep / 2 + 0.03, deep / 2 - 0.08):
                    one += box("furniture", (x, y, 0), (x + 0.05, y + 0.05, high - 0.035), look)
            one += moved(litter(wide, deep, int(rng.integers(1, 9)), 0.16, style, rng), 0, (0, 0, high))
            spots.append(at + [0, 0, high])
        elif kind < 0.65:
            one = moved(desk(float(rng.uniform(1.1, 2.0)), style, rng), 0, (0, -0.35, 0))
        elif kind < 0.8:
            one = moved(couch(float(rng.uniform(0.8, 2.0)), style, rng), 0, (0, -0.4, 0))
        else:
            one = litter(1.2, 1.2, int(rng.integers(2, 7)), 0.4, style, rng)
        out += moved(one, yaw, at)
    at = np.array([0.5 * size[0], 0.5 * size[1], 0.002])
    return out + moved(litter(0.8 * size[0], 0.8 * size[1], int(rng.integers(0, 9)), 0.2, style, rng), 0, at)


def _lamps(size: np.ndarray, rng: np.random.Generator, daylight: bool) -> tuple[list[Panel], list[Surface]]:
    """One to three panels below the ceiling; few where windows shine."""
    panels: list[Panel] = []
    surfaces: list[Surface] = []
    warm = np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.5, 1.0)])
    for _ in range(int(rng.integers(0, 2) if daylight else rng.integers(1, 4))):
        a, b = rng.uniform(0.15, 1.2), rng.uniform(0.15, 0.6)
        at = np.array([*(size[:2] * rng.uniform(0.2, 0.8, 2)), size[2] - rng.uniform(0.03, 0.5)])
        power = rng.uniform(4, 12) / np.sqrt(a * b)
        corner, u, v = at - [a / 2, b / 2, 0], np.array([0, b, 0]), np.array([a, 0, 0])  # u x v looks down
        glow = Look((0.9, 0.88, 0.85), 0.9, 0.0, emission=float(power))
        surfaces += box("lamp", corner, corner + [a, b, 0.025], glow)
        panels.append(Panel(corner - [0, 0, 0.005], u, v, power * warm))
    return panels, surfaces


def natural(toy: ToyObject, style: Style, rng: np.random.Generator) -> ToyObject:
    """The object in looks of the room instead of its bright ones; sometimes as it is."""
    if rng.random() < 0.25:
        return toy
    body = pick((style.wood, style.paint, style.fabric, style.dark, *style.covers[:12]), rng)
    looks = {"body": seeded(body, rng), "trim": pick((style.wood, style.metal, style.dark), rng)}
    return replace(toy, looks={slot: looks.get(slot, look) for slot, look in toy.looks.items()})


def _things(
    program: InteriorProgram, size: np.ndarray, style: Style, spots: list[np.ndarray], rng: np.random.Generator
) -> list[Placed]:
    """The members: small ones on tables and desks where there are such, the others on the floor."""
    placed: list[Placed] = []
    for member in program.members:
        toy, noun = natural(build(member), style, rng), NOUNS[member.noun]
        small = noun.family != "furniture"
        if small and spots and rng.random() < 0.7:
            at = spots[int(rng.integers(len(spots)))] + [*rng.uniform(-0.2, 0.2, 2), 0]
            height = float(rng.uniform(0.08, 0.4))
        else:
            at = np.array([*(size[:2] * rng.uniform(0.15, 0.85, 2)), 0.0])
            height = float(rng.uniform(*noun.height_m)) if not small else float(rng.uniform(0.15, 0.8))
        extent = np.ptp(toy.vertices, axis=0)
        scale = min(height / extent[2], (0.45 if small and at[2] > 0 else 2.2) / extent.max())
        placed.append(standing(toy, float(scale), at, float(rng.uniform(0, 360))))
    return placed
