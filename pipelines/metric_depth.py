"""Depth and normals of a head to metres that go with a camera."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import Camera
from ..geometry.metric import NO_ANCHORS, Anchors, Metric, solve_metric
from ..tasks.codecs import convert_normals
from ..tasks.codecs.metres import MetresFiles
from ..tasks.map_files import OneMap
from ..tasks.metric_head import MetricHead
from ..tasks.outputs import GeometryOutput
from ..tasks.published import load_metric
from ..utils.errors import InputError
from .picture_inputs import PictureLike, fitted, pictures

PURE_SCALE = 1e-6  # near over far, where 0 stands for 0 m


def metric_of(
    made: GeometryOutput,
    camera: Camera,
    anchors: Anchors = NO_ANCHORS,
    gravity: np.ndarray | None = None,
    index: int = 0,
) -> Metric:
    """The metres of image `index` of what a head predicted. Raises InputError without depth, and as `solve_metric`."""
    depth = made.depth
    if depth is None:
        raise InputError(f"metres need depth, and this head predicts {', '.join(made.maps)}")

    def unit(near: float, far: float) -> Tensor:
        return torch.from_numpy(depth.one_metres(near, far, index))

    fixed = PURE_SCALE if depth.invariance == "scale" and depth.space == "linear" else None
    return solve_metric(unit, opencv_normals(made, index), camera, anchors, gravity, fixed)


class ImageToMetres:
    """z-depth of a picture by a head of metres, through a camera.

    >>> metres, metric = ImageToMetres.from_pretrained("runs/metric-depth/export")(picture, camera)
    """

    def __init__(self, head: MetricHead) -> None:
        self.head = head

    @classmethod
    def from_pretrained(
        cls, name: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **options: Any
    ) -> ImageToMetres:
        """A folder of a trained head, or DM-Calib's, as published."""
        return cls(load_metric(name, device, dtype, **options))

    def __call__(
        self, image: PictureLike, camera: Camera, anchors: Anchors = NO_ANCHORS, gravity: np.ndarray | None = None
    ) -> tuple[np.ndarray, Metric]:
        """(float32 (H, W) in metres, where they come from); what is known of the scale corrects the head's own."""
        images = pictures(image).to(self.head.unet.device)
        padded, (height, width) = fitted(images, self.head.settings.processing_resolution, self.head.prior.vae_factor)
        found = self.head.metres(padded, camera.resized(width, height).K.to(padded))[..., :height, :width]
        size = (images.shape[2], images.shape[3])
        metres = torch.nn.functional.interpolate(found, size, mode="bilinear")[0, 0].cpu().clamp(min=1e-3)
        low, high = float(metres.min()), float(metres.max())
        own = Metric(low, high, "the head's own", "the head's own")
        if anchors == NO_ANCHORS:
            return metres.numpy(), own
        told = solve_metric(lambda near, far: metres * (far / high), None, camera, anchors, gravity, low / high)
        return (metres * (told.far_m / high)).numpy(), replace(told, shape=own.shape)


def opencv_normals(made: GeometryOutput, index: int = 0) -> Tensor | None:
    """(3, H, W) of an image in OpenCV camera axes, zero where nothing is seen; None without normals."""
    normals: Any = made.normals
    if normals is None:
        return None
    found = torch.from_numpy(normals.normals[index]).permute(2, 0, 1)[None]
    seen = torch.from_numpy(normals.seen()[index])
    return convert_normals(found, normals.frame, "opencv")[0] * seen


def metres_map(made: GeometryOutput, metric: Metric, index: int = 0) -> OneMap:
    """The depth of an image in metres, for files. Its confidence is that of the depth once it is aligned: it says
    nothing of the scale."""
    one = made.depth.one(index)
    metres = made.depth.one_metres(metric.near_m, metric.far_m, index)
    known = metres[np.isfinite(metres)]
    low, high = (float(value) for value in np.quantile(known, (0.0, 1.0)))
    spread = None if one.spread is None else one.spread * (metric.far_m - metric.near_m)
    files, values = MetresFiles(metric, low, max(high, low + 1e-6)), np.nan_to_num(metres)[..., None]
    return OneMap(files, values, spread, one.seen, one.confidence, one.tolerance)
