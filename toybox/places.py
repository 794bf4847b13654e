"""The scene of any program, and the places besides the furnished room: streets under the open sky, and tables, floors
and bins seen from nearby.

Both are in metres with z up. Streets run along +x from the origin. Their ground, facades and furniture are surfaces,
so that a camera finds its way by their names ("road", "stage").
"""

from __future__ import annotations

import numpy as np

from .catalogue import NOUNS
from .fixtures import box
from .interiors import interior_scene
from .materials import Look
from .objects import build
from .programs import (
    InteriorProgram,
    ObjectProgram,
    Program,
    RoomProgram,
    SceneProgram,
    StreetProgram,
    TableProgram,
    stable_hash,
)
from .scenes import (
    Light,
    Placed,
    Scene,
    Surface,
    draw_light,
    multi_scene,
    object_scene,
    room_scene,
    room_surfaces,
    standing,
    wall_look,
)

ROAD_HALF_M = (3.0, 6.0)
STREET_M = (45.0, 110.0)
CAR_LIKE = ("car", "truck", "bus", "tractor")


def _scaled(member: ObjectProgram, height_m: float, spot: np.ndarray, yaw_deg: float) -> Placed:
    """The member with a height in metres, standing on `spot`."""
    toy = build(member)
    scale = height_m / np.ptp(toy.vertices[:, 2])
    return standing(toy, scale, spot, yaw_deg)


def street_scene(program: StreetProgram, rng: np.random.Generator) -> Scene:
    """A road with pavements, facades, trees, parked and driving vehicles, and nothing above but the sky."""
    length, half = float(rng.uniform(*STREET_M)), float(rng.uniform(*ROAD_HALF_M))
    walk = half + float(rng.uniform(1.5, 4.0))
    surfaces = _ground(length, half, walk, rng)
    for side in (-1, 1):
        if rng.random() < 0.75:
            surfaces += _facades(side, length, walk, rng)
        for x in np.arange(rng.uniform(5, 20), length, rng.uniform(12, 30)):
            post = np.array([x, side * (half + 0.4), 0.0])
            wide = float(rng.uniform(0.05, 0.15))
            surfaces += box("post", post - wide, post + [wide, wide, rng.uniform(2.5, 7)], wall_look(rng, False))
    placed = []
    for member in program.members:
        noun = NOUNS[member.noun]
        across, x = float(rng.choice([-1, 1])), float(length * rng.uniform(0.08, 1) ** 1.3)
        if member.noun in CAR_LIKE:
            y, yaw = across * half * (0.45 if rng.random() < 0.5 else 0.78), 90 - 90 * across + rng.normal(0, 3)
            height = float(rng.uniform(*noun.height_m))
        elif noun.family == "building":
            y, yaw = across * (walk + rng.uniform(5, 25)), 90 * across + 180 + rng.normal(0, 10)
            height = float(min(rng.uniform(*noun.height_m), 25))
        else:
            y, yaw = across * rng.uniform(half + 0.5, walk + 2), rng.uniform(0, 360)
            height = float(rng.uniform(*noun.height_m)) * (2.5 if noun.family == "plants" else 1.5)
        placed.append(_scaled(member, height, np.array([x, y, 0.0]), float(yaw)))
    sky = np.clip(np.array([0.66, 0.79, 0.95]) * rng.uniform(0.75, 1.1) + rng.uniform(0, 0.25), 0, 1)
    return Scene(program, tuple(placed), draw_light(rng), sky, tuple(surfaces))


def _ground(length: float, half: float, walk: float, rng: np.random.Generator) -> list[Surface]:
    def strip(name: str, y: float, z: float, look: Look) -> Surface:
        corner, along = np.array([-40.0, -y, z]), np.array([length + 160.0, 0, 0])
        return Surface(name, corner, along, np.array([0, 2 * y, 0]), look)

    grey = Look(tuple(np.full(3, rng.uniform(0.06, 0.3))), 0.9, 0.0)
    grass = Look((0.12 * rng.uniform(0.6, 2), 0.2 * rng.uniform(0.6, 1.6), 0.06), 0.9, 0.0)
    stone = Look(tuple(np.full(3, rng.uniform(0.2, 0.55))), 0.9, 0.0, str(rng.choice(["plain", "checkered", "brick"])))
    paint = Look((0.75, 0.75, 0.72), 0.8, 0.0)
    lines = [strip("paint", 0.08, 0.02, paint)] if rng.random() < 0.7 else []
    beyond = grass if rng.random() < 0.6 else stone
    return [
        strip("field", 90.0, 0.0, beyond),
        strip("pavement", walk, 0.008, stone),
        strip("road", half, 0.014, grey),
        *lines,
    ]


def _facades(side: int, length: float, walk: float, rng: np.random.Generator) -> list[Surface]:
    """A row of houses, each a box with windows, along one side of the street."""
    surfaces: list[Surface] = []
    setback, x = walk + float(rng.uniform(0, 6)), float(rng.uniform(-15, 10))
    while x < length:
        wide, high, deep = rng.uniform(5, 18), rng.uniform(3.5, 16), rng.uniform(5, 12)
        if rng.random() < 0.75:
            low, front = np.array([x, setback if side > 0 else -setback - deep, 0.0]), side * setback
            surfaces += box("facade", low, low + [wide, deep, high], wall_look(rng, False))
            glass = Look(tuple(np.full(3, rng.uniform(0.02, 0.5))), 0.3, 0.0)
            for up in np.arange(1.0, high - 1.5, 2.8):
                for along in np.arange(x + 0.8, x + wide - 1.3, rng.uniform(1.8, 3.5)):
                    corner, u, v = (
                        np.array([along, front - side * 0.03, up]),
                        np.array([1.1, 0, 0]),
                        np.array([0, 0, 1.4]),
                    )
                    surfaces.append(Surface("window", corner, *((u, v) if side > 0 else (v, u)), glass))
        x += wide + (rng.uniform(0, 8) if rng.random() < 0.5 else 0)
    return surfaces


def table_scene(program: TableProgram, rng: np.random.Generator) -> Scene:
    """A room with a stage to look at from nearby: a table top, the inside of a bin, or a piece of the floor."""
    size = np.array([rng.uniform(2.6, 5.0), rng.uniform(2.6, 5.0), rng.uniform(2.3, 3.0)])
    kind = str(rng.choice(["table", "bin", "floor"], p=[0.45, 0.2, 0.35]))
    reach = {"table": (0.35, 0.9), "bin": (0.2, 0.45), "floor": (0.5, 1.0)}[kind]
    half = np.array([rng.uniform(*reach), rng.uniform(*reach)])
    middle = size[:2] * rng.uniform(0.35, 0.65, 2)
    top = 0.013 if kind == "floor" else float(rng.uniform(0.3, 0.95))
    surfaces = list(room_surfaces(size, rng))
    low, high = np.array([*(middle - half), 0.0]), np.array([*(middle + half), top])
    if kind != "floor":
        look = wall_look(rng, bool(rng.random() < 0.5))
        under = low if rng.random() < 0.4 or kind == "bin" else np.array([*low[:2], top - 0.04])
        surfaces += box("board", under, high, look)
    along, deep = np.array([2 * half[0], 0.0, 0.0]), np.array([0.0, 2 * half[1], 0.0])
    surfaces.append(Surface("stage", np.array([*low[:2], top + 0.001]), along, deep, _top(surfaces)))
    if kind == "bin":
        surfaces += _rim(low, high, float(rng.uniform(0.1, 0.4)), wall_look(rng, False))
    surfaces += _boxes(middle, half, top, kind, rng)
    placed = [_on_stage(member, middle, half, top, kind, rng) for member in program.members]
    lamp = np.array([*(size[:2] * rng.uniform(0.25, 0.75, 2)), size[2] - 0.25])
    light = Light(None, lamp, np.full(3, rng.uniform(2.5, 5.5)), draw_light(rng).environment_sh * 0.75)
    metres = (float(size[0]), float(size[1]), float(size[2]))
    return Scene(program, tuple(placed), light, np.ones(3), tuple(surfaces), metres)


def _top(surfaces: list[Surface]) -> Look:
    """The look of the board, or of the floor where there is none."""
    return surfaces[-1].look if surfaces[-1].name == "board" else surfaces[0].look


def _rim(low: np.ndarray, high: np.ndarray, height: float, look: Look) -> list[Surface]:
    """Four walls around the top of a box."""
    (x0, y0, _), (x1, y1, z), t = low, high, 0.015
    parts = [(x0 - t, y0 - t, x1 + t, y0), (x0 - t, y1, x1 + t, y1 + t), (x0 - t, y0, x0, y1), (x1, y0, x1 + t, y1)]
    return [
        s for a, b, c, d in parts for s in box("rim", np.array([a, b, z - 0.02]), np.array([c, d, z + height]), look)
    ]


def _boxes(middle: np.ndarray, half: np.ndarray, top: float, kind: str, rng: np.random.Generator) -> list[Surface]:
    """Packets, books and screens: boxes of any proportions on the stage."""
    surfaces: list[Surface] = []
    for _ in range(int(rng.integers(0, 6))):
        scale = 0.45 if kind == "floor" else 0.2
        size = np.minimum(scale * np.exp(rng.normal(0, 0.6, 3)), [0.9 * half[0], 0.9 * half[1], 0.6])
        spot = middle + (half - 0.5 * size[:2]) * rng.uniform(-1, 1, 2)
        low = np.array([*(spot - 0.5 * size[:2]), top])
        surfaces += box("packet", low, low + size, wall_look(rng, False))
    return surfaces


def _on_stage(
    member: ObjectProgram, middle: np.ndarray, half: np.ndarray, top: float, kind: str, rng: np.random.Generator
) -> Placed:
    """The member somewhere on the stage, at a size that fits a hand (table, bin) or a lap (floor)."""
    height = float(rng.uniform(0.3, 1.3) if kind == "floor" else rng.uniform(0.07, 0.45))
    spot = middle + 0.85 * half * rng.uniform(-1, 1, 2)
    lifted = top + (float(rng.uniform(0, 0.08)) if kind == "bin" else 0.0)
    placed = _scaled(member, height, np.array([*spot, lifted]), float(rng.uniform(0, 360)))
    widest = np.ptp(placed.toy.vertices[:, :2] @ placed.matrix[:2, :2].T, axis=0).max()
    if widest > 1.6 * half.min():
        placed = _scaled(member, height * 1.6 * half.min() / widest, np.array([*spot, lifted]), 0.0)
    return placed


def make_scene(program: Program, look_seed: int = 0) -> Scene:
    """The scene of a program; `look_seed` draws light, background and layout."""
    rng = np.random.default_rng(stable_hash("scene", program, look_seed))
    if isinstance(program, StreetProgram):
        return street_scene(program, rng)
    if isinstance(program, TableProgram):
        return table_scene(program, rng)
    if isinstance(program, InteriorProgram):
        return interior_scene(program, rng)
    if isinstance(program, RoomProgram):
        return room_scene(program, rng)
    if isinstance(program, SceneProgram):
        return multi_scene(program, rng)
    return object_scene(program, rng)
