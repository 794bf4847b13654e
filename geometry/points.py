"""Point clouds with colours and normals, in our world (z up, metres)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..utils.errors import InputError
from .cameras import Camera
from .lifting import lift
from .point_files import read_points, save_points
from .stored import NO_ORIGIN, Origin


@dataclass
class PointCloud:
    """N points."""

    points: Tensor  # (N, 3) float32, metres
    colors: Tensor | None = None  # (N, 3) sRGB in [0, 1]
    normals: Tensor | None = None  # (N, 3) unit
    origin: Origin = NO_ORIGIN  # what to add to points for positions of the world, where float32 cannot hold those

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3:
            raise InputError(f"points has shape {tuple(self.points.shape)}, expected (N, 3)")
        for name in ("colors", "normals"):
            value = getattr(self, name)
            if value is not None and value.shape != self.points.shape:
                raise InputError(f"{name} has shape {tuple(value.shape)}, expected {tuple(self.points.shape)}")

    def __len__(self) -> int:
        return len(self.points)

    def save(self, path: str | Path) -> Path:
        """Writes .ply (binary), .glb, .obj, .xyz or USD, re-opened and checked; see docs/files.md."""
        return save_points(self, path)

    @classmethod
    def load(cls, path: str | Path) -> PointCloud:
        """Reads .ply, .glb, .obj or .xyz; what else it holds is named in a warning. Raises InputError for anything
        unusable."""
        return cls(*read_points(path))

    @classmethod
    def from_depth(
        cls,
        depth_m: Tensor,
        rgb: Tensor | None,
        camera: Camera,
        min_depth: float = 0.0,
        max_slant_deg: float | None = None,
        normals: bool = False,
    ) -> PointCloud:
        """Pixels deeper than `min_depth` of z-depth (B, H, W[, 1]) in metres, coloured by rgb (B, H, W, 3).

        max_slant_deg: leave out what flies between near and far (`lifting.lift`); None keeps all. normals: towards the
        camera, from neighbouring pixels.
        """
        depth = depth_m[..., 0] if depth_m.ndim == 4 else depth_m
        if depth.shape != (camera.batch, camera.height, camera.width):
            expected = (camera.batch, camera.height, camera.width)
            raise InputError(f"depth_m has shape {tuple(depth_m.shape)}, expected {expected}; use camera.resized()")
        return cls(*lift(depth, rgb, camera, min_depth, max_slant_deg, normals))

    def subsampled(self, count: int, generator: torch.Generator | None = None) -> PointCloud:
        """At most `count` points, drawn without replacement."""
        if len(self) <= count:
            return self
        index = torch.randperm(len(self), generator=generator)[:count].to(self.points.device)
        colors = None if self.colors is None else self.colors[index]
        normals = None if self.normals is None else self.normals[index]
        return PointCloud(self.points[index], colors, normals, self.origin)
