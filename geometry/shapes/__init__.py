"""Representations: volumes of density and colour, triangles that move, and Gaussians."""

from __future__ import annotations

from .build import ShapeConfig, load_shape, make_shape
from .gaussians import GaussianConfig, Gaussians
from .triangles import TriangleConfig, Triangles
from .volume import Volume, VolumeShapeConfig

__all__ = [
    "GaussianConfig",
    "Gaussians",
    "ShapeConfig",
    "TriangleConfig",
    "Triangles",
    "Volume",
    "VolumeShapeConfig",
    "load_shape",
    "make_shape",
]
