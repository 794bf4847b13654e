"""What a depth sensor makes of exact depth, as pictures: the residual of the logarithms, and where nothing came back.

Stable-Sim2Real (2025), section 3: l(d) = 2 ln(d / near) / ln(far / near) - 1 where near <= d <= largest, else 1;
r = (l_measured - l_clean) / 2 in [-1, 1]; back by l = 2 r + l_clean, d = near (far / near)^((l + 1) / 2). Where the two
do not belong together (`known`) both are 1 and r is exactly 0, or the network would learn the mask.

Two extensions. `holes` adds a second picture, +1 where the sensor answers and -1 where it does not; the published
method leaves no holes. `knee` k > 0 spreads small residuals, asinh(r / k) / asinh(1 / k): noise of a few millimetres
and pixels that fly by decimetres both lie well inside [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.pictures import Picture, colourise, scale_bar
from ..outputs import TaskOutput

MILLIMETRES = 1000 / 65535  # of a 16-bit picture: its levels are millimetres


@dataclass(frozen=True)
class ResidualDepthCodec:
    """Measured depth beside clean depth, both (B, 1, H, W) in metres, 0 where there is none."""

    name: ClassVar[str] = "depth"
    channels: ClassVar[int] = 1
    colormap: ClassVar[str] = "Spectral"
    range_m: tuple[float, float] = (0.05, 5.0)
    """near and far of the logarithm"""
    largest_m: float = 4.9
    """depth beyond it counts as none"""
    largest_gap_m: float = 0.5
    """measurements that are further off are no measurements of this surface"""
    holes: bool = True
    """a second picture says where the sensor answers"""
    knee: float = 0.0
    """residual up to which the scale is about linear; 0: linear everywhere, as published"""

    def __post_init__(self) -> None:
        near, far = self.range_m
        if not 0 < near < self.largest_m <= far:
            raise InputError(f"range_m={self.range_m}, largest_m={self.largest_m}: need 0 < near < largest <= far")
        if self.largest_gap_m <= 0 or self.knee < 0:
            raise InputError(f"largest_gap_m={self.largest_gap_m} must be positive and knee={self.knee} at least 0")

    @property
    def groups(self) -> int:
        """Pictures of a measurement."""
        return 1 + self.holes

    def seen(self, clean: Tensor) -> Tensor:
        """Where there is clean depth to speak of, like it, bool."""
        return (clean >= self.range_m[0]) & (clean <= self.largest_m) & torch.isfinite(clean)

    def answered(self, measured: Tensor, clean: Tensor) -> Tensor:
        """Where the measurement belongs to the clean depth, bool."""
        return self.seen(clean) & (measured > 0) & ((measured - clean).abs() < self.largest_gap_m)

    def logarithm(self, depth: Tensor, where: Tensor) -> Tensor:
        """l in [-1, 1]; 1 where not `where`."""
        near, far = self.range_m
        inside = torch.where(where, depth, torch.full_like(depth, far)).clamp(near, far)
        return 2 * (inside / near).log() / math.log(far / near) - 1

    def clean_picture(self, clean: Tensor) -> Tensor:
        """The clean depth as a picture (B, 3, H, W) in [-1, 1]."""
        return self.logarithm(clean, self.seen(clean)).expand(-1, 3, -1, -1)

    def encode(self, measured: Tensor, clean: Tensor) -> Tensor:
        """Pictures (B, groups, 3, H, W) in [-1, 1] of a measurement of the clean depth."""
        answered = self.answered(measured, clean)
        residual = (self.logarithm(measured, answered) - self.logarithm(clean, answered)) / 2
        told = [self._spread(residual)] + ([2 * answered.to(residual) - 1] if self.holes else [])
        return torch.stack([one.expand(-1, 3, -1, -1) for one in told], 1)

    def decode(self, pictures: Tensor, clean: Tensor) -> Tensor:
        """Measured depth (B, 1, H, W) in metres of pictures (B, groups, 3, H, W), 0 where the sensor has no answer."""
        near, far = self.range_m
        seen = self.seen(clean)
        residual = self._gathered(pictures[:, 0].mean(1, keepdim=True).clamp(-1, 1))
        unit = self.logarithm(clean, seen) + 2 * residual
        depth = near * (far / near) ** ((unit + 1) / 2)
        depth = torch.where(residual == 0, clean, depth)  # no rounding where nothing changed
        kept = seen & (depth > 0) & (depth <= self.largest_m)
        return torch.where(kept & (pictures[:, 1].mean(1, keepdim=True) > 0) if self.holes else kept, depth, 0.0)

    def _spread(self, residual: Tensor) -> Tensor:
        return residual if not self.knee else (residual / self.knee).asinh() / math.asinh(1 / self.knee)

    def _gathered(self, told: Tensor) -> Tensor:
        return told if not self.knee else (told * math.asinh(1 / self.knee)).sinh() * self.knee

    def facts(self) -> dict[str, Any]:
        """Entries of the NPZ beside the depth."""
        return {"unit": "m", "frame": "z-depth"}

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Rows (h, W, 1) as what a 16-bit picture holds: millimetres, as sensors write them."""
        return (values[..., 0] * MILLIMETRES).clip(0, 1)

    def picture(self, values: np.ndarray, colormap: str = "") -> Picture:
        """Rows (h, W, 1) for people; white where nothing was measured."""
        depth = values[..., 0]
        return colourise(depth, colormap or self.colormap, depth > 0, 0.0, self.largest_m)

    def legend(self, height: int, colormap: str = "") -> Picture | None:
        """See WritesFiles.legend."""
        return scale_bar(height, colormap or self.colormap, "0 m", f"{self.largest_m:g} m")


@dataclass
class SensorOutput(TaskOutput):
    """Measured depth (N, H, W, 1) in metres, 0 where the sensor has no answer."""

    coded_by: Any = None
    K: np.ndarray | None = None  # (3, 3) pixels, for files

    def with_camera(self, K: np.ndarray | None) -> SensorOutput:
        """The same with intrinsics, which its NPZ then holds."""
        return replace(self, K=K)

    @property
    def depth_m(self) -> np.ndarray:
        """float32 (N, H, W)."""
        return self.maps()[..., 0]

    @property
    def codec(self) -> ResidualDepthCodec:
        """See TaskOutput.codec."""
        return self.coded_by if self.K is None else _Posed(**vars(self.coded_by), K=self.K)


@dataclass(frozen=True, eq=False)
class _Posed(ResidualDepthCodec):
    """The codec of maps whose intrinsics are known."""

    K: np.ndarray | None = None

    def facts(self) -> dict[str, Any]:
        """See ResidualDepthCodec.facts."""
        return {**super().facts(), "K": self.K}
