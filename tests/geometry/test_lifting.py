"""Depth to clouds and meshes: planes and spheres with known normals, torn edges, flying pixels, bands that agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unproject.geometry import lifting
from unproject.geometry.cameras import Camera, intrinsics_from_fov, look_at
from unproject.geometry.colors import sample_texture
from unproject.geometry.lifting import depth_mesh
from unproject.geometry.points import PointCloud
from unproject.utils.bands import bands
from unproject.utils.errors import InputError

HEIGHT, WIDTH = 36, 52


def camera(model: str = "pinhole", width: int = WIDTH, height: int = HEIGHT) -> Camera:
    pose = look_at(torch.tensor([[3.0, -2.0, 1.5]]), torch.tensor([0.3, 0.2, 0.1]))
    K = intrinsics_from_fov(torch.tensor([1.0]), width, height)
    return Camera(pose, K, width, height, model=model)


def plane_depth(seen: Camera, normal: Tensor, offset: float) -> Tensor:
    """z-depth (1, H, W) of the plane normal . x = offset; nan where it is not met in front of the camera."""
    origins, directions = seen.rays()
    depth = (offset - origins @ normal) / (directions @ normal)
    return torch.where(depth > 0, depth, torch.nan)


@pytest.mark.parametrize("model", ["pinhole", "fisheye"])
def test_points_and_normals_of_a_plane(model: str) -> None:
    seen = camera(model)
    normal = F.normalize(torch.tensor([0.5, -0.2, 0.7]), dim=0)
    depth = plane_depth(seen, normal, 0.1)
    cloud = PointCloud.from_depth(depth, torch.rand(1, HEIGHT, WIDTH, 3), seen, max_slant_deg=89, normals=True)
    assert cloud.normals is not None and len(cloud) == int(torch.isfinite(depth).sum()) > 500
    torch.testing.assert_close(cloud.points @ normal, torch.full((len(cloud),), 0.1), atol=1e-4, rtol=0)
    torch.testing.assert_close(cloud.normals, normal.expand_as(cloud.normals), atol=2e-3, rtol=0)


def test_normals_of_a_ball_point_outwards() -> None:
    seen = camera()
    origins, directions = seen.rays()
    a, b, c = (directions**2).sum(-1), (origins * directions).sum(-1), (origins**2).sum(-1) - 1
    depth = (-b - (b * b - a * c).sqrt()) / a
    cloud = PointCloud.from_depth(depth, None, seen, normals=True)
    assert cloud.normals is not None
    cosine = (cloud.normals * cloud.points).sum(-1)
    assert float(cosine.min()) > 0.5 and float(cosine.mean()) > 0.98


def step_depth(blur: int = 1) -> Tensor:
    """A wall 3 m away and half a picture of another 1.5 m away, the edge spread over some pixels of both axes."""
    depth = torch.full((HEIGHT, WIDTH), 3.0)
    depth[8:, 20:] = 1.5
    padded = F.pad(depth[None, None], (blur // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, blur, 1)


def flat_camera() -> Camera:
    return Camera(torch.eye(4)[None], intrinsics_from_fov(torch.tensor([1.0]), WIDTH, HEIGHT), WIDTH, HEIGHT)


def test_a_sharp_edge_loses_no_point_and_a_blurred_one_what_flies() -> None:
    seen = flat_camera()
    assert len(PointCloud.from_depth(step_depth()[0], None, seen, max_slant_deg=70)) == HEIGHT * WIDTH
    blurred = step_depth(5)[0]
    between = int(((blurred > 1.51) & (blurred < 2.99)).sum())
    kept = PointCloud.from_depth(blurred, None, seen, max_slant_deg=70)
    assert HEIGHT * WIDTH - len(kept) >= 0.9 * between > 100
    z = kept.points[:, 2]
    corner = 8  # where both edges meet the steps are shorter
    assert int(((z > 1.6) & (z < 2.9)).sum()) <= corner
    assert len(PointCloud.from_depth(blurred, None, seen)) == HEIGHT * WIDTH


def test_a_thin_pole_is_no_flying_point() -> None:
    """One pixel wide, nearer than what is left and right of it: the steps to its neighbours go both ways back."""
    depth = torch.full((1, HEIGHT, WIDTH), 3.0)
    depth[:, 5:, 17] = 1.2
    kept = PointCloud.from_depth(depth, None, flat_camera(), max_slant_deg=70)
    assert int((kept.points[:, 2] < 2).sum()) == HEIGHT - 5


@pytest.mark.parametrize(("slant", "share"), [(70.0, 1.0), (76.0, 1.0), (84.0, 0.02)])
def test_a_slanted_floor_stays_up_to_the_angle_that_was_said(slant: float, share: float) -> None:
    """The slant of z = z0 + k X on the axis of the camera is atan k; a long lens keeps to the axis (2.9 degrees)."""
    K = torch.tensor([[[2000.0, 0, 100], [0, 2000, 2], [0, 0, 1]]])
    seen = Camera(torch.eye(4)[None], K, 200, 4)
    depth = 3 / (1 - math.tan(math.radians(slant)) * seen.pixel_directions()[..., 0])
    found = PointCloud.from_depth(depth, None, seen, max_slant_deg=80)
    assert 0 < len(found) <= 800 * share and len(found) >= 800 * (share == 1)


def test_what_is_cut_depends_neither_on_the_unit_nor_on_the_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, depth = flat_camera(), step_depth(5)[0]
    depth = depth + 0.05 * torch.rand(depth.shape, generator=torch.Generator().manual_seed(1))
    depth[0, 5, 7] = torch.nan
    rgb = torch.rand(1, HEIGHT, WIDTH, 3)
    whole = PointCloud.from_depth(depth, rgb, seen, max_slant_deg=70, normals=True)
    assert len(PointCloud.from_depth(100 * depth, rgb, seen, max_slant_deg=70)) == len(whole) < HEIGHT * WIDTH - 50
    monkeypatch.setattr(lifting, "bands", lambda height, width: bands(height, width, 3 * width))
    parts = PointCloud.from_depth(depth, rgb, seen, max_slant_deg=70, normals=True)
    for name in ("points", "colors", "normals"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-6, rtol=0)


def test_a_batch_is_its_views_one_after_another() -> None:
    two = Camera.cat([camera(), flat_camera()])
    depth, rgb = torch.rand(2, HEIGHT, WIDTH) + 1, torch.rand(2, HEIGHT, WIDTH, 3)
    whole = PointCloud.from_depth(depth, rgb, two, normals=True)
    alone = [PointCloud.from_depth(depth[i : i + 1], rgb[i : i + 1], two[i], normals=True) for i in range(2)]
    torch.testing.assert_close(whole.points, torch.cat([one.points for one in alone]), atol=1e-6, rtol=0)


def test_a_mesh_has_the_points_of_the_map_and_the_picture_on_it() -> None:
    seen, generator = flat_camera(), torch.Generator().manual_seed(0)
    depth = 2 + 0.02 * torch.rand(HEIGHT, WIDTH, generator=generator)
    image = np.random.default_rng(0).random((HEIGHT, WIDTH, 3)).astype(np.float32)
    mesh = depth_mesh(depth, image, seen, 10**6)
    assert len(mesh.faces) == 2 * (HEIGHT - 1) * (WIDTH - 1)
    torch.testing.assert_close(mesh.vertices, seen.unproject(depth[None])[0].reshape(-1, 3), atol=1e-6, rtol=0)
    assert float((mesh.face_normals() * mesh.vertices[mesh.faces].mean(1)).sum(-1).max()) < 0  # seen from the camera
    assert mesh.uv is not None
    texture = torch.from_numpy(mesh.textures["base_color"].astype(np.float32) / 255)
    np.testing.assert_allclose(sample_texture(texture, mesh.uv), image.reshape(-1, 3), atol=0.003)


@pytest.mark.parametrize("most", [2, 7, 100, 1999])
def test_the_number_of_triangles_is_an_upper_bound(most: int) -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    flat = depth_mesh(torch.full((HEIGHT, WIDTH), 2.0), image, flat_camera(), most)
    assert most / 4 < len(flat.faces) <= most
    half = 1 / flat_camera().K[0, 0, 0]  # half a pixel at either side, 2 m away
    size = torch.tensor([WIDTH - 1, HEIGHT - 1]) * 2 * half
    torch.testing.assert_close(flat.bounds[1, :2] - flat.bounds[0, :2], size, atol=1e-4, rtol=0)


def test_a_mesh_is_torn_where_near_meets_far_and_where_nothing_is_seen() -> None:
    image, seen = np.zeros((HEIGHT, WIDTH, 3), np.float32), flat_camera()
    for blur in (1, 5):
        depth = step_depth(blur)[0, 0]
        torn = depth_mesh(depth, image, seen, 10**6, 65)
        spans = torn.vertices[torn.faces][..., 2]
        assert float((spans.amax(1) - spans.amin(1)).max()) < (0.01 if blur == 1 else 0.4)
        assert len(depth_mesh(depth, image, seen, 10**6, 90).faces) > len(torn.faces)
    depth = torch.full((HEIGHT, WIDTH), 2.0)
    depth[10, 11] = torch.nan
    assert len(depth_mesh(depth, image, seen, 10**6).faces) == 2 * (HEIGHT - 1) * (WIDTH - 1) - 8
    with pytest.raises(InputError, match="no surface is left"):
        depth_mesh(torch.full((HEIGHT, WIDTH), torch.nan), image, seen)
    with pytest.raises(InputError, match="max_faces=1"):
        depth_mesh(depth, image, seen, 1)


def test_large_pictures_become_textures_that_cards_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifting, "LARGEST_TEXTURE", 13)
    mesh = depth_mesh(torch.full((HEIGHT, WIDTH), 2.0), np.zeros((HEIGHT, WIDTH, 3)), flat_camera(), 100)
    assert mesh.textures["base_color"].shape == (9, 13, 3)
    assert float(mesh.uv.min()) > 0 if mesh.uv is not None else False
