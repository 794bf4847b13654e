"""Cameras of other libraries: by their own functions where they are installed, else by their written conventions."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import Enum, auto
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import open3d
import pytest
import torch

from unproject.geometry import interop
from unproject.geometry.cameras import Camera
from unproject.geometry.raycast import RayMesh
from unproject.scripts.camera_pictures import CONVENTIONS, axes_cube, seen_through
from unproject.utils.errors import InputError

POINTS = torch.rand(40, 3, generator=torch.Generator().manual_seed(3)) - 0.5


@pytest.fixture
def camera() -> Camera:
    """Nothing is centred, square or equal."""
    plain = Camera.orbit([35.0, 160.0, 250.0], [25.0, -30.0, 60.0], [2.4, 2.9, 2.2], 45.0, 48, 36)
    shift = torch.tensor([[4.0, 0.0, 3.0], [0.0, -2.5, -2.0], [0.0, 0.0, 0.0]])
    return replace(plain, K=plain.K + shift)


class InNDC(SimpleNamespace):
    """Holds what pytorch3d's cameras hold."""

    def in_ndc(self) -> bool:
        return True


PerspectiveCameras = type("PerspectiveCameras", (InNDC,), {})
OrthographicCameras = type("OrthographicCameras", (InNDC,), {})


class CameraType(Enum):
    """Those of nerfstudio that are ours, and one that is not."""

    PERSPECTIVE = auto()
    FISHEYE = auto()
    EQUIRECTANGULAR = auto()
    ORTHOPHOTO = auto()


def nerfstudio_cameras(pose: torch.Tensor, width: int, height: int, camera_type: CameraType, **lens: Any) -> Any:
    """As nerfstudio broadcasts what it is given."""
    full = {name: torch.full((len(pose), 1), value) for name, value in (("width", width), ("height", height))}
    kind = torch.full((len(pose), 1), camera_type.value)
    return SimpleNamespace(camera_to_worlds=pose, camera_type=kind, distortion_params=None, **full, **lens)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that are not installed, as far as cameras go."""
    for name in ("pytorch3d", "nerfstudio", "nerfstudio.cameras"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    renderer, cameras = ModuleType("pytorch3d.renderer"), ModuleType("nerfstudio.cameras.cameras")
    vars(renderer).update(PerspectiveCameras=PerspectiveCameras, OrthographicCameras=OrthographicCameras)
    vars(cameras).update(Cameras=nerfstudio_cameras, CameraType=CameraType)
    monkeypatch.setitem(sys.modules, "pytorch3d.renderer", renderer)
    monkeypatch.setitem(sys.modules, "nerfstudio.cameras.cameras", cameras)


def assert_same(found: Camera, wanted: Camera) -> None:
    torch.testing.assert_close(found.c2w, wanted.c2w, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.K, wanted.K, atol=2e-5, rtol=0)
    assert (found.width, found.height, found.model) == (wanted.width, wanted.height, wanted.model)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_cube_looks_the_same_through_every_convention(name: str, camera: Camera) -> None:
    scene = RayMesh(axes_cube())
    for index in range(camera.batch):
        wanted = scene.render(camera[index]).rgb[0]
        seen = seen_through(scene, CONVENTIONS[name].rays(camera[index]))
        assert float(((seen - wanted).abs().amax(dim=-1) > 1e-3).float().mean()) < 2e-3  # ties at edges
        assert 0.2 < float((wanted < 0.99).any(-1).float().mean()) < 0.9


@pytest.mark.parametrize("model", ["pinhole", "ortho"])
def test_pytorch3d_projects_as_it_documents(model: str, camera: Camera) -> None:
    """X_view = X R + T, x = f X / Z + p; the shorter side spans [-1, 1], x to the left and y up."""
    camera = replace(camera, model=model)
    R, T, focal, offset, size = interop.pytorch3d_matrices(camera)
    view = POINTS @ R + T[:, None]
    plane = view[..., :2] if model == "ortho" else view[..., :2] / view[..., 2:]
    ndc = focal[:, None] * plane + offset[:, None]
    height, width = size[0].tolist()
    pixels = 0.5 * (torch.tensor([width, height]) - min(width, height) * ndc)
    torch.testing.assert_close(pixels, camera.project(POINTS)[0], atol=2e-4, rtol=0)
    assert bool((view[..., 2] > 0).all())
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(3))


def test_pytorch3d_of_the_front_by_hand() -> None:
    R, T, focal, offset, _ = interop.pytorch3d_matrices(Camera.orbit(0.0, 0.0, 3.0, 90.0, 8, 4))
    # seen from +x: left is -y, up is z, forward is -x
    torch.testing.assert_close(R[0], torch.tensor([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]]), atol=1e-7, rtol=0)
    torch.testing.assert_close(T[0], torch.tensor([0.0, 0, 3]), atol=1e-6, rtol=0)
    assert focal[0].tolist() == pytest.approx([1, 1]) and offset[0].tolist() == pytest.approx([0, 0])


@pytest.mark.parametrize("model", ["pinhole", "ortho"])
@pytest.mark.usefixtures("stand_ins")
def test_pytorch3d_there_and_back(model: str, camera: Camera) -> None:
    camera = replace(camera, model=model)
    theirs = interop.to_pytorch3d(camera)
    assert_same(interop.from_pytorch3d(theirs), camera)
    rest = {"focal_length": torch.tensor([2.0]), "principal_point": torch.zeros(1, 2), "image_size": None}
    one = PerspectiveCameras(R=theirs.R, T=theirs.T, **rest)
    with pytest.raises(InputError, match="no image_size"):
        interop.from_pytorch3d(one)
    assert interop.from_pytorch3d(one, (20, 30)).K[2].tolist() == [[20, 0, 15], [0, 20, 10], [0, 0, 1]]
    with pytest.raises(InputError, match="kind InNDC"):
        interop.from_pytorch3d(InNDC())


@pytest.mark.parametrize("model", ["pinhole", "fisheye", "ortho"])
@pytest.mark.usefixtures("stand_ins")
def test_nerfstudio_there_and_back(model: str, camera: Camera) -> None:
    camera = replace(camera, model=model)
    theirs = interop.to_nerfstudio_cameras(camera)
    up, forward = theirs.camera_to_worlds[:, :, 1], -theirs.camera_to_worlds[:, :, 2]  # OpenGL axes
    torch.testing.assert_close(up, -camera.c2w[:, :3, 1])
    torch.testing.assert_close(forward, camera.c2w[:, :3, 2])
    assert_same(interop.from_nerfstudio_cameras(theirs), camera)
    theirs.distortion_params = torch.tensor([0.1, 0, 0, 0, 0, 0]).expand(3, 6)
    with pytest.raises(InputError, match="lens distortion"):
        interop.from_nerfstudio_cameras(theirs)
    theirs.camera_type[1] = CameraType.EQUIRECTANGULAR.value
    with pytest.raises(InputError, match="EQUIRECTANGULAR"):
        interop.from_nerfstudio_cameras(theirs)


def test_nerfstudio_itself_sends_the_same_rays(camera: Camera) -> None:
    pytest.importorskip("nerfstudio")
    theirs = interop.to_nerfstudio_cameras(camera)
    bundle = theirs.generate_rays(1)
    directions = torch.nn.functional.normalize(camera[1].rays()[1][0], dim=-1)
    torch.testing.assert_close(bundle.directions, directions, atol=1e-5, rtol=0)
    torch.testing.assert_close(bundle.origins[0, 0], camera.centres[1])
    assert_same(interop.from_nerfstudio_cameras(theirs), camera)


def test_pytorch3d_itself_projects_to_the_same_pixels(camera: Camera) -> None:
    pytest.importorskip("pytorch3d")
    theirs = interop.to_pytorch3d(camera)
    pixels = theirs.transform_points_screen(POINTS.expand(3, -1, -1))[..., :2]
    torch.testing.assert_close(pixels, camera.project(POINTS)[0], atol=1e-3, rtol=0)
    assert_same(interop.from_pytorch3d(theirs), camera)


def test_open3d_itself_sends_the_same_rays_and_lifts_the_same_points(camera: Camera) -> None:
    cast = interop.to_open3d(camera, integer_centres=False)[1]
    matrices = [open3d.core.Tensor(np.array(m)) for m in (cast.intrinsic.intrinsic_matrix, cast.extrinsic)]
    rays = open3d.t.geometry.RaycastingScene.create_rays_pinhole(*matrices, 48, 36).numpy()
    origins, directions = camera[1].rays()
    np.testing.assert_allclose(rays[..., :3], origins[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(rays[..., 3:], directions[0].numpy(), atol=1e-5)

    depth = 1.5 + torch.rand(1, 36, 48, generator=torch.Generator().manual_seed(0))
    seen = interop.to_open3d(camera)[1]
    image = open3d.geometry.Image(np.ascontiguousarray(depth[0].numpy()))
    lifted = open3d.geometry.PointCloud.create_from_depth_image(image, seen.intrinsic, seen.extrinsic, 1.0, 10.0)
    wanted = camera[1].unproject(depth)[0].reshape(-1, 3)
    np.testing.assert_allclose(np.asarray(lifted.points), wanted.numpy(), atol=1e-5)
    for centres in (True, False):
        assert_same(interop.from_open3d(interop.to_open3d(camera, centres), centres), camera)


def test_kornia_itself_projects_and_lifts_the_same_points(camera: Camera) -> None:
    pytest.importorskip("kornia")
    from kornia.geometry.depth import depth_to_3d_v2

    theirs = interop.to_kornia(camera)
    pixels, z = camera.project(POINTS)
    found = theirs.project(POINTS.expand(3, -1, -1))
    torch.testing.assert_close(found, pixels - 0.5, atol=2e-4, rtol=0)  # the first pixel's middle is (0, 0) there
    torch.testing.assert_close(theirs.unproject(found, z[..., None]), POINTS.expand(3, -1, -1), atol=1e-5, rtol=0)
    depth = 1.5 + torch.rand(3, 36, 48, generator=torch.Generator().manual_seed(0))
    local = depth_to_3d_v2(depth, theirs.intrinsics[:, :3, :3])
    world = local @ camera.c2w[:, None, :3, :3].mT + camera.centres[:, None, None]
    torch.testing.assert_close(world, camera.unproject(depth), atol=1e-5, rtol=0)
    assert_same(interop.from_kornia(theirs), camera)


def test_what_a_library_cannot_hold_is_refused(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    fisheye, ortho = replace(camera, model="fisheye"), replace(camera, model="ortho")
    with pytest.raises(InputError, match="cannot hold a fisheye"):
        interop.pytorch3d_matrices(fisheye)
    for refused, whose in ((interop.to_open3d, "Open3D"), (interop.kornia_matrices, "kornia's")):
        with pytest.raises(InputError, match=f"{whose}.* holds pinholes; this camera is 'ortho'"):
            refused(ortho)
    skewed = camera.K.clone()
    skewed[1, 0, 1] = 2.0
    for refused in (interop.to_open3d, interop.kornia_matrices, interop.pytorch3d_matrices):
        with pytest.raises(InputError, match="camera 1 has skew 2 px"):
            refused(replace(camera, K=skewed))
    mixed = interop.to_open3d(camera) + interop.to_open3d(camera.resized(24, 18))
    with pytest.raises(InputError, match=r"pictures of \[\(18, 24\), \(36, 48\)\]"):
        interop.from_open3d(mixed)
    with pytest.raises(InputError, match="no camera"):
        interop.from_open3d([])
    monkeypatch.setitem(sys.modules, "pytorch3d", None)
    with pytest.raises(InputError, match="pytorch3d is not installed"):
        interop.to_pytorch3d(camera)
