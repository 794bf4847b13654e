"""Other ways to draw splats without CUDA, by their algorithms, with the signature of `rasterization`; one camera.

`over_boxes` is the loop of OpenSplat's CPU code: projection in torch, then one Gaussian after the other in order of
depth over the pixels of its box, compiled, and backwards from the last to the first. `in_slabs` is that of ComfyUI's
Render Splat: torch alone, which adds up windows of pixels around all Gaussians of a slab of depth at once, as if they
had no order, and lays slab over slab. Both are made of this project's projection, so that nothing else differs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ..geometry.splats.plan import Plan
from ..geometry.splats.reference import ALPHA_MAX, ALPHA_MIN, LIGHT_MIN, harmonic_colors, project

SLAB = 1000  # Gaussians in a slab
SMALLEST = 4  # px around a centre; other windows are two, four ... times as large
Drawn = tuple[Tensor, Tensor, dict[str, Any]]


class Seen(NamedTuple):
    """The Gaussians that a camera sees, nearest first."""

    means2d: Tensor  # (N, 2) px
    conics: Tensor  # (N, 3)
    opacities: Tensor  # (N,)
    values: Tensor  # (N, 4): colours and 1, whose sum is alpha
    radii: Tensor  # (N, 2) whole px


def seen(arrays: dict[str, Tensor], width: int, height: int, sh_degree: int) -> Seen:
    """Projected by the slow twin; arrays: means, quats, scales, opacities, colors, viewmats, Ks of `rasterization`."""
    plan = Plan(width, height, sh_degree=sh_degree)
    where = {name: arrays[name] for name in ("means", "quats", "scales", "opacities", "viewmats", "Ks")}
    flat = project(plan, **where)
    centres = torch.linalg.inv(arrays["viewmats"])[:, :3, 3]
    colors = harmonic_colors(arrays["colors"], arrays["means"], centres)[0]
    order = torch.argsort(flat.depths[0].detach(), stable=True)
    order = order[flat.drawn[0][order]]
    values = torch.cat([colors, torch.ones_like(colors[:, :1])], dim=1)[order]
    return Seen(flat.means2d[0, order], flat.conics[0, order], flat.opacities[0, order], values, flat.radii[0, order])


def over_boxes(*, width: int, height: int, sh_degree: int, **arrays: Tensor) -> Drawn:
    """One compiled loop over Gaussians, each over the pixels of its box."""
    found = seen(arrays, width, height, sh_degree)
    low = (found.means2d.detach() - found.radii - 1).floor()
    high = (found.means2d.detach() + found.radii + 2).ceil()
    size = low.new_tensor([width, height])
    boxes = torch.cat([low.clamp_min(0), torch.minimum(high, size)], dim=1).long()
    image = _OverBoxes.apply(*found[:4], boxes, width, height)
    return image[None, ..., :3], image[None, ..., 3:], {}


class _OverBoxes(torch.autograd.Function):
    """(H, W, 4) of Gaussians in order of depth."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *parts, width, height = given
        means, conics, opacities, values, boxes = (part.detach().numpy() for part in parts)
        image, light = np.zeros((height, width, 4), np.float32), np.ones((height, width), np.float32)
        last = np.full((height, width), -1)
        _draw(means, conics, opacities, values, boxes, image, light, last)
        ctx.drawn = means, conics, opacities, values, boxes, light, last
        return torch.from_numpy(image)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        means, conics, opacities, values, boxes, light, last = ctx.drawn
        pulls = [np.zeros_like(part) for part in (means, conics, opacities, values)]
        slope, behind = slopes[0].contiguous().numpy(), np.zeros((*light.shape, 4), np.float32)
        arrays = means, conics, opacities, values, boxes, slope, light.copy(), last, behind
        _pull(*arrays, *pulls)
        return (*(torch.from_numpy(pull) for pull in pulls), None, None, None)


@njit(cache=True, nogil=True, error_model="numpy")
def _weight(dx: float, dy: float, A: float, B: float, C: float) -> float:
    """exp(-sigma); 0 where sigma is negative."""
    sigma = 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy
    return math.exp(-sigma) if sigma >= 0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _draw(
    means: Any, conics: Any, opacities: Any, values: Any, boxes: Any, image: Any, light: Any, last: Any
) -> None:  # fmt: skip
    """Adds to image (H, W, D); light (H, W) is what is left, negative where a pixel has ended; last: who came last."""
    for n in range(len(means)):
        x, y, A, B, C = means[n, 0] - 0.5, means[n, 1] - 0.5, conics[n, 0], conics[n, 1], conics[n, 2]
        for row in range(boxes[n, 1], boxes[n, 3]):
            for column in range(boxes[n, 0], boxes[n, 2]):
                before = light[row, column]
                if before < 0:
                    continue
                weight = _weight(x - column, y - row, A, B, C)
                alpha = min(ALPHA_MAX, opacities[n] * weight)
                if alpha < ALPHA_MIN:
                    continue
                if before * (1 - alpha) <= LIGHT_MIN:
                    light[row, column] = -before
                    continue
                for d in range(values.shape[1]):
                    image[row, column, d] += alpha * before * values[n, d]
                light[row, column] = before * (1 - alpha)
                last[row, column] = n


@njit(cache=True, nogil=True, error_model="numpy")
def _pull(
    means: Any, conics: Any, opacities: Any, values: Any, boxes: Any, slope: Any, light: Any, last: Any, behind: Any,
    pull_means: Any, pull_conics: Any, pull_opacities: Any, pull_values: Any,
) -> None:  # fmt: skip
    """The same loop backwards: light grows to 1 again, behind (H, W, D) gathers what lies behind a Gaussian."""
    for n in range(len(means) - 1, -1, -1):
        x, y, A, B, C = means[n, 0] - 0.5, means[n, 1] - 0.5, conics[n, 0], conics[n, 1], conics[n, 2]
        for row in range(boxes[n, 1], boxes[n, 3]):
            for column in range(boxes[n, 0], boxes[n, 2]):
                if n > last[row, column]:
                    continue
                dx, dy = x - column, y - row
                weight = _weight(dx, dy, A, B, C)
                alpha = min(ALPHA_MAX, opacities[n] * weight)
                if alpha < ALPHA_MIN:
                    continue
                before = abs(light[row, column]) / (1 - alpha)
                light[row, column] = before
                pull = 0.0
                for d in range(values.shape[1]):
                    pull += slope[row, column, d] * (values[n, d] * before - behind[row, column, d] / (1 - alpha))
                    pull_values[n, d] += slope[row, column, d] * alpha * before
                    behind[row, column, d] += values[n, d] * alpha * before
                if opacities[n] * weight > ALPHA_MAX:
                    continue
                pull_opacities[n] += weight * pull
                pull *= -alpha  # now that of sigma
                pull_conics[n, 0] += 0.5 * dx * dx * pull
                pull_conics[n, 1] += dx * dy * pull
                pull_conics[n, 2] += 0.5 * dy * dy * pull
                pull_means[n, 0] += (A * dx + B * dy) * pull
                pull_means[n, 1] += (B * dx + C * dy) * pull


def in_slabs(*, width: int, height: int, sh_degree: int, slab: int = SLAB, **arrays: Tensor) -> Drawn:
    """Slabs of depth of so many Gaussians, without an order inside of them; `slab` 1 is the order of all."""
    found = seen(arrays, width, height, sh_degree)
    reach = found.radii.amax(1) + 1
    level = torch.log2(reach / SMALLEST).ceil().clamp_min(0).long()
    light, picture = found.values.new_ones(height * width), found.values.new_zeros(height * width, 4)
    for rows in torch.arange(len(reach)).split(slab):
        depth, weight, sums = torch.zeros_like(light), torch.zeros_like(light), torch.zeros_like(picture)
        for one in level[rows].unique().tolist():
            chosen = rows[level[rows] == one]
            pixel, alpha = windows(Seen(*(part[chosen] for part in found)), SMALLEST * 2**one, width, height)
            depth = depth.index_add(0, pixel.flatten(), -torch.log1p(-alpha).flatten())
            weight = weight.index_add(0, pixel.flatten(), alpha.flatten())
            values = alpha[..., None] * found.values[chosen, None]
            sums = sums.index_add(0, pixel.flatten(), values.flatten(0, 1))
        opaque = 1 - torch.exp(-depth)
        picture = picture + (light * opaque / weight.clamp_min(1e-8))[:, None] * sums
        light = light * (1 - opaque)
    image = picture.view(1, height, width, 4)
    return image[..., :3], image[..., 3:], {}


def windows(found: Seen, reach: int, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Indices of pixels (N, M) around centres and the alpha of each there, 0 outside of the picture."""
    side = torch.arange(-reach, reach + 1)
    v, u = torch.meshgrid(side, side, indexing="ij")
    corner = found.means2d.detach().floor().long()
    x, y = corner[:, :1] + u.flatten(), corner[:, 1:] + v.flatten()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    dx, dy = found.means2d[:, :1] - x - 0.5, found.means2d[:, 1:] - y - 0.5
    A, B, C = found.conics[:, :, None].unbind(1)
    sigma = 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy
    alpha = (found.opacities[:, None] * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where(inside & (sigma >= 0) & (alpha >= ALPHA_MIN), alpha, torch.zeros_like(alpha))
    return y.clamp(0, height - 1) * width + x.clamp(0, width - 1), alpha
