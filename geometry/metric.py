"""Metres out of depth up to an affine map, or up to scale: its shape by normals, its scale by something known.

Such depth is fixed by the metres of its nearest and farthest values. Their ratio shapes the surface: seen through the
right camera, only one makes the normals of the surface agree with normals that were predicted apart. What is then left
is one factor for everything: a distance that somebody measured, or how high the camera stood above the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import InputError
from .cameras import Camera
from .lifting import lift

Unit = Callable[[float, float], Tensor]  # (near, far) to z-depth (H, W), nan where there is none
GRID = 128  # px, longer side at which normals are compared
RATIOS = (0.02, 0.95)  # of near to far
TRIES, ROUNDS = 15, 3  # ratios compared at once, and how often the best one's neighbourhood again
WORST_DEG = 60.0  # an angle counts no more than this: pixels at edges
FLOOR_DEG = 20.0  # between the normal of a floor and up
LEAST_FLOOR = 0.01  # of the picture
USUAL_HEIGHT_M = 1.5  # of a camera in somebody's hands
USUAL_NEAR_M, USUAL_FAR_M = 1.0, 4.0


class Measured(NamedTuple):
    """A distance from the camera to what is seen at a pixel, along the line of sight."""

    u: float  # px
    v: float
    metres: float


@dataclass(frozen=True)
class Anchors:
    """What is known of the scale."""

    distance: Measured | None = None
    height_m: float | None = None  # of the camera above the floor

    def __post_init__(self) -> None:
        if self.distance is not None and self.height_m is not None:
            raise InputError("a known distance and a camera height are two scales; give one of them")
        for name, value in (("height_m", self.height_m), ("distance", self.distance and self.distance.metres)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}={value} must be above 0 m")


@dataclass(frozen=True)
class Metric:
    """The metres of the nearest and farthest values, and where they come from."""

    near_m: float
    far_m: float
    scale: str
    """where the factor comes from"""
    shape: str
    """where the ratio comes from"""
    angle_deg: float | None = None
    """between predicted normals and those of the depth, the mean of angles that count at most 60 degrees, by slant"""

    @property
    def measured(self) -> bool:
        """Whether the scale is more than a choice."""
        return "measured" in self.scale


NO_ANCHORS = Anchors()


def solve_metric(
    unit: Unit,
    normals: Tensor | None,
    camera: Camera,
    anchors: Anchors = NO_ANCHORS,
    gravity: np.ndarray | None = None,
    ratio: float | None = None,
) -> Metric:
    """Metres for depth that `unit` gives for the metres of its ends.

    Args:
        unit: as `DepthOutput.one_metres` of an image.
        normals: (3, H, W) predicted, OpenCV camera axes, unit; None: the ratio is a choice.
        camera: of the picture, one.
        anchors: what is known of the scale; nothing: a camera in somebody's hands where a floor is seen, else a choice.
        gravity: (3,) direction of falling in camera axes; None: the camera is level.
        ratio: of near to far, instead of solving for it.

    Raises InputError where the known distance is at a pixel that shows nothing, or where no floor is seen.
    """
    shape, angle = "normals", None
    if ratio is not None:
        shape = "the depth's own"
    elif normals is None:
        ratio, shape = USUAL_NEAR_M / USUAL_FAR_M, "a choice: the head predicts no normals"
    else:
        ratio, angle = _solved_ratio(unit, normals, camera)
    depth = unit(ratio, 1.0)
    if anchors.distance is not None:
        far = anchors.distance.metres / _distance_at(depth, camera, anchors.distance)
        scale = f"measured: {anchors.distance.metres:g} m to ({anchors.distance.u:g}, {anchors.distance.v:g})"
        return Metric(ratio * far, far, scale, shape, angle)
    height = _height_above_floor(depth, normals, camera, gravity)
    if anchors.height_m is not None:
        if height is None:
            raise InputError(
                f"a camera height of {anchors.height_m:g} m needs a floor in the picture, and none is seen"
            )
        scale = f"measured: the camera is {anchors.height_m:g} m above the floor"
        return Metric(ratio * anchors.height_m / height, anchors.height_m / height, scale, shape, angle)
    if height is not None:
        scale = f"assumed: a camera {USUAL_HEIGHT_M:g} m above the floor"
        return Metric(ratio * USUAL_HEIGHT_M / height, USUAL_HEIGHT_M / height, scale, shape, angle)
    return Metric(ratio * USUAL_FAR_M, USUAL_FAR_M, f"a choice: {USUAL_FAR_M:g} m at the farthest", shape, angle)


def camera_normals(depth: Tensor, camera: Camera) -> Tensor:
    """(H, W, 3) unit normals towards the camera of z-depth (H, W), OpenCV camera axes; 0 where there is no depth."""
    flat = replace(camera, c2w=torch.eye(4, dtype=camera.c2w.dtype, device=camera.c2w.device)[None])
    found = lift(depth[None], None, flat, normals=True).normals
    assert found is not None
    normals = torch.zeros(*depth.shape, 3, dtype=found.dtype, device=depth.device)
    normals[torch.isfinite(depth) & (depth > 0)] = found
    return normals


def thinned(camera: Camera, *maps: Tensor) -> tuple[Camera, list[Tensor]]:
    """Maps (..., H, W) at the pixels of a grid of at most GRID px, and the camera of that grid."""
    scale = min(1.0, GRID / max(camera.width, camera.height))
    size = (max(2, round(camera.height * scale)), max(2, round(camera.width * scale)))
    small = [
        F.interpolate(one.reshape(1, -1, *one.shape[-2:]).float(), size, mode="nearest-exact").reshape(
            *one.shape[:-2], *size
        )
        for one in maps
    ]
    return camera.resized(size[1], size[0]), small


def _solved_ratio(unit: Unit, normals: Tensor, camera: Camera) -> tuple[float, float]:
    """(ratio of near to far whose surface agrees best with the normals, the mean angle there).

    Pixels count by the squared sine of the angle between normal and line of sight. What is seen face on has its normal
    at every ratio, and at one near 1 everything is seen face on: by such pixels, a sky above all, that ratio would win.
    """
    small, (wanted,) = thinned(camera, normals)
    slanted = _slants(wanted, small)

    def angle(ratio: float) -> float:
        _, (depth,) = thinned(camera, unit(ratio, 1.0))
        found = angles_between(camera_normals(depth, small), wanted).clamp(max=WORST_DEG)
        known = torch.isfinite(found)
        return float((found * slanted)[known].sum() / slanted[known].sum().clamp(min=1e-6))

    low, high = (math.log(value) for value in RATIOS)
    best, least = 0.0, math.inf
    for _ in range(ROUNDS):
        tried = np.linspace(low, high, TRIES)
        found = [angle(math.exp(value)) for value in tried]
        at = int(np.argmin(found))
        best, least = float(tried[at]), found[at]
        step = (high - low) / (TRIES - 1)
        low, high = max(best - step, math.log(RATIOS[0])), min(best + step, math.log(RATIOS[1]))
    return math.exp(best), least


def _slants(normals: Tensor, camera: Camera) -> Tensor:
    """(H, W) squared sine of the angle between unit normals (3, H, W) and the lines of sight."""
    sight = camera.pixel_directions()[0].to(normals)
    cosine = (normals.permute(1, 2, 0) * sight / sight.norm(dim=-1, keepdim=True)).sum(-1)
    return 1 - cosine.square().clamp(max=1)


def angles_between(normals: Tensor, predicted: Tensor) -> Tensor:
    """(H, W) degrees between normals (H, W, 3) and (3, H, W); nan where either is zero."""
    other = predicted.permute(1, 2, 0)
    known = (normals.norm(dim=-1) > 0.5) & (other.norm(dim=-1) > 0.5)
    cosine = (normals * other).sum(-1).clamp(-1, 1)
    return torch.where(known, torch.rad2deg(cosine.arccos()), torch.full_like(cosine, torch.nan))


def check_inside(measured: Measured, width: int, height: int) -> None:
    """Raises InputError for a known distance outside a picture."""
    if not (0 <= int(measured.u) < width and 0 <= int(measured.v) < height):
        raise InputError(
            f"the known distance is at ({measured.u:g}, {measured.v:g}), outside the picture of {width} x {height} px"
        )


def _distance_at(depth: Tensor, camera: Camera, measured: Measured) -> float:
    """Distance along the line of sight at a pixel: the median of its neighbours' depth, over the slant of the ray."""
    check_inside(measured, camera.width, camera.height)
    column, row = int(measured.u), int(measured.v)
    around = depth[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    around = around[torch.isfinite(around) & (around > 0)]
    if not len(around):
        raise InputError(f"the picture shows nothing at ({measured.u:g}, {measured.v:g}); measure another point")
    K = camera.K[0].double()
    x, y = (measured.u - K[0, 2]) / K[0, 0], (measured.v - K[1, 2]) / K[1, 1]
    return float(around.median()) * float(torch.sqrt(1 + x**2 + y**2))


def _height_above_floor(
    depth: Tensor, normals: Tensor | None, camera: Camera, gravity: np.ndarray | None
) -> float | None:
    """Of the camera above the lowest level of pixels whose normals point up, in units of the depth; None without."""
    down = torch.tensor([0.0, 1.0, 0.0] if gravity is None else np.asarray(gravity, np.float64).tolist()).double()
    small, (part,) = thinned(camera, depth)
    facing = camera_normals(part, small).double()
    if normals is not None:  # those that were predicted know more of a far floor
        facing = thinned(camera, normals)[1][0].permute(1, 2, 0).double()
    points = small.pixel_directions()[0].double() * part.double()[..., None]
    below = points @ down
    level = -(facing @ down) > math.cos(math.radians(FLOOR_DEG))
    found = below[level & (below > 0) & torch.isfinite(below)]
    if len(found) < LEAST_FLOOR * part.numel():
        return None
    lowest = torch.quantile(found, 0.9)
    return float(found[(found - lowest).abs() < 0.15 * lowest].median())
