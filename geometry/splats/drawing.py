"""Splats as all renderers here give their pictures: colours over a background, coverage, depth, normals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..cameras import Camera
from ..outputs import ALPHA_VISIBLE, Rays, RenderOutput, over_background
from .cloud import GaussianCloud
from .raster import rasterization

BLUR = 0.3  # pixels^2, gsplat's eps2d
SHARP = 0.05  # pixels^2, where a picture is measured rather than looked at


def draw(
    cloud: GaussianCloud,
    cameras: Rays,
    channels: Sequence[str],
    background: float | Tensor = 1.0,
    *,
    antialiased: bool | None = None,
    degree: int | None = None,
    eps2d: float = BLUR,
    shown: Tensor | None = None,
) -> tuple[RenderOutput, dict[str, Any]]:
    """(maps, what the rasteriser tells of itself) for whole pictures of pinhole or orthographic cameras.

    antialiased: None is as the cloud was made to be drawn. degree: of the harmonics that count; None: all. shown: (N,)
    factors on the opacities. Normals, sums over shortest axes, are 0 unless they are among the channels.
    """
    if not isinstance(cameras, Camera):
        raise InputError("splats are drawn through cameras, not along single rays; set fit.steps to 0")
    near, far = cameras.planes()
    smooth = cloud.mode == "mip" if antialiased is None else antialiased
    image, alpha, meta = rasterization(
        cloud.means, cloud.quaternions, cloud.scales,
        cloud.opacities if shown is None else cloud.opacities * shown, cloud.sh,
        cameras.w2c.to(cloud.means), cameras.K.to(cloud.means), cameras.width, cameras.height,
        near_plane=float(near.min()), far_plane=float(far.max()), eps2d=eps2d,
        sh_degree=cloud.degree if degree is None else degree, render_mode="RGB+D",
        rasterize_mode="antialiased" if smooth else "classic", camera_model=cameras.model, normals="normal" in channels,
    )  # fmt: skip
    seen = (alpha > ALPHA_VISIBLE).to(alpha)
    rgb = over_background(image[..., :3], alpha, background)
    rgb = rgb - (rgb - rgb.clamp(0, 1)).detach()  # in range, and still pulled back into it
    depth = seen * image[..., 3:] / alpha.clamp_min(ALPHA_VISIBLE)
    normal = torch.zeros_like(rgb)
    if "normal" in channels:
        normal = seen * torch.nn.functional.normalize(meta["normals"], dim=-1)
    return RenderOutput(rgb, alpha, depth, normal), meta


class SplatView:
    """Splats as `turntable` looks at things."""

    def __init__(self, cloud: GaussianCloud, antialiased: bool | None = None) -> None:
        self.cloud, self.antialiased = cloud.detached(), antialiased

    def ball(self) -> tuple[Tensor, float]:
        """See Viewed; strays do not count."""
        return ball_of(self.cloud)

    @torch.no_grad()
    def look(self, camera: Camera, background: float | Tensor = 1.0) -> RenderOutput:
        """See Viewed."""
        channels = ("rgb", "alpha", "depth", "normal")
        return draw(self.cloud, camera, channels, background, antialiased=self.antialiased)[0]


def ball_of(cloud: GaussianCloud, share: float = 0.98) -> tuple[Tensor, float]:
    """Centre (3,) and radius of a ball around a share of all opacity."""
    means, weight = cloud.means.detach().double().cpu(), cloud.opacities.detach().double().cpu()
    centre = torch.stack([_quantile(means[:, axis], weight, 0.5) for axis in range(3)])
    for _ in range(2):
        apart = (means - centre).norm(dim=-1)
        inside = apart <= _quantile(apart, weight, share)
        centre = 0.5 * (means[inside].amin(0) + means[inside].amax(0))
    radius = _quantile((means - centre).norm(dim=-1), weight, share)
    size = _quantile(cloud.scales.detach().double().cpu().amax(dim=-1), weight, 0.5)
    return centre.float(), float(radius + 2 * size)


def _quantile(values: Tensor, weights: Tensor, share: float) -> Tensor:
    order = values.argsort()
    total = weights[order].cumsum(0)
    return values[order[int(torch.searchsorted(total, share * total[-1]).clamp_max(len(values) - 1))]]
