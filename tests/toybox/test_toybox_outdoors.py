"""Walls with holes, the world behind them and the sun that comes in: areas, closed forms, what stays outside."""

from __future__ import annotations

import numpy as np
import pytest

from unproject.toybox import sample
from unproject.toybox.fixtures import box, draw_style, moved
from unproject.toybox.materials import Look
from unproject.toybox.objects import build
from unproject.toybox.outdoors import _clear, outdoors
from unproject.toybox.programs import ObjectProgram
from unproject.toybox.render import Renderer
from unproject.toybox.scenes import Light, Panel, Placed, Scene, Surface
from unproject.toybox.soft_light import _sun
from unproject.toybox.walls import Opening, wall_around, wall_frame, window

WHITE = Look((0.8, 0.8, 0.8), 0.95, 0.0)
HOLES = (Opening(2.0, 3.5, 0.9, 2.1), Opening(0.4, 1.3, 0.0, 2.0))
SUN = np.array([0.3, -0.75, 0.6]) / np.linalg.norm([0.3, -0.75, 0.6])


def covers(surface: Surface, points: np.ndarray) -> np.ndarray:
    """Which points (N, 3) of its plane lie in a rectangle."""
    offset = points - surface.corner
    u, v = (offset @ s / (s @ s) for s in (surface.span_u, surface.span_v))
    return (u >= 0) & (u < 1) & (v >= 0) & (v < 1)


def test_a_wall_covers_every_point_once_except_its_holes() -> None:
    pieces = wall_around(HOLES, 4.0, 2.5, WHITE)
    for piece in pieces:
        normal = np.cross(piece.span_u, piece.span_v)
        np.testing.assert_allclose(normal / np.linalg.norm(normal), [0, 1, 0], atol=1e-12)
    points = np.random.default_rng(0).uniform(0, 1, (4000, 3)) * [4.0, 0.0, 2.5]
    times = sum(covers(piece, points).astype(int) for piece in pieces)
    open_ = [
        (h.left <= points[:, 0]) & (points[:, 0] < h.right) & (h.low <= points[:, 2]) & (points[:, 2] < h.high)
        for h in HOLES
    ]
    np.testing.assert_array_equal(times, ~np.any(open_, axis=0))


def test_the_sun_reaches_the_floor_through_the_holes_alone() -> None:
    floor = Surface("floor", np.zeros(3), np.array([4.0, 0, 0]), np.array([0, 5.0, 0]), WHITE)
    toy = build(ObjectProgram("sphere", "gray", seed=1))
    far = np.diag([0.01, 0.01, 0.01, 1.0])
    far[:3, 3] = (50, 50, 50)
    light = Light(SUN, None, np.array([3.0, 2.0, 1.0]), np.zeros((9, 3)), (), np.zeros(3))
    scene = Scene(toy.program, (Placed(toy, far),), light, np.ones(3), (floor, *wall_around(HOLES, 4.0, 2.5, WHITE)))
    points = np.random.default_rng(1).uniform([0.05, 0.05, 1e-3], [3.95, 2.0, 1e-3], (3000, 3))
    up = np.tile([0.0, 0.0, 1.0], (len(points), 1))
    found = _sun(Renderer(scene), points, up, light)
    t = -points[:, 1] / SUN[1]  # to the plane of the wall
    x, z = points[:, 0] + t * SUN[0], points[:, 2] + t * SUN[2]
    inside = [(h.left < x) & (x < h.right) & (h.low < z) & (z < h.high) for h in HOLES]
    free = np.any(inside, axis=0) | (z > 2.5) | (x < 0) | (x > 4)
    assert 0.1 < free.mean() < 0.9
    np.testing.assert_allclose(found, np.where(free[:, None], SUN[2] * light.intensity, 0.0), atol=1e-6)
    assert not _sun(Renderer(scene), points, -up, light).any()
    assert not _sun(Renderer(scene), points, up, Light(None, None, light.intensity, light.environment_sh)).any()


def test_what_is_outside_stays_outside_and_the_sun_shines_through_an_open_wall() -> None:
    size = np.array([4.0, 5.0, 2.6])
    panel = Panel(np.zeros(3), np.array([0, 0, 1.0]), np.array([1.0, 0, 0]), np.full(3, 6.0))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        walls = sorted(rng.choice(4, int(rng.integers(1, 5)), replace=False).tolist())
        world = outdoors(size, walls, [panel], rng)
        steps = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]])
        ground, *others = world.surfaces
        assert ground.corner[2] < 0 and np.cross(ground.span_u, ground.span_v)[2] > 0
        for one in others:
            corners = one.corner + steps @ np.stack([one.span_u, one.span_v])
            below, beyond = (corners[:, :2] < 0).all(0), (corners[:, :2] > size[:2]).all(0)
            assert below.any() or beyond.any()
        if world.sun_direction is not None:
            assert np.linalg.norm(world.sun_direction) == pytest.approx(1)
            inward = [np.array([-np.sin(a), np.cos(a), 0]) for a in np.deg2rad([wall_frame(w, size)[0] for w in walls])]
            assert min(float(n @ world.sun_direction) for n in inward) < 0 < world.sun_direction[2]


def test_a_window_is_a_hole_or_a_pane_and_lies_within_its_width() -> None:
    kinds = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        fitted = window(1.6, 0.9, 2.1, 2.6, draw_style(rng), rng)
        panes = [s for s in fitted.surfaces if s.name == "window"]
        assert len(panes) + len(fitted.openings) == len(fitted.panels) == 1
        kinds.add(bool(panes))
        for hole in fitted.openings:
            assert (hole.left, hole.right, hole.low, hole.high) == (-0.8, 0.8, 0.9, 2.1)
            there = hole.shifted(2.0)
            assert (there.left, there.right) == pytest.approx((1.2, 2.8))
            middle = np.array([0.0, 0.0, 1.5])
            deep = [s for s in fitted.surfaces if s.corner[1] < 0 or (s.span_u + s.span_v)[1] < 0]
            assert len(deep) == 4
            for side in deep:  # all look into the hole
                assert np.cross(side.span_u, side.span_v) @ (middle - side.corner) > 0
    assert kinds == {True, False}


def test_a_house_turned_in_front_of_a_wall_keeps_its_distance() -> None:
    for yaw in (-30.0, 0.0, 25.0):
        house = _clear(moved(box("outside", (-8, -3, 0), (8, 0, 4), WHITE), yaw, (1.0, 0, 0)), 1.7)
        corners = np.concatenate([[s.corner, s.corner + s.span_u, s.corner + s.span_v] for s in house])
        assert corners[:, 1].max() == pytest.approx(-1.7)


def test_some_rooms_are_seen_through_and_sunlit() -> None:
    lit = seen = 0
    for index in range(8):
        one = sample("val", index, "interior", 24)
        lit += one.scene.light.sun_direction is not None
        names = [s.name for s in one.scene.surfaces]
        for view in one.renderings:
            assert view.object_id is not None
            ids = view.object_id[view.object_id >= len(one.scene.objects)] - len(one.scene.objects)
            seen += any(names[i] == "outside" for i in np.unique(ids))
    assert lit >= 2 and seen >= 2
