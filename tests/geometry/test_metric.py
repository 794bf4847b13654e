"""Depth up to an affine map to metres: the right shape by the normals, the right scale by one thing that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unproject.geometry.agreement import residuals
from unproject.geometry.cameras import Camera
from unproject.geometry.metric import Anchors, Measured, Metric, camera_normals, solve_metric
from unproject.utils.errors import InputError

WIDTH, HEIGHT, EYE_M, PITCH = 96, 72, 1.3, 0.25
GRAVITY = np.array([0.0, math.cos(PITCH), math.sin(PITCH)])  # of a camera that looks down a little


def camera(focal: float = 80.0) -> Camera:
    K = torch.tensor([[focal, 0, 45.0], [0, focal, 38.0], [0, 0, 1]])
    return Camera(torch.eye(4)[None], K[None], WIDTH, HEIGHT)


def room() -> tuple[Tensor, Tensor]:
    """z-depth (H, W) and normals (3, H, W) of a floor, and of a slanted wall above it."""
    rays = camera().pixel_directions()[0].double()
    down = torch.from_numpy(GRAVITY)
    wall = torch.nn.functional.normalize(torch.tensor([-0.4, -0.1, -0.9]).double(), dim=0)
    floor_z, wall_z = EYE_M / (rays @ down), -2.6 / (rays @ wall)
    on_floor = (floor_z > 0) & (floor_z < wall_z)
    normals = torch.where(on_floor[..., None], -down, wall)
    return torch.where(on_floor, floor_z, wall_z), normals.permute(2, 0, 1).float()


def unit_of(depth: Tensor):
    """What a head that knows depth up to an affine map would give."""
    share = (depth - depth.min()) / (depth.max() - depth.min())
    return lambda near, far: (near + share * (far - near)).float()


DEPTH, NORMALS = room()
RATIO = float(DEPTH.min() / DEPTH.max())


def test_normals_of_the_depth_are_those_of_the_room() -> None:
    found = camera_normals(DEPTH.float(), camera())
    agree = (found * NORMALS.permute(1, 2, 0)).sum(-1)
    assert float((agree > 0.9999).float().mean()) > 0.95  # but for the line where floor and wall meet
    torch.testing.assert_close(camera_normals(3 * DEPTH.float(), camera()), found, rtol=0, atol=1e-3)
    holes = DEPTH.float().clone()
    holes[3:6, 4:9] = torch.nan
    assert (camera_normals(holes, camera())[3:6, 4:9] == 0).all()


def test_the_right_camera_and_normals_tell_the_shape() -> None:
    found = solve_metric(unit_of(DEPTH), NORMALS, camera(), Anchors(height_m=EYE_M), GRAVITY)
    assert found.near_m / found.far_m == pytest.approx(RATIO, rel=0.02)
    assert found.far_m == pytest.approx(float(DEPTH.max()), rel=0.02)
    assert found.near_m == pytest.approx(float(DEPTH.min()), rel=0.03)
    assert found.measured and "1.3 m above the floor" in found.scale and found.shape == "normals"
    assert found.angle_deg is not None and found.angle_deg < 2
    wrong = solve_metric(unit_of(DEPTH), NORMALS, camera(40.0), Anchors(height_m=EYE_M), GRAVITY)
    assert wrong.angle_deg is not None and wrong.angle_deg > found.angle_deg + 3
    assert abs(wrong.near_m / wrong.far_m / RATIO - 1) > 0.1


def test_a_sky_that_is_seen_face_on_has_no_say_in_the_shape() -> None:
    """Where nothing is, a head says some depth and normals that look at the camera; a flat world agrees with those."""
    sky = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    sky[:50] = True
    inner, wavy = unit_of(DEPTH), 0.4 + 0.3 * torch.sin(torch.arange(WIDTH) / 3).expand(HEIGHT, -1)
    sight = torch.nn.functional.normalize(camera().pixel_directions()[0].float(), dim=-1).permute(2, 0, 1)

    def unit(near: float, far: float) -> Tensor:
        return torch.where(sky, near + wavy * (far - near), inner(near, far))

    found = solve_metric(unit, torch.where(sky, -sight, NORMALS), camera(), Anchors(height_m=EYE_M), GRAVITY)
    assert found.near_m / found.far_m == pytest.approx(RATIO, rel=0.1)


def test_a_known_distance_is_along_the_line_of_sight() -> None:
    u, v = 80.5, 60.5
    z = float(DEPTH[60, 80])
    away = z * math.sqrt(1 + ((u - 45) / 80) ** 2 + ((v - 38) / 80) ** 2)
    for factor in (1.0, 7.0):
        known = Anchors(Measured(u, v, factor * away))
        found = solve_metric(unit_of(DEPTH), NORMALS, camera(), known, GRAVITY)
        assert found.far_m == pytest.approx(factor * float(DEPTH.max()), rel=0.01)
        metres = unit_of(DEPTH)(found.near_m, found.far_m)
        assert float(metres[60, 80]) == pytest.approx(factor * z, rel=0.01)
    assert "to (80.5, 60.5)" in found.scale
    with pytest.raises(InputError, match="outside the picture of 96 x 72"):
        solve_metric(unit_of(DEPTH), NORMALS, camera(), Anchors(Measured(96, 3, 1.0)))
    hole = DEPTH.clone()
    hole[:4, :4] = torch.nan
    with pytest.raises(InputError, match=r"shows nothing at \(1, 1\)"):
        solve_metric(lambda near, far: hole.float(), NORMALS, camera(), Anchors(Measured(1, 1, 1.0)))


def test_without_anything_known_it_says_so() -> None:
    assumed = solve_metric(unit_of(DEPTH), NORMALS, camera(), gravity=GRAVITY)
    assert not assumed.measured and assumed.scale == "assumed: a camera 1.5 m above the floor"
    assert assumed.far_m == pytest.approx(float(DEPTH.max()) * 1.5 / EYE_M, rel=0.02)
    wall = NORMALS[:, :1, -1:].expand_as(NORMALS)
    choice = solve_metric(unit_of(DEPTH), wall, camera(), gravity=GRAVITY)
    assert (choice.far_m, choice.scale) == (4.0, "a choice: 4 m at the farthest")
    flat = solve_metric(unit_of(DEPTH), None, camera(), Anchors(Measured(3, 3, 2.0)))
    assert flat.near_m / flat.far_m == pytest.approx(0.25) and flat.shape.startswith("a choice")
    own = solve_metric(unit_of(DEPTH), NORMALS, camera(), Anchors(height_m=EYE_M), GRAVITY, ratio=RATIO)
    assert own.near_m == pytest.approx(float(DEPTH.min()), rel=1e-3) and own.angle_deg is None
    with pytest.raises(InputError, match="needs a floor in the picture"):
        solve_metric(unit_of(DEPTH), wall, camera(), Anchors(height_m=1.0), GRAVITY)
    with pytest.raises(InputError, match="two scales"):
        Anchors(Measured(1, 1, 1.0), 2.0)
    with pytest.raises(InputError, match="height_m=-1"):
        Anchors(height_m=-1.0)
    assert Metric(1, 2, "measured: so", "normals").measured


def test_residuals_see_what_does_not_agree() -> None:
    right = residuals(DEPTH.float(), NORMALS, camera())
    assert right["normals_median_deg"] < 0.2 and right["plane_rms"] < 1e-4 and right["plane_angle_deg"] < 0.2
    assert right["normals_below_11.25"] > 0.95 and right["planes"] > 20
    scaled = residuals(5 * DEPTH.float(), NORMALS, camera())
    for name, value in right.items():
        assert scaled[name] == pytest.approx(value, abs=2e-2)
    bent = residuals(unit_of(DEPTH)(0.9, 1.0), NORMALS, camera())  # the wrong ratio bends and turns planes
    assert bent["normals_median_deg"] > 10 and bent["plane_angle_deg"] > 10
    rng = np.random.default_rng(0)
    rough = DEPTH.float() * torch.from_numpy(1 + 0.02 * rng.standard_normal(DEPTH.shape)).float()
    assert 0.005 < residuals(rough, NORMALS, camera())["plane_rms"] < 0.03
    nothing = residuals(torch.full_like(DEPTH, torch.nan).float(), NORMALS, camera())
    assert nothing["planes"] == 0 and nothing["plane_rms"] is None and nothing["normals_mean_deg"] is None
