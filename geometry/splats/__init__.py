"""3D Gaussian splats: what they are, how they are drawn, how they are stored."""

from __future__ import annotations

from .cloud import GaussianCloud
from .raster import rasterization
from .reference import rasterization_reference

__all__ = ["GaussianCloud", "rasterization", "rasterization_reference"]
