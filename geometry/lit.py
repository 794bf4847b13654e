"""Surfaces under light from all around: the reflection integral as a sum over the pixels of an environment.

    L(v) = sum_l (c (1 - m) / pi + D V F) (n l)+ E_l dw_l,   f0 = .04 (1 - m) + c m
GGX distribution D with alpha = roughness^2 (Walter et al. 2007), height-correlated visibility V (Heitz 2014), Schlick's
Fresnel F. Lobes are never narrower than a pixel of the environment, which the sum would miss. No shadows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Camera
from .colors import linear_from_srgb, sample_texture
from .environment import Environment
from .meshes import Mesh
from .raycast import RayMesh, interpolate, intersect

POINTS = 8192  # shaded at once


def reflected(
    albedo: Tensor, roughness: Tensor, metallic: Tensor, normal: Tensor, view: Tensor, light: Environment
) -> Tensor:
    """Outgoing linear radiance (N, 3); differentiable in everything.

    Args:
        albedo: linear (N, 3).
        roughness, metallic: (N, 1) in [0, 1].
        normal, view: unit world vectors (N, 3); view points to the eye.
        light: of h w directions.
    """
    directions, power = light.directions, light.radiance.reshape(-1, 3) * light.solid_angles[:, None]
    n_l = (normal @ directions.T).clamp(min=0)  # (N, L)
    n_v = (normal * view).sum(1, keepdim=True).clamp(min=1e-3)  # (N, 1)
    v_l = view @ directions.T
    length = (2 + 2 * v_l).clamp(min=1e-6).sqrt()  # |l + v|
    n_h = ((n_l + n_v) / length).clamp(0, 1)
    v_h = (length / 2).clamp(0, 1)
    alpha = roughness.square().clamp(min=0.5 * math.pi / light.radiance.shape[0])
    a2 = alpha.square()
    spread = a2 / (math.pi * (n_h.square() * (a2 - 1) + 1).square())
    seen = 0.5 / (n_l * (n_v.square() * (1 - a2) + a2).sqrt() + n_v * (n_l.square() * (1 - a2) + a2).sqrt() + 1e-9)
    lobe, fresnel = spread * seen * n_l, (1 - v_h).pow(5)  # (N, L)
    f0 = 0.04 * (1 - metallic) + albedo * metallic
    mirrored = f0 * (lobe * (1 - fresnel) @ power) + (lobe * fresnel) @ power
    return albedo * (1 - metallic) / math.pi * (n_l @ power) + mirrored


@dataclass(frozen=True)
class Seen:
    """What the pixels of cameras see of a mesh: those of `mask` (V, H, W), one after the other."""

    mask: Tensor
    uv: Tensor  # (N, 2); empty without uv
    normal: Tensor  # (N, 3) unit, towards the eye
    view: Tensor  # (N, 3) unit, to the eye
    face: Tensor  # (N,)
    weights: Tensor  # (N, 3) barycentric, in the face

    def image(self, values: Tensor, empty: float = 0.0) -> Tensor:
        """Values (N, C) as pictures (V, H, W, C)."""
        full = values.new_full((*self.mask.shape, values.shape[1]), empty)
        return full.masked_scatter(self.mask[..., None], values)

    def views(self, rows: Tensor) -> tuple[Seen, Tensor]:
        """(what some of the cameras see, where that stands in all)."""
        owner = torch.nonzero(self.mask)[:, 0]
        chosen = torch.cat([torch.nonzero(owner == row)[:, 0] for row in rows.tolist()])
        parts = (one[chosen] for one in (self.uv, self.normal, self.view, self.face, self.weights))
        return Seen(self.mask[rows], *parts), chosen


@torch.no_grad()
def seen_of(mesh: Mesh, cameras: Camera) -> Seen:
    """By casting a ray through each pixel's centre."""
    scene = RayMesh(mesh)
    faces = scene.visible_faces(cameras)
    mask = faces >= 0
    face = faces[mask]
    origins, directions = (one[mask] for one in cameras.rays())
    _, weights = intersect(origins, directions, mesh.vertices[mesh.faces[face]])
    view = torch.nn.functional.normalize(-directions, dim=1)
    normal = normals_towards(mesh, face, weights, view)
    uv = weights.new_zeros(len(face), 2)
    if mesh.uv is not None and mesh.uv_faces is not None:
        uv = interpolate(mesh.uv, mesh.uv_faces[face], weights)
    return Seen(mask, uv, normal, view, face, weights)


def normals_towards(mesh: Mesh, face: Tensor, weights: Tensor, view: Tensor) -> Tensor:
    """Unit normals (N, 3) at places (N,), (N, 3) of a mesh, on the side of the eye; differentiable in the mesh."""
    if mesh.vertex_normals is None:
        normal = mesh.face_normals()[face]
    else:
        normal = torch.nn.functional.normalize(interpolate(mesh.vertex_normals, mesh.faces[face], weights), dim=1)
    return torch.where(((normal * view).sum(1) < 0)[:, None], -normal, normal)


@torch.no_grad()
def lit_views(mesh: Mesh, cameras: Camera, light: Environment) -> tuple[Tensor, Tensor]:
    """(linear radiance (V, H, W, 3), coverage (V, H, W, 1)) of a mesh with its textures under a light."""
    seen = seen_of(mesh, cameras)
    albedo, roughness, metallic = textured(mesh, seen.uv)
    parts = [
        reflected(albedo[k], roughness[k], metallic[k], seen.normal[k], seen.view[k], light)
        for k in (slice(i, i + POINTS) for i in range(0, len(albedo), POINTS))
    ]
    flat = torch.cat(parts) if parts else albedo
    return seen.image(flat), seen.mask[..., None].to(flat)


def textured(mesh: Mesh, uv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Linear albedo (N, 3), roughness and metallic (N, 1) of a mesh's textures at uv (N, 2); grey, 1 and 0 without."""

    def look(name: str, otherwise: tuple[float, float, float]) -> Tensor:
        if name not in mesh.textures or mesh.uv is None:
            return uv.new_tensor(otherwise).expand(len(uv), 3)
        image = torch.from_numpy(mesh.textures[name][..., :3].astype("float32") / 255).to(uv)
        return sample_texture(image, uv).clamp(0, 1)

    packed = look("metallic_roughness", (1.0, 1.0, 0.0))
    return linear_from_srgb(look("base_color", (0.72, 0.72, 0.72))), packed[:, 1:2], packed[:, 2:3]
