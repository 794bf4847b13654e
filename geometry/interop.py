"""Cameras of other libraries: pytorch3d, nerfstudio, Open3D and kornia, both ways.

Each pair is a change of axes, of the side on which matrices act, of units and of where pixels are centred
(docs/cameras.md). What writes imports the other library; what reads looks at attributes alone, so that whatever has
them will do. Cameras that a library cannot hold are refused by name. COLMAP and transforms.json are files:
camera_files.py; gsplat, glTF and OpenGL are matrices: cameras.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils.errors import InputError
from .cameras import Camera, from_nerfstudio, invert_rigid, shift_principal_point, to_nerfstudio
from .lenses import Lens, check_lens

INTEGER_CENTRES = -0.5  # shift of cx, cy for libraries in which the centre of pixel j is j
NERFSTUDIO_TYPES = {"pinhole": "PERSPECTIVE", "fisheye": "FISHEYE", "ortho": "ORTHOPHOTO"}


def imported(module: str, package: str) -> Any:
    """A module of a package that need not be there. Raises InputError where it is not."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{package} is not installed ({error}); install it beside this package, or give files"
        ) from error


class Pytorch3DMatrices(NamedTuple):
    """The arguments of pytorch3d's PerspectiveCameras and OrthographicCameras, in its normalised coordinates."""

    R: Tensor  # (B, 3, 3), acts on row vectors: X_view = X_world R + T; view axes x left, y up, z forward
    T: Tensor  # (B, 3)
    focal_length: Tensor  # (B, 2), the shorter side of the picture being 2
    principal_point: Tensor  # (B, 2), x left, y up from the middle
    image_size: Tensor  # (B, 2) int64, height and width


def pytorch3d_matrices(camera: Camera) -> Pytorch3DMatrices:
    """What pytorch3d calls a camera. Raises InputError for fisheyes and skew.

    (x, y) = f (X, Y) / Z + p in view axes (orthographic: without the division) falls on the pixel
    (W - s x, H - s y) / 2 with s = min(W, H).
    """
    if camera.model == "fisheye":
        raise InputError("pytorch3d's pinholes cannot hold a fisheye camera; render a pinhole instead")
    _check_lenses(camera)
    half, middle = _half_side(camera), _middle(camera)
    mirrored = camera.c2w.new_tensor([-1.0, -1.0, 1.0])  # x right, y down to x left, y up
    w2c = camera.w2c
    focal = camera.K.diagonal(dim1=-2, dim2=-1)[:, :2] / half
    offset = (middle - camera.K[:, :2, 2]) / half
    size = torch.tensor([[camera.height, camera.width]], device=camera.K.device).expand(camera.batch, 2)
    return Pytorch3DMatrices(w2c[:, :3, :3].mT * mirrored, w2c[:, :3, 3] * mirrored, focal, offset, size)


def to_pytorch3d(camera: Camera) -> Any:
    """pytorch3d's PerspectiveCameras, or OrthographicCameras of an orthographic one, with its image size."""
    renderer = imported("pytorch3d.renderer", "pytorch3d")
    kind = renderer.OrthographicCameras if camera.model == "ortho" else renderer.PerspectiveCameras
    return kind(**pytorch3d_matrices(camera)._asdict(), device=camera.c2w.device)


def from_pytorch3d(cameras: Any, image_size: tuple[int, int] | None = None) -> Camera:
    """The camera of pytorch3d's PerspectiveCameras or OrthographicCameras in normalised coordinates.

    image_size: (height, width), where the cameras do not say. Raises InputError for cameras in screen coordinates, of
    other kinds, or of several sizes.
    """
    kind = type(cameras).__name__
    if kind not in ("PerspectiveCameras", "OrthographicCameras"):
        raise InputError(f"cameras of the kind {kind} are not read; give PerspectiveCameras or OrthographicCameras")
    if not cameras.in_ndc():
        raise InputError("the cameras are in screen coordinates (in_ndc=False); give them in NDC")
    R, T = cameras.R.detach(), cameras.T.detach()
    sizes = cameras.image_size if image_size is None else torch.tensor([image_size])
    if sizes is None:
        raise InputError("the cameras have no image_size; give image_size=(height, width)")
    height, width = _one_size(sizes.long().tolist())
    mirrored = R.new_tensor([-1.0, -1.0, 1.0])
    w2c = torch.eye(4, dtype=R.dtype, device=R.device).repeat(len(R), 1, 1)
    w2c[:, :3, :3], w2c[:, :3, 3] = (R * mirrored).mT, T * mirrored
    half = 0.5 * min(width, height)
    focal, offset = (value.detach().to(R) for value in (cameras.focal_length, cameras.principal_point))
    focal = (focal[:, None] if focal.ndim == 1 else focal).expand(len(R), 2)
    K = _intrinsics(half * focal, 0.5 * R.new_tensor([width, height]) - half * offset)
    return Camera(invert_rigid(w2c), K, width, height, model="ortho" if kind.startswith("Ortho") else "pinhole")


def to_nerfstudio_cameras(camera: Camera) -> Any:
    """nerfstudio's Cameras: OpenGL axes, intrinsics in pixels, in the world as it is. Raises InputError for skew."""
    module = imported("nerfstudio.cameras.cameras", "nerfstudio")
    _check_lenses(camera)
    pose, K = to_nerfstudio(camera.c2w)[:, :3], camera.K
    lens = {"fx": K[:, 0, 0], "fy": K[:, 1, 1], "cx": K[:, 0, 2], "cy": K[:, 1, 2]}
    kind = getattr(module.CameraType, NERFSTUDIO_TYPES[camera.model])
    parts = {name: value.float()[:, None] for name, value in lens.items()}
    return module.Cameras(pose.float(), width=camera.width, height=camera.height, camera_type=kind, **parts)


def from_nerfstudio_cameras(cameras: Any) -> Camera:
    """The camera of nerfstudio's Cameras. Raises InputError for bent lenses, and for cameras of several kinds or sizes.

    `transform_poses_to_original_space` of the dataparser's outputs leads out of its world first.
    """
    from nerfstudio.cameras.cameras import CameraType

    kinds = {CameraType(int(value)).name for value in cameras.camera_type.reshape(-1)}
    ours = {theirs: model for model, theirs in NERFSTUDIO_TYPES.items()}
    if len(kinds) > 1 or not kinds <= ours.keys():
        raise InputError(f"cameras of the kinds {', '.join(sorted(kinds))}; one of {', '.join(ours)} is read")
    bent = cameras.distortion_params
    if bent is not None and bool((bent != 0).any()):
        raise InputError("the cameras have lens distortion; undistort the pictures first (colmap image_undistorter)")
    pose = cameras.camera_to_worlds.detach().reshape(-1, 3, 4)
    size = torch.stack([cameras.height.reshape(-1), cameras.width.reshape(-1)], dim=-1)
    height, width = _one_size(size.tolist())
    full = torch.eye(4, dtype=pose.dtype, device=pose.device).repeat(len(pose), 1, 1)
    full[:, :3] = pose
    focal, middle = (
        torch.stack([getattr(cameras, name).reshape(-1) for name in names], dim=-1)
        for names in (("fx", "fy"), ("cx", "cy"))
    )
    return Camera(from_nerfstudio(full), _intrinsics(focal, middle), width, height, model=ours[kinds.pop()])


def to_open3d(camera: Camera, integer_centres: bool = True) -> list[Any]:
    """Open3D's PinholeCameraParameters, one a camera: world to camera, OpenCV axes. Raises InputError for other lenses.

    integer_centres: Open3D's pictures (RGBDImage, TSDF, its windows) have the centre of pixel j at j; only
    `RaycastingScene.create_rays_pinhole` has it at j + 0.5, as here.
    """
    o3d = imported("open3d", "open3d")
    _check_pinhole(camera, "Open3D")
    found = []
    for K, w2c in zip(_their_K(camera, integer_centres).cpu().numpy(), camera.w2c.double().cpu().numpy()):
        one = o3d.camera.PinholeCameraParameters()
        values = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
        one.intrinsic = o3d.camera.PinholeCameraIntrinsic(camera.width, camera.height, *values)
        one.extrinsic = w2c
        found.append(one)
    return found


def from_open3d(parameters: Sequence[Any], integer_centres: bool = True) -> Camera:
    """The cameras of Open3D's PinholeCameraParameters, or of a trajectory's `parameters`."""
    if not parameters:
        raise InputError("no camera is given")
    height, width = _one_size([[one.intrinsic.height, one.intrinsic.width] for one in parameters])
    K = torch.stack([torch.tensor(one.intrinsic.intrinsic_matrix) for one in parameters])
    w2c = torch.stack([torch.tensor(one.extrinsic) for one in parameters])
    K = shift_principal_point(K, -INTEGER_CENTRES if integer_centres else 0.0)
    return Camera(invert_rigid(w2c).float(), K.float(), width, height)


def kornia_matrices(camera: Camera) -> tuple[Tensor, Tensor]:
    """kornia's intrinsics and extrinsics (B, 4, 4): world to camera, OpenCV axes, the centre of pixel j at j."""
    _check_pinhole(camera, "kornia's PinholeCamera")
    K = torch.eye(4, dtype=camera.K.dtype, device=camera.K.device).repeat(camera.batch, 1, 1)
    K[:, :3, :3] = _their_K(camera, True).to(K)
    return K, camera.w2c


def to_kornia(camera: Camera) -> Any:
    """kornia's PinholeCamera of `kornia_matrices`."""
    kornia = imported("kornia.geometry.camera", "kornia")
    K, w2c = kornia_matrices(camera)
    height, width = (K.new_full((camera.batch,), float(side)) for side in (camera.height, camera.width))
    return kornia.PinholeCamera(K, w2c, height, width)


def from_kornia(pinhole: Any) -> Camera:
    """The cameras of kornia's PinholeCamera."""
    height, width = _one_size(torch.stack([pinhole.height, pinhole.width], dim=-1).long().tolist())
    K = shift_principal_point(pinhole.intrinsics[:, :3, :3], -INTEGER_CENTRES)
    return Camera(invert_rigid(pinhole.extrinsics), K, width, height)


def _their_K(camera: Camera, integer_centres: bool) -> Tensor:  # noqa: N802
    """K (B, 3, 3) float64 with the other library's pixel centres."""
    return shift_principal_point(camera.K.detach().double(), INTEGER_CENTRES if integer_centres else 0.0)


def _check_pinhole(camera: Camera, whose: str) -> None:
    if camera.model != "pinhole":
        raise InputError(f"{whose} holds pinholes; this camera is {camera.model!r}")
    _check_lenses(camera)


def _check_lenses(camera: Camera) -> None:
    for index, K in enumerate(camera.K.detach().cpu()):
        check_lens(Lens(camera.model, camera.width, camera.height, K), f"camera {index}")


def _half_side(camera: Camera) -> float:
    return 0.5 * min(camera.width, camera.height)


def _middle(camera: Camera) -> Tensor:
    return camera.K.new_tensor([0.5 * camera.width, 0.5 * camera.height])


def _one_size(sizes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(height, width) of all. Raises InputError for several."""
    distinct = sorted({(int(height), int(width)) for height, width in sizes})
    if len(distinct) != 1:
        raise InputError(f"the cameras have pictures of {distinct} (height, width); convert those of one size together")
    return distinct[0]


def _intrinsics(focal: Tensor, middle: Tensor) -> Tensor:
    """K (B, 3, 3) of fx, fy and cx, cy, both (B, 2)."""
    K = torch.zeros(len(focal), 3, 3, dtype=focal.dtype, device=focal.device)
    K[:, 0, 0], K[:, 1, 1], K[:, :2, 2], K[:, 2, 2] = focal[:, 0], focal[:, 1], middle, 1.0
    return K
