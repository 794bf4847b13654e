"""One picture as geometry whose parts agree: camera, metric depth, normals, mask, cloud and mesh; and how far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..geometry.agreement import residuals
from ..geometry.lifting import MAX_SLANT_DEG
from ..geometry.meshes import Mesh
from ..geometry.metric import Metric
from ..geometry.points import PointCloud
from ..tasks.outputs import GeometryOutput
from ..utils.bands import Compression, write_npz
from ..utils.errors import InputError
from .metric_depth import opencv_normals
from .picture_camera import PictureCamera


@dataclass(frozen=True)
class PictureGeometry:
    """What is known of one picture; everything is seen through `seen.camera`."""

    picture: np.ndarray  # (H, W, 3) sRGB in [0, 1]
    made: GeometryOutput  # of this picture alone
    seen: PictureCamera
    metric: Metric

    def __post_init__(self) -> None:
        if self.made.depth is None or self.made.normals is None:
            raise InputError(f"geometry needs depth and normals, and this head predicts {', '.join(self.made.maps)}")

    @property
    def depth_m(self) -> np.ndarray:
        """float32 (H, W) z-depth in metres; nan where nothing is seen."""
        metres: np.ndarray = self.made.depth.one_metres(self.metric.near_m, self.metric.far_m, 0)
        return metres

    @property
    def normals(self) -> np.ndarray:
        """float32 (H, W, 3) unit, OpenCV camera axes; 0 where nothing is seen."""
        found = opencv_normals(self.made)
        assert found is not None
        return np.asarray(found.permute(1, 2, 0).numpy())

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, what the picture shows."""
        return np.asarray(self.made.depth.seen()[0])

    def cloud(self, max_slant_deg: float | None = MAX_SLANT_DEG) -> PointCloud:
        """Points in metres in our world, with colours and normals."""
        ends = (self.metric.near_m, self.metric.far_m)
        cloud: PointCloud = self.made.depth.point_cloud(
            self.picture, self.seen.camera, *ends, max_slant_deg=max_slant_deg
        )
        return cloud

    def mesh(self, max_faces: int = 200_000, max_slant_deg: float = MAX_SLANT_DEG) -> Mesh:
        """The surface with the picture as its texture, torn at depth edges."""
        ends = (self.metric.near_m, self.metric.far_m)
        mesh: Mesh = self.made.depth.surface(self.picture, self.seen.camera, *ends, max_faces, max_slant_deg)
        return mesh

    def report(self) -> dict[str, Any]:
        """How well the parts agree, and where camera and scale come from."""
        depth, normals = torch.from_numpy(self.depth_m), opencv_normals(self.made)
        assert normals is not None
        return {
            **residuals(depth, normals, self.seen.camera),
            "scale": self.metric.scale,
            "measured": self.metric.measured,
            "shape": self.metric.shape,
            "near_m": self.metric.near_m,
            "far_m": self.metric.far_m,
            "seen": float(self.mask.mean()),
            **self._sureness(),
        }

    def _sureness(self) -> dict[str, float]:
        """Mean confidence of what is seen and its tolerance, of the maps that have some."""
        told: dict[str, float] = {}
        for name, output in (("depth", self.made.depth), ("normals", self.made.normals)):
            one = output.one(0)
            if one.confidence is not None and one.tolerance is not None and self.mask.any():
                told[f"{name}_confidence"] = float(one.confidence[self.mask].mean())
                told[f"{name}_tolerance"] = float(one.tolerance)
        return told

    def document(self) -> dict[str, Any]:
        """The camera as `--K` reads it, and the report."""
        camera, gravity = self.seen.camera, self.seen.gravity
        return {
            "K": camera.K[0].double().tolist(),
            "width": camera.width,
            "height": camera.height,
            "gravity": None if gravity is None else gravity.tolist(),
            "source": self.seen.source,
            "c2w": camera.c2w[0].double().tolist(),
            "axes": "OpenCV camera axes, pixel centres at +0.5; world z up, metres",
            "report": self.report(),
        }

    def save_npz(self, path: str | Path, compression: Compression = "fast") -> Path:
        """Writes depth_m, normals, mask, K, c2w, and where the head brings error models and there is an ensemble the
        confidence of depth and normals: the probability of an error below the tolerance beside it (a share of the
        aligned depth, degrees)."""
        assert self.made.normals is not None
        depth, normals = self.made.depth.one(0), self.made.normals.one(0)
        arrays = {
            "depth_m": self.depth_m,
            "normals": self.normals,
            "mask": self.mask,
            "K": self.seen.camera.K[0].double().numpy(),
            "c2w": self.seen.camera.c2w[0].double().numpy(),
            "confidence": depth.confidence,
            "tolerance": _number(depth.tolerance),
            "normals_confidence": normals.confidence,
            "normals_tolerance": _number(normals.tolerance),
            "scale": np.array(self.metric.scale),
            "frame": np.array("opencv"),
        }
        return write_npz(Path(path), arrays, compression)


def _number(value: float | None) -> np.ndarray | None:
    return None if value is None else np.array(value)
