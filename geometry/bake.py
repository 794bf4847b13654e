"""Textures from fields: the surface point of each texel, the field's colour there, and a margin around the charts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import open3d
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..utils.errors import InputError
from .meshes import Mesh
from .raycast import NO_HIT, interpolate

Query = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Texels:
    """Texels whose centre lies inside a chart."""

    mask: Tensor  # (T, T) bool, row 0 on top
    faces: Tensor  # (N,) in the order of mask
    weights: Tensor  # (N, 3) barycentric
    points: Tensor  # (N, 3) world metres
    normals: Tensor  # (N, 3) unit


def rasterise_uv(mesh: Mesh, size: int) -> Texels:
    """Face and barycentric weights of each texel centre, by casting one vertical ray a texel onto the flat charts."""
    if mesh.uv is None or mesh.uv_faces is None:
        raise InputError("the mesh has no uv; call unwrap(mesh) first")
    uv = mesh.uv.detach().cpu().double()
    flat = torch.cat([uv * size, torch.zeros_like(uv[:, :1])], dim=1).float()  # texel units keep float32 exact enough
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        open3d.core.Tensor(flat.contiguous().numpy()),
        open3d.core.Tensor(np.ascontiguousarray(mesh.uv_faces.cpu().numpy().astype(np.uint32))),
    )
    centre = torch.arange(size) + 0.5
    y, x = torch.meshgrid(size - centre, centre, indexing="ij")  # row 0 is v = 1
    rays = torch.stack([x, y, *(torch.full_like(x, c) for c in (1.0, 0.0, 0.0, -1.0))], dim=-1)
    hit = scene.cast_rays(open3d.core.Tensor(rays.contiguous().numpy()))
    ids = hit["primitive_ids"].numpy()
    mask = torch.from_numpy(ids != NO_HIT)
    device = mesh.vertices.device
    faces = torch.from_numpy(ids[ids != NO_HIT].astype(np.int64)).to(device)
    late = torch.from_numpy(hit["primitive_uvs"].numpy()).to(device)[mask.to(device)]
    weights = torch.cat([1 - late.sum(dim=-1, keepdim=True), late], dim=-1).to(mesh.vertices.dtype)
    corners = mesh.faces[faces]
    normals = mesh.face_normals()[faces]
    if mesh.vertex_normals is not None:
        normals = torch.nn.functional.normalize(interpolate(mesh.vertex_normals, corners, weights), dim=-1)
    return Texels(mask, faces, weights, interpolate(mesh.vertices, corners, weights), normals)


@torch.no_grad()
def bake(
    mesh: Mesh, query: Query, size: int = 1024, dilate: int = 4, name: str = "base_color", chunk: int = 65_536
) -> Mesh:
    """The mesh with a texture `name` (size, size, 3) of what `query` says at the surface.

    query: (points (N, 3), normals (N, 3)) -> (N, 3) in [0, 1]; sRGB for base_color, linear for other maps.
    dilate: texels beyond the charts that repeat the nearest colour (>= 4 for bilinear lookup and mipmaps); the rest
    is the mean colour.
    """
    if size < 4 or dilate < 0:
        raise InputError(f"size={size}, dilate={dilate}; a texture has at least 4 texels a side and a margin >= 0")
    texels = rasterise_uv(mesh, size)
    if not bool(texels.mask.any()):
        raise InputError(f"no texel centre of a {size} x {size} texture lies in a chart; use a larger size")
    parts = zip(texels.points.split(chunk), texels.normals.split(chunk), strict=True)
    colors = torch.cat([query(points, normals).detach().float().cpu() for points, normals in parts])
    if colors.shape != (len(texels.points), 3):
        raise InputError(f"query returned {tuple(colors.shape)} for {len(texels.points)} points, expected (N, 3)")
    mask = texels.mask.numpy()
    image = np.zeros((size, size, 3), dtype=np.float32)
    image[mask] = colors.clamp(0, 1).numpy()
    filled = dilate_charts(image, mask, dilate)
    texture = (filled * 255).round().astype(np.uint8)
    return replace(mesh, textures={**mesh.textures, name: texture})


def dilate_charts(image: np.ndarray, mask: np.ndarray, dilate: int) -> np.ndarray:
    """Repeats the nearest covered texel of image (T, T, C) up to `dilate` texels outside mask (T, T); mean beyond."""
    distance, nearest = distance_transform_edt(~mask, return_indices=True)
    spread = image[tuple(nearest)]
    return np.where((distance <= dilate + 0.5)[..., None], spread, image[mask].mean(axis=0))
