"""Scenes: placed objects, surfaces and lights, made from programs.

World frame: right-handed, z up. Single objects sit canonically at the origin (unit radius 0.85). Scenes stand on
z = 0 and are scaled into the same ball; rooms are in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .catalogue import NOUNS
from .materials import COLOURS_SRGB, Look, colour_linear, linear_from_srgb
from .objects import RADIUS, ToyObject, build
from .programs import ObjectProgram, Program, RoomProgram, SceneProgram


@dataclass(frozen=True)
class Placed:
    """An object in the world: world = matrix @ object, a similarity."""

    toy: ToyObject
    matrix: np.ndarray  # (4, 4)


@dataclass(frozen=True)
class Surface:
    """A rectangle of a room (floor, wall, ceiling, window, rug): corner + span_u, span_v; normal = u x v."""

    name: str
    corner: np.ndarray
    span_u: np.ndarray
    span_v: np.ndarray
    look: Look


@dataclass(frozen=True)
class Panel:
    """A rectangle that shines to the side of its normal span_u x span_v: a window or a lamp."""

    corner: np.ndarray
    span_u: np.ndarray
    span_v: np.ndarray
    radiance: np.ndarray  # (3,) linear


@dataclass(frozen=True)
class Light:
    """A sun (direction) or a lamp (position), and a second-order SH environment. Linear radiance units.

    With panels, lamp and environment are not used: panels light the scene with soft shadows and one bounce, a sun with
    hard ones, and `ambient` stands for the bounces after it; pictures are then exposed as a camera would.
    """

    sun_direction: np.ndarray | None  # unit, towards the sun
    lamp_position: np.ndarray | None
    intensity: np.ndarray  # (3,)
    environment_sh: np.ndarray  # (9, 3) radiance coefficients
    panels: tuple[Panel, ...] = ()
    ambient: np.ndarray | None = None  # (3,) radiance, with panels
    sky: np.ndarray | None = None  # (3,) radiance that mirrors show where nothing is met, with panels; None: ambient


@dataclass(frozen=True)
class Scene:
    """Everything that is rendered."""

    program: Program
    objects: tuple[Placed, ...]
    light: Light
    background_srgb: np.ndarray  # (3,)
    surfaces: tuple[Surface, ...] = ()
    size_m: tuple[float, float, float] | None = None  # of a room
    names: tuple[str, ...] = field(default=())


def draw_light(rng: np.random.Generator) -> Light:
    """A daylight-like set-up: brighter sky than ground, a faint tint, a sun 25-70 degrees high."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(25, 70))
    direction = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    sh = np.zeros((9, 3))
    sh[0] = rng.uniform(0.52, 0.66) / 0.282095 * (1 + rng.uniform(-0.03, 0.03, 3))
    sh[2] = rng.uniform(0.1, 0.26) / 0.488603  # sky above
    sh[[1, 3]] = rng.uniform(-0.09, 0.09, (2, 1)) / 0.488603
    sh[4:] = rng.uniform(-0.05, 0.05, (5, 1))
    return Light(direction, None, np.full(3, rng.uniform(1.0, 1.7)), sh)


def draw_background(rng: np.random.Generator) -> np.ndarray:
    """Uniform sRGB backgrounds: half white to light grey, the rest pastel or mid-tone."""
    kind = rng.random()
    if kind < 0.5:
        return np.full(3, rng.uniform(0.72, 1.0))
    if kind < 0.65:
        return np.full(3, rng.uniform(0.25, 0.72))
    base = rng.uniform(0.35, 1.0)
    return np.clip(base + rng.uniform(-0.2, 0.2, 3), 0, 1)


def object_scene(program: ObjectProgram, rng: np.random.Generator) -> Scene:
    """One canonical object at the origin."""
    return Scene(program, (Placed(build(program), np.eye(4)),), draw_light(rng), draw_background(rng))


def standing(toy: ToyObject, size: float, position: np.ndarray, yaw_deg: float) -> Placed:
    """The object scaled by `size`, turned about z, its lowest point on position z."""
    angle = np.deg2rad(yaw_deg)
    matrix = np.eye(4)
    c, s = np.cos(angle), np.sin(angle)
    matrix[:3, :3] = size * np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    matrix[:3, 3] = position
    matrix[2, 3] = position[2] - size * toy.vertices[:, 2].min()
    return Placed(toy, matrix)


def placed_vertices(placed: Placed) -> np.ndarray:
    """World vertices (V, 3) float32 of a placed object."""
    return (placed.toy.vertices @ placed.matrix[:3, :3].T + placed.matrix[:3, 3]).astype(np.float32)


def _fit_in_ball(objects: list[Placed]) -> tuple[Placed, ...]:
    """Scales and centres the group to the radius of a canonical object."""
    points = np.concatenate([placed_vertices(p) for p in objects])
    centre = 0.5 * (points.min(0) + points.max(0))
    scale = RADIUS / np.linalg.norm(points - centre, axis=1).max()
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = -scale * centre
    return tuple(Placed(p.toy, matrix @ p.matrix) for p in objects)


def multi_scene(program: SceneProgram, rng: np.random.Generator) -> Scene:
    """Objects that face the viewer at +x; relations hold from there (left of = towards the viewer's left, -y)."""
    toys = [build(m) for m in program.members]
    if program.count > 1:
        toys = [
            build(ObjectProgram(**{**vars(program.members[0]), "seed": program.members[0].seed + i}))
            for i in range(program.count)
        ]
    sizes = [float(rng.uniform(0.85, 1.15)) for _ in toys]
    widths = [s * np.ptp(t.vertices[:, 1]) for s, t in zip(sizes, toys, strict=True)]
    depths = [s * np.ptp(t.vertices[:, 0]) for s, t in zip(sizes, toys, strict=True)]
    gap = float(rng.uniform(0.12, 0.35))
    yaw = [float(rng.uniform(-35, 35)) for _ in toys]
    spots = [np.zeros(3) for _ in toys]
    if program.relation in ("left of", "right of") or program.count > 1:
        side = -1.0 if program.relation == "left of" else 1.0
        reach = 0.0
        for i in range(1, len(toys)):
            reach += 0.5 * (widths[i - 1] + widths[i]) + gap
            spots[i] = np.array([rng.uniform(-0.2, 0.2), -side * reach, 0.0])
    elif program.relation in ("behind", "in front of"):
        ahead = 1.0 if program.relation == "behind" else -1.0
        spots[1] = np.array([ahead * (0.5 * sum(depths) + gap), float(rng.uniform(-0.3, 0.3)), 0.0])
        nearer = 1 if program.relation == "behind" else 0
        sizes[nearer] *= 0.75
    elif program.relation == "on top of":
        sizes[0] *= 0.7
        spots[0] = np.array([0.0, 0.0, sizes[1] * np.ptp(toys[1].vertices[:, 2])])
    placed = [standing(t, s, p, a) for t, s, p, a in zip(toys, sizes, spots, yaw, strict=True)]
    return Scene(program, _fit_in_ball(placed), draw_light(rng), draw_background(rng))


def wall_look(rng: np.random.Generator, floor: bool) -> Look:
    """Paint or paper of a wall; of floors also wood."""
    colour = tuple(COLOURS_SRGB)[int(rng.integers(len(COLOURS_SRGB)))]
    pale = 0.35 * colour_linear(colour) + 0.65 * linear_from_srgb(np.full(3, rng.uniform(0.6, 0.95)))
    if floor and rng.random() < 0.6:
        tone = linear_from_srgb(np.array([0.62, 0.45, 0.29]) * rng.uniform(0.7, 1.2))
        return Look(
            tuple(tone), 0.5, 0.0, "plain" if rng.random() < 0.6 else "checkered", True, float(rng.random()), 0.9
        )
    pattern = str(rng.choice(["plain", "striped", "checkered", "brick", "dotted"], p=[0.6, 0.12, 0.1, 0.1, 0.08]))
    return Look(tuple(pale), 0.9, 0.0, pattern, False, float(rng.random()), float(rng.uniform(0.7, 1.6)))


def room_surfaces(size: np.ndarray, rng: np.random.Generator) -> tuple[Surface, ...]:
    """Floor, ceiling, walls, a rug and pictures of a closed room of that size, m; its corner is the origin."""
    x, y, z = size
    floor, wall, ceiling = wall_look(rng, True), wall_look(rng, False), Look((0.85, 0.85, 0.83), 0.9, 0.0)
    other = wall if rng.random() < 0.6 else wall_look(rng, False)
    ex, ey, ez = np.diag([x, y, z])
    o = np.zeros(3)
    surfaces = [
        Surface("floor", o, ex, ey, floor),
        Surface("ceiling", ez, ey, ex, ceiling),
        Surface("wall south", o, ez, ex, wall),
        Surface("wall north", ey, ex, ez, other),
        Surface("wall west", o, ey, ez, other),
        Surface("wall east", ex, ez, ey, wall),
    ]
    rug = 0.5 * np.array([x, y, 0]) + np.array([0, 0, 0.012])
    span = np.array([rng.uniform(0.8, 0.45 * x), rng.uniform(0.8, 0.45 * y)])
    corner = rug - np.array([0.5 * span[0], 0.5 * span[1], 0])
    surfaces.append(Surface("rug", corner, np.array([span[0], 0, 0]), np.array([0, span[1], 0]), wall_look(rng, False)))
    frame = Look((0.9, 0.95, 1.0), 0.3, 0.0)
    for _ in range(int(rng.integers(1, 4))):  # pictures and windows on the walls
        width, height = rng.uniform(0.5, 1.4), rng.uniform(0.5, 1.1)
        along, up = rng.uniform(0.3, x - 0.3 - width), rng.uniform(0.9, z - 0.3 - height)
        look = frame if rng.random() < 0.4 else wall_look(rng, False)
        at = np.array([along, y - 0.012, up])
        surfaces.append(Surface("picture", at, np.array([width, 0, 0]), np.array([0, 0, height]), look))
    return tuple(surfaces)


def room_scene(program: RoomProgram, rng: np.random.Generator) -> Scene:
    """A closed room in metres, corner at the origin; furniture along walls, other things on the floor."""
    size = np.array([rng.uniform(3.0, 5.5), rng.uniform(3.0, 5.5), rng.uniform(2.3, 3.0)])
    placed: list[Placed] = []
    discs: list[tuple[np.ndarray, float]] = []
    for member in program.members:
        toy, noun = build(member), NOUNS[member.noun]
        height = np.ptp(toy.vertices[:, 2])
        target = float(rng.uniform(*noun.height_m)) if noun.family == "furniture" else float(rng.uniform(0.35, 1.1))
        scale = min(target / height, 2.2 / np.ptp(toy.vertices, axis=0).max())
        radius = 0.55 * scale * float(np.hypot(*np.ptp(toy.vertices[:, :2], axis=0)))
        for _ in range(25):
            wall = int(rng.integers(4)) if noun.family == "furniture" else -1
            spot = rng.uniform(
                [radius, radius], [max(size[0] - radius, radius + 0.01), max(size[1] - radius, radius + 0.01)]
            )
            yaw = float(rng.uniform(0, 360))
            if wall >= 0:
                axis, high = wall // 2, wall % 2
                inset = 0.5 * scale * np.ptp(toy.vertices[:, 0]) + 0.03
                spot[axis] = size[axis] - inset if high else inset
                yaw = float([[0, 180], [90, 270]][axis][high] + rng.normal(0, 4))
            if all(np.linalg.norm(spot - c) > radius + r for c, r in discs):
                discs.append((spot, radius))
                placed.append(standing(toy, scale, np.array([*spot, 0.0]), yaw))
                break
    lamp = np.array([size[0] * rng.uniform(0.3, 0.7), size[1] * rng.uniform(0.3, 0.7), size[2] - 0.25])
    sh = draw_light(rng).environment_sh * 0.75
    light = Light(None, lamp, np.full(3, rng.uniform(3.0, 6.0)), sh)
    surfaces = room_surfaces(size, rng)
    return Scene(program, tuple(placed), light, np.ones(3), surfaces, (float(size[0]), float(size[1]), float(size[2])))
