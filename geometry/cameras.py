"""Batched cameras in one convention, and the exact conversions to every other one.

Canonical: OpenCV camera axes (x right, y down, z forward), `c2w` acting on column vectors, K in pixels with the image
spanning [0, W] x [0, H] (the centre of pixel j is j + 0.5), world right-handed with z up, object front +x, metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError

PLANES = ("near", "far")
MODELS = ("pinhole", "ortho", "fisheye")
GLTF_FROM_WORLD = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))  # (x, y, z) -> (y, z, x)
NERFSTUDIO_COLMAP_TRANSFORM = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))  # (x, y, z) -> (x, z, -y)


@dataclass(frozen=True)
class Camera:
    """A batch of B cameras of one image size."""

    c2w: Tensor  # (B, 4, 4) float32, OpenCV axes
    K: Tensor  # (B, 3, 3) float32, pixels; for "ortho" fx, fy are pixels per metre, for "fisheye" pixels per radian
    width: int
    height: int
    near: float | Tensor = 0.01  # metres, or (B,)
    far: float | Tensor = 100.0  # metres, or (B,)
    model: str = "pinhole"

    def __post_init__(self) -> None:
        if self.c2w.ndim != 3 or self.c2w.shape[1:] != (4, 4):
            raise InputError(f"c2w has shape {tuple(self.c2w.shape)}, expected (B, 4, 4)")
        if self.K.shape != (self.c2w.shape[0], 3, 3):
            raise InputError(f"K has shape {tuple(self.K.shape)}, expected ({self.c2w.shape[0]}, 3, 3)")
        if self.width < 1 or self.height < 1:
            raise InputError(f"image size {self.width} x {self.height} is not positive")
        if self.model not in MODELS:
            raise InputError(f"camera model {self.model!r} is unknown; use one of {', '.join(MODELS)}")

    @classmethod
    def orbit(
        cls,
        azimuth_deg: float | Sequence[float] | Tensor,
        elevation_deg: float | Sequence[float] | Tensor,
        distance: float | Sequence[float] | Tensor,
        fov_y_deg: float | Sequence[float] | Tensor,
        width: int,
        height: int | None = None,
        near: float = 0.01,
        far: float = 100.0,
    ) -> Camera:
        """Cameras on a sphere looking at the origin; scalars or (B,) values broadcast. Azimuth 0 sees the front, +x."""
        given = (azimuth_deg, elevation_deg, distance, fov_y_deg)
        values = [torch.atleast_1d(torch.as_tensor(v)).float() for v in given]
        azimuth, elevation, radius, fov_y = torch.broadcast_tensors(*values)
        height = width if height is None else height
        c2w = orbit_pose(torch.deg2rad(azimuth), torch.deg2rad(elevation), radius)
        return cls(c2w, intrinsics_from_fov(torch.deg2rad(fov_y), width, height), width, height, near, far)

    @classmethod
    def cat(cls, cameras: Sequence[Camera]) -> Camera:
        """Joins batches of equal size and model."""
        first = cameras[0]
        if any((c.width, c.height, c.model) != (first.width, first.height, first.model) for c in cameras):
            raise InputError("cameras of different sizes or models cannot be joined; call resized() first")
        planes: dict[str, Any] = {name: _joined([(getattr(c, name), c) for c in cameras]) for name in PLANES}
        return replace(first, c2w=torch.cat([c.c2w for c in cameras]), K=torch.cat([c.K for c in cameras]), **planes)

    @property
    def batch(self) -> int:
        """Number of cameras B."""
        return self.c2w.shape[0]

    @property
    def w2c(self) -> Tensor:
        """World to camera (B, 4, 4), OpenCV axes."""
        return invert_rigid(self.c2w)

    @property
    def centres(self) -> Tensor:
        """Camera positions (B, 3) in world metres."""
        return self.c2w[:, :3, 3]

    @property
    def fov_y_rad(self) -> Tensor:
        """Vertical field of view (B,) of a pinhole: 2 atan(H / (2 fy))."""
        return 2 * torch.atan(0.5 * self.height / self.K[:, 1, 1])

    def __len__(self) -> int:
        return self.batch

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Camera:
        """A sub-batch; an integer keeps the batch dimension."""
        if isinstance(index, int):
            index = [range(self.batch)[index]]
        return self._mapped(lambda tensor: tensor[index])

    def to(self, device: torch.device | str | Tensor) -> Camera:
        """The same cameras on another device (or the device of a tensor)."""
        target = device.device if isinstance(device, Tensor) else device
        return self._mapped(lambda tensor: tensor.to(target))

    def resized(self, width: int, height: int) -> Camera:
        """The same view on another pixel grid: fx, cx scale with the width and fy, cy with the height."""
        scale = self.K.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, K=self.K * scale[:, None], width=width, height=height)

    def cropped(self, x: int, y: int, width: int, height: int) -> Camera:
        """The window with top-left pixel corner (x, y); may reach outside the image."""
        offset = torch.zeros_like(self.K)
        offset[:, 0, 2], offset[:, 1, 2] = x, y
        return replace(self, K=self.K - offset, width=width, height=height)

    def pixel_directions(self) -> Tensor:
        """Camera-space directions (B, H, W, 3) with z = 1 through the pixel centres; (0, 0, 1) for "ortho"."""
        x, y = self._plane()
        if self.model == "ortho":
            x, y = torch.zeros_like(x), torch.zeros_like(y)
        elif self.model == "fisheye":  # equidistant: image radius = f theta, valid below 90 degrees
            theta = torch.sqrt(x**2 + y**2).clamp(1e-8, 0.5 * math.pi - 1e-3)
            stretch = torch.tan(theta) / theta
            x, y = x * stretch, y * stretch
        return torch.stack([x, y, torch.ones_like(x)], dim=-1)  # (B, H, W, 3)

    def rays(self) -> tuple[Tensor, Tensor]:
        """World origins and directions, both (B, H, W, 3); directions have unit camera z: t along a ray is z-depth."""
        rotation = self.c2w[:, None, None, :3, :3]
        directions = (rotation @ self.pixel_directions()[..., None])[..., 0]
        origins = self.centres[:, None, None].expand_as(directions)
        if self.model == "ortho":
            x, y = self._plane()
            origins = origins + x[..., None] * rotation[..., 0] + y[..., None] * rotation[..., 1]
        return origins, directions

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, N, 2) and z-depth (B, N) of world points (N, 3) or (B, N, 3); differentiable."""
        w2c = self.w2c
        local = points @ w2c[:, :3, :3].mT + w2c[:, None, :3, 3]  # (B, N, 3)
        z = local[..., 2]
        if self.model == "ortho":
            plane = local[..., :2]
        else:
            plane = local[..., :2] / torch.where(z.abs() < 1e-9, torch.full_like(z, 1e-9), z)[..., None]
            if self.model == "fisheye":
                radius = plane.norm(dim=-1, keepdim=True).clamp_min(1e-8)
                plane = plane * torch.atan(radius) / radius
        return plane @ self.K[:, :2, :2].mT + self.K[:, None, :2, 2], z

    def unproject(self, depth: Tensor) -> Tensor:
        """World points (B, H, W, 3) from z-depth (B, H, W) or (B, H, W, 1) in metres."""
        depth = depth[..., 0] if depth.ndim == 4 else depth
        origins, directions = self.rays()
        return origins + directions * depth[..., None]

    def planes(self, ndim: int = 1) -> tuple[Tensor, Tensor]:
        """Near and far distances in metres, (B, 1, ...) of `ndim` dimensions."""
        near, far = (torch.as_tensor(p).to(self.c2w).expand(self.batch) for p in (self.near, self.far))
        shape = (self.batch, *(1,) * (ndim - 1))
        return near.reshape(shape), far.reshape(shape)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Camera:
        values = {name: getattr(self, name) for name in ("c2w", "K", *PLANES)}
        changed: dict[str, Any] = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)

    def _plane(self) -> tuple[Tensor, Tensor]:
        """K^-1 applied to the pixel centres: x and y, both (B, H, W)."""
        u = torch.arange(self.width, device=self.K.device, dtype=self.K.dtype) + 0.5
        v = torch.arange(self.height, device=self.K.device, dtype=self.K.dtype) + 0.5
        y = (v[None, :, None] - self.K[:, 1, 2, None, None]) / self.K[:, 1, 1, None, None]
        x = (u - self.K[:, 0, 2, None, None] - self.K[:, 0, 1, None, None] * y) / self.K[:, 0, 0, None, None]
        return x, y.expand_as(x)


def orbit_pose(azimuth_rad: Tensor, elevation_rad: Tensor, distance: Tensor) -> Tensor:
    """c2w (B, 4, 4) at distance r (cos e cos a, cos e sin a, sin e) looking at the origin; defined at the poles too."""
    sin_a, cos_a = torch.sin(azimuth_rad), torch.cos(azimuth_rad)
    sin_e, cos_e = torch.sin(elevation_rad), torch.cos(elevation_rad)
    outward = torch.stack([cos_e * cos_a, cos_e * sin_a, sin_e], dim=-1)
    right = torch.stack([-sin_a, cos_a, torch.zeros_like(sin_a)], dim=-1)
    down = torch.stack([sin_e * cos_a, sin_e * sin_a, -cos_e], dim=-1)
    top = torch.stack([right, down, -outward, outward * distance[..., None]], dim=-1)  # (B, 3, 4)
    return _with_last_row(top)


def look_at(eye: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """c2w (B, 4, 4) at eye (B, 3) with z towards target (B, 3) or (3,); up defaults to world z.

    Raises InputError when the view is parallel to `up` or eye equals target.
    """
    forward = target - eye
    up = eye.new_tensor([0.0, 0.0, 1.0]) if up is None else up
    right = torch.linalg.cross(forward, up.expand_as(forward))
    if bool((right.norm(dim=-1) <= 1e-7 * forward.norm(dim=-1)).any()):
        raise InputError("look_at: the view is zero or parallel to up; give another up or use Camera.orbit")
    forward = torch.nn.functional.normalize(forward, dim=-1)
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    return _with_last_row(torch.stack([right, down, forward, eye.expand_as(forward)], dim=-1))


def upright_pose(gravity: np.ndarray | None = None) -> Tensor:
    """c2w (4, 4) at the origin, looking towards -x as one who faces the front of an object, with `gravity` (3,), the
    direction of falling in camera axes, along -z; None: a level camera. One that looks straight down has its upper
    edge towards -x. Raises InputError for no direction."""
    down = torch.tensor([0.0, 1.0, 0.0] if gravity is None else np.asarray(gravity, np.float64).tolist()).double()
    if not bool(torch.isfinite(down).all()) or float(down.norm()) < 1e-6:
        raise InputError(f"gravity={down.tolist()} is no direction")
    up = -torch.nn.functional.normalize(down, dim=0)
    forward = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    ahead = forward - (forward @ up) * up
    if float(ahead.norm()) < 1e-6:
        ahead = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64) * torch.sign(forward @ -up)
    ahead = torch.nn.functional.normalize(ahead, dim=0)
    rows = torch.stack([-ahead, torch.linalg.cross(up, -ahead), up])  # world axes in camera axes
    return _with_last_row(torch.cat([rows, torch.zeros(3, 1, dtype=torch.float64)], dim=1)).float()


def intrinsics_from_fov(fov_y_rad: Tensor, width: int, height: int) -> Tensor:
    """K (B, 3, 3) with square pixels and a centred principal point: fy = H / (2 tan(fov_y / 2))."""
    K = torch.zeros(*fov_y_rad.shape, 3, 3, dtype=fov_y_rad.dtype, device=fov_y_rad.device)
    K[..., 0, 0] = K[..., 1, 1] = 0.5 * height / torch.tan(0.5 * fov_y_rad)
    K[..., 0, 2], K[..., 1, 2], K[..., 2, 2] = 0.5 * width, 0.5 * height, 1.0
    return K


def invert_rigid(pose: Tensor) -> Tensor:
    """[R^T, -R^T t] of a rotation and translation (..., 4, 4)."""
    rotation_t = pose[..., :3, :3].mT
    return _with_last_row(torch.cat([rotation_t, -rotation_t @ pose[..., :3, 3:]], dim=-1))


def opengl_from_opencv(c2w: Tensor) -> Tensor:
    """c2w (..., 4, 4) with OpenGL axes (x right, y up, z back): right-multiply diag(1, -1, -1, 1)."""
    return c2w * c2w.new_tensor([1.0, -1.0, -1.0, 1.0])


opencv_from_opengl = opengl_from_opencv  # the flip is its own inverse; Blender, threestudio and nerfstudio are OpenGL


def from_colmap(qvec: Tensor, tvec: Tensor) -> Tensor:
    """c2w (..., 4, 4) from COLMAP's world-to-camera quaternion (w, x, y, z) and translation."""
    rotation = rotation_from_quaternion(qvec)
    return invert_rigid(_with_last_row(torch.cat([rotation, tvec[..., None]], dim=-1)))


def to_colmap(c2w: Tensor) -> tuple[Tensor, Tensor]:
    """COLMAP's (qvec (..., 4) as w, x, y, z with w >= 0, tvec (..., 3)) of c2w (..., 4, 4).

    The centre of projection stays exact: t = -R c with the R of the quaternion, whatever rounding is in that of c2w.
    """
    quaternion = quaternion_from_rotation(c2w[..., :3, :3].mT)
    return quaternion, -(rotation_from_quaternion(quaternion) @ c2w[..., :3, 3:])[..., 0]


def from_nerfstudio(pose: Tensor, applied_transform: Tensor | None = None) -> Tensor:
    """Canonical c2w (..., 4, 4) from a transforms.json matrix; undoes the file's `applied_transform` (3, 3|4)."""
    if applied_transform is not None:
        pose = torch.linalg.inv(_homogeneous(applied_transform, pose)) @ pose
    return opencv_from_opengl(pose)


def to_nerfstudio(c2w: Tensor, applied_transform: Tensor | None = None) -> Tensor:
    """The transforms.json matrix of c2w (..., 4, 4), in the world moved by `applied_transform` (3, 3|4) if given."""
    pose = opengl_from_opencv(c2w)
    return pose if applied_transform is None else _homogeneous(applied_transform, pose) @ pose


def to_mvdream(c2w: Tensor) -> Tensor:
    """MVDream's camera condition (B, 16): OpenGL c2w, translation scaled to unit length, row-major.

    Its azimuth is ours + 90 degrees, which lands on the same z-up world, so no further rotation is needed.
    """
    pose = opengl_from_opencv(c2w).clone()
    pose[..., :3, 3] = torch.nn.functional.normalize(pose[..., :3, 3], dim=-1)
    return pose.flatten(-2)


def to_gltf_points(points: Tensor) -> Tensor:
    """World points or directions (..., 3) to glTF (y up, front +z): (x, y, z) -> (y, z, x)."""
    return points[..., [1, 2, 0]]


def from_gltf_points(points: Tensor) -> Tensor:
    """glTF points or directions (..., 3) to our world: (x, y, z) -> (z, x, y)."""
    return points[..., [2, 0, 1]]


def to_gltf_pose(c2w: Tensor) -> Tensor:
    """The matrix (..., 4, 4) of a glTF camera node: OpenGL axes, world turned to y up."""
    return _homogeneous(c2w.new_tensor(GLTF_FROM_WORLD), c2w) @ opengl_from_opencv(c2w)


def from_gltf_pose(matrix: Tensor) -> Tensor:
    """Canonical c2w (..., 4, 4) of a glTF camera node."""
    return opencv_from_opengl(_homogeneous(matrix.new_tensor(GLTF_FROM_WORLD), matrix).mT @ matrix)


def clip_from_K(  # noqa: N802
    K: Tensor, width: int, height: int, near: float | Tensor, far: float | Tensor, top_row_first: bool = False
) -> Tensor:
    """OpenGL projection (B, 4, 4) acting on OpenGL camera coordinates.

    `top_row_first` negates row 1, which makes a rasteriser whose row 0 is the bottom (nvdiffrast) put the top first.
    """
    P = torch.zeros(*K.shape[:-2], 4, 4, dtype=K.dtype, device=K.device)
    P[..., 0, 0] = 2 * K[..., 0, 0] / width
    P[..., 0, 1] = -2 * K[..., 0, 1] / width
    P[..., 0, 2] = 1 - 2 * K[..., 0, 2] / width
    P[..., 1, 1] = 2 * K[..., 1, 1] / height
    P[..., 1, 2] = 2 * K[..., 1, 2] / height - 1
    P[..., 2, 2], P[..., 2, 3] = -(far + near) / (far - near), -2 * far * near / (far - near)
    P[..., 3, 2] = -1
    if top_row_first:
        P[..., 1, :] = -P[..., 1, :]
    return P


def to_clip(camera: Camera, top_row_first: bool = False) -> Tensor:
    """Model-view-projection (B, 4, 4) from our world to clip space."""
    view = invert_rigid(opengl_from_opencv(camera.c2w))
    return clip_from_K(camera.K, camera.width, camera.height, *camera.planes(), top_row_first) @ view


def from_gsplat(viewmats: Tensor) -> Tensor:
    """c2w (..., 4, 4) from gsplat's world-to-camera matrices."""
    return invert_rigid(viewmats)


def to_gsplat(c2w: Tensor) -> Tensor:
    """gsplat's `viewmats` (..., 4, 4) of c2w."""
    return invert_rigid(c2w)


def shift_principal_point(K: Tensor, pixels: float) -> Tensor:
    """K with cx, cy moved by `pixels`: +0.5 turns an OpenCV-calibration file (integer centres) into ours."""
    moved = K.clone()
    moved[..., :2, 2] += pixels
    return moved


def orbit_distance(relative: float, fov_y_deg: float) -> float:
    """Distance that keeps an object's size on the image constant over fields of view: r = relative / tan(fov_y / 2)."""
    return relative / math.tan(math.radians(0.5 * fov_y_deg))


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """Rotation (..., 3, 3) of a quaternion (..., 4) as (w, x, y, z), normalised first; for files, without gradient."""
    from scipy.spatial.transform import Rotation

    flat = quaternion.detach().double().cpu().reshape(-1, 4).numpy()
    matrix = torch.from_numpy(Rotation.from_quat(flat, scalar_first=True).as_matrix())
    return matrix.reshape(*quaternion.shape[:-1], 3, 3).to(quaternion)


def quaternion_from_rotation(rotation: Tensor) -> Tensor:
    """Quaternion (..., 4) as (w, x, y, z), w >= 0; for files, without gradient."""
    from scipy.spatial.transform import Rotation

    flat = rotation.detach().double().cpu().reshape(-1, 3, 3).numpy()
    quaternion = torch.from_numpy(Rotation.from_matrix(flat).as_quat(canonical=True, scalar_first=True))
    return quaternion.reshape(*rotation.shape[:-2], 4).to(rotation)


def _joined(planes: Sequence[tuple[float | Tensor, Camera]]) -> float | Tensor:
    """A plane of joined batches: one distance when all have the same, else one for each camera (B,)."""
    first = planes[0][0]
    if all(not isinstance(plane, Tensor) and plane == first for plane, _ in planes):
        return first
    return torch.cat([torch.as_tensor(plane).to(camera.c2w).expand(camera.batch) for plane, camera in planes])


def _with_last_row(top: Tensor) -> Tensor:
    """(..., 3, 4) to (..., 4, 4)."""
    last = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, last], dim=-2)


def _homogeneous(transform: Tensor, like: Tensor) -> Tensor:
    """A (3, 3), (3, 4) or (4, 4) transform as (4, 4) in the dtype of `like`."""
    full = torch.eye(4, dtype=like.dtype, device=like.device)
    full[: transform.shape[-2], : transform.shape[-1]] = transform.to(full)
    return full
