"""Light of panels against closed forms: a rectangle over a floor, a ball in even light; smoothing; the exposure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
import pytest

from unproject.toybox.hits import Hits
from unproject.toybox.objects import build
from unproject.toybox.programs import ObjectProgram
from unproject.toybox.render import Renderer, render_views
from unproject.toybox.scenes import Light, Panel, Placed, Scene, Surface
from unproject.toybox.soft_light import MIDDLE_GREY, _panels, develop, shade, smoothed
from unproject.toybox.views import Orbit

PROGRAM = ObjectProgram("sphere", "gray", seed=1)


def lit(panels: tuple[Panel, ...], ambient: float, surfaces: tuple[Surface, ...] = ()) -> Scene:
    """A ball and perhaps more under these lights."""
    light = Light(None, None, np.zeros(3), np.zeros((9, 3)), panels, np.full(3, ambient))
    return Scene(PROGRAM, (Placed(build(PROGRAM), np.eye(4)),), light, np.ones(3), surfaces)


def panel(low: tuple[float, float, float], wide: float, long: float, radiance: float) -> Panel:
    """A horizontal one that looks down."""
    return Panel(np.array(low), np.array([0, long, 0]), np.array([wide, 0, 0]), np.full(3, radiance))


@dataclass
class Nothing:
    """A world where no ray meets anything."""

    def __post_init__(self) -> None:
        self.caster = o3d.t.geometry.RaycastingScene()
        far = o3d.core.Tensor(np.array([[1e6, 0, 0], [1e6, 1, 0], [1e6, 0, 1]], np.float32))
        self.caster.add_triangles(far, o3d.core.Tensor(np.array([[0, 1, 2]], np.uint32)))


def test_the_light_of_a_rectangle_is_its_form_factor() -> None:
    """Of a small plane element below a corner of a parallel rectangle a x b at height c."""
    a, b, c = 1.5, 0.8, 1.2
    x, y = a / c, b / c
    p, q = np.sqrt(1 + x * x), np.sqrt(1 + y * y)
    factor = (x / p * np.arctan(y / p) + y / q * np.arctan(x / q)) / (2 * np.pi)
    rng, count = np.random.default_rng(0), 40000
    start, up = np.zeros((count, 3)), np.tile([0.0, 0.0, 1.0], (count, 1))
    found = _panels(Nothing(), start, up, (panel((0, 0, c), a, b, 3.0),), rng)
    assert found.mean() == pytest.approx(np.pi * 3.0 * factor, rel=0.01)
    assert not _panels(Nothing(), start[:9], -up[:9], (panel((0, 0, c), a, b, 3.0),), rng).any()  # from below
    assert not _panels(Nothing(), start[:9] + [0, 0, 2], -up[:9], (panel((0, 0, c), a, b, 3.0),), rng).any()  # its back


def test_one_panel_drawn_for_each_start_is_right_on_average() -> None:
    panels = (panel((0, 0, 1), 1, 1, 1.0), panel((-2, -1, 2), 1.5, 1, 4.0), panel((1, 1, 1.5), 0.3, 0.3, 9.0))
    start, up = np.zeros((60000, 3)), np.tile([0.0, 0.0, 1.0], (60000, 1))
    every = _panels(Nothing(), start, up, panels, np.random.default_rng(0)).mean()
    some = _panels(Nothing(), start, up, panels, np.random.default_rng(1), one=True).mean()
    assert some == pytest.approx(every, rel=0.03)


def test_a_ball_in_even_light_has_the_radiance_of_its_albedo() -> None:
    renderer = Renderer(lit((panel((0, 0, 50), 0.1, 0.1, 0.0),), 0.7))
    camera = Orbit(20.0, 10.0, 3.6, 30.0).camera(24)
    c2w, K = camera.c2w[0].numpy().astype(float), camera.K[0].numpy().astype(float)
    hits = renderer._cast(c2w, K, np.arange(24) + 0.5, np.arange(24) + 0.5)
    dull = shade(
        renderer, hits, (24, 24), renderer.scene.light, lambda f0, rough, n_v: 0 * f0, np.random.default_rng(0)
    )
    albedo, _, _, _ = renderer.material(hits)
    ratio = dull / (0.7 * albedo)
    assert np.median(ratio) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(ratio, 1, atol=0.05)  # its facets see each other a little where normals are interpolated


def test_the_penumbra_is_as_wide_as_the_panel_makes_it() -> None:
    """Below a ball of radius r and a panel of width w at height H above its middle: similar triangles."""
    renderer = Renderer(lit((), 0.0))
    radius, below, above = 0.85, 1.5, 6.0
    x = np.repeat(np.linspace(0, 4, 161), 400)
    start = np.stack([x, 0 * x, np.full(len(x), -below)], 1)
    up = np.tile([0.0, 0.0, 1.0], (len(x), 1))
    for side in (0.02, 1.0, 2.0):
        strip = (panel((-side / 2, -0.01, above), side, 0.02, 1.0),)
        found = _panels(renderer, start, up, strip, np.random.default_rng(0)).mean(1).reshape(161, 400).mean(1)
        free = _panels(Nothing(), start, up, strip, np.random.default_rng(1)).mean(1).reshape(161, 400).mean(1)
        seen = found / free
        full, none = x[::400][seen > 0.98].min(), x[::400][seen < 0.02].max()
        edges = []
        for lamp in (-side / 2, side / 2):  # the ray from an end of the panel that touches the ball on its right
            tilt = np.arctan2(-lamp, above) + np.arcsin(radius / np.hypot(lamp, above))
            edges.append(lamp + np.tan(tilt) * (above + below))
        assert none == pytest.approx(min(edges), abs=0.06) and full == pytest.approx(max(edges), abs=0.06)


def test_smoothing_keeps_even_light_and_edges_and_lowers_the_noise() -> None:
    rows, columns = 40, 48
    count = rows * columns
    left = (np.arange(count) % columns) < 24
    normal = np.where(left[:, None], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    grid = np.stack([(np.arange(count) % columns) * 0.01, (np.arange(count) // columns) * 0.01, np.zeros(count)], 1)
    point = np.where(left[:, None], grid, grid[:, [2, 1, 0]])
    hits = Hits(np.arange(count), np.ones(count), np.zeros(count, int), normal, point, point, normal)
    even = smoothed(np.full((count, 3), 0.4), hits, normal, (rows, columns))
    np.testing.assert_allclose(even, 0.4, rtol=1e-4)
    truth = np.where(left, 1.0, 0.2)[:, None]
    noisy = truth + 0.1 * np.random.default_rng(0).normal(size=(count, 1))
    found = smoothed(noisy, hits, normal, (rows, columns))
    assert (found - truth).std() < 0.25 * (noisy - truth).std()
    assert np.abs(found[left].mean() - 1) < 0.01 and np.abs(found[~left].mean() - 0.2) < 0.01  # perpendicular planes


def test_pictures_are_exposed_for_their_mean_whatever_the_light() -> None:
    radiance = np.random.default_rng(0).lognormal(0, 1, (500, 3))
    np.testing.assert_allclose(develop(radiance * 50), develop(radiance), atol=2e-3)
    np.testing.assert_allclose(develop(np.full((9, 3), 2.0)), 1 - np.exp(-MIDDLE_GREY), rtol=1e-3)
    bright = develop(radiance)
    assert bright.min() > 0 and bright.max() < 1 and (np.argsort(bright[:, 0]) == np.argsort(radiance[:, 0])).all()


def test_a_picture_of_a_lit_scene_is_the_same_every_time() -> None:
    scene = lit((panel((-1, -1, 4.0), 2, 2, 5.0),), 0.2)
    camera = Orbit(20.0, 10.0, 3.6, 30.0).camera(16)
    pair = [(camera.c2w[0].numpy().astype(float), camera.K[0].numpy().astype(float))]
    one, other = render_views(scene, pair, 16)[0], render_views(scene, pair * 2, 16)[1]
    np.testing.assert_array_equal(one.rgb, other.rgb)
