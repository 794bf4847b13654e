"""Mesh rendering: Open3D or a rasteriser finds which face a pixel sees, torch computes the rest differentiably.

Gradients reach vertices (through the ray-triangle intersection), vertex colours and normals; visibility and therefore
silhouettes have none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open3d
import torch
from torch import Tensor

from ..utils.errors import InputError
from .cameras import Camera
from .colors import linear_from_srgb, sample_texture, srgb_from_linear
from .meshes import Mesh
from .outputs import Rays, RenderOutput, background_like
from .rasterisers import Renderer, drawn_faces, rasteriser_of

CHANNELS = ("rgb", "alpha", "depth", "normal", "albedo", "roughness", "metallic", "face_id")
NO_HIT = 0xFFFFFFFF
GREY = 0.72  # sRGB albedo of a mesh without colours


@dataclass(frozen=True)
class Light:
    """A directional key light plus a sky-to-ground ambient, in linear light; white."""

    azimuth_deg: float = 35.0  # left of the viewer (or of front +x when `follow` is off)
    elevation_deg: float = 40.0
    key: float = 0.75
    sky: float = 0.55  # ambient on faces that look up
    ground: float = 0.25  # ambient on faces that look down
    follow: bool = True  # the light turns with the camera, so every view is lit alike

    def irradiance(self, normal: Tensor, camera: Camera) -> Tensor:
        """Linear factor (B, H, W, 1) on the albedo for unit world normals (B, H, W, 3)."""
        azimuth = torch.full((camera.batch,), math.radians(self.azimuth_deg), device=normal.device)
        if self.follow:
            azimuth = azimuth + torch.atan2(camera.centres[:, 1], camera.centres[:, 0])
        up = torch.full_like(azimuth, math.sin(math.radians(self.elevation_deg)))
        flat = math.cos(math.radians(self.elevation_deg))
        towards = torch.stack([flat * torch.cos(azimuth), flat * torch.sin(azimuth), up], dim=-1).to(normal)
        cosine = (normal * towards[:, None, None]).sum(dim=-1, keepdim=True).clamp_min(0)
        ambient = self.ground + (self.sky - self.ground) * (0.5 + 0.5 * normal[..., 2:])
        return ambient + self.key * cosine


STUDIO = Light()


class RayMesh:
    """A mesh ready for ray casting; build a new one when the vertices have moved far enough to change visibility."""

    def __init__(self, mesh: Mesh, renderer: Renderer = "auto") -> None:
        """`renderer` finds what pictures show: see rasterisers; all else is asked of rays."""
        if not len(mesh.faces):
            raise InputError("a mesh without faces cannot be rendered")
        self.mesh, self.renderer = mesh, renderer
        self._images = {
            name: torch.from_numpy(pixels[..., :3].astype(np.float32) / 255).to(mesh.vertices.device)
            for name, pixels in mesh.textures.items()
            if mesh.uv is not None
        }

    @functools.cached_property
    def scene(self) -> Any:
        """Open3D's, on the CPU."""
        scene = open3d.t.geometry.RaycastingScene()
        scene.add_triangles(
            open3d.core.Tensor(np.ascontiguousarray(self.mesh.vertices.detach().cpu().float().numpy())),
            open3d.core.Tensor(np.ascontiguousarray(self.mesh.faces.cpu().numpy().astype(np.uint32))),
        )
        return scene

    def visible_faces(self, rays: Rays) -> Tensor:
        """Index (B, H, W) of the nearest face, -1 where there is none; a camera sees from its near to its far plane."""
        drawn_by = rasteriser_of(self.renderer, rays, self.mesh.vertices.device)
        if drawn_by is not None and isinstance(rays, Camera):
            return drawn_faces(drawn_by, self.mesh.vertices, self.mesh.faces, rays)
        origins, directions = rays.rays()
        if not isinstance(rays, Camera):
            return self.first_faces(origins, directions)
        near, far = rays.planes(ndim=4)
        return self.first_faces(origins + near * directions, directions, (far - near)[..., 0])

    def first_faces(self, origins: Tensor, directions: Tensor, reach: float | Tensor = math.inf) -> Tensor:
        """Index (...) of the nearest face within `reach` lengths of the directions (..., 3), -1 where there is none."""
        rays = torch.cat([origins, directions], dim=-1).detach().cpu().float()
        hit = self.scene.cast_rays(open3d.core.Tensor(rays.contiguous().numpy()))
        ids = torch.from_numpy(hit["primitive_ids"].numpy().astype(np.int64)).to(origins.device)
        distance = torch.from_numpy(hit["t_hit"].numpy()).to(origins.device)
        return torch.where((ids != NO_HIT) & (distance <= reach), ids, -1)

    def closest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Face (N,) and barycentric weights (N, 3) of the surface point nearest to each of points (N, 3)."""
        queries = np.ascontiguousarray(points.detach().cpu().float().numpy())
        found = self.scene.compute_closest_points(open3d.core.Tensor(queries))
        faces = torch.from_numpy(found["primitive_ids"].numpy().astype(np.int64)).to(self.mesh.faces.device)
        late = torch.from_numpy(found["primitive_uvs"].numpy()).to(self.mesh.vertices)
        return faces, torch.cat([1 - late.sum(dim=-1, keepdim=True), late], dim=-1)

    def texture(self, name: str, face: Tensor, weights: Tensor) -> Tensor:
        """The texture `name` (N, 3) at points of the surface."""
        return sample_texture(self._images[name], self._uv(face, weights)).clamp(0, 1)

    def render(
        self,
        camera: Camera,
        channels: Sequence[str] = ("rgb", "alpha", "depth", "normal"),
        background: float | Tensor = 1.0,
        light: Light | None = None,
        supersample: int = 1,
    ) -> RenderOutput:
        """All views of a camera batch.

        channels: any of CHANNELS; rgb, alpha, depth and normal are always there, face_id (int64, -1 on the background)
        goes to `extras`. light: None gives the plain albedo. supersample: s x s rays a pixel.
        """
        unknown = sorted(set(channels) - set(CHANNELS))
        if unknown:
            raise InputError(f"channels has unknown {', '.join(unknown)}; use some of {', '.join(CHANNELS)}")
        if supersample < 1:
            raise InputError(f"supersample={supersample}; use 1 or more")
        fine = camera.resized(camera.width * supersample, camera.height * supersample)
        faces = self.visible_faces(fine)
        alpha = (faces >= 0)[..., None].to(self.mesh.vertices.dtype)
        maps = self.shade(fine, faces, channels)
        if light is not None:
            lit = linear_from_srgb(maps["rgb"]) * light.irradiance(maps["normal"], fine)
            maps["rgb"] = srgb_from_linear(lit.clamp(0, 1))
        if supersample > 1:
            maps = {name: _pool(value, alpha, supersample) for name, value in maps.items()}
            alpha = _pool(alpha, torch.ones_like(alpha), supersample)
            maps["normal"] = torch.nn.functional.normalize(maps["normal"], dim=-1)
        rgb = maps.pop("rgb")
        extras = {}
        if "face_id" in channels:
            middle = supersample // 2
            extras["face_id"] = faces[:, middle::supersample, middle::supersample, None]
        rgb = rgb * alpha + (1 - alpha) * background_like(background, rgb)
        return RenderOutput(rgb=rgb, alpha=alpha, extras=extras, **maps)

    def shade(self, rays: Rays, faces: Tensor, channels: Sequence[str]) -> dict[str, Tensor]:
        """Maps (B, H, W, C) without light of the faces (B, H, W) that rays see, zero on the background."""
        seen = faces >= 0
        face = faces[seen]  # (N,)
        origins, directions = rays.rays()
        depth, weights = intersect(origins[seen], directions[seen], self.mesh.vertices[self.mesh.faces[face]])
        flat = {"depth": depth[:, None], "normal": self._normals(face, weights)}
        albedo = self._albedo(face, weights)
        if {"roughness", "metallic"} & set(channels):
            flat |= self._metallic_roughness(face, weights)
        maps = {name: _scatter(value, seen) for name, value in {**flat, "albedo": albedo}.items()}
        maps["rgb"] = maps["albedo"]
        if "albedo" not in channels:
            maps.pop("albedo")
        return maps

    def _normals(self, face: Tensor, weights: Tensor) -> Tensor:
        """Unit world normals (N, 3): interpolated vertex normals, or the face's own."""
        normals = self.mesh.vertex_normals
        if normals is None:
            return self.mesh.face_normals()[face]
        return torch.nn.functional.normalize(interpolate(normals, self.mesh.faces[face], weights), dim=-1)

    def _albedo(self, face: Tensor, weights: Tensor) -> Tensor:
        """sRGB (N, 3) from the base colour texture, else the vertex colours, else grey."""
        if "base_color" in self._images:
            return self.texture("base_color", face, weights)
        if self.mesh.vertex_colors is not None:
            return interpolate(self.mesh.vertex_colors, self.mesh.faces[face], weights)
        return torch.full((len(face), 3), GREY, dtype=weights.dtype, device=weights.device)

    def _metallic_roughness(self, face: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Linear roughness and metallic (N, 1); glTF packs them in green and blue; 1 and 0 without a texture."""
        if "metallic_roughness" not in self._images:
            one = torch.ones_like(weights[:, :1])
            return {"roughness": one, "metallic": torch.zeros_like(one)}
        packed = self.texture("metallic_roughness", face, weights)
        return {"roughness": packed[:, 1:2], "metallic": packed[:, 2:3]}

    def _uv(self, face: Tensor, weights: Tensor) -> Tensor:
        """Texture coordinates (N, 2), wrapped into [0, 1] for tiled textures."""
        assert self.mesh.uv is not None
        assert self.mesh.uv_faces is not None
        uv = interpolate(self.mesh.uv, self.mesh.uv_faces[face], weights)
        return torch.where((uv < 0) | (uv > 1), uv - uv.floor(), uv)


def intersect(origins: Tensor, directions: Tensor, triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameter t (N,) and barycentric weights (N, 3) of rays (N, 3) with the planes of triangles (N, 3, 3).

    Moeller and Trumbore 1997, differentiable in all arguments; weights are not clamped to the triangle.
    """
    a, b, c = triangles.unbind(1)
    edge1, edge2, offset = b - a, c - a, origins - a
    p = torch.linalg.cross(directions, edge2)
    q = torch.linalg.cross(offset, edge1)
    determinant = (edge1 * p).sum(dim=-1)
    inverse = 1 / torch.where(determinant.abs() < 1e-20, torch.full_like(determinant, 1e-20), determinant)
    second = (offset * p).sum(dim=-1) * inverse
    third = (directions * q).sum(dim=-1) * inverse
    return (edge2 * q).sum(dim=-1) * inverse, torch.stack([1 - second - third, second, third], dim=-1)


def interpolate(values: Tensor, faces: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean (N, C) of per-vertex values (V, C) at faces (N, 3) with barycentric weights (N, 3)."""
    return (values[faces] * weights[..., None]).sum(dim=1)


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Values (N, C) into the true places of mask (B, H, W); zero elsewhere."""
    full = values.new_zeros(*mask.shape, values.shape[-1])
    return full.masked_scatter(mask[..., None], values) if len(values) else full


def _pool(values: Tensor, alpha: Tensor, factor: int) -> Tensor:
    """Mean of s x s samples (B, sH, sW, C), each weighted by alpha (B, sH, sW, 1); 0 where nothing was hit."""
    pool = torch.nn.functional.avg_pool2d
    weighted = pool((values * alpha).movedim(-1, 1), factor).movedim(1, -1)
    return weighted / pool(alpha.movedim(-1, 1), factor).movedim(1, -1).clamp_min(1e-8)
