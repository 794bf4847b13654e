"""Procedural materials: they tile exactly, normals are those of the height, sizes agree, pictures are lit by maps."""

from __future__ import annotations

import numpy as np
import pytest

from unproject.toybox.pbr import (
    FAMILIES,
    LABELLED,
    PbrMaps,
    PbrProgram,
    draw_pbr,
    pbr_caption,
    pbr_maps,
    periodic_noise,
)
from unproject.toybox.pbr_set import PbrSet, photographed
from unproject.utils.errors import InputError


def program(family: str, cells: int = 3, relief: float = 0.05) -> PbrProgram:
    return PbrProgram(family, ("red", "white"), (0.3, 0.9), (1.0, 0.0), cells, relief, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tile_continues_on_the_other_side(family: str) -> None:
    """Everything a family says has period 1 in both directions."""
    rng = np.random.default_rng(0)
    u, v = rng.random(400), rng.random(400)
    here = FAMILIES[family](u, v, program(family))
    for du, dv in ((1, 0), (0, 1), (-2, 3)):
        for one, other in zip(here, FAMILIES[family](u + du, v + dv, program(family)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("family", ["tiles", "studs", "waves", "clouds"])
def test_normals_are_those_of_the_height(family: str) -> None:
    """Right-handed: x right, y up against the rows, so that a rise to the right leans the normal to the left."""
    maps = pbr_maps(program(family), 192, samples=1)
    size = 192
    across = (np.roll(maps.height, -1, 1) - np.roll(maps.height, 1, 1)) * size / 2 * 0.05
    down = (np.roll(maps.height, -1, 0) - np.roll(maps.height, 1, 0)) * size / 2 * 0.05
    expected = np.stack([-across, down, np.ones_like(down)], -1)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    off = np.rad2deg(np.arccos(np.clip((expected * maps.normal).sum(-1), -1, 1)))
    assert np.median(off) < 1.0
    assert np.quantile(off, 0.75) < 6  # elsewhere lie the kinks of ramps
    np.testing.assert_allclose(np.linalg.norm(maps.normal, axis=-1), 1, atol=1e-5)
    assert maps.normal[..., 2].min() > 0


def test_a_small_map_is_the_mean_of_a_large_one() -> None:
    large, small = (pbr_maps(program("bricks"), size, samples) for size, samples in ((64, 1), (32, 2)))
    pooled = large.roughness.reshape(32, 2, 32, 2).mean((1, 3))
    np.testing.assert_allclose(small.roughness, pooled, atol=1e-6)
    np.testing.assert_allclose(small.height, large.height.reshape(32, 2, 32, 2).mean((1, 3)), atol=1e-6)


def test_finishes_go_together() -> None:
    """Where the first finish is, it is of metal and smooth: roughness and metallic are one mixture."""
    maps = pbr_maps(program("tiles"), 48)
    np.testing.assert_allclose(maps.roughness, 0.9 - 0.6 * maps.metallic, atol=1e-5)
    assert maps.metallic.min() < 0.2
    assert maps.metallic.max() > 0.95
    for part in maps:
        assert part.dtype == np.float32
    assert all(part.min() >= 0 and part.max() <= 1 for part in (maps.albedo_srgb, maps.height, maps.roughness))


def test_noise_has_its_period_and_its_cells() -> None:
    u = np.random.default_rng(0).random(200)
    for cells in (1, 3, 8):
        np.testing.assert_allclose(periodic_noise(u, u, cells, 2), periodic_noise(u + 1, u - 2, cells, 2), atol=1e-6)
    assert 0.2 < periodic_noise(u, np.roll(u, 1), 16, 2).std() < 0.7


def test_draws_are_pure_and_splits_differ() -> None:
    assert draw_pbr("train", 3) == draw_pbr("train", 3)
    assert draw_pbr("train", 3) != draw_pbr("val", 3)
    families = {draw_pbr("train", i).family for i in range(60)}
    assert families == set(LABELLED)
    drawn = draw_pbr("train", 4)
    assert pbr_caption(drawn).startswith(drawn.colours[0])
    with pytest.raises(InputError, match="family='glass' is unknown"):
        program("glass")


def test_a_lamp_to_the_right_lights_what_leans_to_the_right() -> None:
    flat = np.zeros((8, 8), np.float32)
    lean = np.broadcast_to(np.array([0.6, 0, 0.8], np.float32), (8, 8, 3))
    albedo = np.full((8, 8, 3), 0.5, np.float32)

    class Fixed:
        """Draws a lamp at azimuth 0 and height .5, gain 1."""

        def __init__(self) -> None:
            self.values = iter((0.0, 0.5, 1.0))

        def uniform(self, low, high):
            return next(self.values)

    right, left = (
        photographed(PbrMaps(albedo, lean * [sign, 1, 1], flat, flat + 0.9, flat), Fixed()) for sign in (1, -1)
    )
    assert right.mean() > left.mean() + 0.1


def test_sets_shift_maps_together() -> None:
    made = PbrSet("train", 3, 16)
    plain = made.batch(np.array([1]), None)
    assert plain["albedo"].shape == (1, 16, 16, 3)
    assert plain["photo"].dtype == np.uint8
    moved = made.batch(np.array([1]), np.random.default_rng(3))
    places = [
        (dy, dx)
        for dy in range(16)
        for dx in range(16)
        if np.array_equal(np.roll(plain["height"][0], (dy, dx), (0, 1)), moved["height"][0])
    ]
    assert any(np.array_equal(np.roll(plain["normal"][0], shift, (0, 1)), moved["normal"][0]) for shift in places)
    again = made.batch(np.array([1]), None)
    np.testing.assert_array_equal(plain["photo"], again["photo"])
    assert moved["captions"] == plain["captions"]


def test_without_families_of_pictures_alone_the_textures_are_the_albedos() -> None:
    made = PbrSet("train", 2, 16, tuple(FAMILIES), ())
    batch = made.batch(np.arange(2), None)
    np.testing.assert_allclose(batch["textures"] / 255, batch["albedo"], atol=0.003)
    assert batch["texture_captions"] == batch["captions"]
