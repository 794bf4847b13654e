"""The camera as a picture: there and back, what augmentation does to it, and a head that learns it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unproject.geometry.camera_image import pixel_tangents, within_range
from unproject.geometry.pinhole_fit import Known, fit_pinhole
from unproject.pipelines.image_to_camera import ImageToCamera
from unproject.tasks.codecs import CODECS, CameraCodec, GravityCodec
from unproject.tasks.codecs.gravity import common_direction
from unproject.tasks.data import AugmentConfig, CameraColumns, GeometryData, zoomed
from unproject.tasks.ensemble import CONSENSUS
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.train import HeadObjective, LossConfig
from unproject.utils.errors import InputError

K = torch.tensor([[[41.0, 0, 30.0], [0, 37.0, 14.0], [0, 0, 1]]], dtype=torch.float64)
TILTED = torch.tensor([[0.0, 0.6, -0.8, 1.0], [1.0, 0, 0, 2.0], [0, -0.8, -0.6, 3.0], [0, 0, 0, 1]])
SIZE = 32


class Views:
    """Rendered views with cameras: brightness grows to the right."""

    def __init__(self, count: int = 3) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def images(self, indices: np.ndarray) -> np.ndarray:
        ramp = np.linspace(0, 255, SIZE).astype(np.uint8)
        return np.broadcast_to(ramp[None, None, :, None], (len(indices), SIZE, SIZE, 3))

    def column(self, name: str, indices: np.ndarray) -> np.ndarray:
        stored = {"K": K.float(), "c2w": TILTED[None], "depth_m": torch.ones(1, SIZE, SIZE)}[name]
        return stored.expand(len(indices), *stored.shape[1:]).numpy()


def everywhere(maps: Tensor) -> Tensor:
    return torch.ones_like(maps[:, :1], dtype=torch.bool)


def test_a_camera_survives_the_picture() -> None:
    codec, rng = CameraCodec(), np.random.default_rng(0)
    for _ in range(8):
        width, height = 80, 56
        fx, fy = rng.uniform(0.7, 3) * width / 2, rng.uniform(0.8, 3) * height / 2
        matrix = torch.tensor([[[fx, 0, 40.0], [0, fy, 28.0], [0, 0, 1]]], dtype=torch.float64)
        tangents = pixel_tangents(matrix, width, height).float()
        picture, state = codec.encode(tangents, everywhere(tangents))
        assert picture.shape == (1, 3, height, width) and float(picture.abs().max()) <= 1
        back = codec.decode(picture, state)
        torch.testing.assert_close(back, tangents, rtol=1e-5, atol=1e-5)
        found = fit_pinhole(back, within_range(back), (width, height)).K
        np.testing.assert_allclose(found, matrix[0].numpy(), rtol=1e-4, atol=1e-3)


def test_the_third_channel_is_the_picture() -> None:
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    tangents = pixel_tangents(K, SIZE, SIZE).float().expand(2, -1, -1, -1)
    target = CameraCodec().beside(tangents, images)
    valid = everywhere(target)
    valid[0, 0, :5] = False
    picture, _ = CameraCodec().encode(target, valid)
    luma = 2 * (0.299 * images[1, 0] + 0.587 * images[1, 1] + 0.114 * images[1, 2]) - 1
    torch.testing.assert_close(picture[1, 2], luma)
    assert (picture[0, :, :5] == -1).all()
    plain, _ = CameraCodec(grey=False).encode(target, valid)
    assert (plain[1, 2] == 0).all() and torch.equal(plain[1, :2], picture[1, :2])


def test_a_preview_compares_rays_with_a_target_that_has_its_picture_beside_it() -> None:
    codec, rng = CameraCodec(), torch.Generator().manual_seed(4)
    rays = 0.4 * torch.randn(1, 2, 6, 9, generator=rng)
    valid = torch.ones(1, 1, 6, 9, dtype=torch.bool)
    valid[..., 0] = False
    target = codec.beside(rays, torch.rand(1, 3, 6, 9, generator=rng))
    drawn, true = codec.compared(rays, target, valid)
    assert target.shape[1] == 3 and np.array_equal(drawn, true) and drawn.shape == (6, 9, 3)
    assert (drawn[:, 0] == 255).all() and drawn[:, 1:, :2].std() > 1


def test_members_meet_in_angles_and_a_mirror_mirrors_them() -> None:
    codec = CameraCodec()
    members = torch.cat([pixel_tangents(k * K, SIZE, SIZE).float() for k in (1.0, 1.3)])
    made = codec.reduce(members, CONSENSUS, False)
    azimuth = members[:, 0].atan().mean(0)
    torch.testing.assert_close(made.prediction[0, 0], azimuth.tan())
    assert made.uncertainty.shape == (1, 1, SIZE, SIZE) and made.uncertainty.max() > 0
    other = codec.reduce(codec.mirrored(members), CONSENSUS, False)
    torch.testing.assert_close(other.prediction, codec.mirrored(made.prediction), rtol=1e-6, atol=1e-6)


def test_errors_are_those_of_the_cameras() -> None:
    true, found = pixel_tangents(K, SIZE, SIZE), pixel_tangents(K * torch.tensor([1.1, 1.0, 1.0])[:, None], SIZE, SIZE)
    errors = CameraCodec().metrics(found, true, everywhere(true))
    assert errors["focal"].item() == pytest.approx(0.1, rel=1e-6)
    assert errors["principal"].item() == pytest.approx(2 * 3.0 / SIZE, rel=1e-6)
    assert errors["fov_deg"].item() == pytest.approx(0, abs=1e-6)
    longer = pixel_tangents(K * torch.tensor([1.0, 1.2, 1.0])[:, None], SIZE, SIZE)
    fov = [2 * np.rad2deg(np.arctan(16 / f)) for f in (37, 1.2 * 37)]
    assert CameraCodec().metrics(longer, true, everywhere(true))["fov_deg"].item() == pytest.approx(fov[0] - fov[1])
    garbage = torch.zeros_like(true)
    assert torch.isnan(CameraCodec().metrics(garbage, true, everywhere(true))["fov_deg"]).all()
    assert CameraCodec().error(found, found, everywhere(true)).max() < 1e-5


@pytest.mark.parametrize("at", [(0.5, 0.5), (0.1, 0.9)])
def test_windows_have_the_camera_of_their_part(at: tuple[float, float]) -> None:
    """share 0.5 of 32 px at 24 x 12: a window of 16 x 8 px; focal lengths grow by 1.5, the centre moves along."""
    rays = pixel_tangents(K, SIZE, SIZE)[0].permute(1, 2, 0).numpy()
    _, (smooth, nearest) = zoomed(Views().images(np.arange(1))[0], [rays, rays], 0.5, (24, 12), at, (True, False))
    seen = torch.from_numpy(smooth).permute(2, 0, 1)[None]
    left, top = at[0] * (32 - 16), at[1] * (32 - 8)
    found = fit_pinhole(seen, everywhere(seen), (24, 12)).K
    wanted = [[1.5 * 41, 0, 1.5 * (30 - left)], [0, 1.5 * 37, 1.5 * (14 - top)], [0, 0, 1]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert np.abs(nearest - smooth).max() > 0.005


def test_batches_hold_rays_and_gravity_of_what_is_left() -> None:
    codecs = HeadConfig(targets=("camera", "gravity", "depth")).codec()
    augment = AugmentConfig(zoom=0.5, off_centre=True, shapes=((24, 16),), plain=(16, 16))
    data = GeometryData([CameraColumns(Views())], augment, codecs.columns())
    batch = data.batch(np.arange(3), np.random.default_rng(3))
    rays = torch.from_numpy(batch["rays"]).permute(0, 3, 1, 2)
    fits = [fit_pinhole(one[None], everywhere(one[None]), (24, 16)).K for one in rays]
    shift = [abs(k[0, 2] - 12) for k in fits]
    assert max(shift) > 3 and len({round(k[0, 0]) for k in fits}) > 1
    np.testing.assert_allclose(batch["gravity"][:, 3, 4], [[0, 0.8, 0.6]] * 3, atol=1e-6)  # R^T (0, 0, -1)
    whole = data.batch(np.arange(1), None)
    assert whole["images"].shape == (1, 16, 16, 3)
    seen = torch.from_numpy(whole["rays"]).permute(0, 3, 1, 2)
    found = fit_pinhole(seen, everywhere(seen), (SIZE, SIZE)).K
    np.testing.assert_allclose(found, K[0].numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(KeyError):
        CameraColumns(Views()).column("normal", np.arange(1))


def test_gravity_is_one_direction() -> None:
    rng = np.random.default_rng(0)
    true = torch.tensor([0.1, 0.9, -0.3]).reshape(1, 3, 1, 1).expand(1, 3, 12, 12)
    seen = true.clone()
    wrong = torch.from_numpy(rng.random((12, 12)) < 0.4)
    seen[0, :, wrong] = torch.tensor([1.0, 0.0, 0.0])[:, None]
    found = common_direction(seen, everywhere(seen))[0]
    np.testing.assert_allclose(found, true[0, :, 0, 0] / true[0, :, 0, 0].norm(), atol=1e-4)
    half = everywhere(seen)
    half[0, 0, wrong] = False
    assert GravityCodec().metrics(seen, true, half)["gravity_deg"].item() == pytest.approx(0, abs=0.05)
    codec = GravityCodec()
    picture, _ = codec.encode(true, everywhere(true))
    torch.testing.assert_close(codec.decode(picture)[0, :, 3, 3], true[0, :, 0, 0] / true[0, :, 0, 0].norm())
    assert codec.loss(picture, codec.decode(picture), everywhere(true))["gravity"].item() < 0.05


def test_a_head_learns_the_camera(tiny_prior) -> None:
    head = GeometryHead.from_prior(tiny_prior, HeadConfig(targets=("camera", "gravity"), processing_resolution=32))
    data = GeometryData([CameraColumns(Views())], AugmentConfig(), head.codec.columns())
    objective = HeadObjective(LossConfig(validation_images=2), head, data)
    images, targets, _ = objective.tensors(data.batch(np.arange(2), None))
    assert targets["camera"].shape[1] == 3 and targets["gravity"].shape[1] == 3  # with the picture itself
    torch.testing.assert_close(targets["camera"][:, 2], 2 * images[:, 0] - 1)
    optimizer = torch.optim.AdamW(objective.modules["unet"].parameters(), lr=1e-2)
    losses = []
    for step in range(6):
        out = objective.loss(data.batch(np.arange(2), None), torch.Generator(), step)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert set(objective.validate()) == {"camera_deg", "fov_deg", "focal", "gravity_deg"}
    assert {"camera", "gravity"} <= set(CODECS)


def test_a_head_of_the_real_classes(tiny_prior) -> None:
    """Random weights see no camera: with the camera known, all the rest of the way is walked."""
    head = GeometryHead.from_prior(tiny_prior, HeadConfig(targets=("camera", "gravity"), processing_resolution=32))
    picture = torch.rand(3, 24, SIZE, generator=torch.Generator().manual_seed(1))
    known = Known(focal_px=(50.0, 50.0), principal_px=(20.0, 16.0))
    made = ImageToCamera(head)([picture, picture.flip(2)], known=known, ensemble_size=2)
    np.testing.assert_allclose(made.K, [[[50, 0, 20], [0, 50, 16], [0, 0, 1]]] * 2)
    assert made.nfe == 8 and made.gravity is not None and made.gravity.shape == (2, 3)
    np.testing.assert_allclose(made.gravity[1], made.gravity[0] * [-1, 1, 1], atol=2e-3)
    depth = GeometryHead.from_prior(tiny_prior, HeadConfig(targets=("depth",)))
    with pytest.raises(InputError, match="predicts depth, not camera"):
        ImageToCamera(depth)
