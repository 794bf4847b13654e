"""Pictures whose cameras are known: what splats are fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.seeds import generator as seeded
from .cameras import Camera, invert_rigid
from .meshes import Mesh
from .outputs import over_background
from .points import PointCloud
from .turntable import MeshView, cut_out

HELD_OUT = 8  # every such picture is held out, as with gsplat and in the literature
MARGIN = 1.1  # of the extent around the cameras, gsplat's
SEEN_WHOLE = 0.999  # share of a pixel that a straightened picture has to reach


@dataclass(frozen=True)
class PosedImages:
    """V pictures of one size."""

    cameras: Camera  # V
    images: Tensor  # (V, H, W, 3) uint8 sRGB, not multiplied by alpha
    alpha: Tensor | None = None  # (V, H, W, 1) uint8; None: everything covers
    valid: Tensor | None = None  # (V, H, W, 1) bool, pixels that say something; None: all
    names: tuple[str, ...] = ()
    points: PointCloud | None = None  # of the scene, where some are known

    def __post_init__(self) -> None:
        views, height, width = len(self.cameras), self.cameras.height, self.cameras.width
        for name, channels in (("images", 3), ("alpha", 1), ("valid", 1)):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (views, height, width, channels):
                raise InputError(
                    f"{name} has shape {tuple(value.shape)}; {views} cameras of {width} x {height} px need "
                    f"({views}, {height}, {width}, {channels})"
                )
        if self.names and len(self.names) != views:
            raise InputError(f"{len(self.names)} names for {views} pictures; give one a picture")

    @classmethod
    def from_floats(cls, cameras: Camera, images: Tensor, alpha: Tensor | None = None) -> PosedImages:
        """From sRGB (V, H, W, 3) and coverage (V, H, W, 1) in [0, 1]."""
        return cls(cameras, bytes_of(images), None if alpha is None else bytes_of(alpha))

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, rows: Sequence[int] | Tensor) -> PosedImages:
        """Some of the pictures."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        parts = {name: getattr(self, name) for name in ("images", "alpha", "valid")}
        kept: dict[str, Any] = {name: None if value is None else value[index] for name, value in parts.items()}
        names = tuple(self.names[i] for i in index.tolist()) if self.names else ()
        return replace(self, cameras=self.cameras[index], names=names, **kept)

    def resized(self, factor: float) -> PosedImages:
        """With sides of so many times the pixels, each the mean of what it covers."""
        size = (max(1, round(factor * self.cameras.height)), max(1, round(factor * self.cameras.width)))
        alpha = torch.ones(*self.images.shape[:3], 1) if self.alpha is None else self.alpha.float() / 255
        small = shrunk(torch.cat([self.images.float() / 255 * alpha, alpha], dim=-1), size)
        valid = None if self.valid is None else shrunk(self.valid.float(), size) > SEEN_WHOLE
        return replace(
            self,
            cameras=self.cameras.resized(size[1], size[0]),
            images=bytes_of(plain_colors(small)),
            alpha=None if self.alpha is None else bytes_of(small[..., 3:]),
            valid=valid,
        )

    def split(self, every: int = HELD_OUT) -> tuple[PosedImages, PosedImages]:
        """(pictures to learn from, pictures held out: the first of each `every`); 0 holds none out."""
        held = [i for i in range(len(self)) if every and i % every == 0]
        left = [i for i in range(len(self)) if i not in set(held)]
        if not left:
            raise InputError(f"of {len(self)} pictures none is left to learn from; hold out fewer (held_out={every})")
        return self[left], self[held]

    def picture(self, rows: Sequence[int], background: float | Tensor) -> Tensor:
        """sRGB (B, H, W, 3) in [0, 1] of some pictures over a background as of `over_background`."""
        rgb = self.images[list(rows)].float() / 255
        if self.alpha is None:
            return rgb
        alpha = self.alpha[list(rows)].float() / 255
        return over_background(rgb * alpha, alpha, background)

    @cached_property
    def middle(self) -> Tensor:
        """The point (3,) nearest to all viewing directions; where they are parallel, one before the cameras."""
        origin, forward = self.cameras.centres.double(), self.cameras.c2w[:, :3, 2].double()
        across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
        total = across.sum(0)
        if float(torch.linalg.eigvalsh(total)[0]) < 1e-3 * len(self):
            return (origin.mean(0) + forward.mean(0)).float()
        return torch.linalg.solve(total, (across @ origin[..., None]).sum(0)[:, 0]).float()

    @cached_property
    def extent(self) -> float:
        """Metres: 1.1 times the largest distance of a camera from the mean of all; of one camera, that to `middle`."""
        centres = self.cameras.centres
        spread = float((centres - centres.mean(0)).norm(dim=-1).max())
        return MARGIN * (spread if spread > 1e-6 else float((centres - self.middle).norm(dim=-1).max()))

    @property
    def world_up(self) -> Tensor:
        """Unit mean (3,) of what is up in the pictures."""
        return torch.nn.functional.normalize(-self.cameras.c2w[:, :3, 1].mean(0), dim=-1)

    def may_be_full(self, points: Tensor) -> Tensor:
        """(N,) whether no picture shows that nothing is at points (N, 3); outside all pictures may be anything."""
        left = torch.ones(len(points), dtype=torch.bool)
        for view in range(len(self) if self.alpha is not None else 0):
            pixel, z = self.cameras[view].project(points)
            column, row = pixel[0].floor().long().unbind(-1)
            inside = (
                (column >= 0) & (column < self.cameras.width) & (row >= 0) & (row < self.cameras.height) & (z[0] > 0)
            )
            assert self.alpha is not None
            shown = self.alpha[view, row.clamp(0, self.cameras.height - 1), column.clamp(0, self.cameras.width - 1), 0]
            left &= ~inside | (shown > 0)
        return left


def around(
    views: int, size: int, distance: float, fov_y_deg: float, elevation_deg: tuple[float, float] = (-20.0, 75.0)
) -> Camera:
    """Cameras evenly over the part of the sphere around the origin between two elevations, on a spiral.

    They come in an order that is drawn once and for all, so that every n-th of them looks from everywhere too.
    """
    low, high = (math.sin(math.radians(e)) for e in elevation_deg)
    index = torch.randperm(views, generator=seeded(views))
    elevation = torch.rad2deg(torch.asin(low + (high - low) * (index + 0.5) / views))
    azimuth = torch.rad2deg(index * (math.pi * (3 - math.sqrt(5)))) % 360
    return Camera.orbit(azimuth, elevation, distance, fov_y_deg, size)


@torch.no_grad()
def photographed(mesh: Mesh, views: int, size: int, fov_y_deg: float) -> PosedImages:
    """A mesh from all around with its light, RGBA, where it stands."""
    viewed = MeshView(mesh)
    centre, radius = viewed.ball()
    distance = max(radius, 1e-6) / math.sin(math.radians(0.5 * fov_y_deg))
    cameras = around(views, size, distance, fov_y_deg)
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] += centre
    cameras = replace(cameras, c2w=c2w, near=0.01 * distance, far=4 * distance)
    layers = torch.from_numpy(np.stack([cut_out(viewed, cameras[view]) for view in range(views)]))
    return PosedImages(cameras, layers[..., :3], layers[..., 3:])


def orbit_like(posed: PosedImages, frames: int) -> Camera:
    """`frames` cameras on one turn around `middle`, as far and as high as the cameras usually are, their up as ours.

    The first is on the side of the first camera.
    """
    up, middle = posed.world_up.double(), posed.middle.double()
    offset = posed.cameras.centres.double() - middle
    height = (offset @ up).median()
    radius = (offset - (offset @ up)[:, None] * up).norm(dim=-1).median().clamp_min(1e-6)
    first = offset[0] - (offset[0] @ up) * up
    first = torch.nn.functional.normalize(first, dim=-1)
    side = torch.linalg.cross(up, first)
    angle = torch.arange(frames, dtype=torch.float64) * (2 * torch.pi / frames)
    around = torch.cos(angle)[:, None] * first + torch.sin(angle)[:, None] * side
    outward = torch.nn.functional.normalize(radius * around + height * up, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(up.expand_as(outward), outward), dim=-1)
    down = -torch.linalg.cross(outward, right)
    eye = middle + radius * around + height * up
    top = torch.stack([right, down, -outward, eye], dim=-1)
    c2w = torch.cat([top, top.new_tensor([0, 0, 0, 1.0]).expand(frames, 1, 4)], dim=1)
    cameras = posed.cameras[[0] * frames]
    return replace(cameras, c2w=c2w.to(cameras.c2w))


def moved(cameras: Camera, steps: Tensor) -> Camera:
    """Cameras turned by rotation vectors and shifted, both in their own axes, by steps (B, 6): c2w exp(step)."""
    x, y, z = steps[:, :3].unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    own = torch.cat([torch.linalg.matrix_exp(skew), steps[:, 3:, None]], dim=-1)
    own = torch.cat([own, own.new_tensor([0, 0, 0, 1.0]).expand(len(own), 1, 4)], dim=1)
    return replace(cameras, c2w=cameras.c2w @ own.to(cameras.c2w))


def pose_errors(found: Camera, truth: Camera) -> tuple[Tensor, Tensor]:
    """(radians, metres), both (B,), by which poses differ; nothing is aligned."""
    apart = invert_rigid(truth.c2w) @ found.c2w
    cosine = ((apart.diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1) - 1) / 2).clamp(-1, 1)
    return torch.acos(cosine), apart[:, :3, 3].norm(dim=-1)


def shrunk(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W, C) on (height, width) pixels, each the mean of what it covers."""
    if tuple(pictures.shape[1:3]) == size:
        return pictures
    moved = pictures.permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(moved, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def plain_colors(premultiplied: Tensor) -> Tensor:
    """sRGB (..., 3) that is not multiplied by alpha, from (..., 4) that is."""
    return premultiplied[..., :3] / premultiplied[..., 3:].clamp_min(1e-3)


def bytes_of(values: Tensor) -> Tensor:
    """uint8 of values in [0, 1]."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)
