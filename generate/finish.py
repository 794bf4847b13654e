"""From an optimised field to files: lattice, closed surface, fewer faces, UV charts, baked colour, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, gaussian_filter
from torch import Tensor

from ..core.distillation.score import DivergedError
from ..geometry.bake import bake
from ..geometry.cameras import Camera
from ..geometry.extract import EmptySurfaceError, decimate, extract_surface, grid_points, keep_largest
from ..geometry.fields import Field
from ..geometry.meshes import Mesh
from ..geometry.turntable import contact_sheet, render_turntable
from ..geometry.unwrap import unwrap
from ..geometry.volume import Occupancy, VolumeConfig, render
from ..utils.errors import InputError
from ..utils.pictures import save_gif, save_image, save_mp4

Mask = NDArray[np.bool_]
FPS = 24


@dataclass(frozen=True)
class MeshConfig:
    """How the surface is taken from the field."""

    resolution: int = 128  # lattice points along an edge
    smooth: float = 0.7  # lattice cells, standard deviation of a blur before extraction
    keep: float = 0.02  # pieces below this share of the area are dropped
    faces: int = 12_000  # at most
    texture: int = 1024  # texels along an edge
    visibility_views: int = 48  # directions from which empty space must be seen, else it is filled; 0: no filling
    depth_samples: int = 8  # of the short ray through the surface that finds the colour of a texel

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.faces < 4 or self.texture < 4 or self.depth_samples < 1:
            raise InputError("mesh: resolution >= 8, faces >= 4, texture >= 4 and depth_samples >= 1 needed")


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
def unseen(
    field: Field, empty: NDArray[np.bool_], volume: VolumeConfig, views: int, size: int = 96
) -> NDArray[np.bool_]:
    """The empty lattice points (N, N, N) that lie behind the surface in each of `views` directions: they are inside.

    Optimisation never sees the inside of an object, so what it holds there is arbitrary.
    """
    if views == 0:
        return np.zeros_like(empty)
    device = next(field.parameters()).device
    occupancy = Occupancy(volume, field.half_side)
    occupancy.update(field)
    camera = orthographic_shell(views, field.half_side, size).to(device)
    points = grid_points(len(empty), field.half_side).view(-1, 3).float().to(device)
    left = torch.from_numpy(empty.reshape(-1)).to(device).nonzero()[:, 0]
    left = left[points[left].norm(dim=-1) < volume.radius]
    for view in range(views):
        seen = render(field, camera[view], config=volume, occupancy=occupancy, normals=False)
        wall = torch.where(seen.alpha > 0.5, seen.depth, torch.full_like(seen.depth, torch.inf))[0, ..., 0]
        pixel, z = camera[view].project(points[left])
        column, row = pixel[0].long().clamp(0, size - 1).unbind(-1)
        left = left[z[0] > wall[row, column] + 0.5 * field.spacing]
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


def surface_of(field: Field, config: MeshConfig, volume: VolumeConfig) -> Mesh:
    """Closed, outward surface of the field with smooth normals; hidden space filled, crumbs dropped, decimated."""
    outward, level = field.head.outward, field.head.level
    solid = -outward * (lattice_values(field, config.resolution, volume.radius) - level)  # positive inside
    if not bool(torch.isfinite(solid).all()):
        raise DivergedError("the optimised field holds values that are not finite; lower lr and run again")
    grid = solid.numpy()
    if config.smooth:
        grid = gaussian_filter(grid, config.smooth)
    hidden = unseen(field, grid <= 0, volume, config.visibility_views) | (binary_fill_holes(grid > 0) & (grid <= 0))
    grid[hidden] = 0.5 * max(float(grid.max()), 1e-3)
    try:
        mesh = extract_surface(grid, 0.0, field.half_side, sign=1, keep="all")
    except EmptySurfaceError as error:
        raise DivergedError(f"the optimised field has no surface ({error}); try more steps or another seed") from error
    return decimate(keep_largest(mesh, config.keep), config.faces).with_smooth_normals()


@torch.no_grad()
def surface_color(field: Field, points: Tensor, normals: Tensor, samples: int) -> Tensor:
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


def textured_mesh(field: Field, config: MeshConfig, volume: VolumeConfig) -> Mesh:
    """The surface with UV charts and a base colour texture."""
    mesh = unwrap(surface_of(field, config, volume), config.texture)
    return bake(mesh, lambda p, n: surface_color(field, p, n, config.depth_samples), config.texture)


def write_pictures(mesh: Mesh, place: Callable[[str], Path], frames: int = 36, size: int = 256) -> list[Path]:
    """sheet.png (eight sides) and, unless `frames` is 0, turntable.mp4 and .gif (half the frames); place(name): path.

    No light is added: generated textures carry the shading the prior painted.
    """
    written = [save_image(place("sheet.png"), contact_sheet(mesh, max(size // 2, 16), light=None))]
    if frames:
        pictures = render_turntable(mesh, frames, size, light=None)
        written.append(save_mp4(place("turntable.mp4"), pictures, FPS))
        written.append(save_gif(place("turntable.gif"), pictures[::2], FPS / 2))
    return written
