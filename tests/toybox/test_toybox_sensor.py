"""The depth sensor against its formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unproject.toybox.sensor import SensorModel, incidence, infrared_return, measure, projector_shadow, sense
from unproject.utils.errors import InputError

K = np.array([[585.0, 0, 32], [0, 585.0, 32], [0, 0, 1]])
QUIET = SensorModel(axial_m=(0, 0, 0), lateral_px=(0, 0), speckle=0.0, weakest_return=1e-9, mixed_px=0.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("z", [0.8, 2.0, 4.0])
def test_depth_comes_in_steps_of_z_squared_over_focal_times_baseline(z: float) -> None:
    ramp = np.linspace(0.9 * z, 1.1 * z, 64 * 64).reshape(64, 64)
    told = np.unique(measure(ramp, K, rng(), replace(QUIET, kind="structured-light", baseline_m=0.075)).astype(float))
    told = told[told > 0]
    step = told[:-1] * told[1:] / (585.0 * 0.075) * 0.125  # exact: 1/z1 - 1/z2 = s / (f B)
    np.testing.assert_allclose(np.diff(told), step, rtol=1e-3)
    assert np.median(np.diff(told)) == pytest.approx(0.125 * z**2 / (585 * 0.075), rel=0.05)


def test_time_of_flight_counts_millimetres() -> None:
    ramp = np.linspace(1.0, 1.05, 4096).reshape(64, 64)
    told = measure(ramp, K, rng(), replace(QUIET, kind="time-of-flight"))
    np.testing.assert_allclose(told * 1000, np.round(ramp * 1000), atol=1e-3)


def test_exact_input_without_noise_stays_within_half_a_step() -> None:
    flat = np.full((48, 48), 1.7)
    told = measure(flat, K, rng(), QUIET)
    assert np.abs(told - 1.7).max() <= 0.51 * 0.125 * 1.7**2 / (585 * 0.075)
    assert np.unique(told).size == 1


@pytest.mark.parametrize("z", [1.0, 3.0])
def test_axial_noise_has_its_standard_deviation(z: float) -> None:
    model = SensorModel(kind="time-of-flight", depth_step_m=1e-6, lateral_px=(0, 0), mixed_px=0.0, speckle=0.0)
    told = measure(np.full((128, 128), z), K, rng(), model)
    expected = 0.0012 + 0.0019 * (z - 0.4) ** 2 + 0.0001 / np.sqrt(z) * 0.0
    assert told[told > 0].std() == pytest.approx(expected, rel=0.03)
    assert model.axial_std(np.array(z), np.array(0.0)) == pytest.approx(expected)
    steep = model.axial_std(np.array(z), np.array(np.pi / 4))
    assert steep - expected == pytest.approx(0.0001 / np.sqrt(z))  # t / (pi/2 - t) = 1 at 45 degrees


def test_lateral_noise_scales_with_the_focal_length() -> None:
    model = SensorModel()
    assert model.lateral_std(np.array(0.0), 585.0) == pytest.approx(0.8)
    assert model.lateral_std(np.array(np.pi / 4), 585.0) == pytest.approx(0.835)
    assert model.lateral_std(np.array(0.0), 58.5) == pytest.approx(0.08)


def test_shadow_is_as_wide_as_the_step_of_disparity() -> None:
    near, far, focal, baseline = 1.0, 2.0, 400.0, 0.075
    depth = np.full((4, 200), far)
    depth[:, 100:140] = near
    shadow = projector_shadow(depth, focal, baseline)
    width = focal * baseline * (1 / near - 1 / far)  # 15 px, left of the near surface
    assert shadow.sum(1).tolist() == [width] * 4
    assert shadow[:, 85:100].all()
    assert not projector_shadow(np.full((4, 50), far), focal, baseline).any()
    assert not projector_shadow(np.zeros((4, 50)), focal, baseline).any()


def test_incidence_of_a_plane() -> None:
    tilt = np.deg2rad(30)
    normal = np.broadcast_to(np.array([np.sin(tilt), 0, -np.cos(tilt)]), (65, 65, 3))
    centred = np.array([[585.0, 0, 32.5], [0, 585.0, 32.5], [0, 0, 1]])
    angle = incidence(normal, centred)
    assert angle[32, 32] == pytest.approx(tilt)
    right = np.arctan(32 / 585.0)
    assert angle[32, 64] == pytest.approx(tilt + right)
    assert (incidence(np.zeros((4, 4, 3)), centred) == 0).all()


def test_return_follows_lambert_and_the_inverse_square() -> None:
    def back(z: float, angle: float, albedo: float, rough: float = 0.8, metal: float = 0.0) -> float:
        return float(infrared_return(*(np.array(v) for v in (z, angle, albedo, rough, metal))))

    assert back(2.0, 0.0, 0.96) == pytest.approx(1.0)
    assert back(4.0, 0.0, 0.5) == pytest.approx(back(2.0, 0.0, 0.5) / 4)
    assert back(2.0, 1.2, 0.5, 0.05) == pytest.approx(0.5 * np.cos(1.2), rel=1e-6)
    assert back(2.0, 0.0, 0.5, 0.2, 1.0) == pytest.approx(0.5)
    assert back(2.0, 0.6, 0.9, 0.2, 1.0) < 1e-4


def test_dark_grazing_and_far_surfaces_are_lost() -> None:
    flat, model = np.full((64, 64), 2.0), SensorModel(speckle=0.0)
    bright = measure(flat, K, rng(), model, albedo=np.full((64, 64), 0.5))
    dark = measure(flat, K, rng(), model, albedo=np.full((64, 64), 0.0))
    assert (bright > 0).mean() > 0.99
    metal = measure(
        flat, K, rng(), model, _tilted(0.8), np.full((64, 64), 0.8), np.full((64, 64), 0.1), np.ones((64, 64))
    )
    assert (metal > 0).mean() < 0.05
    black = replace(model, weakest_return=0.4)
    assert (measure(flat, K, rng(), black, albedo=np.full((64, 64), 0.0)) > 0).mean() < 0.05
    farther = measure(2 * flat, K, rng(), model, albedo=np.zeros((64, 64)))
    assert (farther > 0).mean() < (dark > 0).mean()
    assert (measure(flat, K, rng(), model, _tilted(1.5)) == 0).all()
    assert (measure(np.full((8, 8), 9.0), K, rng(), model) == 0).all()
    assert (measure(np.zeros((8, 8)), K, rng(), model) == 0).all()


def _tilted(angle: float) -> np.ndarray:
    return np.broadcast_to(np.array([np.sin(angle), 0, -np.cos(angle)]), (64, 64, 3))


def test_time_of_flight_mixes_depths_at_edges_only() -> None:
    depth = np.full((64, 64), 3.0)
    depth[:, 32:] = 1.0
    model = replace(QUIET, kind="time-of-flight", mixed_px=1.0)
    told = measure(depth, K, rng(), model)
    flying = (told > 1.05) & (told < 2.95)
    assert flying[:, 29:35].any()
    assert not flying[:, :26].any() and not flying[:, 38:].any()


def test_same_seed_same_measurement() -> None:
    depth = np.linspace(1, 3, 1024).reshape(32, 32)
    np.testing.assert_array_equal(measure(depth, K, rng()), measure(depth, K, rng()))
    assert (measure(depth, K, rng()) != measure(depth, K, np.random.default_rng(1))).any()


def test_rendered_room_is_measured() -> None:
    from unproject.toybox import sample

    one = sample("val", 0, "room", 24)
    view, c2w, K_room = one.renderings[0], one.cameras.c2w[0].numpy(), one.cameras.K[0].numpy()
    told = sense(view, c2w, K_room, rng())
    assert view.depth_m is not None
    seen = told > 0
    assert seen.mean() > 0.3
    assert np.median(np.abs(told - view.depth_m)[seen]) < 0.1


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(InputError, match="kind='lidar'"):
        SensorModel(kind="lidar")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="range_m"):
        SensorModel(range_m=(3.0, 1.0))
    with pytest.raises(InputError, match="depth_m"):
        measure(np.zeros((2, 2, 1)), K, rng())
