"""Representations: volumes of density and colour, and triangles that move."""

from __future__ import annotations

from .build import ShapeConfig, load_shape, make_shape
from .triangles import TriangleConfig, Triangles
from .volume import Volume, VolumeShapeConfig

__all__ = [
    "ShapeConfig",
    "TriangleConfig",
    "Triangles",
    "Volume",
    "VolumeShapeConfig",
    "load_shape",
    "make_shape",
]
