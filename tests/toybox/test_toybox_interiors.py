"""Lived-in rooms: whole, seen from inside, lit by windows and lamps; fixtures are closed; textures hold still."""

from __future__ import annotations

import numpy as np
import pytest

from unproject.geometry.cameras import Camera
from unproject.toybox import sample
from unproject.toybox.fixtures import (
    Style,
    bed,
    bookcase,
    couch,
    counter,
    cupboard,
    desk,
    draw_style,
    litter,
    moved,
    row_of_books,
    screen,
)
from unproject.toybox.materials import Look, albedo_at
from unproject.toybox.scenes import Scene
from unproject.toybox.textures import TEXTURES, fractal, lattice, noise

MAKERS = {
    "bookcase": lambda style, rng: bookcase(1.4, style, rng),
    "cupboard": lambda style, rng: cupboard(1.1, style, rng),
    "desk": lambda style, rng: desk(1.6, style, rng),
    "counter": lambda style, rng: counter(2.0, style, rng),
    "couch": lambda style, rng: couch(1.9, style, rng),
    "bed": bed,
    "litter": lambda style, rng: litter(1.0, 0.6, 9, 0.15, style, rng),
}


@pytest.mark.parametrize("name", MAKERS)
def test_fixtures_are_closed_boxes_that_look_outward_and_stand_on_the_floor(name: str) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        style: Style = draw_style(rng)
        sides = MAKERS[name](style, rng)
        normals = np.array([np.cross(s.span_u, s.span_v) for s in sides])
        sheets = np.array([s.name == "screen" for s in sides])
        middles = np.array([s.corner + 0.5 * (s.span_u + s.span_v) for s in sides])
        np.testing.assert_allclose(normals[~sheets].sum(0), 0, atol=1e-9)  # closed
        assert (normals * middles)[~sheets].sum() / 3 > 0  # divergence theorem: volume
        assert middles[:, 2].min() > -1e-9
        if name != "litter":
            assert middles[:, 1].min() > -0.06  # nothing stands through the wall behind, but the turned things on top


def test_books_fit_their_board_and_screens_look_forward() -> None:
    rng = np.random.default_rng(3)
    style = draw_style(rng)
    for _ in range(20):
        corners = np.array([s.corner for s in row_of_books(0.9, 0.3, 0.25, style, rng)])
        assert corners.min() >= 0 and (corners.max(0) <= [0.9, 0.25, 0.3]).all()
        shown = next(s for s in screen(style, rng) if s.span_u[2] > 0 and s.span_v[0] > 0 and s.corner[1] > 0.02)
        assert np.cross(shown.span_u, shown.span_v)[1] > 0


def test_moving_turns_about_the_vertical_and_keeps_areas() -> None:
    rng = np.random.default_rng(0)
    here = desk(1.5, draw_style(rng), rng)
    there = moved(here, 90.0, (1.0, 2.0, 0.5))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(b.corner, [1 - a.corner[1], 2 + a.corner[0], 0.5 + a.corner[2]], atol=1e-12)
        n, m = np.cross(a.span_u, a.span_v), np.cross(b.span_u, b.span_v)
        np.testing.assert_allclose(m, [-n[1], n[0], n[2]], atol=1e-12)


def test_noise_meets_its_lattice_and_is_smooth_between() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(-40, 40, (200, 3))
    values = lattice(cells, 7)
    assert values.min() >= 0 and values.max() < 1 and abs(values.mean() - 0.5) < 0.07
    np.testing.assert_allclose(noise(cells.astype(float), 7), 2 * values - 1, atol=1e-12)
    p = rng.uniform(-5, 5, (500, 3))
    step = 1e-4
    assert np.abs(noise(p + [step, 0, 0], 7) - noise(p, 7)).max() < 3.1 * step  # slope at most 1.5 x a difference of 2
    np.testing.assert_allclose(noise(cells + 1e-9, 7), noise(cells - 1e-9, 7), atol=1e-6)
    assert np.abs(fractal(p, 7)).max() <= 1.75 / 1.5
    assert np.corrcoef(noise(p, 7), noise(p, 8))[0, 1] < 0.2  # seeds differ


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_scale_an_albedo_and_depend_on_the_point_alone(name: str) -> None:
    p = np.random.default_rng(1).uniform(0, 4, (4000, 3))
    tone = TEXTURES[name](p, 12345)
    assert tone.shape == p.shape and (tone > 0).all() and np.isfinite(tone).all()
    assert 0.4 < np.exp(np.log(tone).mean()) < 1.5 and tone.std() > 0.01
    np.testing.assert_array_equal(TEXTURES[name](p[::7], 12345), tone[::7])
    look = Look((0.5, 0.4, 0.3), 0.5, 0.0, texture=name, phase=0.012345)
    np.testing.assert_allclose(albedo_at(look, p), np.clip(tone * [0.5, 0.4, 0.3], 0, 1), atol=1e-6)


def test_wallpaper_repeats_and_tiles_have_a_tone_each() -> None:
    p = np.random.default_rng(2).uniform(0, 1, (300, 3))
    seed = 22  # its period: 0.12 m, mirrored, so 0.24 m
    shifted = p + np.array([0.24, 0.48, 0.0])
    np.testing.assert_allclose(TEXTURES["paper"](p, seed), TEXTURES["paper"](shifted, seed), rtol=1e-6)
    seed, size = 14, 0.5  # m of a tile
    corners = (np.floor((p + 0.1565) / size) + 0.5) * size - 0.1565  # middles of the tiles of p
    middle = np.log(TEXTURES["tiles"](corners, seed)[:, 0])
    near = np.log(TEXTURES["tiles"](corners + 1e-3, seed)[:, 0])
    assert np.abs(middle - near).max() < 0.01 and middle.std() > 0.03


def _missed(cameras: Camera, view: int, depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eye and directions of the pixels that see nothing."""
    c2w, K = cameras.c2w[view].numpy().astype(float), cameras.K[view].numpy().astype(float)
    v, u = np.nonzero(depth_m <= 0)
    rays = np.stack([(u + 0.5 - K[0, 2]) / K[0, 0], (v + 0.5 - K[1, 2]) / K[1, 1], np.ones(len(u))], 1)
    return c2w[:3, 3], rays @ c2w[:3, :3].T


def left_through_openings(scene: Scene, eye: np.ndarray, rays: np.ndarray) -> None:
    """Rays that met nothing left the room's box where no wall, floor or ceiling is."""
    assert scene.size_m is not None
    with np.errstate(divide="ignore"):
        out = np.maximum(-eye / rays, (np.array(scene.size_m) - eye) / rays).min(1)
    points = eye + out[:, None] * rays
    for one in scene.surfaces:
        if one.name in ("wall", "floor", "ceiling"):
            offset, normal = points - one.corner, np.cross(one.span_u, one.span_v)
            u, v = (offset @ s / (s @ s) for s in (one.span_u, one.span_v))
            near = np.abs(offset @ normal) / np.linalg.norm(normal) < 1e-6
            assert not (near & (u > 1e-4) & (u < 1 - 1e-4) & (v > 1e-4) & (v < 1 - 1e-4)).any()


def test_lived_in_rooms_are_whole_and_seen_from_inside() -> None:
    for index in range(3):
        one = sample("val", index, "interior", 32)
        size = np.array(one.scene.size_m)
        panels = one.scene.light.panels
        assert panels
        for panel in panels:  # all shine into the room
            middle = panel.corner + 0.5 * (panel.span_u + panel.span_v)
            assert np.cross(panel.span_u, panel.span_v) @ (0.5 * size - middle) > 0
        names = [s.name for s in one.scene.surfaces]
        for view, seen in enumerate(one.renderings):
            eye = one.cameras.centres[view].numpy()
            assert (eye > 0.1).all() and (eye < size - 0.1).all()
            assert seen.depth_m is not None and seen.object_id is not None and seen.normal is not None
            left_through_openings(one.scene, *_missed(one.cameras, view, seen.depth_m))
            assert 0.05 < seen.rgb.mean() < 0.95 and seen.rgb.std() > 0.02
            floor = seen.object_id - len(one.scene.objects) == names.index("floor")
            c2w, K = one.cameras.c2w[view].numpy().astype(float), one.cameras.K[view].numpy().astype(float)
            v, u = np.nonzero(floor)
            rays = np.stack([(u + 0.5 - K[0, 2]) / K[0, 0], (v + 0.5 - K[1, 2]) / K[1, 1], np.ones(len(u))], 1)
            points = seen.depth_m[v, u, None] * (rays @ c2w[:3, :3].T) + eye
            np.testing.assert_allclose(points[:, 2], 0, atol=1e-4)
            right = c2w[:3, 0]
            assert abs(right[2]) < np.sin(np.deg2rad(15))  # held nearly level
