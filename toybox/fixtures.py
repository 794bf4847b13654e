"""What stands in lived-in rooms, made of boxes: shelves, cupboards, desks, counters, beds, doors, windows.

Each maker returns surfaces in a frame of its own, metres: x along the wall, y away from it, z up, the middle of its
back at the origin; `moved` puts them into a room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .materials import COLOURS_SRGB, Look, colour_linear, linear_from_srgb
from .scenes import Surface

WOODS_SRGB = ((0.62, 0.45, 0.29), (0.42, 0.27, 0.17), (0.75, 0.6, 0.42), (0.28, 0.19, 0.14), (0.85, 0.76, 0.62))


def box(name: str, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray, look: Look) -> list[Surface]:
    """The six sides of an axis-aligned box, normals outward."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    ex, ey, ez = np.diag(high - low)
    sides = [(low, ey, ex), (low, ex, ez), (low, ez, ey), (low + ez, ex, ey), (low + ey, ez, ex), (low + ex, ey, ez)]
    return [Surface(name, corner, u, v, look) for corner, u, v in sides]


def turn_about_z(yaw_deg: float) -> np.ndarray:
    """Rotation matrix (3, 3)."""
    c, s = np.cos(np.deg2rad(yaw_deg)), np.sin(np.deg2rad(yaw_deg))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def moved(surfaces: Sequence[Surface], yaw_deg: float, at: Sequence[float] | np.ndarray) -> list[Surface]:
    """Turned about z and shifted."""
    turn = turn_about_z(yaw_deg)
    return [
        replace(one, corner=turn @ one.corner + at, span_u=turn @ one.span_u, span_v=turn @ one.span_v)
        for one in surfaces
    ]


@dataclass(frozen=True)
class Style:
    """The looks that one room's things are chosen from."""

    wood: Look
    paint: Look
    fabric: Look
    dark: Look
    metal: Look
    covers: tuple[Look, ...]

    def body(self, rng: np.random.Generator) -> Look:
        """Of a piece of furniture."""
        return (self.wood, self.wood, self.paint, self.dark)[int(rng.integers(4))]


def seeded(look: Look, rng: np.random.Generator) -> Look:
    """The look with a grain of its own."""
    return replace(look, phase=float(rng.random()))


def muted(rng: np.random.Generator, most: float = 0.6) -> tuple[float, float, float]:
    """A colour of paint or cloth, linear: mostly towards grey."""
    names = tuple(COLOURS_SRGB)
    colour = colour_linear(names[int(rng.integers(len(names)))])
    grey = linear_from_srgb(np.full(3, rng.uniform(0.15, 0.95)) + rng.uniform(-0.05, 0.05, 3))
    share = rng.uniform(0, most) ** 1.5
    r, g, b = np.clip(share * colour + (1 - share) * grey, 0.01, 0.9)
    return float(r), float(g), float(b)


def wood(rng: np.random.Generator) -> Look:
    """Varnished or raw wood."""
    tone = linear_from_srgb(np.array(WOODS_SRGB[int(rng.integers(len(WOODS_SRGB)))]) * rng.uniform(0.8, 1.15))
    r, g, b = np.clip(tone, 0, 0.9)
    return Look((float(r), float(g), float(b)), float(rng.uniform(0.25, 0.8)), 0.0, texture="wood", phase=rng.random())


def draw_style(rng: np.random.Generator) -> Style:
    """Looks that go together by chance."""
    covers = [Look(muted(rng, 1.0), float(rng.uniform(0.3, 0.9)), 0.0) for _ in range(12)]
    covers += [Look(muted(rng), 0.6, 0.0, texture="print", phase=float(rng.random())) for _ in range(6)]
    pale = linear_from_srgb(np.full(3, rng.uniform(0.75, 0.95)))
    return Style(
        wood(rng),
        Look(tuple(pale) if rng.random() < 0.5 else muted(rng), float(rng.uniform(0.3, 0.9)), 0.0),
        Look(muted(rng), 0.95, 0.0, texture="cloth", phase=float(rng.random())),
        Look(tuple(np.full(3, rng.uniform(0.015, 0.08))), float(rng.uniform(0.15, 0.6)), 0.0),
        Look(tuple(np.full(3, rng.uniform(0.4, 0.7))), 0.3, 1.0),
        tuple(covers),
    )


def pick(looks: Sequence[Look], rng: np.random.Generator) -> Look:
    """One of them."""
    return looks[int(rng.integers(len(looks)))]


def row_of_books(wide: float, high: float, deep: float, style: Style, rng: np.random.Generator) -> list[Surface]:
    """Books and boxes on a board from x = 0 to `wide`, their backs to the viewer; some space stays empty."""
    out: list[Surface] = []
    x, end = 0.0, wide * rng.uniform(0.4, 1.0)
    while x < end - 0.06:
        thick, tall = rng.uniform(0.015, 0.055), high * rng.uniform(0.55, 0.92)
        if rng.random() < 0.08:
            thick, tall = min(rng.uniform(0.1, 0.35), end - x), high * rng.uniform(0.3, 0.8)
        front = deep * rng.uniform(0.7, 0.98)
        out += box("book", (x, 0.02, 0), (min(x + thick, end), front, tall), pick(style.covers, rng))
        x += thick + (rng.uniform(0.02, 0.2) if rng.random() < 0.07 else 0.001)
    return out


def bookcase(wide: float, style: Style, rng: np.random.Generator) -> list[Surface]:
    """Shelves full of books, 0.8-2.2 m high."""
    high, deep, thick = rng.uniform(0.8, 2.2), rng.uniform(0.24, 0.4), 0.022
    look, half = seeded(style.body(rng), rng), 0.5 * wide
    out = box("furniture", (-half, 0, 0), (half, 0.015, high), look)
    uprights = max(round(wide / rng.uniform(0.6, 1.0)), 1)
    for k in range(uprights + 1):
        x = -half + k * (wide - thick) / uprights
        out += box("furniture", (x, 0, 0), (x + thick, deep, high), look)
    levels = max(int(high / rng.uniform(0.27, 0.42)), 2)
    gap = high / levels
    for level in range(levels + 1):
        z = min(level * gap, high - thick)
        out += box("furniture", (-half, 0, z), (half, deep, z + thick), look)
        if level == levels:
            break
        for k in range(uprights):
            if rng.random() < 0.85:
                books = row_of_books(wide / uprights - 2 * thick, gap - thick, deep, style, rng)
                out += moved(books, 0, (-half + k * (wide - thick) / uprights + thick, 0, z + thick))
    return out + moved(litter(wide, deep, int(rng.integers(0, 4)), 0.16, style, rng), 0, (0, 0.5 * deep, high))


def cupboard(wide: float, style: Style, rng: np.random.Generator, high: float | None = None) -> list[Surface]:
    """Doors and drawers with handles; things stand on a low one."""
    high = float(rng.uniform(0.45, 2.2) if high is None else high)
    deep, look = float(rng.uniform(0.35, 0.62)), seeded(style.body(rng), rng)
    half = 0.5 * wide
    out = box("furniture", (-half, 0, 0.06), (half, deep, high), look)
    columns, rows = max(int(wide / rng.uniform(0.35, 0.7)), 1), int(rng.integers(1, max(int(high / 0.22), 2)))
    front = look if rng.random() < 0.7 else seeded(style.body(rng), rng)
    for i in range(columns):
        for j in range(rows):
            a, b = -half + i * wide / columns + 0.008, -half + (i + 1) * wide / columns - 0.008
            c, d = 0.07 + j * (high - 0.08) / rows + 0.006, 0.07 + (j + 1) * (high - 0.08) / rows - 0.006
            out += box("furniture", (a, deep, c), (b, deep + 0.018, d), front)
            middle, up = 0.5 * (a + b), d - 0.06 if rows > 1 else 0.5 * (c + d)
            out += box(
                "handle", (middle - 0.05, deep + 0.018, up), (middle + 0.05, deep + 0.04, up + 0.012), style.metal
            )
    if high < 1.4:
        out += moved(litter(wide, deep, int(rng.integers(1, 7)), 0.2, style, rng), 0, (0, 0.5 * deep, high))
    return out


def litter(wide: float, deep: float, count: int, size: float, style: Style, rng: np.random.Generator) -> list[Surface]:
    """Packets, books and sheets lying about on a rectangle around the origin."""
    out: list[Surface] = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.3:  # a sheet
            a, b, high = 0.15 * rng.uniform(0.7, 1.6), 0.21 * rng.uniform(0.7, 1.6), 0.003
            look = Look(tuple(np.full(3, rng.uniform(0.5, 0.85))), 0.8, 0.0)
        else:
            a, b, high = size * np.exp(rng.normal(-0.2, 0.5, 3))
            high *= 0.3 if kind < 0.6 else 1.0
            look = pick(style.covers, rng)
        a, b = min(a, 0.7 * wide), min(b, 0.7 * deep)
        at = (rng.uniform(-0.5, 0.5) * (wide - a), rng.uniform(-0.5, 0.5) * (deep - b), 0.0)
        stacked = int(rng.integers(2, 6)) if kind > 0.85 and high < 0.12 else 1
        for level in range(stacked):
            yaw = rng.normal(0, 25) if level == 0 else rng.normal(0, 8)
            one = box("litter", (-a / 2, -b / 2, 0), (a / 2, b / 2, high * 0.97), look)
            out += moved(one, float(yaw), (at[0], at[1], level * high))
            look = pick(style.covers, rng)
    return out


def screen(style: Style, rng: np.random.Generator) -> list[Surface]:
    """A monitor on its foot, 0.35-0.7 m wide, around the origin, looking along +y."""
    half, high, up = 0.5 * rng.uniform(0.35, 0.7), rng.uniform(0.25, 0.4), rng.uniform(0.08, 0.16)
    out = box("screen", (-half, -0.02, up), (half, 0.02, up + high), style.dark)
    shown = Look(
        (0.3, 0.3, 0.32), 0.15, 0.0, texture="print", phase=float(rng.random()), emission=float(rng.uniform(0, 1.5))
    )
    shown = style.dark if rng.random() < 0.4 else shown
    corner, u, v = (
        np.array(x, float) for x in ((-half + 0.015, 0.0205, up + 0.02), (0, 0, high - 0.035), (2 * half - 0.03, 0, 0))
    )
    out.append(Surface("screen", corner, u, v, shown))
    out += box("screen", (-0.03, -0.05, 0), (0.03, -0.02, up + 0.1), style.dark)
    return out + box("screen", (-0.12, -0.1, 0), (0.12, 0.08, 0.012), style.dark)


def desk(wide: float, style: Style, rng: np.random.Generator) -> list[Surface]:
    """A desk in use: screens, keyboard, papers; drawers or legs below."""
    high, deep, look = rng.uniform(0.68, 0.78), rng.uniform(0.55, 0.9), seeded(style.body(rng), rng)
    half, frame = 0.5 * wide, style.metal if rng.random() < 0.4 else look
    out = box("furniture", (-half, 0, high - 0.03), (half, deep, high), look)
    for x in (-half + 0.02, half - 0.07):
        for y in (0.03, deep - 0.08):
            out += box("furniture", (x, y, 0), (x + 0.05, y + 0.05, high - 0.03), frame)
    if rng.random() < 0.5:
        chest = cupboard(0.42, style, rng, high - 0.05)
        out += moved(chest, 0, (rng.choice([-1, 1]) * (half - 0.23), 0.02, 0))
    for _ in range(int(rng.integers(0, 3))):
        at = (rng.uniform(-0.6, 0.6) * half, rng.uniform(0.15, 0.35) * deep, high)
        out += moved(screen(style, rng), float(rng.normal(0, 12)), at)
    board = box("litter", (-0.21, -0.07, 0), (0.21, 0.07, 0.02), pick((style.dark, style.paint), rng))
    out += moved(board, float(rng.normal(0, 6)), (rng.uniform(-0.3, 0.3) * half, 0.7 * deep, high))
    return out + moved(litter(wide, deep, int(rng.integers(3, 14)), 0.14, style, rng), 0, (0, 0.5 * deep, high))


def counter(wide: float, style: Style, rng: np.random.Generator) -> list[Surface]:
    """A kitchen: cupboards under a top, tiles above, more cupboards on the wall."""
    out = cupboard(wide, style, rng, 0.86)
    top = Look(muted(rng), 0.3, 0.0, texture=str(rng.choice(["marble", "wood"])), phase=float(rng.random()))
    half = 0.5 * wide
    out += box("furniture", (-half, 0, 0.86), (half, 0.66, 0.9), top)
    tiles = Look(muted(rng, 0.3), 0.25, 0.0, texture="tiles", phase=float(rng.random()))
    out += box("furniture", (-half, 0, 0.9), (half, 0.012, 1.45), tiles)
    out += moved(litter(wide, 0.6, int(rng.integers(3, 11)), 0.16, style, rng), 0, (0, 0.33, 0.9))
    if rng.random() < 0.7:
        out += moved(cupboard(wide, style, rng, 0.7), 0, (0, 0, 1.45))
    return out


def bed(style: Style, rng: np.random.Generator) -> list[Surface]:
    """Head to the wall; 0.9-1.8 m wide."""
    half, long, high = 0.5 * rng.uniform(0.9, 1.8), rng.uniform(1.9, 2.1), rng.uniform(0.35, 0.6)
    out = box("furniture", (-half, 0, 0), (half, 0.06, high + rng.uniform(0.2, 0.7)), seeded(style.body(rng), rng))
    out += box("furniture", (-half, 0.06, 0), (half, long, high - 0.15), seeded(style.body(rng), rng))
    sheet = Look(muted(rng), 0.95, 0.0, texture="cloth", phase=float(rng.random()))
    out += box("furniture", (-half + 0.02, 0.07, high - 0.15), (half - 0.02, long - 0.02, high), sheet)
    cover = rng.uniform(0.4, 0.8)
    out += box(
        "furniture", (-half - 0.01, long * (1 - cover), high - 0.3), (half + 0.01, long, high + 0.05), style.fabric
    )
    for x in (-half / 2, half / 2) if half > 0.6 else (0.0,):
        pillow = box("litter", (-0.3, -0.2, 0), (0.3, 0.2, 0.12), pick((sheet, style.fabric, style.paint), rng))
        out += moved(pillow, float(rng.normal(0, 8)), (x, 0.32, high))
    return out


def couch(wide: float, style: Style, rng: np.random.Generator) -> list[Surface]:
    """A sofa of blocks with cushions."""
    half, deep, seat = 0.5 * wide, rng.uniform(0.75, 1.0), rng.uniform(0.36, 0.46)
    arm, back = rng.uniform(0.1, 0.25), rng.uniform(0.65, 0.95)
    look = style.fabric if rng.random() < 0.6 else Look(muted(rng), 0.95, 0.0, texture="cloth", phase=rng.random())
    out = box("furniture", (-half, 0, 0.05), (half, deep, seat - 0.12), look)
    out += box("furniture", (-half, 0, 0.05), (half, 0.2, back), look)
    for x in (-half, half - arm):
        out += box("furniture", (x, 0, 0.05), (x + arm, deep, seat + rng.uniform(0.12, 0.25)), look)
    inner, places = wide - 2 * arm, max(round((wide - 2 * arm) / 0.65), 1)
    for k in range(places):
        a = -half + arm + k * inner / places
        out += box("furniture", (a + 0.005, 0.18, seat - 0.12), (a + inner / places - 0.005, deep + 0.02, seat), look)
    for _ in range(int(rng.integers(0, 5))):
        cushion = box("litter", (-0.22, -0.06, 0), (0.22, 0.06, 0.4), pick((*style.covers[:6], style.fabric), rng))
        out += moved(cushion, float(rng.normal(0, 15)), (rng.uniform(-0.4, 0.4) * inner, 0.28, seat))
    return out
