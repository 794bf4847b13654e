"""Silhouettes with gradients: pictures of meshes whose outlines move with the vertices and the cameras.

Casting rays decides what a pixel shows, which has no derivative. As in nvdiffrast (Laine et al. 2020, section 3.7) the
outline is therefore blended: where the projected edge between a face that looks at the camera and one that looks away
passes between the centres of two neighbouring pixels, the one that it half covers takes a share of the other's value.
With the crossing d pixels from the inner centre, the outer pixel takes d - 1/2 of the inner value if that is positive,
else the inner pixel 1/2 - d of the outer one: coverage by exact area along the row (steep edges) or column (flat ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .cameras import Camera
from .meshes import Mesh
from .outputs import ALPHA_VISIBLE, Rays, RenderOutput, over_background
from .rasterisers import Renderer
from .raycast import CHANNELS, RayMesh

HIDDEN = 1e-3  # of the depth: an edge this far behind what its outer pixel shows is hidden


class Blend(NamedTuple):
    """Which pixels take a share of which neighbours."""

    target: Tensor  # (N,) flat index into (B, H, W)
    source: Tensor  # (N,)
    weight: Tensor  # (N,) in (0, 0.5], differentiable in vertices and cameras

    def apply(self, values: Tensor) -> Tensor:
        """Values (B, H, W, C) with blended outlines."""
        flat = values.reshape(-1, values.shape[-1])
        moved = self.weight[:, None] * (flat[self.source] - flat[self.target])
        return flat.index_add(0, self.target, moved).view(values.shape)


def outline(mesh: Mesh, camera: Camera, faces: Tensor, depth: Tensor) -> Blend:
    """The blend of pictures that show `faces` (B, H, W) (-1: nothing) at z-depth `depth` (B, H, W, 1) in metres."""
    screen, z = camera.project(mesh.vertices)  # (B, V, 2), (B, V)
    view, ends, third = silhouette_edges(mesh.faces, screen.detach(), z.detach())
    a, b = screen[view, ends[:, 0]], screen[view, ends[:, 1]]
    steep = ((b - a)[:, 1].abs() >= (b - a)[:, 0].abs()).detach()
    # "along": the axis whose pixel centres the edge passes one by one; "across": that on which it crosses
    a, b = (torch.where(steep[:, None], p.flip(-1), p) for p in (a, b))
    c = torch.where(steep[:, None], screen[view, third].flip(-1), screen[view, third]).detach()
    first, last = torch.ceil(torch.minimum(a, b)[:, 0] - 0.5), torch.ceil(torch.maximum(a, b)[:, 0] - 0.5)
    length = torch.where(steep, camera.height, camera.width)
    first, last = (torch.minimum(v.clamp_min(0), length).long() for v in (first.detach(), last.detach()))
    count = (last - first).clamp_min(0)
    edge = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    line = torch.arange(len(edge), device=edge.device) - (count.cumsum(0) - count)[edge] + first[edge]
    a, b, c, steep = a[edge], b[edge], c[edge], steep[edge]
    share = (line + 0.5 - a[:, 0]) / (b - a)[:, 0]
    across = a[:, 1] + share * (b - a)[:, 1]
    lower = torch.floor(across.detach() - 0.5).long()
    away = across - (lower + 0.5)  # from the centre of the lower pixel, in [0, 1)
    inverse = torch.lerp(1 / z[view[edge], ends[edge, 0]], 1 / z[view[edge], ends[edge, 1]], share).detach()
    upward = (_side(a, b, c) * (b - a)[:, 0]).detach() > 0  # the face lies towards larger coordinates

    inner, outer = torch.where(upward, lower + 1, lower), torch.where(upward, lower, lower + 1)
    breadth = torch.where(steep, camera.width, camera.height)
    valid = (lower >= 0) & (lower + 1 < breadth)

    def place(across: Tensor) -> Tensor:
        row, column = torch.where(steep, line, across), torch.where(steep, across, line)
        return (view[edge] * camera.height + row) * camera.width + column

    inner, outer = (place(p.clamp_min(0).minimum(breadth - 1)) for p in (inner, outer))
    shown, near = faces.reshape(-1) >= 0, depth.detach().reshape(-1)
    valid &= shown[inner] & (~shown[outer] | (near[outer] * inverse > 1 - HIDDEN))
    excess = torch.where(upward, 0.5 - away, away - 0.5)[valid]  # of the covered part over the inner pixel's half
    inner, outer, outward = inner[valid], outer[valid], excess.detach() > 0
    target, source = torch.where(outward, outer, inner), torch.where(outward, inner, outer)
    total = excess.new_zeros(faces.numel()).index_add(0, target, excess.abs())
    return Blend(target, source, excess.abs() / total[target].clamp_min(1))


def silhouette_edges(faces: Tensor, screen: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(view (N,), vertices (N, 2), third vertex of the face that looks at the camera (N,)) of the edges of an outline.

    faces (F, 3), screen (B, V, 2) in pixels, z (B, V); edges that reach behind the camera are left out.
    """
    half = torch.stack([faces, faces.roll(-1, 1), faces.roll(-2, 1)], dim=-1).view(-1, 3)  # start, end, third
    ends = half[:, :2].sort(dim=1).values
    order = torch.argsort(ends[:, 0] * (int(faces.max()) + 1) + ends[:, 1], stable=True)
    sorted_ends = ends[order]
    same = (sorted_ends[1:] == sorted_ends[:-1]).all(dim=1)
    one, other = order[:-1][same], order[1:][same]
    single = torch.ones(len(order), dtype=torch.bool, device=order.device)
    single[order[:-1][same]] = single[order[1:][same]] = False
    a, b, c = (screen[:, faces[:, i]] for i in range(3))
    front = _side(a, b, c) < 0  # (B, F): y points down
    fronts = front[:, one // 3], front[:, other // 3]
    view, pair = (fronts[0] != fronts[1]).nonzero(as_tuple=True)
    chosen = torch.where(fronts[0][view, pair], one[pair], other[pair])
    rims = single.nonzero()[:, 0]
    views = torch.arange(len(screen), device=faces.device)
    view = torch.cat([view, views.repeat_interleave(len(rims))])
    chosen = half[torch.cat([chosen, rims.repeat(len(screen))])]
    ahead = (z[view, chosen[:, 0]] > 0) & (z[view, chosen[:, 1]] > 0)
    return view[ahead], chosen[ahead, :2], chosen[ahead, 2]


def draw_mesh(
    mesh: Mesh,
    cameras: Rays,
    channels: Sequence[str] = ("rgb", "alpha", "depth", "normal"),
    background: float | Tensor = 1.0,
    renderer: Renderer = "auto",
) -> RenderOutput:
    """Maps of a mesh, differentiable in its vertices, colours and the cameras, outlines included.

    Rays that are no camera have no neighbours: alpha is then 0 or 1, without gradient. renderer: see rasterisers.
    Extras: "normals" (B, H, W, 3), unit normals times alpha.
    """
    scene = RayMesh(mesh, renderer)
    faces = scene.visible_faces(cameras)
    maps = scene.shade(cameras, faces, [name for name in channels if name in CHANNELS])
    alpha = (faces >= 0)[..., None].to(mesh.vertices.dtype)
    if isinstance(cameras, Camera):
        blend = outline(mesh, cameras, faces, maps["depth"])
        alpha = blend.apply(alpha)
        maps = {name: blend.apply(value) for name, value in maps.items()}
    seen = alpha > ALPHA_VISIBLE
    depth = torch.where(seen, maps["depth"] / alpha.clamp_min(ALPHA_VISIBLE), torch.zeros_like(alpha))
    normal = torch.nn.functional.normalize(maps["normal"], dim=-1, eps=1e-6) * seen
    rgb = over_background(maps["rgb"], alpha, background)
    return RenderOutput(rgb, alpha, depth, normal, extras={"normals": maps["normal"]})


def _side(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Twice the signed area (...) of triangles in the plane, corners (..., 2)."""
    return (b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0]
