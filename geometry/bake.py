"""Textures from fields and other meshes: the surface point of each texel, its colour, a margin around the charts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import open3d
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..utils.errors import InputError
from .meshes import Mesh
from .raycast import NO_HIT, RayMesh, interpolate
from .unwrap import unwrap

Query = Callable[[Tensor, Tensor], Tensor]
CARRIED = ("base_color", "metallic_roughness")  # a normal map is relative to the triangles it was made for


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


@torch.no_grad()
def carry_colors(source: Mesh, mesh: Mesh) -> Mesh:
    """`mesh` with the origin, textures and vertex colours of `source`, taken at the closest point of its surface.

    Textures are baked on new charts; a normal map is left out, with a warning.
    """
    seen = RayMesh(source)
    if mesh.origin != source.origin:
        mesh = replace(mesh, origin=source.origin)
    if source.vertex_colors is not None:
        faces, weights = seen.closest(mesh.vertices)
        mesh = replace(mesh, vertex_colors=interpolate(source.vertex_colors, source.faces[faces], weights))
    names = [name for name in CARRIED if name in source.textures and source.uv is not None]
    if "normal" in source.textures:
        warnings.warn("the normal map belongs to the old triangles and was left out", UserWarning, stacklevel=2)
    if not names:
        return mesh

    def look(points: Tensor, normals: Tensor, name: str) -> Tensor:
        return seen.texture(name, *seen.closest(points))

    size = _texture_size(source, len(mesh.faces))
    mesh = unwrap(mesh, size)
    for name in names:
        mesh = bake(mesh, partial(look, name=name), size, name=name)
    return mesh


def _texture_size(source: Mesh, faces: int) -> int:
    """Texels a side: as many as the source's textures, at least eight for each edge of a triangle."""
    own = max(max(image.shape[:2]) for image in source.textures.values())
    return min(max(own, 256, 8 * math.isqrt(faces)), 4096)


def dilate_charts(image: np.ndarray, mask: np.ndarray, dilate: int) -> np.ndarray:
    """Repeats the nearest covered texel of image (T, T, C) up to `dilate` texels outside mask (T, T); mean beyond."""
    distance, nearest = distance_transform_edt(~mask, return_indices=True)
    spread = image[tuple(nearest)]
    return np.where((distance <= dilate + 0.5)[..., None], spread, image[mask].mean(axis=0))
