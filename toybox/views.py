"""The camera distributions of the toybox: orbits around objects and scenes, and eyes inside rooms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..geometry.cameras import Camera
from .scenes import Scene, placed_vertices

EYE_CLEARANCE_M = 0.4  # nobody takes a photograph from inside a cupboard
EYE_TRIES = 40


@dataclass(frozen=True)
class OrbitRange:
    """Where orbit cameras stand. The distance keeps the unit ball in view: r = margin / sin(fov / 2)."""

    fov_y_deg: tuple[float, float] = (25.0, 42.0)
    elevation_deg: tuple[float, float] = (-8.0, 45.0)
    high_elevation_deg: tuple[float, float] = (45.0, 80.0)
    high_share: float = 0.08  # of the orbits look from above
    margin: tuple[float, float] = (0.92, 1.08)


@dataclass(frozen=True)
class Orbit:
    """One orbit camera in angles; azimuth 0 looks at the front."""

    azimuth_deg: float
    elevation_deg: float
    distance: float
    fov_y_deg: float

    def camera(self, size: int) -> Camera:
        """As a batch of one."""
        return Camera.orbit(self.azimuth_deg, self.elevation_deg, self.distance, self.fov_y_deg, size)


def draw_orbits(rng: np.random.Generator, views: int = 4, spread: OrbitRange = OrbitRange()) -> list[Orbit]:
    """`views` orbit cameras 360 / views degrees apart that share elevation, distance and field of view."""
    start = float(rng.uniform(0, 360))
    limits = spread.high_elevation_deg if rng.random() < spread.high_share else spread.elevation_deg
    elevation, fov = float(rng.uniform(*limits)), float(rng.uniform(*spread.fov_y_deg))
    distance = float(rng.uniform(*spread.margin)) / math.sin(math.radians(0.5 * fov))
    return [Orbit((start + 360 * i / views) % 360, elevation, distance, fov) for i in range(views)]


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """c2w (4, 4) in OpenCV axes with the horizon level; eye and target must not be in line with z."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3, :4] = np.stack([right, np.cross(forward, right), forward, eye], axis=1)
    return c2w


def draw_room_camera(rng: np.random.Generator, scene: Scene, size: tuple[int, int]) -> Camera:
    """An eye 0.5-2 m high near a wall that looks across the room; 40-85 degrees wide.

    It keeps EYE_CLEARANCE_M from the boxes around all objects; in a room too full for that, the clearest of the tries.
    """
    assert scene.size_m is not None
    room = np.array(scene.size_m)
    (eye,) = _clearest(scene, lambda: (_draw_eye(rng, room),), EYE_CLEARANCE_M)
    target = np.array([*(room[:2] * rng.uniform(0.2, 0.8, 2)), rng.uniform(0.1, 1.3)])
    if np.linalg.norm((target - eye)[:2]) < 0.8:
        target[:2] = room[:2] - eye[:2]
    return _camera(eye, target, float(rng.uniform(40, 85)), size)


def draw_street_camera(rng: np.random.Generator, scene: Scene, size: tuple[int, int]) -> Camera:
    """A walker's or driver's eye 1.1-2.4 m above a street that looks along it; 40-90 degrees wide."""
    road = next(s for s in scene.surfaces if s.name == "road")
    half, length = 0.5 * road.span_v[1], road.corner[0] + road.span_u[0]

    def draw() -> tuple[np.ndarray, ...]:
        along, across = rng.uniform(0, 0.2 * length), rng.uniform(-1, 1) * (half + 1)
        return (np.array([along, across, rng.uniform(1.1, 2.4)]),)

    (eye,) = _clearest(scene, draw, 2 * EYE_CLEARANCE_M)
    turned, down = np.deg2rad(rng.normal(0, 14)), np.deg2rad(rng.uniform(-5, 9))
    target = eye + np.array([np.cos(turned), np.sin(turned), -np.tan(down)])
    return _camera(eye, target, float(rng.uniform(40, 90)), size)


def draw_table_camera(rng: np.random.Generator, scene: Scene, size: tuple[int, int]) -> Camera:
    """An eye above the stage of a table scene, 0.5-1.7 of its diagonals away, inside the room; 35-75 degrees wide."""
    assert scene.size_m is not None
    stage, room = next(s for s in scene.surfaces if s.name == "stage"), np.array(scene.size_m)
    reach = float(np.hypot(np.linalg.norm(stage.span_u), np.linalg.norm(stage.span_v)))
    steep = (40, 80) if any(s.name == "rim" for s in scene.surfaces) else (8, 60)

    def draw() -> tuple[np.ndarray, ...]:
        around, up = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(*steep))
        away = np.array([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)])
        target = stage.corner + stage.span_u * rng.uniform(0.3, 0.7) + stage.span_v * rng.uniform(0.3, 0.7)
        eye = target + [0, 0, rng.uniform(0, 0.15)] + reach * rng.uniform(0.5, 1.7) * away
        return np.clip(eye, 0.12, room - 0.12), target

    eye, target = _clearest(scene, draw, 0.3 * EYE_CLEARANCE_M)
    return _camera(eye, target, float(rng.uniform(35, 75)), size)


def draw_interior_camera(rng: np.random.Generator, scene: Scene, size: tuple[int, int]) -> Camera:
    """A camera held in the hand, 0.6-1.9 m high anywhere in the room, aimed at furniture or across the room, a little
    off level; 38-80 degrees wide."""
    assert scene.size_m is not None
    room, (low, high, middles) = np.array(scene.size_m), _solid(scene)
    tries: list[tuple[float, np.ndarray, np.ndarray]] = []
    for _ in range(EYE_TRIES):
        eye = np.array([*rng.uniform(0.2, room[:2] - 0.2), rng.uniform(0.6, min(1.9, room[2] - 0.3))])
        if rng.random() < 0.5:
            target = middles[int(rng.integers(len(middles)))]
        else:
            target = np.array([*rng.uniform(0.0, room[:2]), rng.uniform(0.2, 1.4)])
        gap = float(np.linalg.norm(np.maximum(np.maximum(low - eye, eye - high), 0), axis=1).min())
        near = np.linalg.norm(target - eye) < 0.7 or np.linalg.norm((target - eye)[:2]) < 0.35
        tries.append((0.1 * gap if near else gap, eye, target))
        if tries[-1][0] >= EYE_CLEARANCE_M:
            break
    _, eye, target = max(tries, key=lambda one: one[0])
    return _rolled(_camera(eye, target, float(rng.uniform(38, 80)), size), float(rng.normal(0, 2.5)))


def _solid(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper corners (n, 3) of the boxes around all that is not the room itself; middles of its surfaces."""
    shell = ("floor", "ceiling", "wall", "rug", "skirting", "outside")
    steps = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    solid = [s.corner + steps @ np.stack([s.span_u, s.span_v]) for s in scene.surfaces if s.name not in shell]
    corners, vertices = np.stack(solid), [placed_vertices(p) for p in scene.objects]
    low = np.concatenate([corners.min(1), [v.min(0) for v in vertices]])
    high = np.concatenate([corners.max(1), [v.max(0) for v in vertices]])
    return low, high, corners.mean(1)


def _rolled(camera: Camera, roll_deg: float) -> Camera:
    """Turned about its viewing direction."""
    c, s = math.cos(math.radians(roll_deg)), math.sin(math.radians(roll_deg))
    c2w = camera.c2w.clone()
    c2w[:, :3, :3] = c2w[:, :3, :3] @ torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    return Camera(c2w, camera.K, camera.width, camera.height)


def _camera(eye: np.ndarray, target: np.ndarray, fov_x_deg: float, size: tuple[int, int]) -> Camera:
    """A level camera of that horizontal field of view."""
    width, height = size
    focal_px = 0.5 * width / math.tan(math.radians(fov_x_deg) / 2)
    K = torch.tensor([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1.0]])
    return Camera(torch.from_numpy(look_at(eye, target)).float()[None], K[None], width, height)


def _draw_eye(rng: np.random.Generator, room: np.ndarray) -> np.ndarray:
    """A place (3,) near one of the walls of a room of that size, m."""
    side, along = int(rng.integers(4)), float(rng.uniform(0.15, 0.85))
    inset = float(rng.uniform(0.12, 0.9))
    eye = np.array([along * room[0], inset, 0.0]) if side < 2 else np.array([inset, along * room[1], 0.0])
    if side % 2:
        eye[:2] = room[:2] - eye[:2]
    eye[2] = rng.uniform(0.5, min(2.0, room[2] - 0.3))
    return eye


def _clearest(scene: Scene, draw: Callable[[], tuple[np.ndarray, ...]], clearance_m: float) -> tuple[np.ndarray, ...]:
    """What `draw` gives, an eye (3,) and perhaps more, the first time the eye is clear of the boxes around all objects;
    else the clearest of the tries."""
    boxes = [(v.min(0), v.max(0)) for v in map(placed_vertices, scene.objects)]
    drawn: list[tuple[np.ndarray, ...]] = []
    for _ in range(EYE_TRIES):
        drawn.append(draw())
        if _clearance(drawn[-1][0], boxes) >= clearance_m:
            break
    return max(drawn, key=lambda one: _clearance(one[0], boxes))


def _clearance(point: np.ndarray, boxes: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Distance to the nearest of some axis-aligned boxes, m; 0 inside one."""
    gaps = [np.linalg.norm(np.maximum(np.maximum(low - point, point - high), 0)) for low, high in boxes]
    return float(min(gaps, default=math.inf))
