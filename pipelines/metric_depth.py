"""Depth and normals of a head to metres that go with a camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import Camera
from ..geometry.metric import NO_ANCHORS, Anchors, Metric, solve_metric
from ..tasks.codecs import convert_normals
from ..tasks.codecs.metres import MetresFiles
from ..tasks.map_files import OneMap
from ..tasks.outputs import GeometryOutput
from ..utils.errors import InputError

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


def opencv_normals(made: GeometryOutput, index: int = 0) -> Tensor | None:
    """(3, H, W) of an image in OpenCV camera axes, zero where nothing is seen; None without normals."""
    normals: Any = made.normals
    if normals is None:
        return None
    found = torch.from_numpy(normals.normals[index]).permute(2, 0, 1)[None]
    seen = torch.from_numpy(normals.seen()[index])
    return convert_normals(found, normals.frame, "opencv")[0] * seen


def metres_map(made: GeometryOutput, metric: Metric, index: int = 0) -> OneMap:
    """The depth of an image in metres, for files."""
    one = made.depth.one(index)
    metres = made.depth.one_metres(metric.near_m, metric.far_m, index)
    known = metres[np.isfinite(metres)]
    low, high = (float(value) for value in np.quantile(known, (0.0, 1.0)))
    spread = None if one.spread is None else one.spread * (metric.far_m - metric.near_m)
    return OneMap(MetresFiles(metric, low, max(high, low + 1e-6)), np.nan_to_num(metres)[..., None], spread, one.seen)
