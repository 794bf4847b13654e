"""A closed surface from what is seen of it: tangent planes of many renders fused into a signed distance on a lattice.

After Curless and Levoy (1996), but the distance is that to the plane that is seen: x lies n . (x - p) outside
the point p with normal n that its pixel shows. Space that no view reaches is solid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..cameras import Camera
from ..outputs import RenderOutput

Render = Callable[..., RenderOutput]  # (camera, channels, background=)
SEEN = 0.5  # alpha from which there is a surface
POWER = 8  # of the cosine: at a slant the nearest Gaussians hide those behind them, and the surface seems nearer
REACH = 3.0  # lattice spacings to both sides of a surface within which its plane counts


def surface_pixels(seen: RenderOutput, camera: Camera, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(pixel row, column, z-depth, whether in the picture) of points (N, 3) in one view."""
    pixel, z = camera.project(points)
    height, width = seen.depth.shape[1:3]
    column, row = pixel[0].floor().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z[0] > 0)
    return row.clamp(0, height - 1), column.clamp(0, width - 1), z[0], inside


@torch.no_grad()
def fused_distance(render: Render, cameras: Camera, points: Tensor, spacing: float) -> Tensor:
    """Signed distance (N,) in metres, positive outside and cut off at REACH spacings, of points (N, 3)."""
    reach = REACH * spacing
    total, weights = points.new_zeros(len(points)), points.new_zeros(len(points))
    free = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for view in range(len(cameras)):
        camera = cameras[view]
        seen = render(camera, ("alpha", "depth", "normal"))
        row, column, z, inside = surface_pixels(seen, camera, points)
        solid = seen.alpha[0, row, column, 0] > SEEN
        place, normal = camera.unproject(seen.depth)[0, row, column], seen.normal[0, row, column]
        outside = ((points - place) * normal).sum(-1)
        before = seen.depth[0, row, column, 0] - z  # how far in front of the surface along the ray
        free |= inside & (~solid | (before > reach))
        near = inside & solid & (before.abs() < 2 * reach) & (outside.abs() < reach)
        direction = torch.nn.functional.normalize(camera.rays()[1][0, row, column], dim=-1)
        weight = (normal * direction).sum(-1).clamp_max(0) ** POWER * near
        total += weight * outside
        weights += weight
    fused = total / weights.clamp_min(1e-9)
    return torch.where(weights > 1e-4, fused, torch.where(free, reach, -reach))


@torch.no_grad()
def seen_colors(render: Render, cameras: Camera, points: Tensor, normals: Tensor, tolerance: float) -> Tensor:
    """sRGB (N, 3) of surface points: the views in which they are seen, weighted by the fourth power of the cosine.

    tolerance: metres by which a render may lie in front of a point that it still shows. Points that no view shows get
    the mean colour.
    """
    total, weights = torch.zeros_like(points), points.new_zeros(len(points), 1)
    for view in range(len(cameras)):
        camera = cameras[view]
        seen = render(camera, ("rgb", "alpha", "depth"), background=0.0)
        row, column, z, inside = surface_pixels(seen, camera, points)
        alpha, depth = seen.alpha[0, row, column, 0], seen.depth[0, row, column, 0]
        direction = torch.nn.functional.normalize(camera.rays()[1][0, row, column], dim=-1)
        facing = -(normals * direction).sum(-1)
        shown = inside & (alpha > SEEN) & ((depth - z).abs() < tolerance) & (facing > 0)
        weight = (facing.clamp_min(0) ** 4 * shown)[:, None]
        total += weight * seen.rgb[0, row, column] / alpha[:, None].clamp_min(SEEN)
        weights += weight
    mean = total.sum(0) / weights.sum().clamp_min(1e-9)
    return torch.where(weights > 1e-6, total / weights.clamp_min(1e-6), mean).clamp(0, 1)
