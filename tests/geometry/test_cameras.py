"""Camera conventions: exact round trips, closed-form vectors, and a coloured cube that looks the same through each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unproject.geometry import cameras as cams
from unproject.geometry.cameras import Camera
from unproject.geometry.outputs import camera_normals, disparity, normals_from_depth, ray_distance, world_normals
from unproject.geometry.raycast import RayMesh
from unproject.scripts.camera_pictures import axes_cube
from unproject.utils.errors import InputError

APPLIED = torch.tensor(cams.NERFSTUDIO_COLMAP_TRANSFORM)
ROUND_TRIPS = {
    "opengl": lambda c: cams.opencv_from_opengl(cams.opengl_from_opencv(c)),
    "colmap": lambda c: cams.from_colmap(*cams.to_colmap(c)),
    "nerfstudio": lambda c: cams.from_nerfstudio(cams.to_nerfstudio(c)),
    "nerfstudio_colmap": lambda c: cams.from_nerfstudio(cams.to_nerfstudio(c, APPLIED), APPLIED),
    "gsplat": lambda c: cams.from_gsplat(cams.to_gsplat(c)),
    "gltf": lambda c: cams.from_gltf_pose(cams.to_gltf_pose(c)),
}


@pytest.fixture
def camera() -> Camera:
    return Camera.orbit([0.0, 35.0, 140.0, 250.0], [0.0, 20.0, -40.0, 90.0], 2.2, 45.0, 40, 32)


@pytest.mark.parametrize("top_row_first", [False, True])
def test_clip_space_agrees_with_pixels_when_nothing_is_centred(camera: Camera, top_row_first: bool) -> None:
    """A lens off the middle, skewed, with two focal lengths; u = W (1 + x / w) / 2, v = H (1 - y / w) / 2."""
    shift = torch.tensor([[3.0, 1.5, 5.0], [0.0, -4.0, -3.5], [0.0, 0.0, 0.0]])
    lens = replace(camera, K=camera.K + shift, near=0.4, far=7.0)
    local = torch.tensor([[0.3, -0.2, 2.0], [-0.4, 0.5, 0.4], [0.1, 0.6, 7.0]])
    world = local @ lens.c2w[:, :3, :3].mT + lens.centres[:, None]
    pixels, z = lens.project(world)
    ones = torch.ones_like(world[..., :1])
    clip = torch.cat([world, ones], dim=-1) @ cams.to_clip(lens, top_row_first).mT
    x, y, depth = (clip[..., :3] / clip[..., 3:]).unbind(-1)
    found = torch.stack([0.5 * lens.width * (1 + x), 0.5 * lens.height * (1 + (y if top_row_first else -y))], dim=-1)
    torch.testing.assert_close(found, pixels, atol=2e-4, rtol=0)
    torch.testing.assert_close(clip[..., 3], z)
    torch.testing.assert_close(depth[:, 1:], torch.tensor([-1.0, 1.0]).expand(4, 2), atol=1e-5, rtol=0)


def test_joined_cameras_keep_their_planes() -> None:
    near, far = (Camera.orbit(a, 0.0, 2.0, 40.0, 8, near=n, far=f) for a, n, f in ((0.0, 1.2, 1.45), (90.0, 0.5, 1.9)))
    joined = Camera.cat([near, far, far])
    assert [plane.tolist() for plane in joined.planes()] == [
        pytest.approx([1.2, 0.5, 0.5]),
        pytest.approx([1.45, 1.9, 1.9]),
    ]
    assert [plane.tolist() for plane in joined[[2, 0]].planes()] == [
        pytest.approx([0.5, 1.2]),
        pytest.approx([1.9, 1.45]),
    ]
    scene = RayMesh(axes_cube())
    together = scene.render(joined)
    for index, alone in enumerate((near, far)):  # the first lens cuts the cube's near face off, and all behind it
        assert torch.equal(together.depth[index], scene.render(alone).depth[0])
        clip = cams.to_clip(alone)[0]
        torch.testing.assert_close(cams.to_clip(joined)[index], clip)
    assert float(together.alpha[0].mean()) == 0 < float(together.alpha[1].mean())
    assert Camera.cat([near, near]).near == 1.2


def test_orbit_matches_the_written_test_vector() -> None:
    pose = Camera.orbit(0.0, 0.0, 3.0, 40.0, 8).c2w[0]
    expected = torch.tensor([[0.0, 0.0, -1.0, 3.0], [1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(pose, expected, atol=1e-7, rtol=0)


def test_poses_are_rotations_and_agree_with_look_at_away_from_the_poles(camera: Camera) -> None:
    rotation = camera.c2w[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(4, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4))
    torch.testing.assert_close(cams.look_at(camera.centres[:3], torch.zeros(3)), camera.c2w[:3], atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="parallel to up"):
        cams.look_at(torch.tensor([[0.0, 0.0, 2.0]]), torch.zeros(3))


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trips_are_exact(name: str, camera: Camera) -> None:
    assert float((ROUND_TRIPS[name](camera.c2w.double()) - camera.c2w.double()).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_the_cube_looks_the_same_through_every_importer(name: str, camera: Camera) -> None:
    scene = RayMesh(axes_cube())
    reference = scene.render(camera).rgb
    seen = scene.render(replace(camera, c2w=ROUND_TRIPS[name](camera.c2w))).rgb
    assert float(((seen - reference).abs().amax(dim=-1) > 1e-3).float().mean()) < 1e-3  # silhouette rounding only
    assert reference[0, 16, 20].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)  # azimuth 0 sees the front, +x


def test_conventions_against_their_own_projection(camera: Camera) -> None:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    uv, z = camera.project(points)
    padded = torch.cat([points, torch.ones(50, 1)], dim=1)
    size = torch.tensor([camera.width, camera.height])

    clip = padded @ cams.to_clip(camera, top_row_first=True).mT  # row 0 on top
    torch.testing.assert_close((clip[..., :2] / clip[..., 3:] + 1) / 2 * size, uv, atol=1e-3, rtol=0)
    bottom = padded @ cams.to_clip(camera).mT
    torch.testing.assert_close(bottom[..., 1], -clip[..., 1])

    node = torch.linalg.inv(cams.to_gltf_pose(camera.c2w))  # a glTF camera looks along its -z
    local = torch.cat([cams.to_gltf_points(points), torch.ones(50, 1)], dim=1) @ node.mT
    torch.testing.assert_close(-local[..., 2], z, atol=1e-5, rtol=0)

    qvec, tvec = cams.to_colmap(camera.c2w)
    seen = points @ cams.rotation_from_quaternion(qvec).mT + tvec[:, None]
    torch.testing.assert_close(seen[..., 2], z, atol=1e-5, rtol=0)


def test_gltf_axes() -> None:
    front, up = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    assert cams.to_gltf_points(front).tolist() == [0.0, 0.0, 1.0]
    assert cams.to_gltf_points(up).tolist() == [0.0, 1.0, 0.0]
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(cams.from_gltf_points(cams.to_gltf_points(points)), points)
    assert float(torch.linalg.det(torch.tensor(cams.GLTF_FROM_WORLD))) == pytest.approx(1.0)


def mvdream_pose(azimuth_deg: float, elevation_deg: float) -> Tensor:
    """MVDream's construction: y-up look-at, then (x, y, z) -> (x, -z, y)."""
    a, e = torch.deg2rad(torch.tensor([azimuth_deg, elevation_deg], dtype=torch.float64))
    position = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()])
    forward = -position
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0]).double()), dim=0)
    up = torch.linalg.cross(right, forward)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.stack([right, up, -forward, position], dim=1)
    turn = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).double()
    return (turn @ pose).flatten()


def test_mvdream_azimuth_is_ours_plus_90_and_distance_is_forgotten() -> None:
    for azimuth in (0.0, 90.0, 213.0):
        pose = Camera.orbit(azimuth, 15.0, 3.7, 40.0, 8).c2w
        kept = pose.clone()
        ours = cams.to_mvdream(pose)[0].double()
        torch.testing.assert_close(ours, mvdream_pose(azimuth + 90, 15.0), atol=1e-6, rtol=0)
        assert torch.equal(pose, kept)  # the normaliser leaves its input alone


@pytest.mark.parametrize("model", cams.MODELS)
def test_unproject_then_project_gives_the_pixel_centres(model: str, camera: Camera) -> None:
    scale = torch.tensor([0.5, 0.5, 1.0])[:, None] if model == "ortho" else torch.ones(3, 1)
    camera = replace(camera, model=model, K=camera.K * scale)
    depth = 1 + torch.rand(4, 32, 40, generator=torch.Generator().manual_seed(2))
    uv, z = camera.project(camera.unproject(depth).flatten(1, 2))
    torch.testing.assert_close(z, depth.flatten(1), atol=1e-5, rtol=0)
    rows, columns = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    expected = torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).expand(4, -1, 2)
    torch.testing.assert_close(uv, expected, atol=2e-4, rtol=0)


def test_resize_and_crop_move_the_projection_with_the_pixels(camera: Camera) -> None:
    points = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1]])
    uv, _ = camera.project(points)
    torch.testing.assert_close(camera.resized(80, 96).project(points)[0], uv * torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(camera.cropped(5, 7, 10, 10).project(points)[0], uv - torch.tensor([5.0, 7.0]))
    torch.testing.assert_close(camera.fov_y_rad, torch.deg2rad(torch.full((4,), 45.0)))
    assert cams.shift_principal_point(camera.K, 0.5)[0, :2, 2].tolist() == [20.5, 16.5]


def test_relative_distance_keeps_the_size() -> None:
    heights = []
    for fov in (20.0, 40.0, 60.0):
        view = Camera.orbit(0.0, 0.0, cams.orbit_distance(1.5, fov), fov, 64)
        plane = view.project(torch.tensor([[0.0, 0.0, 0.3]]))[0][0, 0, 1]
        heights.append(float(plane))
    assert max(heights) - min(heights) < 1e-4


def test_quaternions_of_half_turns_and_identity() -> None:
    turns = torch.diag_embed(torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]))
    torch.testing.assert_close(cams.quaternion_from_rotation(turns).abs(), torch.eye(4))


def test_batches_index_join_and_reject() -> None:
    camera = Camera.orbit([0.0, 10.0, 20.0], 0.0, 2.0, 40.0, 8)
    assert camera[1].batch == 1 and camera[-2:].batch == 2 and camera[[0, 2]].batch == 2 and len(camera) == 3
    assert torch.equal(Camera.cat([camera[0], camera[1:]]).c2w, camera.c2w)
    with pytest.raises(InputError, match="different sizes"):
        Camera.cat([camera, camera.resized(4, 4)])
    with pytest.raises(InputError, match=r"expected \(B, 4, 4\)"):
        Camera(torch.eye(4), torch.eye(3)[None], 8, 8)
    with pytest.raises(InputError, match="pinhole, ortho, fisheye"):
        replace(camera, model="panorama")


def test_derived_maps_on_a_plane() -> None:
    camera = Camera.orbit(0.0, 0.0, 2.0, 60.0, 16, 12)  # looks along -x at the plane x = 0
    depth = torch.full((1, 12, 16, 1), 2.0)
    normal = normals_from_depth(depth, camera)
    torch.testing.assert_close(normal[0, 1:-1, 1:-1], torch.tensor([1.0, 0, 0]).expand(10, 14, 3), atol=1e-5, rtol=0)
    facing = camera_normals(normal, camera)[0, 6, 8]
    torch.testing.assert_close(facing, torch.tensor([0.0, 0.0, -1.0]), atol=1e-5, rtol=0)
    assert float(camera_normals(normal, camera, opengl=True)[0, 6, 8, 2]) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(world_normals(camera_normals(normal, camera, True), camera, True), normal)
    points = camera.unproject(depth)
    torch.testing.assert_close(ray_distance(depth, camera)[..., 0], (points - camera.centres).norm(dim=-1))
    assert disparity(torch.tensor([0.0, 4.0])).tolist() == [0.0, 0.25]


def test_projection_gradients_match_finite_differences() -> None:
    camera = Camera.orbit([20.0], [30.0], 2.0, 50.0, 16)
    precise = replace(camera, c2w=camera.c2w.double(), K=camera.K.double())
    points = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.5
    assert torch.autograd.gradcheck(lambda p: precise.project(p), points.requires_grad_())
