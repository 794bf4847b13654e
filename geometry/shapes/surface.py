"""The surface of a field: a lattice of its values, hidden space filled, and the colour that is seen on it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, gaussian_filter
from torch import Tensor

from ...utils.errors import InputError
from ..cameras import Camera
from ..extract import extract_surface, grid_points
from ..fields import Field
from ..meshes import Mesh
from ..representation import MeshConfig, Representation

Mask = NDArray[np.bool_]


def isosurface(shape: Representation, field: Field, config: MeshConfig) -> Mesh:
    """Closed, outward surface of the field that `shape` renders, with smooth normals.

    Raises EmptySurfaceError without a surface, InputError for values that are not finite.
    """
    solid = -field.head.outward * (lattice_values(field, config.resolution, shape.bounds) - field.head.level)
    if not bool(torch.isfinite(solid).all()):  # positive inside
        raise InputError("the field holds values that are not finite; lower lr and run again")
    grid = solid.numpy()
    if config.smooth:
        grid = gaussian_filter(grid, config.smooth)
    empty = grid <= 0
    hidden = unseen(shape, empty, field.half_side, field.spacing, config.visibility_views)
    hidden |= binary_fill_holes(~empty) & empty
    grid[hidden] = 0.5 * max(float(grid.max()), 1e-3)
    return extract_surface(grid, 0.0, field.half_side, sign=1, keep="all")


@torch.no_grad()
def lattice_values(field: Field, resolution: int, radius: float, chunk: int = 262_144) -> Tensor:
    """Geometry value on a lattice (N, N, N), x first, corners on the cube; outside the ball `radius` it is outside."""
    device = next(field.parameters()).device
    points = grid_points(resolution, field.half_side).view(-1, 3).float()
    snapshot = field.snapshot()
    values = torch.cat([snapshot.value_color(part.to(device))[0].cpu() for part in points.split(chunk)])
    beyond = points.norm(dim=-1) - radius  # metres outside the rendered ball
    if field.head.outward > 0:
        values = torch.maximum(values, beyond)
    else:  # logits far from the surface are arbitrarily large; only their sign carries shape
        values = torch.minimum(values.clamp(-4, 4), -beyond / field.spacing)
    return values.view(resolution, resolution, resolution)


@torch.no_grad()
def unseen(shape: Representation, empty: Mask, half: float, spacing: float, views: int, size: int = 96) -> Mask:
    """The empty lattice points (N, N, N) that lie behind the surface in each of `views` directions: they are inside.

    Optimisation never sees the inside of an object, so what it holds there is arbitrary. The lattice spans the cube of
    half-width `half`; a point counts as behind half a `spacing` (metres) below the surface.
    """
    if views == 0:
        return np.zeros_like(empty)
    camera = orthographic_shell(views, half, size).to(shape.device)
    points = grid_points(len(empty), half).view(-1, 3).float().to(shape.device)
    left = torch.from_numpy(empty.reshape(-1)).to(shape.device).nonzero()[:, 0]
    left = left[points[left].norm(dim=-1) < shape.bounds]
    for view in range(views):
        seen = shape.render(camera[view], ("alpha", "depth"))
        wall = torch.where(seen.alpha > 0.5, seen.depth, torch.full_like(seen.depth, torch.inf))[0, ..., 0]
        pixel, z = camera[view].project(points[left])
        column, row = pixel[0].long().clamp(0, size - 1).unbind(-1)
        left = left[z[0] > wall[row, column] + 0.5 * spacing]
    hidden = torch.zeros(empty.size, dtype=torch.bool)
    hidden[left.cpu()] = True
    return hidden.view(empty.shape).numpy()


def orthographic_shell(views: int, half: float, size: int) -> Camera:
    """Orthographic cameras all around (a Fibonacci sphere) that see the cube's inscribed ball."""
    height = 1 - 2 * (torch.arange(views) + 0.5) / views
    azimuth = torch.rad2deg(torch.arange(views) * math.pi * (3 - math.sqrt(5)))
    pose = Camera.orbit(azimuth, torch.rad2deg(torch.asin(height)), 2 * half, 40.0, size)
    scale = torch.tensor([[size / (2 * half), 0, size / 2], [0, size / (2 * half), size / 2], [0, 0, 1.0]])
    return Camera(pose.c2w, scale.expand(views, 3, 3), size, size, model="ortho")


@torch.no_grad()
def seen_color(field: Field, points: Tensor, normals: Tensor, samples: int) -> Tensor:
    """sRGB (N, 3) that a ray against the normal sees: the field composited over three cells around the surface."""
    snapshot, reach = field.snapshot(), 1.5 * field.spacing
    device = next(field.parameters()).device
    points, normals = points.to(device), normals.to(device)
    step = 2 * reach / samples
    depth = reach - step * (torch.arange(samples, device=device) + 0.5)  # outside first
    along = points[:, None] + depth[:, None] * normals[:, None]  # (N, S, 3)
    density, color = snapshot.density_color(along.reshape(-1, 3))
    optical = (density * step).view(-1, samples)
    before = torch.exp(-(optical.cumsum(1) - optical))
    weight = before * -torch.expm1(-optical) + 1e-6
    return (weight[..., None] * color.view(-1, samples, 3)).sum(1) / weight.sum(1, keepdim=True)
