"""The camera as a picture of where each pixel looks, beside the grey picture itself (DM-Calib, Deng et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...geometry.camera_image import (
    angles_of_code,
    angles_of_tangents,
    code_of_angles,
    tangents_of_angles,
)
from ...geometry.pinhole_fit import fit_pinhole
from ...utils.errors import InputError
from ..ensemble import Alignment, Ensembled, median_of_members
from ..metrics import angles_deg, normal_errors
from .base import Column, Invariance, TargetCodec

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class CameraCodec(TargetCodec):
    """Rays (x, y, 1) as azimuth, polar angle and luma; maps are the tangents x and y, affine in the pixels.

    Targets are (B, 2, H, W), or with the luma of the picture in [-1, 1] (B, 3, H, W). What is not valid is -1.
    """

    name: ClassVar[str] = "camera"
    channels: ClassVar[int] = 2
    column: ClassVar[Column] = Column("rays", "rays", 1, (-1.0, 1.0), smooth=True)
    unit: ClassVar[str] = "tangent"
    weights: ClassVar[Mapping[str, float]] = {"camera": 1.0}
    tolerance: ClassVar[float] = 5.0
    error_unit: ClassVar[str] = "deg"
    summary: ClassVar[tuple[str, ...]] = ("camera_deg", "fov_deg", "focal")
    frame: str = "opencv"
    grey: bool = True
    """the third channel is the picture; otherwise 0"""

    @property
    def invariance(self) -> Invariance:
        """See TargetCodec.invariance."""
        return "none"

    def truth(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See TargetCodec.truth: tangents (B, H, W, 2)."""
        rays = values.permute(0, 3, 1, 2)
        return rays, torch.isfinite(rays).all(1, keepdim=True)

    def beside(self, target: Tensor, images: Tensor) -> Tensor:
        """See TargetCodec.beside: the luma of the picture as third channel."""
        luma = (images * images.new_tensor(LUMA).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
        return torch.cat([target[:, :2], 2 * luma - 1], 1)

    def encode(self, target: Tensor, valid: Tensor) -> tuple[Tensor, None]:
        """See TargetCodec.encode; rays beyond the range of the picture are clipped to it."""
        code = code_of_angles(angles_of_tangents(target[:, :2].float())).clamp(-1, 1)
        third = target[:, 2:3].float() if self.grey and target.shape[1] > 2 else torch.zeros_like(code[:, :1])
        return torch.cat([code, third], 1).masked_fill(~valid, -1.0), None

    def decode(self, pictures: Tensor, state: Any = None) -> Tensor:
        """See TargetCodec.decode; values outside [-1, 1] are clipped."""
        return tangents_of_angles(angles_of_code(pictures[:, :2]))

    def reduce(self, members: Tensor, alignment: Alignment, sampled: bool) -> Ensembled:
        """See TargetCodec.reduce: medians of angles, the middle of an even number, so that mirrored members give the
        mirrored camera; the spread is the mean deviation in rad."""
        angles = angles_of_tangents(members)
        middle = median_of_members(angles)
        spread = median_of_members((angles - middle).abs()).mean(1, keepdim=True)
        return Ensembled(tangents_of_angles(middle), spread)

    def error(self, maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """See TargetCodec.error: degrees between the rays."""
        return angles_deg(_rays(maps), _rays(target))

    def metrics(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.metrics.

        `camera_deg`: mean angle of the rays; of the pinholes fitted to both: `fov_deg` |2 atan(h / 2 f') - 2 atan(h / 2
        f)|, `focal` max |f' - f| / f, `principal` max 2 |c' - c| / side, nan where no pinhole fits.
        """
        angle = normal_errors(_rays(maps), _rays(target), valid[:, 0])["mean"]
        rows = [camera_errors(m, t, v) for m, t, v in zip(maps.split(1), target.split(1), valid.split(1), strict=True)]
        fitted = {name: maps.new_tensor([row[name] for row in rows]).double() for name in rows[0]}
        return {"camera_deg": angle, **fitted}

    def levels(self, maps: np.ndarray) -> np.ndarray:
        """See TargetCodec.levels: the picture's two channels, and a half."""
        rays = torch.from_numpy(np.ascontiguousarray(maps[..., :2])).permute(2, 0, 1)[None]  # a target has its grey too
        code = code_of_angles(angles_of_tangents(rays)).clamp(-1, 1)[0].permute(1, 2, 0).numpy()
        return np.concatenate([code, np.zeros_like(code[..., :1])], -1) / 2 + 0.5


def camera_errors(maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, float]:
    """Errors of the pinhole fitted to tangents (1, 2, H, W) against that of a target."""
    height, width = maps.shape[2:]
    true = fit_pinhole(target[:, :2], valid, (width, height)).K
    try:
        found = fit_pinhole(maps, valid, (width, height)).K
    except InputError:  # an untrained network
        return dict.fromkeys(("fov_deg", "focal", "principal"), float("nan"))
    return matrix_errors(found, true, width, height)


def matrix_errors(found: np.ndarray, true: np.ndarray, width: int, height: int) -> dict[str, float]:
    """Errors of a camera matrix (3, 3) in px against the true one; see `CameraCodec.metrics`."""
    fov = [2 * np.rad2deg(np.arctan(height / (2 * K[1, 1]))) for K in (found, true)]
    focal = max(abs(found[i, i] - true[i, i]) / true[i, i] for i in (0, 1))
    centre = max(2 * abs(found[i, 2] - true[i, 2]) / side for i, side in enumerate((width, height)))
    return {"fov_deg": float(abs(fov[0] - fov[1])), "focal": float(focal), "principal": float(centre)}


def _rays(tangents: Tensor) -> Tensor:
    return torch.cat([tangents[:, :2], torch.ones_like(tangents[:, :1])], 1)
