"""Textures from fields, views and other meshes: the surface point of each texel, its colour, a margin around charts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import open3d
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..utils.errors import InputError
from .cameras import Camera
from .meshes import Mesh
from .raycast import NO_HIT, RayMesh, interpolate
from .seen import diffused, sample_pixels, view_weights
from .unwrap import unwrap

Query = Callable[[Tensor, Tensor], Tensor]
SAID = 1e-4  # weight of all views together from which a texel counts as seen
LEARNT = 0.01  # weight of one view (a slant of 72 degrees) from which what was optimised knows its colours
BAND = 1 << 17  # texels whose rays are cast at once
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
    bands = [_hits(scene, size, rows) for rows in torch.arange(size).split(max(1, BAND // size))]
    mask, ids, late = (torch.cat(parts) for parts in zip(*bands, strict=True))
    device = mesh.vertices.device
    faces, late = ids.to(device), late.to(mesh.vertices)
    weights = torch.cat([1 - late.sum(dim=-1, keepdim=True), late], dim=-1)
    corners = mesh.faces[faces]
    normals = mesh.face_normals()[faces]
    if mesh.vertex_normals is not None:
        normals = torch.nn.functional.normalize(interpolate(mesh.vertex_normals, corners, weights), dim=-1)
    return Texels(mask, faces, weights, interpolate(mesh.vertices, corners, weights), normals)


def _hits(scene: Any, size: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of some rows of a texture (R,), row 0 being v = 1: where a chart is (R, T), its faces (N,) and late weights."""
    x = (torch.arange(size) + 0.5).expand(len(rows), size)
    y = (size - 0.5 - rows)[:, None].expand_as(x)
    rays = torch.stack([x, y, *(torch.full_like(x, c) for c in (1.0, 0.0, 0.0, -1.0))], dim=-1)
    hit = scene.cast_rays(open3d.core.Tensor(rays.contiguous().numpy()))
    ids = hit["primitive_ids"].numpy()
    found = ids != NO_HIT
    late = torch.from_numpy(hit["primitive_uvs"].numpy()[found])
    return torch.from_numpy(found), torch.from_numpy(ids[found].astype(np.int64)), late


@torch.no_grad()
def bake(
    mesh: Mesh,
    query: Query,
    size: int = 1024,
    dilate: int = 4,
    name: str = "base_color",
    chunk: int = 65_536,
    seen_from: Camera | None = None,
) -> Mesh:
    """The mesh with a texture `name` (size, size, 3) of what `query` says at the surface.

    query: (points (N, 3), normals (N, 3)) -> (N, 3) in [0, 1]; sRGB for base_color, linear for other maps.
    dilate: texels beyond the charts that repeat the nearest colour (>= 4 for bilinear lookup and mipmaps); the rest
    is the mean colour. seen_from: views that the colours were learnt from: what none of them shows is filled by
    diffusion from what they show, and its share of the texels is the mesh's note "unseen_share".
    """
    texels = _charted_texels(mesh, size, dilate)
    parts = zip(texels.points.split(chunk), texels.normals.split(chunk), strict=True)
    colors = torch.cat([query(points, normals).detach().float().cpu() for points, normals in parts])
    if colors.shape != (len(texels.points), 3):
        raise InputError(f"query returned {tuple(colors.shape)} for {len(texels.points)} points, expected (N, 3)")
    notes: dict[str, float] = {}
    if seen_from is not None:
        known = _seen(mesh, texels, seen_from)
        notes = {"unseen_share": float((~known).mean())}
        colors = torch.from_numpy(diffused(colors.numpy(), known, texels.points.cpu().float().numpy()))
    return _textured(mesh, {name: colors}, texels.mask, dilate, notes)


@torch.no_grad()
def bake_views(
    mesh: Mesh,
    images: Tensor,
    cameras: Camera,
    size: int = 1024,
    dilate: int = 4,
    roughness: Tensor | None = None,
    metallic: Tensor | None = None,
) -> Mesh:
    """The mesh with the base colour that images (B, H, W, 3), sRGB in [0, 1], show of it from the cameras.

    Views are blended by what they say of a point (`seen.view_weights`); what no view shows is filled by diffusion over
    the surface, and its share of the texels is the mesh's note "unseen_share". roughness, metallic: (B, H, W, 1) in
    [0, 1], linear, baked alike into the metallic_roughness map of glTF; one of them alone: the other is 1 or 0.
    """
    wanted = (cameras.batch, cameras.height, cameras.width)
    given = {"images": (images, 3), "roughness": (roughness, 1), "metallic": (metallic, 1)}
    for name, (value, channels) in given.items():
        if value is not None and tuple(value.shape) != (*wanted, channels):
            raise InputError(f"{name} has shape {tuple(value.shape)}, expected {(*wanted, channels)} of the cameras")
    texels, scene = _charted_texels(mesh, size, dilate), RayMesh(mesh)
    columns = [images.float()]
    if roughness is not None or metallic is not None:
        like = roughness if roughness is not None else metallic
        assert like is not None
        rough = torch.ones_like(like) if roughness is None else roughness
        metal = torch.zeros_like(like) if metallic is None else metallic
        columns += [torch.ones_like(rough), rough, metal]  # glTF packs them in green and blue
    stack = torch.cat(columns, dim=-1).to(texels.points)
    total, weights = texels.points.new_zeros(len(texels.points), stack.shape[-1]), texels.points.new_zeros(1)
    for view in range(cameras.batch):
        weight, pixel = view_weights(scene, texels.points, texels.normals, cameras[view])
        total += weight[:, None] * sample_pixels(stack[view], pixel)
        weights = weights + weight
    known = (weights > SAID).cpu().numpy()
    if not known.any():
        raise InputError("no view shows the mesh; do cameras and mesh belong together?")
    shown = (total / weights.clamp_min(SAID)[:, None]).cpu().numpy()
    values = torch.from_numpy(diffused(shown, known, texels.points.cpu().float().numpy()))
    maps = {"base_color": values[:, :3]}
    if len(columns) > 1:
        maps["metallic_roughness"] = values[:, 3:]
    return _textured(mesh, maps, texels.mask, dilate, {"unseen_share": float((~known).mean())})


def _charted_texels(mesh: Mesh, size: int, dilate: int) -> Texels:
    if size < 4 or dilate < 0:
        raise InputError(f"size={size}, dilate={dilate}; a texture has at least 4 texels a side and a margin >= 0")
    texels = rasterise_uv(mesh, size)
    if not bool(texels.mask.any()):
        raise InputError(f"no texel centre of a {size} x {size} texture lies in a chart; use a larger size")
    return texels


def _seen(mesh: Mesh, texels: Texels, cameras: Camera) -> NDArray[np.bool_]:
    """(N,) of the texels whose face any of the views shows at its middle or near a corner."""
    inset = torch.lerp(torch.eye(3), torch.full((3, 3), 1 / 3), 0.2)
    weights = torch.cat([inset, torch.full((1, 3), 1 / 3)]).to(mesh.vertices)  # (4, 3)
    points = torch.einsum("kc,fcd->fkd", weights, mesh.vertices[mesh.faces])
    normals = mesh.face_normals()[:, None].expand_as(points)
    scene, known = RayMesh(mesh), torch.zeros(len(mesh.faces), dtype=torch.bool, device=mesh.faces.device)
    for view in range(cameras.batch):
        left = (~known).nonzero()[:, 0]
        if not len(left):
            break
        weight, _ = view_weights(scene, points[left].flatten(0, 1), normals[left].flatten(0, 1), cameras[view])
        known[left] = (weight.view(-1, 4) > LEARNT).any(dim=1)
    return known[texels.faces].cpu().numpy()


def _textured(mesh: Mesh, maps: dict[str, Tensor], mask: Tensor, dilate: int, notes: dict[str, float]) -> Mesh:
    """The mesh with maps of texel values (N, 3) in the order of mask (T, T)."""
    textures, covered = dict(mesh.textures), mask.cpu().numpy()
    for name, values in maps.items():
        image = np.zeros((*covered.shape, 3), dtype=np.float32)
        image[covered] = values.clamp(0, 1).numpy()
        textures[name] = (dilate_charts(image, covered, dilate) * 255).round().astype(np.uint8)
    return replace(mesh, textures=textures, notes={**mesh.notes, **notes})


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
