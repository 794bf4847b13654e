"""The renderer against closed forms: a ball, a furnace, a shadow, and cameras that agree with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from unproject.toybox.dataset import group_cameras
from unproject.toybox.materials import Look, linear_from_srgb, srgb_from_linear
from unproject.toybox.objects import ToyObject, build
from unproject.toybox.places import make_scene
from unproject.toybox.programs import ObjectProgram, draw
from unproject.toybox.render import SH_C, SH_COSINE, Renderer, Rendering, render_views, sh_basis
from unproject.toybox.scenes import Light, Placed, Scene, Surface, placed_vertices
from unproject.toybox.views import draw_room_camera

Camera = Callable[..., tuple[np.ndarray, np.ndarray]]
Ball = Callable[..., ToyObject]
UP = np.array([0.0, 0.0, 1.0])


def constant_light(radiance: float, sun: float = 0.0) -> Light:
    """The same radiance from everywhere, and a sun straight above."""
    sh = np.zeros((9, 3))
    sh[0] = radiance / SH_C[0]
    return Light(UP, None, np.full(3, sun), sh)


def lit(toy: ToyObject, light: Light, *surfaces: Surface, background: float = 0.0) -> Scene:
    return Scene(toy.program, (Placed(toy, np.eye(4)),), light, np.full(3, background), surfaces)


def rays(c2w: np.ndarray, K: np.ndarray, size: int) -> np.ndarray:
    """Directions (H, W, 3) in the world with unit camera z."""
    pixels = np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), -1)
    local = np.concatenate([(pixels - K[:2, 2]) / np.diag(K)[:2], np.ones((size, size, 1))], -1)
    return local @ c2w[:3, :3].T


def test_ball_has_the_depth_normals_and_area_of_a_sphere(ball: Ball, orbit: Camera) -> None:
    radius, size, distance = 0.8, 64, 3.4
    c2w, K = orbit(30, 20, size, distance)
    view = Renderer(lit(ball(radius, 0.5), constant_light(1.0))).render(c2w, K, size, samples=4)
    directions, eye = rays(c2w, K, size), c2w[:3, 3]
    a, b, c = (directions**2).sum(-1), directions @ eye, eye @ eye - radius**2
    root = b * b - a * c
    hit = root > 0
    exact = (-b - np.sqrt(np.maximum(root, 0))) / a
    inner = root > 0.2 * root.max()  # away from the outline, where facets and the sphere part
    assert view.depth_m is not None and view.normal is not None and view.canonical is not None
    assert (view.depth_m > 0).sum() == pytest.approx(hit.sum(), rel=0.01)
    np.testing.assert_allclose(view.depth_m[inner], exact[inner], atol=1e-3)
    surface = eye + directions * exact[..., None]
    np.testing.assert_allclose(view.normal[inner], surface[inner] / radius, atol=4e-3)
    np.testing.assert_allclose(view.canonical[inner], surface[inner], atol=2e-3)
    outline = K[0, 0] * radius / np.sqrt(distance**2 - radius**2)  # pixels
    assert view.alpha.sum() == pytest.approx(np.pi * outline**2, rel=5e-3)
    assert set(np.unique(view.alpha * 16)) <= set(range(17))


@pytest.mark.parametrize("albedo", [0.0, 0.3, 0.8])
def test_matte_ball_in_a_constant_environment(ball: Ball, orbit: Camera, albedo: float) -> None:
    """Radiance L from everywhere leaves a Lambert surface as albedo L.

    The dielectric part adds L times the split sum at roughness 1, which is 0.04 (0.468 - 1.04 b) + 1.04 b - 0.018
    with b = 0.015 whatever the angle.
    """
    radiance = 0.6
    view = Renderer(lit(ball(0.8, albedo), constant_light(radiance))).render(*orbit(0, 10), 48, 1, geometry=False)
    assert view.foreground_linear is not None
    shaded = view.foreground_linear[view.alpha[..., 0] == 1]
    sheen = 0.04 * (0.468 - 1.04 * 0.015) + 1.04 * 0.015 - 0.018
    np.testing.assert_allclose(shaded, radiance * (albedo + sheen), rtol=1e-5, atol=1e-6)


def test_mirror_shows_the_environment(ball: Ball, orbit: Camera) -> None:
    """A smooth white metal in a constant environment is nearly as bright as the environment, whatever the angle."""
    view = Renderer(lit(ball(0.8, 1.0, 0.0, 1.0), constant_light(0.5))).render(*orbit(0), 48, 1, geometry=False)
    assert view.foreground_linear is not None
    shaded = view.foreground_linear[view.alpha[..., 0] == 1]
    np.testing.assert_allclose(shaded, 0.5, rtol=0.03)


@pytest.mark.parametrize("rough", [0.3, 0.6])
def test_metal_in_the_sun_is_a_ggx_microfacet_surface(ball: Ball, orbit: Camera, rough: float) -> None:
    """Walter et al. 2007, eq. 33, with alpha = roughness^2, Schlick's Smith term and Schlick's Fresnel term.

    D = alpha^2 / (pi cos^4 t (alpha^2 + tan^2 t)^2), t the angle between the normal and the half vector.
    """
    albedo, power, size = 0.4, 0.05, 64
    view = Renderer(lit(ball(0.8, albedo, rough, 1.0), constant_light(0.0, power))).render(
        *orbit(20, 50, size), size, 1
    )
    assert view.foreground_linear is not None and view.normal is not None
    c2w, K = orbit(20, 50, size)
    eye = -rays(c2w, K, size)
    eye /= np.linalg.norm(eye, axis=-1, keepdims=True)
    half = (UP + eye) / np.linalg.norm(UP + eye, axis=-1, keepdims=True)
    to_sun, to_eye = view.normal @ UP, (view.normal * eye).sum(-1)
    theta = np.arccos(np.clip((view.normal * half).sum(-1), -1, 1))
    alpha = rough**2
    spread = alpha**2 / (np.pi * np.cos(theta) ** 4 * (alpha**2 + np.tan(theta) ** 2) ** 2)
    k = (rough + 1) ** 2 / 8
    shadowed = to_sun / (to_sun * (1 - k) + k) * to_eye / (to_eye * (1 - k) + k)
    fresnel = albedo + (1 - albedo) * (1 - (eye * half).sum(-1)) ** 5
    expected = fresnel * spread * shadowed / (4 * to_sun * to_eye) * to_sun * power * 0.5 * np.pi
    seen = (view.alpha[..., 0] == 1) & (to_sun > 0.15) & (to_eye > 0.15)
    assert expected[seen].max() > 5 * np.median(expected[seen]) and expected[seen].max() < 1
    np.testing.assert_allclose(view.foreground_linear[..., 0][seen], expected[seen], rtol=5e-3)


def test_harmonics_are_orthonormal_and_their_cosine_lobe_is_lamberts() -> None:
    directions = np.random.default_rng(0).standard_normal((200_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    basis = sh_basis(directions)
    np.testing.assert_allclose(4 * np.pi * basis.T @ basis / len(basis), np.eye(9), atol=0.03)
    clamped = np.maximum(directions @ UP, 0)
    lobe = 4 * np.pi * (basis * clamped[:, None]).mean(0)
    np.testing.assert_allclose(lobe, SH_COSINE * sh_basis(UP[None])[0], atol=0.03)


def test_floor_under_a_ball_is_black_exactly_in_its_shadow(ball: Ball, orbit: Camera) -> None:
    """A sun straight above and no environment: the shadow of a ball of radius r is the disc of radius r below it."""
    radius, size = 0.4, 64
    corner = np.array([-2.0, -2.0, -0.8])
    floor = Surface("floor", corner, np.array([4.0, 0, 0]), np.array([0, 4.0, 0]), Look((0.5,) * 3, 1.0, 0.0))
    scene = lit(ball(radius, 0.5), constant_light(0.0, sun=1.0), floor)
    view = Renderer(scene).render(*orbit(0, 40, size), size, 1)
    assert view.canonical is not None and view.object_id is not None and view.foreground_linear is not None
    on_floor = view.object_id == 1
    away = np.hypot(view.canonical[..., 0], view.canonical[..., 1])
    light = view.foreground_linear.max(-1)
    assert (on_floor & (away < 0.97 * radius)).sum() > 20
    assert light[on_floor & (away < 0.97 * radius)].max() == 0
    assert light[on_floor & (away > 1.03 * radius)].min() > 0.1


def test_views_agree_through_their_cameras(orbit: Camera) -> None:
    """Depth lifts a pixel of one view to its canonical place, which another view shows where that place projects to."""
    toy, size = build(ObjectProgram("car", "red", seed=1)), 96
    cameras = [orbit(20, 15, size), orbit(50, 30, size)]
    first, second = render_views(lit(toy, constant_light(1.0)), cameras, size, samples=1)
    (c2w, K), (other, K2) = cameras
    assert first.depth_m is not None and first.canonical is not None
    assert second.depth_m is not None and second.canonical is not None
    hit = first.depth_m > 0
    lifted = (c2w[:3, 3] + rays(c2w, K, size) * first.depth_m[..., None])[hit]
    np.testing.assert_allclose(lifted, first.canonical[hit], atol=2e-5)
    there = (lifted - other[:3, 3]) @ other[:3, :3]
    pixels = there @ K2.T
    u, v = np.floor(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    near = np.abs(second.depth_m[v, u] - there[:, 2]) < 0.01
    assert near.mean() > 0.5
    off = np.linalg.norm(second.canonical[v, u] - first.canonical[hit], axis=1)[near]
    footprint = 3.4 / K[0, 0]  # of a pixel at the object
    assert np.median(off) < footprint
    assert np.quantile(off, 0.95) < 4 * footprint


def test_keypoints_are_where_they_project_to_and_hidden_from_behind(ball: Ball, orbit: Camera) -> None:
    scene = lit(ball(0.8, 0.5), constant_light(1.0))
    c2w, K = orbit(0, 0)
    (seen,) = Renderer(scene).render(c2w, K, 48, 1).keypoints
    u, v, visible = seen["front"]
    assert (u, v) == pytest.approx((24, 24), abs=1e-3)
    assert visible
    (behind,) = Renderer(scene).render(*orbit(180, 0), 48, 1).keypoints
    assert behind["front"][:2] == pytest.approx((24, 24), abs=1e-3)
    assert not behind["front"][2]
    (above,) = Renderer(scene).render(*orbit(180, 60), 48, 1).keypoints
    assert above["top"][2] and not above["front"][2]


def test_background_and_coverage_blend_in_linear_light(ball: Ball, orbit: Camera) -> None:
    scene = lit(ball(0.8, 0.5), constant_light(0.7), background=0.4)
    view: Rendering = Renderer(scene).render(*orbit(0), 48)
    assert view.foreground_linear is not None
    blend = view.foreground_linear + (1 - view.alpha) * linear_from_srgb(np.full(3, 0.4))
    np.testing.assert_allclose(view.rgb, srgb_from_linear(blend), atol=1e-5)
    np.testing.assert_allclose(view.rgb[0, 0], 0.4, atol=1e-5)


def test_coverage_and_light_are_means_over_the_samples_of_a_pixel(ball: Ball, orbit: Camera) -> None:
    """The slow twin: a picture of three times the size with one sample a pixel has the same rays."""
    scene = lit(ball(0.7, 0.5), constant_light(0.4, sun=1.0), background=0.3)
    c2w, K = orbit(20, 35, 24)
    view = Renderer(scene).render(c2w, K, (24, 20), samples=3, geometry=False)
    fine = Renderer(scene).render(c2w, np.diag([3.0, 3.0, 1.0]) @ K, (72, 60), samples=1, geometry=False)
    assert view.foreground_linear is not None and fine.foreground_linear is not None
    for small, large in ((view.alpha, fine.alpha), (view.foreground_linear, fine.foreground_linear)):
        blocks = np.stack([large[i::3, j::3] for i in range(3) for j in range(3)])
        np.testing.assert_allclose(small, blocks.mean(0), atol=2e-3)
        assert (np.ptp(blocks, axis=0) > 0.2).sum() > 0
    np.testing.assert_allclose(
        view.alpha, np.stack([fine.alpha[i::3, j::3] for i in range(3) for j in range(3)]).mean(0)
    )


def test_srgb_round_trip() -> None:
    values = np.linspace(0, 1, 257)
    np.testing.assert_allclose(srgb_from_linear(linear_from_srgb(values)), values, atol=1e-6)


def test_room_is_closed_and_its_depth_ends_at_the_walls() -> None:
    from unproject.toybox import sample

    one = sample("val", 1, "room", size=24)
    for view in one.renderings:
        assert view.depth_m is not None and view.normal is not None
        assert (view.alpha == 1).all()
        assert view.depth_m.min() > 0.05 and view.depth_m.max() < 9
        np.testing.assert_allclose(np.linalg.norm(view.normal, axis=-1), 1, atol=1e-4)


def test_eyes_in_rooms_keep_clear_of_the_furniture() -> None:
    for index in range(12):
        scene = make_scene(draw("val", index, "room"), index)
        assert scene.size_m is not None
        cameras, _ = group_cameras("val", "room", index, scene, 24)
        for camera in cameras:
            eye = camera.centres[0].numpy()
            assert (eye > 0).all() and (eye < np.array(scene.size_m)).all()
            for corners in map(placed_vertices, scene.objects):
                gap = np.maximum(np.maximum(corners.min(0) - eye, eye - corners.max(0)), 0)
                assert np.linalg.norm(gap) >= 0.399


def test_a_room_without_room_still_has_eyes() -> None:
    scene = make_scene(draw("val", 0, "room"), 0)
    filled = replace(scene, objects=(Placed(scene.objects[0].toy, np.diag([40.0, 40.0, 40.0, 1.0])),))
    camera = draw_room_camera(np.random.default_rng(0), filled, (24, 24))
    eye = camera.centres[0].numpy()
    assert scene.size_m is not None and (eye > 0).all() and (eye < np.array(scene.size_m)).all()
