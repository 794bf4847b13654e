"""Pictures of a mesh from all sides: frames for an animation and a contact sheet of every channel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..utils.errors import InputError
from .cameras import Camera
from .meshes import Mesh
from .raycast import STUDIO, Light, RayMesh

Picture = NDArray[np.uint8]


def orbit_around(
    mesh: Mesh, views: int, size: int, elevation_deg: float = 15.0, fov_y_deg: float = 40.0, margin: float = 1.1
) -> Camera:
    """Cameras on a full circle from the front (+x), counter-clockwise, that see the whole object at any azimuth."""
    low, high = mesh.bounds.detach().cpu().float()
    centre = 0.5 * (low + high)
    radius = float((mesh.vertices.detach().cpu().float() - centre).norm(dim=-1).max())
    distance = margin * max(radius, 1e-6) / float(np.sin(np.radians(0.5 * fov_y_deg)))
    azimuth = torch.arange(views) * (360.0 / views)
    near, far = max(distance - 2 * radius, 0.01 * distance), distance + 2 * radius
    camera = Camera.orbit(azimuth, elevation_deg, distance, fov_y_deg, size, size, near, far)
    shift = torch.zeros(4, 4)
    shift[:3, 3] = centre
    return replace(camera, c2w=camera.c2w + shift)


@torch.no_grad()
def render_turntable(
    mesh: Mesh,
    frames: int = 36,
    size: int = 256,
    elevation_deg: float = 15.0,
    fov_y_deg: float = 40.0,
    background: float = 1.0,
    light: Light | None = STUDIO,
    supersample: int = 2,
) -> list[Picture]:
    """`frames` pictures (size, size, 3) of one turn; light=None shows the plain colours."""
    if frames < 1 or size < 1:
        raise InputError(f"frames={frames}, size={size}; both must be positive")
    cameras = orbit_around(mesh, frames, size, elevation_deg, fov_y_deg)
    scene = RayMesh(mesh)
    pictures = []
    for index in range(frames):
        output = scene.render(cameras[index], background=background, light=light, supersample=supersample)
        pictures.append(_to_uint8(output.rgb[0]))
    return pictures


@torch.no_grad()
def contact_sheet(
    mesh: Mesh, size: int = 128, views: int = 8, elevation_deg: float = 15.0, light: Light | None = STUDIO
) -> Picture:
    """One picture (4 size, views size, 3): rows rgb, normal, depth and alpha; columns go round from the front."""
    cameras = orbit_around(mesh, views, size, elevation_deg)
    output = RayMesh(mesh).render(cameras, light=light, supersample=2)
    normal = torch.where(output.alpha > 0, 0.5 * output.normal + 0.5, torch.ones_like(output.normal))
    seen = output.depth[output.alpha > 0]
    low, high = (seen.min(), seen.max()) if len(seen) else (torch.zeros(()), torch.ones(()))
    nearness = 1 - 0.85 * (output.depth - low) / (high - low).clamp_min(1e-9)  # near is bright
    depth = torch.where(output.alpha > 0, nearness, torch.zeros_like(nearness)).expand(-1, -1, -1, 3)
    rows = [output.rgb, normal, depth, output.alpha.expand(-1, -1, -1, 3)]
    return _to_uint8(torch.cat([torch.cat(list(row), dim=1) for row in rows], dim=0))


def _to_uint8(image: torch.Tensor) -> Picture:
    return (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
