"""Depth maps to clouds with normals and to meshes, torn where near and far meet; a band of rows at a time.

A surface is cut by the angle between its normal and the line of sight. What a network or a sensor puts between a near
edge and what lies behind it stands almost along the line of sight, whatever the size of the picture and the unit of the
depth. A jump of one pixel leaves both of its sides; pixels on the way from one to the other ("flying") go.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.bands import bands
from ..utils.errors import InputError
from .cameras import Camera
from .meshes import Mesh

MAX_SLANT_DEG = 84.0  # a floor gets there at 9.5 times the height it is seen from
LARGEST_TEXTURE = 4096  # px of a side


class Points(NamedTuple):
    """What a depth map shows, N points in the order of the pixels."""

    points: Tensor  # (N, 3) world
    colors: Tensor | None  # (N, 3)
    normals: Tensor | None  # (N, 3) unit, towards the camera


class _Band(NamedTuple):
    """Rows of one camera's map, with the rows above and below where there are such."""

    points: Tensor  # (h, W, 3) world
    sight: Tensor  # (h, W, 3) unit, from the camera
    valid: Tensor  # (h, W) bool
    inner: slice  # rows of the band among these


def lift(
    depth: Tensor,
    rgb: Tensor | None,
    camera: Camera,
    min_depth: float = 0.0,
    max_slant_deg: float | None = None,
    normals: bool = False,
) -> Points:
    """Pixels deeper than `min_depth` of z-depth (B, H, W) as points, coloured by rgb (B, H, W, 3).

    max_slant_deg: leave out flying pixels: those whose neighbours on both sides lie so slanted, one nearer and one
    farther. normals: from the neighbours' differences.
    """
    at = 0
    points = torch.empty(depth.numel(), 3, device=depth.device)
    colors = None if rgb is None else torch.empty(depth.numel(), 3, device=depth.device)
    facing = torch.empty(depth.numel(), 3, device=depth.device) if normals else None
    for view in range(camera.batch):
        for rows in bands(camera.height, camera.width):
            band = _band(depth[view], camera[view], rows, min_depth)
            keep = band.valid if max_slant_deg is None else band.valid & ~flying(band, max_slant_deg)
            keep = keep[band.inner]
            here = slice(at, at + int(keep.sum()))
            points[here] = band.points[band.inner][keep].to(points)
            if colors is not None and rgb is not None:
                colors[here] = rgb[view, rows][keep].to(colors).clamp_(0, 1)
            if facing is not None:
                facing[here] = _normals(band)[band.inner][keep].to(facing)
            at = here.stop
    return Points(points[:at], None if colors is None else colors[:at], None if facing is None else facing[:at])


def flying(band: _Band, max_slant_deg: float) -> Tensor:
    """(h, W) bool: along rows or columns, the steps from one neighbour here and on to the other both lie within
    90 - max_slant_deg degrees of the line of sight, in the same direction."""
    limit = math.sin(math.radians(max_slant_deg))
    found = torch.zeros_like(band.valid)
    for axis in (0, 1):
        if band.valid.shape[axis] < 3:
            continue
        step = band.points.diff(dim=axis)
        sight = F.normalize(_cut(band.sight, axis, 1, None) + _cut(band.sight, axis, 0, -1), dim=-1)
        along = (F.normalize(step, dim=-1, eps=1e-20) * sight).sum(dim=-1)
        both = _cut(band.valid, axis, 1, None) & _cut(band.valid, axis, 0, -1)
        away, near = both & (along > limit), both & (along < -limit)
        middle = (_cut(away, axis, 1, None) & _cut(away, axis, 0, -1)) | (
            _cut(near, axis, 1, None) & _cut(near, axis, 0, -1)
        )
        _cut(found, axis, 1, -1).logical_or_(middle)
    return found


def depth_mesh(
    depth: Tensor,
    image: np.ndarray,
    camera: Camera,
    max_faces: int = 200_000,
    max_slant_deg: float = MAX_SLANT_DEG,
) -> Mesh:
    """The surface that z-depth (H, W) of one camera shows, with the picture (H, W, 3) in [0, 1] as its texture.

    The map is taken at every so many pixels, so that there are at most `max_faces` triangles; those whose normals lie
    more than `max_slant_deg` from the line of sight are left out, and pixels without depth. Raises InputError where
    nothing is left.
    """
    if max_faces < 2:
        raise InputError(f"max_faces={max_faces}: a surface has at least 2 triangles")
    rows, columns = _grid(camera.height, camera.width, max_faces)
    seen = depth[rows][:, columns]
    valid = torch.isfinite(seen) & (seen > 0)
    pixels = torch.stack(torch.meshgrid(columns + 0.5, rows + 0.5, indexing="xy"), dim=-1)  # (h, w, 2)
    origins, directions = _rays_at(camera, rows, columns)
    points = origins + directions * torch.where(valid, seen, torch.ones_like(seen))[..., None]
    faces = _triangles(torch.where(valid, seen, torch.nan), points)
    corners, sight = points.reshape(-1, 3)[faces], directions.reshape(-1, 3)[faces].sum(dim=1)
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = -(F.normalize(across, dim=-1, eps=1e-30) * F.normalize(sight, dim=-1)).sum(dim=-1)
    faces = faces[facing > math.cos(math.radians(max_slant_deg))]
    if not len(faces):
        raise InputError("no surface is left: the picture shows nothing, or max_slant_deg is too small")
    used, index = torch.unique(faces, return_inverse=True)
    size = pixels.new_tensor([camera.width, camera.height])
    uv = pixels.reshape(-1, 2)[used] / size
    uv = torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=-1)
    mesh = Mesh(points.reshape(-1, 3)[used].float(), index, uv=uv.float(), uv_faces=index.clone())
    mesh.textures = {"base_color": _texture(image)}
    return mesh.with_smooth_normals()


def _band(depth: Tensor, camera: Camera, rows: slice, min_depth: float) -> _Band:
    top, bottom = max(rows.start - 1, 0), min(rows.stop + 1, camera.height)
    part = depth[top:bottom]
    valid = torch.isfinite(part) & (part > min_depth)
    origins, directions = camera.cropped(0, top, camera.width, bottom - top).rays()
    points = origins[0] + directions[0] * torch.where(valid, part, torch.ones_like(part))[..., None]
    return _Band(points, F.normalize(directions[0], dim=-1), valid, slice(rows.start - top, rows.stop - top))


def _normals(band: _Band) -> Tensor:
    """Unit normals (h, W, 3) towards the camera: of each axis the shorter of the two steps to valid neighbours, so
    that they do not mix the sides of an edge; along the line of sight where there are none."""
    across, down = (_shorter_step(band, axis) for axis in (1, 0))
    normal = F.normalize(torch.linalg.cross(down, across), dim=-1, eps=1e-20)
    normal = torch.where((normal * band.sight).sum(dim=-1, keepdim=True) > 0, -normal, normal)
    return torch.where(normal.norm(dim=-1, keepdim=True) < 0.5, -band.sight, normal)


def _shorter_step(band: _Band, axis: int) -> Tensor:
    """(h, W, 3) to the next pixel or from the one before; 0 where neither is valid."""
    step = band.points.diff(dim=axis)
    both = _cut(band.valid, axis, 1, None) & _cut(band.valid, axis, 0, -1)
    step = torch.where(both[..., None], step, torch.full_like(step, torch.inf))
    lost = torch.full_like(_cut(step, axis, 0, 1), torch.inf)
    after, before = torch.cat([step, lost], dim=axis), torch.cat([lost, step], dim=axis)
    nearer = after.norm(dim=-1, keepdim=True) <= before.norm(dim=-1, keepdim=True)
    chosen = torch.where(nearer, after, before)
    return torch.where(torch.isfinite(chosen), chosen, torch.zeros_like(chosen))


def _grid(height: int, width: int, max_faces: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, evenly spaced with both edges, whose squares make at most so many triangles."""
    share = min(1.0, math.sqrt(0.5 * max_faces / max((height - 1) * (width - 1), 1)))
    counts = [max(1, math.floor((side - 1) * share)) for side in (height, width)]
    while 2 * counts[0] * counts[1] > max_faces:  # very long pictures
        counts[counts[1] > counts[0]] = max(1, max_faces // (2 * min(counts)))
    rows, columns = (
        torch.linspace(0, side - 1, count + 1).round().long() for side, count in zip((height, width), counts)
    )
    return rows, columns


def _rays_at(camera: Camera, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """World origins and directions (h, w, 3) at chosen rows and columns of one camera."""
    parts = [[part[0, 0, columns] for part in camera.cropped(0, int(y), camera.width, 1).rays()] for y in rows]
    return torch.stack([one[0] for one in parts]), torch.stack([one[1] for one in parts])


def _triangles(depth: Tensor, points: Tensor) -> Tensor:
    """Two triangles (F, 3) of each square whose corners are all valid, cut along the diagonal that bends less;
    counter-clockwise for the camera."""
    height, width = depth.shape
    index = torch.arange(height * width, device=depth.device).reshape(height, width)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    whole = torch.isfinite(depth[:-1, :-1] + depth[:-1, 1:] + depth[1:, :-1] + depth[1:, 1:])
    falling = (depth[:-1, :-1] - depth[1:, 1:]).abs() <= (depth[:-1, 1:] - depth[1:, :-1]).abs()
    one = torch.stack([torch.stack([a, c, d], dim=-1), torch.stack([a, d, b], dim=-1)], dim=-2)
    other = torch.stack([torch.stack([a, c, b], dim=-1), torch.stack([b, c, d], dim=-1)], dim=-2)
    return torch.where(falling[..., None, None], one, other)[whole].reshape(-1, 3)


def _texture(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3), at most LARGEST_TEXTURE a side."""
    from PIL import Image

    from ..utils.pictures import to_rgb8

    picture = to_rgb8(image)
    side = max(picture.shape[:2])
    if side <= LARGEST_TEXTURE:
        return picture
    size = tuple(max(1, round(n * LARGEST_TEXTURE / side)) for n in picture.shape[1::-1])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _cut(values: Tensor, axis: int, start: int, stop: int | None) -> Tensor:
    return values[start:stop] if axis == 0 else values[:, start:stop]
