"""Pictures of lenses with distortion as a pinhole would have taken them.

OpenCV's models on x = X / Z, y = Y / Z with r^2 = x^2 + y^2:
    radial and tangential: x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6)
        + 2 p1 x y + p2 (r^2 + 2 x^2), y' likewise with p1 and p2 exchanged;
    fisheye: theta = atan r, theta' = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), x' = theta' x / r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.bands import bands
from ..utils.errors import InputError

RADIAL = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # in OpenCV's order
FISHEYE = ("k1", "k2", "k3", "k4")


@dataclass(frozen=True)
class DistortedLens:
    """A pinhole's matrix, or an equidistant fisheye's, and how the lens departs from it."""

    K: np.ndarray  # (3, 3) px, pixel centres at +0.5
    coefficients: Mapping[str, float] = field(default_factory=dict)  # of RADIAL, or of FISHEYE
    fisheye: bool = False

    def __post_init__(self) -> None:
        known = FISHEYE if self.fisheye else RADIAL
        odd = [name for name in self.coefficients if name not in known]
        if odd or not all(math.isfinite(value) for value in self.coefficients.values()):
            raise InputError(f"distortion {dict(self.coefficients)}: known are finite {', '.join(known)}")

    @property
    def bent(self) -> bool:
        """Whether there is anything to undo."""
        return self.fisheye or any(abs(value) > 1e-12 for value in self.coefficients.values())

    def distort(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where the lens images the directions (x, y, 1), in units of the focal length."""
        k = {name: float(self.coefficients.get(name, 0.0)) for name in RADIAL}
        r2 = x * x + y * y
        if self.fisheye:
            r = r2.sqrt().clamp_min(1e-12)
            t = torch.atan(r)
            t2 = t * t
            bent = t * (1 + t2 * (k["k1"] + t2 * (k["k2"] + t2 * (k["k3"] + t2 * k["k4"]))))
            return x * bent / r, y * bent / r
        radial = (1 + r2 * (k["k1"] + r2 * (k["k2"] + r2 * k["k3"]))) / (
            1 + r2 * (k["k4"] + r2 * (k["k5"] + r2 * k["k6"]))
        )
        u = x * radial + 2 * k["p1"] * x * y + k["p2"] * (r2 + 2 * x * x)
        v = y * radial + k["p1"] * (r2 + 2 * y * y) + 2 * k["p2"] * x * y
        return u, v

    def folds(self, x: Tensor, y: Tensor) -> Tensor:
        """Where the model is no lens any more: farther out images lie farther in, as polynomials do beyond what they
        were fitted to."""
        step = 1 + 1e-3
        u, v = self.distort(x, y)
        outer_u, outer_v = self.distort(x * step, y * step)
        return torch.hypot(outer_u, outer_v) <= torch.hypot(u, v)


def opencv_coefficients(values: Sequence[Any], fisheye: bool) -> dict[str, float]:
    """The list that OpenCV writes (4, 5 or 8 numbers, of a fisheye 4; the rest of 12 and 14 has to be zero) by name.

    Raises InputError for others.
    """
    names = FISHEYE if fisheye else RADIAL
    flat = [float(value) for value in np.asarray(values, dtype=np.float64).reshape(-1)]
    if any(flat[len(names) :]):
        raise InputError(f"distortion coefficients {flat}: those after {names[-1]} (thin prism, tilt) are not undone")
    return {name: value for name, value in zip(names, flat) if value}


def undistorted(
    picture: np.ndarray, lens: DistortedLens, valid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(picture (H, W, 3) float32 of a pinhole with the same matrix and size, (H, W) bool of where it shows something).

    Bilinear, by rows; what lies outside the lens's picture, or was not valid there, is black and not valid.
    """
    height, width, channels = picture.shape
    source = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32)).permute(2, 0, 1)[None]
    known = torch.ones(1, 1, height, width) if valid is None else torch.from_numpy(valid)[None, None].float()
    result = np.zeros((height, width, channels), np.float32)
    inside = np.zeros((height, width), bool)
    fx, skew, cx, fy, cy = (float(lens.K[i, j]) for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
    u = torch.arange(width, dtype=torch.float64) + 0.5
    for rows in bands(height, width):
        v = torch.arange(rows.start, rows.stop, dtype=torch.float64)[:, None] + 0.5
        y = ((v - cy) / fy).expand(-1, width)
        x = (u - cx - skew * y) / fx
        there = lens.distort(x, y)
        column, row = fx * there[0] + skew * there[1] + cx, fy * there[1] + cy
        grid = torch.stack([2 * column / width - 1, 2 * row / height - 1], dim=-1).float()[None]
        colors = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        seen = F.grid_sample(known, grid, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0] > 0.5
        seen &= (column >= 0) & (column <= width) & (row >= 0) & (row <= height) & ~lens.folds(x, y)
        inside[rows] = seen.numpy()
        result[rows] = (colors.permute(1, 2, 0) * seen[..., None]).numpy()
    if not inside.any():
        raise InputError("nothing of the picture is left after undistorting; the distortion seems to be another lens's")
    return result, inside
