"""Depth in metres as files: what became of affine-invariant depth once its scale is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...geometry.metric import Metric
from ...utils.pictures import Picture, colourise, scale_bar

MILLIMETRES = 1000.0  # levels of a 16-bit picture a metre; up to 65.5 m


@dataclass(frozen=True)
class MetresFiles:
    """z-depth in metres: NPZ with the source of its scale, 16-bit PNG in millimetres, colours from near to far."""

    name: ClassVar[str] = "depth"
    channels: ClassVar[int] = 1
    colormap: ClassVar[str] = "Spectral"
    metric: Metric
    low: float
    """metres of the ends of the colours"""
    high: float

    def facts(self) -> dict[str, Any]:
        """Entries of the NPZ beside the map."""
        told = {"scale": self.metric.scale, "shape": self.metric.shape, "measured": self.metric.measured}
        ends = {"near_m": self.metric.near_m, "far_m": self.metric.far_m}
        return {"unit": "m", "invariance": "none", "space": "linear", **told, **ends}

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Millimetres over 65535."""
        return (values[..., 0] * MILLIMETRES / 65535).clip(0, 1)

    def picture(self, values: np.ndarray, colormap: str = "") -> Picture:
        """Red is near, blue far."""
        return colourise(values[..., 0], colormap or self.colormap, low=self.low, high=self.high)

    def legend(self, height: int, colormap: str = "") -> Picture | None:
        """The metres of the ends."""
        return scale_bar(height, colormap or self.colormap, f"{self.low:.3g} m", f"{self.high:.3g} m")
