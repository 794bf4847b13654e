"""How well a camera, a depth map and normals of one picture agree, in numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .cameras import Camera
from .metric import angles_between, camera_normals, thinned

BLOCKS = 12  # along the longer side, in which planes are looked for
FLAT_DEG = 5.0  # mean angle of a block's predicted normals to their common direction below which it is a plane


def residuals(depth_m: Tensor, normals: Tensor, camera: Camera) -> dict[str, float | int | None]:
    """Of z-depth (H, W) in metres and predicted normals (3, H, W), OpenCV camera axes, under one camera.

    `normals_median_deg`, `normals_mean_deg`, `normals_below_11.25`: angles between the normals of the depth and those
    predicted. Of blocks that are planes by the predicted normals, which are `planes` many: `plane_rms`, the median of
    the root mean square distance of their points to the best plane, as a share of their distance, and
    `plane_angle_deg`, the median angle between that plane's normal and the predicted one. None where there is nothing.
    """
    small, (depth, predicted) = thinned(camera, depth_m, normals)
    apart = angles_between(camera_normals(depth, small), predicted)
    angles = apart[torch.isfinite(apart)].double().cpu().numpy()
    straight, turned = _planes(depth, predicted, small)

    def told(values: np.ndarray, statistic: str) -> float | None:
        return float(getattr(np, statistic)(values)) if len(values) else None

    return {
        "normals_median_deg": told(angles, "median"),
        "normals_mean_deg": told(angles, "mean"),
        "normals_below_11.25": told(angles < 11.25, "mean"),
        "planes": len(straight),
        "plane_rms": told(straight, "median"),
        "plane_angle_deg": told(turned, "median"),
    }


def _planes(depth: Tensor, predicted: Tensor, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(relative distances to the best plane, degrees between its normal and the predicted one) of planar blocks."""
    points = (camera.pixel_directions()[0] * depth[..., None]).double().cpu().numpy()
    facing = predicted.permute(1, 2, 0).double().cpu().numpy()
    known = np.isfinite(points).all(-1) & (np.linalg.norm(facing, axis=-1) > 0.5)
    side = max(3, -(-max(camera.width, camera.height) // BLOCKS))
    straight, turned = [], []
    for top in range(0, camera.height - side + 1, side):
        for left in range(0, camera.width - side + 1, side):
            window = (slice(top, top + side), slice(left, left + side))
            if not known[window].all():
                continue
            common = facing[window].reshape(-1, 3).mean(0)
            common /= max(float(np.linalg.norm(common)), 1e-9)
            if np.rad2deg(np.arccos((facing[window] @ common).clip(-1, 1))).mean() > FLAT_DEG:
                continue
            cloud = points[window].reshape(-1, 3)
            _, spread, axes = np.linalg.svd(cloud - cloud.mean(0), full_matrices=False)
            straight.append(spread[2] / np.sqrt(len(cloud)) / np.linalg.norm(cloud.mean(0)))
            turned.append(np.rad2deg(np.arccos(min(abs(float(axes[2] @ common)), 1.0))))
    return np.array(straight), np.array(turned)
