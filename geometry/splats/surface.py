"""Meshes of splats: rendered depth fused by Open3D (Curless and Levoy 1996), or a level of the Gaussians' own opacity.

Both give the surface as it comes, coloured at its vertices; `solid_of` makes a solid of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes, map_coordinates
from torch import Tensor

from ...utils.errors import InputError
from ..bake import carry_colors
from ..cameras import Camera
from ..extract import EmptySurfaceError, decimate, extract_surface, keep_largest
from ..meshes import Mesh
from ..posed import around
from ..solid import faults, make_solid, without_hidden
from .cloud import GaussianCloud, rotation_matrices
from .drawing import SHARP, ball_of, draw
from .fusion import SEEN
from .kernels_project import Array

TRUNCATION = 4.0  # voxels
PLAIN = 1e-4  # opacity below which a point of the lattice has no colour


@dataclass(frozen=True)
class SurfaceConfig:
    """How splats become a mesh."""

    method: Literal["tsdf", "levels"] = "tsdf"
    resolution: int = 160  # voxels, or lattice points, across the ball that the splats fill
    level: float = 0.5  # summed opacity at which the surface lies; "levels" only
    views: int = 64  # from which depth is fused where no cameras are given
    size: int = 320  # pixels of these views
    keep: float = 0.02  # pieces below this share of the area are dropped
    faces: int = 40_000  # at most

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.views < 1 or self.size < 16 or self.faces < 4 or self.level <= 0:
            raise InputError("surface: resolution >= 8, views >= 1, size >= 16, faces >= 4 and level > 0 needed")


def surface_of(cloud: GaussianCloud, config: SurfaceConfig = SurfaceConfig(), cameras: Camera | None = None) -> Mesh:
    """The surface by the method of the config. cameras: whose depth is fused; None: all around.

    Raises EmptySurfaceError where there is none.
    """
    cloud = cloud.detached()
    centre, radius = ball_of(cloud)
    if config.method == "levels":
        return level_surface(cloud, centre, radius, config.resolution, config.level)
    if cameras is None:
        distance = radius / np.sin(np.radians(20.0))
        cameras = around(config.views, config.size, float(distance), 40.0, (-80.0, 80.0))
        c2w = cameras.c2w.clone()
        c2w[:, :3, 3] += centre
        cameras = replace(cameras, c2w=c2w, near=float(distance - 1.5 * radius), far=float(distance + 2 * radius))
    return tsdf_surface(cloud, cameras, 2 * radius / config.resolution)


@torch.no_grad()
def tsdf_surface(cloud: GaussianCloud, cameras: Camera, voxel: float) -> Mesh:
    """Rendered depth of pinhole cameras fused on a sparse lattice of `voxel` metres; open where nothing was seen."""
    import open3d

    if cameras.model != "pinhole":
        raise InputError(f"depth of {cameras.model} cameras cannot be fused; give pinholes")
    kinds = open3d.pipelines.integration
    volume = kinds.ScalableTSDFVolume(voxel, TRUNCATION * voxel, kinds.TSDFVolumeColorType.RGB8)
    for view in range(len(cameras)):
        camera = cameras[view]
        seen = draw(cloud, camera, ("rgb", "depth"), 0.0, antialiased=False, eps2d=SHARP)[0]
        solid = seen.alpha[0] > SEEN
        rgb = seen.rgb[0] / seen.alpha[0].clamp_min(SEEN)
        color = open3d.geometry.Image(np.ascontiguousarray((rgb.clamp(0, 1) * 255).round().byte().numpy()))
        depth = open3d.geometry.Image(np.ascontiguousarray((seen.depth[0] * solid)[..., 0].numpy()))
        picture = open3d.geometry.RGBDImage.create_from_color_and_depth(
            color, depth, depth_scale=1.0, depth_trunc=1e9, convert_rgb_to_intensity=False
        )
        K = camera.K[0].double().numpy()
        lens = open3d.camera.PinholeCameraIntrinsic(
            camera.width, camera.height, K[0, 0], K[1, 1], K[0, 2] - 0.5, K[1, 2] - 0.5
        )
        volume.integrate(picture, lens, camera.w2c[0].double().numpy())
    found = volume.extract_triangle_mesh()
    if not len(found.triangles):
        raise EmptySurfaceError("no surface is seen: the Gaussians are too few or too faint")
    vertices, faces, colors = (np.asarray(part) for part in (found.vertices, found.triangles, found.vertex_colors))
    mesh = Mesh(torch.from_numpy(vertices).float(), torch.from_numpy(faces.astype(np.int64)))
    return replace(mesh, vertex_colors=torch.from_numpy(colors).float())


def level_surface(cloud: GaussianCloud, centre: Tensor, radius: float, resolution: int, level: float) -> Mesh:
    """Where the summed opacity sum_i o_i exp(-d^T S_i^-1 d / 2) is `level`, in a cube around a ball; hollows filled.

    Deviations are at least half a spacing, so that no Gaussian slips through the lattice.
    """
    lattice, low, spacing = opacity_lattice(cloud, centre, radius, resolution)
    grid = lattice[..., 0].copy()
    full = grid > level
    grid[binary_fill_holes(full) & ~full] = 2 * level
    corners = torch.stack([torch.from_numpy(low), torch.from_numpy(low + spacing * (resolution - 1))])
    mesh = without_hidden(extract_surface(grid, level, corners, sign=1, keep="all"))
    place = (mesh.vertices.double().numpy() - low) / spacing
    total, *rgb = (map_coordinates(lattice[..., c], place.T, order=1) for c in range(4))
    colors = np.stack(rgb, axis=1) / np.maximum(total, PLAIN)[:, None]
    return replace(mesh, vertex_colors=torch.from_numpy(colors).float().clamp(0, 1))


def opacity_lattice(cloud: GaussianCloud, centre: Tensor, radius: float, resolution: int) -> tuple[Array, Array, float]:
    """(summed opacity, and it times r, g, b (N, N, N, 4); first point (3,); spacing in metres)."""
    from .kernels_lattice import REACH, add_gaussians

    spacing = 2 * radius / (resolution - 1)
    low = centre.double().numpy() - radius
    axes = rotation_matrices(cloud.quaternions.double())
    variances = cloud.scales.double().square() + (0.5 * spacing) ** 2
    covariance = (axes * variances[:, None]) @ axes.mT
    precision = (axes / variances[:, None]) @ axes.mT
    reach = REACH * covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    lattice = np.zeros((resolution,) * 3 + (4,), np.float32)
    parts = (cloud.means.double(), precision, reach, cloud.opacities.double(), cloud.colors.double().clamp(0, 1))
    add_gaussians(*(part.contiguous().numpy() for part in parts), low, spacing, lattice)
    return lattice, low, spacing


def solid_of(mesh: Mesh, config: SurfaceConfig = SurfaceConfig()) -> Mesh:
    """A solid of outer pieces with the surface's colours, of at most `config.faces` triangles.

    Raises InputError where none can be made.
    """
    bare = keep_largest(mesh, config.keep)
    solid = make_solid(Mesh(bare.vertices, bare.faces))[0]
    solid = keep_largest(without_hidden(solid), config.keep)
    light = decimate(solid, config.faces)
    light = make_solid(light)[0] if faults(light) else light
    return carry_colors(mesh, light.with_smooth_normals())
