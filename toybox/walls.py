"""The shell of a lived-in room and what is in its walls: windows that shine or open, doors, posters, shelves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .fixtures import Style, box, litter, moved, muted, seeded, wood
from .materials import Look
from .scenes import Panel, Surface


@dataclass(frozen=True)
class Opening:
    """A hole in a wall, metres: along the wall from its corner, and up."""

    left: float
    right: float
    low: float
    high: float

    def shifted(self, x: float) -> Opening:
        """Farther along the wall."""
        return replace(self, left=self.left + x, right=self.right + x)


@dataclass(frozen=True)
class Fitted:
    """What is in or on a piece of wall: surfaces, windows that shine, holes."""

    surfaces: tuple[Surface, ...] = ()
    panels: tuple[Panel, ...] = ()
    openings: tuple[Opening, ...] = ()


def wall_frame(wall: int, size: np.ndarray) -> tuple[float, np.ndarray, float]:
    """(yaw, corner, length): a frame with x along the wall from its corner, y into the room."""
    x, y = float(size[0]), float(size[1])
    corners = ((0.0, 0.0), (x, 0.0), (x, y), (0.0, y))
    return 90.0 * wall, np.array([*corners[wall], 0.0]), (x, y, x, y)[wall]


def _wall_look(rng: np.random.Generator, pale: bool = True) -> Look:
    texture = str(rng.choice(["plaster", "paper", "tiles", "wood"], p=[0.7, 0.16, 0.06, 0.08]))
    if texture == "wood":
        return wood(rng)
    r, g, b = (0.5 * c + 0.4 if pale and rng.random() < 0.7 else c for c in muted(rng, 0.5))
    rough = 0.3 if texture == "tiles" else 0.95
    return Look((r, g, b), rough, 0.0, texture=texture, phase=float(rng.random()))


def _floor_look(rng: np.random.Generator) -> Look:
    texture = str(rng.choice(["planks", "carpet", "tiles", "marble"], p=[0.45, 0.3, 0.17, 0.08]))
    if texture == "planks":
        return replace(wood(rng), texture="planks")
    rough = 0.95 if texture == "carpet" else float(rng.uniform(0.1, 0.5))
    return Look(muted(rng, 0.5), rough, 0.0, texture=texture, phase=float(rng.random()))


def wall_around(openings: Sequence[Opening], long: float, high: float, look: Look) -> list[Surface]:
    """A wall of that length and height with holes that do not overlap along it, in its frame, facing +y."""
    out: list[Surface] = []

    def piece(left: float, right: float, low: float, top: float) -> None:
        if right > left and top > low:
            up, along = np.array([0, 0, top - low]), np.array([right - left, 0, 0])
            out.append(Surface("wall", np.array([left, 0, low]), up, along, look))

    x = 0.0
    for hole in sorted(openings, key=lambda one: one.left):
        piece(x, hole.left, 0.0, high)
        piece(hole.left, hole.right, 0.0, hole.low)
        piece(hole.left, hole.right, hole.high, high)
        x = hole.right
    piece(x, long, 0.0, high)
    return out


def shell(
    size: np.ndarray, style: Style, openings: Sequence[Sequence[Opening]], rng: np.random.Generator
) -> list[Surface]:
    """Floor, ceiling, walls with their openings, skirting, perhaps a column, and rugs."""
    (x, y, z), o = size, np.zeros(3)
    ex, ey, ez = np.diag(size)
    wall, white = _wall_look(rng), Look((0.82, 0.82, 0.8), 0.95, 0.0, texture="plaster", phase=float(rng.random()))
    looks = [wall if rng.random() < 0.6 else _wall_look(rng) for _ in range(4)]
    surfaces = [
        Surface("floor", o, ex, ey, _floor_look(rng)),
        Surface("ceiling", ez, ey, ex, white if rng.random() < 0.85 else _wall_look(rng)),
    ]
    for wall_index, holes in enumerate(openings):
        yaw, corner, long = wall_frame(wall_index, size)
        surfaces += moved(wall_around(holes, long, float(z), looks[wall_index]), yaw, corner)
    if rng.random() < 0.6:
        for wall_index in range(4):
            yaw, corner, long = wall_frame(wall_index, size)
            surfaces += moved(box("skirting", (0, 0, 0), (long, 0.014, 0.09), style.paint), yaw, corner)
    if rng.random() < 0.25:
        a, b = rng.uniform(0.2, 0.6, 2)
        at = np.array([rng.choice([0, x - a]), rng.choice([0, y - b])])
        surfaces += box("column", (*at, 0), (*(at + [a, b]), z), looks[0])
    for level in range(int(rng.integers(0, 3))):
        a, b = rng.uniform(0.6, 0.7 * x), rng.uniform(0.6, 0.7 * y)
        rug = Look(
            muted(rng, 1.0), 0.95, 0.0, texture=str(rng.choice(["carpet", "print", "cloth"])), phase=rng.random()
        )
        flat = box("rug", (-a / 2, -b / 2, 0), (a / 2, b / 2, 0.008 + 0.006 * level), rug)
        at = np.array([x * rng.uniform(0.35, 0.65), y * rng.uniform(0.35, 0.65), 0.0])
        surfaces += moved(flat, float(rng.choice([0, rng.uniform(-25, 25)])), at)
    return surfaces


def on_wall(wide: float, low: float, top: float, style: Style, rng: np.random.Generator) -> Fitted:
    """A window with curtains, posters, shelves or nothing, between the heights `low` and `top`."""
    kind, room = rng.random(), top - low - 0.15
    if room < 0.35:
        return Fitted()
    if kind < 0.4:
        return window(min(wide, rng.uniform(0.7, 2.4)), low, low + room * rng.uniform(0.75, 1.0), top, style, rng)
    out: list[Surface] = []
    if kind < 0.7:
        x = -0.5 * wide
        while x < 0.5 * wide - 0.2 and rng.random() < 0.8:
            a, b = rng.uniform(0.2, min(1.1, 0.5 * wide + 0.1)), rng.uniform(0.2, min(0.9, room))
            z, shown = low + rng.uniform(0, room - b), Look(muted(rng), 0.5, 0.0, texture="print", phase=rng.random())
            frame = 0.02 if rng.random() < 0.6 else 0.0
            if x + a > 0.5 * wide:
                break
            out += box("picture", (x, 0, z), (x + a, 0.012, z + b), style.body(rng))
            out += box("picture", (x + frame, 0, z + frame), (x + a - frame, 0.014, z + b - frame), shown)
            x += a + rng.uniform(0.03, 0.4)
    elif kind < 0.87:
        for level in range(int(rng.integers(1, 4))):
            z = low + 0.35 * level + rng.uniform(0, 0.05)
            if z > top - 0.35:
                break
            board = box("furniture", (-0.5 * wide, 0, z), (0.5 * wide, 0.25, z + 0.02), style.wood)
            things = litter(wide, 0.25, int(rng.integers(1, 8)), 0.15, style, rng)
            out += board + moved(things, 0, (0, 0.125, z + 0.02))
    return Fitted(tuple(out))


def window(wide: float, low: float, high: float, top: float, style: Style, rng: np.random.Generator) -> Fitted:
    """A frame around x = 0, often curtains, and its light; a hole to look through or a bright pane."""
    half, tint = 0.5 * wide, np.array([rng.uniform(0.85, 1.0), 0.95, rng.uniform(0.9, 1.1)])
    power = float(rng.uniform(2, 12))
    u, v = np.array([0, 0, high - low]), np.array([2 * half, 0, 0])
    holes: tuple[Opening, ...] = ()
    if rng.random() < 0.7:
        holes = (Opening(-half, half, low, high),)
        out = _reveal(holes[0], float(rng.uniform(0.05, 0.3)), style.paint)
    else:
        view = Look(tuple(0.5 * tint), 0.1, 0.0, texture="print", phase=float(rng.random()), emission=2 * power)
        view = replace(view, texture="") if rng.random() < 0.5 else view
        out = [Surface("window", np.array([-half, 0.004, low]), u, v, view)]
    bars = int(rng.integers(1, 4))
    for k in range(bars + 1):
        x = -half + k * (2 * half - 0.05) / bars
        out += box("frame", (x, 0, low), (x + 0.05, 0.04, high), style.paint)
    for z in (low, high - 0.05):
        out += box("frame", (-half, 0, z), (half, 0.04, z + 0.05), style.paint)
    sill = max(low - 0.03, 0.0)
    out += box("frame", (-half - 0.05, 0, sill), (half + 0.05, rng.uniform(0.06, 0.25), low), style.paint)
    if rng.random() < 0.55:
        cloth = Look(muted(rng), 0.95, 0.0, texture="cloth", phase=float(rng.random()))
        bottom = rng.choice([0.05, max(low - 0.1, 0.05)])
        for side in (-1, 1):
            folds, span = int(rng.integers(3, 9)), rng.uniform(0.15, 0.45)
            for k in range(folds):
                x = side * (half + 0.1 - k * span / folds)
                a, b = sorted((x, x - side * span / folds * 0.98))
                out += box(
                    "curtain", (a, 0.06, bottom), (b, 0.09 + 0.04 * (k % 2), min(high + 0.12, top - 0.02)), cloth
                )
    return Fitted(tuple(out), (Panel(np.array([-half, 0.05, low]), u, v, power * tint),), holes)


def _reveal(hole: Opening, deep: float, look: Look) -> list[Surface]:
    """The four sides of a hole in a wall of that thickness, seen from within."""
    back, up, along = np.array([0, -deep, 0]), np.array([0, 0, hole.high - hole.low]), hole.right - hole.left
    side = np.array([along, 0, 0])
    left, right = np.array([hole.left, 0, hole.low]), np.array([hole.right, 0, hole.low])
    return [
        Surface("frame", left, up, back, look),
        Surface("frame", right, back, up, look),
        Surface("frame", left, back, side, look),
        Surface("frame", left + up, side, back, look),
    ]


def door(room_high: float, style: Style, rng: np.random.Generator) -> list[Surface]:
    """A closed door in its frame, around x = 0."""
    high, half = min(2.02, room_high - 0.1), 0.41
    leaf = seeded(style.wood if rng.random() < 0.5 else style.paint, rng)
    out = box("door", (-half, 0, 0), (half, 0.02, high), leaf)
    for x in (-half - 0.06, half):
        out += box("frame", (x, 0, 0), (x + 0.06, 0.035, high + 0.06), style.paint)
    out += box("frame", (-half, 0, high), (half, 0.035, high + 0.06), style.paint)
    return out + box("handle", (half - 0.14, 0.02, 1.02), (half - 0.03, 0.07, 1.045), style.metal)
