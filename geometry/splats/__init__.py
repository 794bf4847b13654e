"""3D Gaussian splats: what they are, how they are drawn, how they are stored."""

from __future__ import annotations

from .cloud import GaussianCloud
from .files import load_splats, save_splats
from .raster import rasterization
from .reference import rasterization_reference

__all__ = ["GaussianCloud", "load_splats", "rasterization", "rasterization_reference", "save_splats"]
