"""Rays to camera matrices: exact, unmoved by wrong rays, and the same camera whatever is done to the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unproject.geometry.camera_image import (
    AZIMUTH_LIMIT,
    angles_of_code,
    angles_of_tangents,
    code_of_angles,
    pixel_tangents,
    tangents_of_angles,
    within_range,
)
from unproject.geometry.pinhole_fit import Known, fit_pinhole
from unproject.utils.errors import InputError

WIDTH, HEIGHT = 64, 48


def matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


SKEWED = matrix(61.3, 54.1, 29.2, 27.7)


def rays(K: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> Tensor:
    return pixel_tangents(torch.from_numpy(K)[None], width, height)


def everywhere(tangents: Tensor) -> Tensor:
    return torch.ones_like(tangents[:, :1], dtype=torch.bool)


def spoiled(tangents: Tensor, share: float, seed: int = 0) -> Tensor:
    """A share of the pixels look anywhere in the range of the picture."""
    rng = torch.Generator().manual_seed(seed)
    code = code_of_angles(angles_of_tangents(tangents))
    wrong = torch.rand(code[:, :1].shape, generator=rng) < share
    noise = 2 * torch.rand(code.shape, generator=rng, dtype=code.dtype) - 1
    return tangents_of_angles(angles_of_code(torch.where(wrong, noise, code)))


def test_angles_are_those_of_the_rays() -> None:
    """By hand, from the unit vector: theta = atan2(n_x, n_z), phi = arccos(n_y)."""
    tangents = rays(SKEWED)
    x, y = tangents[0, :, 40, 5].tolist()
    assert (x, y) == pytest.approx(((5.5 - 29.2) / 61.3, (40.5 - 27.7) / 54.1))
    ray = np.array([x, y, 1]) / np.linalg.norm([x, y, 1])
    angles = angles_of_tangents(tangents)
    assert angles[0, :, 40, 5].tolist() == pytest.approx([np.arctan2(ray[0], ray[2]), np.arccos(ray[1])])
    torch.testing.assert_close(tangents_of_angles(angles), tangents, rtol=1e-12, atol=1e-12)
    code = code_of_angles(angles)
    assert code[0, :, 40, 5].tolist() == pytest.approx(
        [np.arctan2(ray[0], ray[2]) / np.pi / 0.31, 2 * (np.arccos(ray[1]) / np.pi - 0.21) / 0.58 - 1]
    )
    torch.testing.assert_close(angles_of_code(code), angles, rtol=1e-12, atol=1e-12)


def test_rays_beyond_the_range_are_known_as_such() -> None:
    wide = rays(matrix(20.0, 60.0, 32, 24))  # 116 degrees wide
    inside = within_range(wide)[0, 0]
    columns = np.abs(np.arctan((np.arange(WIDTH) + 0.5 - 32) / 20)) < AZIMUTH_LIMIT
    np.testing.assert_array_equal(inside[24].numpy(), columns)
    assert columns.sum() == 58
    clipped = tangents_of_angles(angles_of_code(code_of_angles(angles_of_tangents(wide))))
    assert not within_range(clipped)[0, 0, :, 0].any()
    found = fit_pinhole(clipped, within_range(clipped), (WIDTH, HEIGHT)).K
    np.testing.assert_allclose(found, matrix(20.0, 60.0, 32, 24), rtol=1e-9, atol=1e-9)  # what is left is enough


@pytest.mark.parametrize("share", [0.0, 0.3, 0.45])
@pytest.mark.parametrize("seed", range(3))
def test_wrong_rays_do_not_move_the_camera(share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    K = matrix(rng.uniform(45, 120), rng.uniform(45, 120), *rng.uniform(0.35, 0.65, 2) * (WIDTH, HEIGHT))
    seen = spoiled(rays(K), share, seed)
    found = fit_pinhole(seen, within_range(seen), (WIDTH, HEIGHT))
    np.testing.assert_allclose(found.K, K, rtol=1e-6, atol=1e-6)
    assert found.inliers.mean() == pytest.approx(1 - share, abs=0.03)
    if share:  # least squares are far off
        u = np.tile(np.arange(WIDTH) + 0.5, HEIGHT)
        assert abs(1 / np.polyfit(u, seen[0, 0].numpy().ravel(), 1)[0] / K[0, 0] - 1) > 0.05


def test_a_wrong_part_of_the_picture_does_not_move_the_camera() -> None:
    """A block of another camera's rays, 40 % of the columns and all their rows, is no noise."""
    seen = rays(SKEWED)
    seen[..., :25] = rays(matrix(90.0, 80.0, 20.0, 30.0))[..., :25]
    found = fit_pinhole(seen, everywhere(seen), (WIDTH, HEIGHT))
    np.testing.assert_allclose(found.K, SKEWED, rtol=1e-6)
    assert not found.inliers[..., :20].any()


def test_noise_in_the_rays_does_not_shorten_the_focal_length() -> None:
    """Fitted the other way round, u over x, the slope is too small by var(x) / (var(x) + var(noise)), 4 % here."""
    rng = np.random.default_rng(0)
    K = matrix(150.0, 150.0, 33.0, 22.0)
    seen = rays(K) + torch.from_numpy(0.025 * rng.standard_normal((1, 2, HEIGHT, WIDTH)))
    found = fit_pinhole(seen, everywhere(seen), (WIDTH, HEIGHT))
    assert abs(found.K[0, 0] / 150 - 1) < 0.012
    error = np.abs(found.K[[0, 1, 0, 1], [0, 1, 2, 2]] - [150, 150, 33, 22])
    assert (error < 4 * found.sd).all() and (found.sd < 3).all()
    u, x = np.tile(np.arange(WIDTH) + 0.5, HEIGHT), seen[0, 0].numpy().ravel()
    assert np.polyfit(x, u, 1)[0] < 0.97 * 150


def test_the_camera_goes_with_the_picture() -> None:
    """Crop, padding, mirror and size of the ray map, each with the exact matrix."""
    seen, fx, fy, cx, cy = rays(SKEWED), 61.3, 54.1, 29.2, 27.7

    def of(tangents: Tensor, size: tuple[int, int], valid: Tensor | None = None) -> np.ndarray:
        return fit_pinhole(tangents, everywhere(tangents) if valid is None else valid, size).K

    cropped = of(seen[..., 9:41, 20:61], (41, 32))
    np.testing.assert_allclose(cropped, matrix(fx, fy, cx - 20, cy - 9), rtol=1e-9)
    mirrored = of(seen.flip(3) * torch.tensor([-1.0, 1]).reshape(2, 1, 1), (WIDTH, HEIGHT))
    np.testing.assert_allclose(mirrored, matrix(fx, fy, WIDTH - cx, cy), rtol=1e-9)
    np.testing.assert_allclose(
        of(seen, (3 * WIDTH, 2 * HEIGHT)), matrix(3 * fx, 2 * fy, 3 * cx, 2 * cy), rtol=1e-9
    )  # the picture of the same rays in other pixels
    padded = torch.nn.functional.pad(seen, (7, 3, 5, 11), value=0.4)
    valid = torch.nn.functional.pad(everywhere(seen), (7, 3, 5, 11), value=False)
    np.testing.assert_allclose(of(padded, (WIDTH + 10, HEIGHT + 16), valid), matrix(fx, fy, cx + 7, cy + 5), rtol=1e-9)


def test_a_mirrored_noisy_picture_has_the_mirrored_camera() -> None:
    rng = np.random.default_rng(1)
    seen = spoiled(rays(SKEWED), 0.2) + torch.from_numpy(0.02 * rng.standard_normal((1, 2, HEIGHT, WIDTH)))
    one = fit_pinhole(seen, everywhere(seen), (WIDTH, HEIGHT)).K
    mirror = seen.flip(3) * torch.tensor([-1.0, 1]).reshape(2, 1, 1)
    other = fit_pinhole(mirror, everywhere(seen), (WIDTH, HEIGHT)).K
    np.testing.assert_allclose(other, matrix(one[0, 0], one[1, 1], WIDTH - one[0, 2], one[1, 2]), rtol=1e-8)


def test_what_is_known_is_kept_and_helps() -> None:
    rng = np.random.default_rng(2)
    K = matrix(70.0, 70.0, 40.0, 20.0)
    seen = rays(K) + torch.from_numpy(0.05 * rng.standard_normal((1, 2, HEIGHT, WIDTH)))

    def found(**known) -> np.ndarray:
        return fit_pinhole(seen, everywhere(seen), (WIDTH, HEIGHT), Known(**known)).K

    square = found(square=True)
    assert square[0, 0] == pytest.approx(square[1, 1], rel=1e-12)
    focal = found(focal_px=(70.0, 69.0))
    assert (focal[0, 0], focal[1, 1]) == pytest.approx((70, 69), rel=1e-12)
    centred = found(principal_px=(40.0, 20.0), square=True)
    assert (centred[0, 2], centred[1, 2]) == pytest.approx((40, 20), rel=1e-12)
    np.testing.assert_allclose(found(principal_px=(1.0, 2.0), focal_px=(5.0, 6.0)), matrix(5, 6, 1, 2), rtol=1e-12)
    for guess in (square, focal, centred):
        assert np.abs(guess - K).max() < 2
    with pytest.raises(InputError, match="focal_px"):
        Known(focal_px=(0.0, 1.0))


def test_pictures_of_one_camera_share_it() -> None:
    """Two halves that alone say nothing of the other half; of one camera they are one picture."""
    seen = spoiled(rays(SKEWED), 0.1)
    halves = torch.cat([seen, seen])
    valid = torch.zeros(2, 1, HEIGHT, WIDTH, dtype=torch.bool)
    valid[0, ..., : WIDTH // 2], valid[1, ..., WIDTH // 2 :] = True, True
    together = fit_pinhole(halves, valid, (WIDTH, HEIGHT))
    np.testing.assert_allclose(together.K, fit_pinhole(seen, everywhere(seen), (WIDTH, HEIGHT)).K, rtol=1e-9)
    assert together.inliers.shape == (2, HEIGHT, WIDTH)
    noisy = rays(SKEWED) + torch.from_numpy(0.05 * np.random.default_rng(0).standard_normal((1, 2, HEIGHT, WIDTH)))
    many = torch.cat([noisy, rays(SKEWED).repeat(7, 1, 1, 1)])
    alone, shared = (fit_pinhole(x, everywhere(x), (WIDTH, HEIGHT)).K for x in (noisy, many))
    assert np.abs(shared - SKEWED).max() < 0.01 < np.abs(alone - SKEWED).max()


def test_rays_that_fit_no_camera_are_refused() -> None:
    backwards = -rays(SKEWED)
    with pytest.raises(InputError, match="fit no camera"):
        fit_pinhole(backwards, everywhere(backwards), (WIDTH, HEIGHT))
    nothing = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    nothing[..., 3] = True
    with pytest.raises(InputError, match="two columns"):
        fit_pinhole(rays(SKEWED), nothing, (WIDTH, HEIGHT))
    with pytest.raises(InputError, match="valid has shape"):
        fit_pinhole(rays(SKEWED), nothing[:, 0], (WIDTH, HEIGHT))
