"""What an optimisation looks at: random orbit cameras and the colours behind the object."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.cameras import Camera
from ..utils.errors import InputError

VIEW_TEXT = {"front": "front view", "side": "side view", "back": "back view", "top": "top view"}


@dataclass(frozen=True)
class ViewConfig:
    """Groups of `views` cameras 360 / views degrees apart that share elevation, distance and field of view."""

    views: int = 4
    groups: int = 1  # a step
    fov_y_deg: tuple[float, float] = (25.0, 42.0)
    elevation_deg: tuple[float, float] = (-8.0, 45.0)
    high_elevation_deg: tuple[float, float] = (45.0, 80.0)
    high_share: float = 0.08  # of the groups look from above
    margin: tuple[float, float] = (0.92, 1.08)  # distance = margin / sin(fov / 2): the unit ball fills the view
    grey_share: float = 0.65  # of the backgrounds are grey to white, the others coloured
    grey: tuple[float, float] = (0.25, 1.0)  # sRGB
    tint: float = 0.2  # sRGB, of coloured backgrounds around their grey

    def __post_init__(self) -> None:
        if self.views < 1 or self.groups < 1:
            raise InputError(f"views={self.views} and groups={self.groups} must be at least 1")
        for name in ("fov_y_deg", "elevation_deg", "high_elevation_deg", "margin", "grey"):
            low, high = getattr(self, name)
            if low > high:
                raise InputError(f"cameras: {name}=({low}, {high}) must be (smallest, largest)")


def draw_cameras(config: ViewConfig, size: int, generator: torch.Generator) -> Camera:
    """groups * views cameras, the views of a group contiguous."""
    azimuth, elevation, distance, fov = [], [], [], []
    for _ in range(config.groups):
        draw = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        span = config.high_elevation_deg if draw[0] < config.high_share else config.elevation_deg
        angle = _between(config.fov_y_deg, draw[2])
        azimuth += [360 * (draw[4] + view / config.views) for view in range(config.views)]
        elevation += [_between(span, draw[1])] * config.views
        distance += [_between(config.margin, draw[3]) / math.sin(math.radians(0.5 * angle))] * config.views
        fov += [angle] * config.views
    return Camera.orbit(azimuth, elevation, distance, fov, size)


def views_around(config: ViewConfig, size: int = 128, turns: int = 8) -> Camera:
    """Views that stand for all that may be drawn: `turns` of them at the bounds and in the middle of each elevation."""
    low, high = config.elevation_deg
    heights = [low, 0.5 * (low + high), high]
    if config.high_share > 0:
        heights.append(0.5 * sum(config.high_elevation_deg))
    angle = 0.5 * sum(config.fov_y_deg)
    azimuth = [360 * (turn + 0.5 * (row % 2)) / turns for row in range(len(heights)) for turn in range(turns)]
    elevation = [height for height in heights for _ in range(turns)]
    return Camera.orbit(azimuth, elevation, 1 / math.sin(math.radians(0.5 * angle)), angle, size)


def draw_backgrounds(config: ViewConfig, generator: torch.Generator) -> Tensor:
    """sRGB (groups * views, 3), one colour for each group."""
    draw = torch.rand(config.groups, 5, generator=generator)
    grey = config.grey[0] + (config.grey[1] - config.grey[0]) * draw[:, 1:2]
    tint = config.tint * (2 * draw[:, 2:] - 1) * (draw[:, :1] >= config.grey_share)
    return (grey + tint).clamp(0, 1).repeat_interleave(config.views, dim=0)


def view_classes(camera: Camera) -> list[str]:
    """front, side, back or top of each camera: top above 60 degrees, front and back within 45 degrees of their axis."""
    x, y, z = camera.centres.cpu().double().unbind(-1)
    azimuth = torch.rad2deg(torch.atan2(y, x)).abs().tolist()
    elevation = torch.rad2deg(torch.atan2(z, torch.hypot(x, y))).tolist()
    return [
        "top" if high > 60 else "front" if turned <= 45 else "back" if turned >= 135 else "side"
        for turned, high in zip(azimuth, elevation, strict=True)
    ]


def perp_neg_views(
    camera: Camera, names: list[str]
) -> tuple[tuple[list[int], list[int], Tensor], list[list[int]], Tensor]:
    """How view words are mixed, and which push away, by azimuth (Armandpour et al. 2023, with the published numbers).

    Returns ((first, second, share (B,)), negatives, weights (N, B)) as rows among `names`, views as in VIEW_TEXT: the
    text is share * first + (1 - share) * second. Between front and side "front" and "side" push away, each the more the
    further the camera is from it; between side and back "side" and "front" do. From above nothing is mixed.
    """
    first, second, shares, against, weights = [], [], [], [], []
    x, y, _ = camera.centres.cpu().double().unbind(-1)
    azimuths = torch.rad2deg(torch.atan2(y, x)).abs().tolist()
    for azimuth, view in zip(azimuths, view_classes(camera), strict=True):
        near = 1 - azimuth / 90 if azimuth < 90 else 2 - azimuth / 90  # share of the view that is further to the front
        ahead, behind = ("front", "side") if azimuth < 90 else ("side", "back")
        if view == "top":
            ahead = behind = "top"
            pushed, push = ("front", "side"), (0.0, 0.0)
        elif azimuth < 90:
            pushed, push = ("front", "side"), (_falling(4, 0.5, -2.426, near), _falling(4, 0.5, -2.426, 1 - near))
        else:
            pushed, push = ("side", "front"), (_falling(1, 0.5, -0.606, near), _falling(1, 0.5, 0.967, near))
        first.append(names.index(ahead))
        second.append(names.index(behind))
        shares.append(near)
        against.append([names.index(name) for name in pushed])
        weights.append([-weight for weight in push])
    mixes = (first, second, torch.tensor(shares))
    return mixes, [list(rows) for rows in zip(*against, strict=True)], torch.tensor(weights).mT


def _falling(height: float, rate: float, rest: float, share: float) -> float:
    """height e^(-rate share) + rest."""
    return height * math.exp(-rate * share) + rest


def turntable_cameras(frames: int, size: int, elevation_deg: float = 15.0, fov_y_deg: float = 30.0) -> Camera:
    """Evenly spaced views of the unit ball, the first from the front."""
    azimuth = [360 * frame / frames for frame in range(frames)]
    return Camera.orbit(azimuth, elevation_deg, 1 / math.sin(math.radians(0.5 * fov_y_deg)), fov_y_deg, size)


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share
