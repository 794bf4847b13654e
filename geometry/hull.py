"""Visual hulls: the space that no silhouette excludes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..utils.errors import InputError
from .cameras import Camera
from .extract import EmptySurfaceError, extract_surface, grid_points
from .meshes import Mesh

MARGIN = 1.1  # of the cube around what the silhouettes can hold


def visual_hull(masks: Tensor, cameras: Camera, resolution: int = 64, cube: tuple[Tensor, float] | None = None) -> Mesh:
    """The closed surface of the points that lie inside all masks (B, H, W) in [0, 1], at 1/2.

    What a view does not show is outside. cube: (centre (3,), half-width in metres) that is searched with `resolution`
    samples an axis; None: see `hull_cube`. Raises EmptySurfaceError (an InputError) when the masks have nothing in
    common.
    """
    centre, half = hull_cube(masks, cameras) if cube is None else cube
    points = grid_points(resolution, half).view(-1, 3).to(masks) + centre.to(masks)
    pixels, z = cameras.project(points)  # (B, N, 2)
    size = pixels.new_tensor([cameras.width, cameras.height])
    looked = torch.nn.functional.grid_sample(
        masks[:, None], (2 * pixels / size - 1)[:, None], align_corners=False, padding_mode="zeros"
    )
    inside = torch.where(z > 0, looked[:, 0, 0], torch.zeros_like(z)).amin(dim=0)
    try:
        hull = extract_surface(inside.view((resolution,) * 3), 0.5, half, keep="all")
    except EmptySurfaceError as error:
        raise EmptySurfaceError("no point lies inside all masks; do cameras and masks belong together?") from error
    hull.vertices += centre.to(hull.vertices)
    return hull


def hull_cube(masks: Tensor, cameras: Camera) -> tuple[Tensor, float]:
    """(centre (3,), half-width in metres) of a cube that holds what the masks (B, H, W) show.

    The centre is the point nearest to all optical axes, the half-width reaches what is farthest from it in the plane
    through it of any view. Raises InputError when the axes are parallel or a mask is empty.
    """
    if not bool((masks > 0.5).flatten(1).any(dim=1).all()):
        raise InputError("a mask is empty: each view has to show the object")
    axis = cameras.c2w[:, :3, 2].double()
    across = torch.eye(3, dtype=axis.dtype, device=axis.device) - axis[:, :, None] * axis[:, None]  # (B, 3, 3)
    if float(torch.linalg.eigvalsh(across.mean(dim=0)).min()) < 1e-6:
        raise InputError("the views look along one axis; give cameras from several sides, or the cube")
    centre = torch.linalg.solve(across.sum(0), (across @ cameras.centres.double()[..., None]).sum(0))[:, 0]
    depth = ((centre - cameras.centres) * axis).sum(-1)
    if not bool((depth > 0).all()):
        raise InputError("the optical axes meet behind a camera; give the cube")
    plane = cameras.unproject(depth.to(masks)[:, None, None].expand(masks.shape))
    reach = (plane - centre.to(plane)).norm(dim=-1)[masks > 0.5].max()
    return centre.to(masks), MARGIN * float(reach)
