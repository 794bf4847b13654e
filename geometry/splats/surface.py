"""Meshes of splats: rendered depth fused by Open3D (Curless and Levoy 1996), or a level of the Gaussians' own opacity.

Both end as solids that are coloured at their vertices by what is seen there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from ...utils.errors import InputError
from ..cameras import Camera
from ..extract import EmptySurfaceError, extract_surface, grid_points
from ..meshes import Mesh
from ..outputs import RenderOutput
from ..posed import around
from ..solid import solid_surface
from .cloud import GaussianCloud, rotation_matrices
from .drawing import SHARP, ball_of, draw
from .fusion import SEEN, seen_colors
from .kernels_project import Array

TRUNCATION = 4.0  # voxels
FACING = 0.5  # cosine; at a slant the nearest Gaussians hide those behind them, and the surface seems nearer
DENSER = 8.0  # times the extinction: through faint Gaussians depth would be that of what lies below the surface
FOV_DEG = 40.0
THICK = 0.5  # spacings, least deviation of a Gaussian on the lattice


@dataclass(frozen=True)
class SurfaceConfig:
    """How splats become a mesh."""

    method: Literal["tsdf", "levels"] = "tsdf"
    resolution: int = 160  # voxels, or lattice points, across the ball that the splats fill
    level: float = 0.25  # summed opacity at which the surface lies; "levels" only
    views: int = 64  # from which depth is fused where no cameras are given
    size: int = 320  # pixels of these views
    keep: float = 0.02  # pieces below this share of the area are dropped
    faces: int = 20_000  # at most

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.views < 1 or self.size < 16 or self.faces < 4 or self.level <= 0:
            raise InputError("surface: resolution >= 8, views >= 1, size >= 16, faces >= 4 and level > 0 needed")


def surface_of(cloud: GaussianCloud, config: SurfaceConfig = SurfaceConfig(), cameras: Camera | None = None) -> Mesh:
    """A solid by the method of the config, with vertex normals and colours.

    cameras: whose depth is fused and whose colours are taken; None: all around. Raises EmptySurfaceError where there is
    no surface.
    """
    cloud = cloud.detached()
    centre, radius = ball_of(cloud)
    views = _all_around(config, centre, radius) if cameras is None else cameras
    bare = (
        level_surface(cloud, centre, radius, config.resolution, config.level)
        if config.method == "levels"
        else tsdf_surface(cloud, views, centre, radius, config.resolution)
    )
    mesh = solid_surface(bare, config.keep, config.faces)
    assert mesh.vertex_normals is not None
    tolerance, firm = 3 * 2 * radius / config.resolution, denser(cloud, DENSER)

    def render(camera: Camera, channels: tuple[str, ...], background: float) -> RenderOutput:
        """Colours as they are seen, depth of the surface."""
        depth = draw(firm, camera, ("depth",), background, eps2d=SHARP, antialiased=False)[0].depth
        return replace(draw(cloud, camera, ("rgb",), background)[0], depth=depth)

    return replace(mesh, vertex_colors=seen_colors(render, views, mesh.vertices, mesh.vertex_normals, tolerance))


def _all_around(config: SurfaceConfig, centre: Tensor, radius: float) -> Camera:
    """Cameras that see the whole ball."""
    distance = radius / math.sin(math.radians(0.5 * FOV_DEG))
    cameras = around(config.views, config.size, distance, FOV_DEG, (-80.0, 80.0))
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] += centre
    return replace(cameras, c2w=c2w, near=distance - 1.5 * radius, far=distance + 2 * radius)


@torch.no_grad()
def tsdf_surface(cloud: GaussianCloud, cameras: Camera, centre: Tensor, radius: float, resolution: int) -> Mesh:
    """Rendered depth of pinhole cameras fused on a lattice of voxels in a ball; what no camera sees is solid."""
    import open3d

    if cameras.model != "pinhole":
        raise InputError(f"depth of {cameras.model} cameras cannot be fused; give pinholes")
    cloud, side = denser(cloud, DENSER), 2 * radius
    voxel, low = side / resolution, centre.double().numpy() - radius
    kinds = open3d.pipelines.integration
    volume = kinds.UniformTSDFVolume(side, resolution, TRUNCATION * voxel, kinds.TSDFVolumeColorType.NoColor, low)
    blank = open3d.geometry.Image(np.zeros((cameras.height, cameras.width, 3), np.uint8))
    for view in range(len(cameras)):
        camera = cameras[view]
        seen = draw(cloud, camera, ("depth", "normal"), 0.0, antialiased=False, eps2d=SHARP)[0]
        behind = float((camera.centres[0] - centre).norm()) + 2 * side  # where nothing is, all space is free
        toward = torch.nn.functional.normalize(camera.rays()[1], dim=-1)
        told = -(seen.normal * toward).sum(-1, keepdim=True) > FACING
        depth = torch.where(seen.alpha > SEEN, seen.depth * told, torch.full_like(seen.depth, behind))[0, ..., 0]
        image = open3d.geometry.Image(np.ascontiguousarray(depth.numpy()))
        picture = open3d.geometry.RGBDImage.create_from_color_and_depth(
            blank, image, depth_scale=1.0, depth_trunc=2 * behind, convert_rgb_to_intensity=False
        )
        K = camera.K[0].double().numpy()
        lens = open3d.camera.PinholeCameraIntrinsic(
            camera.width, camera.height, K[0, 0], K[1, 1], K[0, 2] - 0.5, K[1, 2] - 0.5
        )
        volume.integrate(picture, lens, camera.w2c[0].double().numpy())
    table = np.asarray(volume.extract_volume_tsdf()).reshape(*(resolution,) * 3, 2)  # distance in truncations, weight
    grid = np.where(table[..., 1] > 0, table[..., 0], -1.0)
    corners = torch.from_numpy(np.stack([low + 0.5 * voxel, low + side - 0.5 * voxel]))
    outside = (grid_points(resolution, corners) - centre.double()).norm(dim=-1).numpy() - (radius - 1.5 * voxel)
    grid = np.maximum(grid, outside / (TRUNCATION * voxel))
    if not (grid < 0).any():
        raise EmptySurfaceError("no surface is seen: the Gaussians are too few or too faint")
    return extract_surface(grid, 0.0, corners, sign=-1, keep="all")


def denser(cloud: GaussianCloud, times: float) -> GaussianCloud:
    """With so many times the extinction: o' = 1 - (1 - o)^times."""
    extinction = times * torch.nn.functional.softplus(cloud.logits.double())  # -log(1 - o)
    return replace(cloud, logits=torch.log(torch.expm1(extinction.clamp_max(30))).to(cloud.logits))


def level_surface(cloud: GaussianCloud, centre: Tensor, radius: float, resolution: int, level: float) -> Mesh:
    """Where the summed opacity sum_i o_i exp(-d^T S_i^-1 d / 2) is `level`, in a cube around a ball; hollows filled."""
    grid, low, spacing = opacity_lattice(cloud, centre, radius, resolution)
    full = grid > level
    grid[binary_fill_holes(full) & ~full] = 2 * level
    corners = torch.from_numpy(np.stack([low, low + spacing * (resolution - 1)]))
    return extract_surface(grid, level, corners, sign=1, keep="all")


def opacity_lattice(cloud: GaussianCloud, centre: Tensor, radius: float, resolution: int) -> tuple[Array, Array, float]:
    """(summed opacity (N, N, N); first point (3,); spacing in metres).

    Deviations grow by half a spacing, so that no Gaussian slips through the lattice.
    """
    from .kernels_lattice import REACH, add_gaussians

    spacing = 2 * radius / (resolution - 1)
    low = centre.double().numpy() - radius
    axes = rotation_matrices(cloud.quaternions.double())
    variances = cloud.scales.double().square() + (THICK * spacing) ** 2
    covariance = (axes * variances[:, None]) @ axes.mT
    precision = (axes / variances[:, None]) @ axes.mT
    reach = REACH * covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    lattice = np.zeros((resolution,) * 3, np.float32)
    parts = (cloud.means.double(), precision, reach, cloud.opacities.double())
    means, precisions, reaches, opacities = (part.contiguous().numpy() for part in parts)
    add_gaussians(means, precisions, reaches, opacities, low, spacing, lattice)
    return lattice, low, spacing
