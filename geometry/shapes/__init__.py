"""Representations: volumes of density and colour, triangles that move, tetrahedra, and Gaussians."""

from __future__ import annotations

from .build import ShapeConfig, load_shape, make_shape
from .convert import convert
from .gaussians import GaussianConfig, Gaussians
from .tetrahedra import Tetrahedra, TetrahedraConfig
from .triangles import TriangleConfig, Triangles
from .volume import Volume, VolumeShapeConfig

__all__ = [
    "GaussianConfig",
    "Gaussians",
    "ShapeConfig",
    "Tetrahedra",
    "TetrahedraConfig",
    "TriangleConfig",
    "Triangles",
    "Volume",
    "VolumeShapeConfig",
    "convert",
    "load_shape",
    "make_shape",
]
