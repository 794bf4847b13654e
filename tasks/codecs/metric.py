"""Depth in metres as a picture of its own: black at the camera, white at `far_m` (DM-Calib, Deng et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.pictures import Picture, colourise
from ..metrics import depth_errors, mean_of_valid
from .base import Column, Invariance, TargetCodec
from .depth import DepthCodec

WIDE = 10.0  # times which a picture's range may be larger


@dataclass(frozen=True)
class MetresCodec(TargetCodec):
    """z-depth (B, 1, H, W) in metres; the picture is 2 d / far_m - 1, three times."""

    name: ClassVar[str] = "metres"
    channels: ClassVar[int] = 1
    column: ClassVar[Column] = DepthCodec.column
    unit: ClassVar[str] = "m"
    weights: ClassVar[Mapping[str, float]] = {"metres": 1.0, "relative": 0.5}
    colormap: ClassVar[str] = "Spectral"
    summary: ClassVar[tuple[str, ...]] = ("abs_rel", "delta1")
    far_m: float = 10.0
    wide: bool = False
    """the picture's values are ten times as large, as of the published head"""

    def __post_init__(self) -> None:
        if not self.far_m > 0:
            raise InputError(f"far_m={self.far_m} must be above 0")

    @property
    def invariance(self) -> Invariance:
        """See TargetCodec.invariance."""
        return "none"

    def truth(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See TargetCodec.truth: metres (B, H, W), 0 where nothing is seen."""
        depth_m = values[:, None]
        return depth_m, (depth_m > 0) & torch.isfinite(depth_m)

    def encode(self, target: Tensor, valid: Tensor) -> tuple[Tensor, None]:
        """See TargetCodec.encode; farther things and invalid pixels are white."""
        unit = torch.where(valid, (2 * target.float() / self.far_m - 1).clamp(max=1), 1.0)
        return (unit * (WIDE if self.wide else 1.0)).expand(-1, 3, -1, -1), None

    def decode(self, pictures: Tensor, state: Any = None) -> Tensor:
        """See TargetCodec.decode: metres, from 0 to far_m."""
        unit = pictures.mean(1, keepdim=True) / (WIDE if self.wide else 1.0)
        return (unit.clamp(-1, 1) + 1) / 2 * self.far_m

    def loss(self, pictures: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.loss: L1 of the picture, and of the same error in metres over the true depth."""
        coded, _ = self.encode(target, valid)
        keep = valid[:, 0] & (target[:, 0] <= self.far_m)
        off = (pictures - coded).abs().mean(1) / (WIDE if self.wide else 1.0)
        relative = off * self.far_m / 2 / target[:, 0].clamp(min=1e-3)
        return {"metres": mean_of_valid(off, keep), "relative": mean_of_valid(relative, keep)}

    def error(self, maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """See TargetCodec.error: |d' - d| / d, nothing aligned."""
        return (maps[:, 0] - target[:, 0]).abs() / target[:, 0].clamp(min=1e-6)

    def metrics(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.metrics: `depth_errors` without alignment, over what is no farther than far_m."""
        keep = valid[:, 0] & (target[:, 0] <= self.far_m)
        return depth_errors(maps[:, 0].clamp(min=1e-3), target[:, 0], keep)

    def levels(self, maps: np.ndarray) -> np.ndarray:
        """See TargetCodec.levels: shares of far_m."""
        return (maps[..., 0] / self.far_m).clip(0, 1)

    def picture(self, maps: np.ndarray, colormap: str = "") -> Picture:
        """See TargetCodec.picture: red is near, blue far."""
        return colourise(maps[..., 0], colormap or self.colormap, low=0.0, high=self.far_m)
