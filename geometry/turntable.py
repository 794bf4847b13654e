"""Pictures of a mesh or of splats from all sides: frames for an animation and a contact sheet of every channel."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..utils.errors import InputError
from .cameras import Camera
from .meshes import Mesh
from .outputs import RenderOutput
from .raycast import STUDIO, Light, RayMesh

Picture = NDArray[np.uint8]


class Viewed(Protocol):
    """What can be looked at from around."""

    def ball(self) -> tuple[torch.Tensor, float]:
        """Centre (3,) and radius in metres of a ball that it fits in."""
        ...

    def look(self, camera: Camera, background: float | torch.Tensor = 1.0) -> RenderOutput:
        """All its maps."""
        ...


class MeshView:
    """A mesh to look at."""

    def __init__(self, mesh: Mesh, light: Light | None = STUDIO, supersample: int = 2) -> None:
        """light=None shows the plain colours."""
        self.mesh, self.light, self.supersample = mesh, light, supersample
        self._scene = RayMesh(mesh)

    def ball(self) -> tuple[torch.Tensor, float]:
        """See Viewed: around the middle of its bounds."""
        low, high = self.mesh.bounds.detach().cpu().float()
        centre = 0.5 * (low + high)
        return centre, float((self.mesh.vertices.detach().cpu().float() - centre).norm(dim=-1).max())

    def look(self, camera: Camera, background: float | torch.Tensor = 1.0) -> RenderOutput:
        """See Viewed."""
        return self._scene.render(camera, background=background, light=self.light, supersample=self.supersample)


def orbit_around(
    thing: Mesh | Viewed,
    views: int,
    size: int,
    elevation_deg: float = 15.0,
    fov_y_deg: float = 40.0,
    margin: float = 1.1,
    azimuth_deg: float = 0.0,
) -> Camera:
    """Cameras on a full circle from an azimuth, counter-clockwise, that see the whole object at any azimuth."""
    centre, radius = (MeshView(thing) if isinstance(thing, Mesh) else thing).ball()
    distance = margin * max(radius, 1e-6) / float(np.sin(np.radians(0.5 * fov_y_deg)))
    azimuth = azimuth_deg + torch.arange(views) * (360.0 / views)
    near, far = max(distance - 2 * radius, 0.01 * distance), distance + 2 * radius
    camera = Camera.orbit(azimuth, elevation_deg, distance, fov_y_deg, size, size, near, far)
    shift = torch.zeros(4, 4)
    shift[:3, 3] = centre
    return replace(camera, c2w=camera.c2w + shift)


@torch.no_grad()
def render_turntable(
    thing: Mesh | Viewed,
    frames: int = 36,
    size: int = 256,
    elevation_deg: float = 15.0,
    fov_y_deg: float = 40.0,
    background: float = 1.0,
    light: Light | None = STUDIO,
    supersample: int = 2,
) -> list[Picture]:
    """`frames` pictures (size, size, 3) of one turn; light, of meshes, None shows the plain colours."""
    if frames < 1 or size < 1:
        raise InputError(f"frames={frames}, size={size}; both must be positive")
    viewed = MeshView(thing, light, supersample) if isinstance(thing, Mesh) else thing
    cameras = orbit_around(viewed, frames, size, elevation_deg, fov_y_deg)
    return film(viewed, cameras, background)


@torch.no_grad()
def film(viewed: Viewed, cameras: Camera, background: float | torch.Tensor = 1.0) -> list[Picture]:
    """A picture (H, W, 3) from each camera."""
    return [_to_uint8(viewed.look(cameras[index], background).rgb[0]) for index in range(len(cameras))]


@torch.no_grad()
def cut_out(viewed: Viewed, camera: Camera) -> Picture:
    """One picture (H, W, 4) with its coverage, colours not multiplied by it."""
    seen = viewed.look(camera, 0.0)
    plain = seen.rgb[0] / seen.alpha[0].clamp_min(1e-3)
    return _to_uint8(torch.cat([plain, seen.alpha[0]], dim=-1))


@torch.no_grad()
def contact_sheet(
    thing: Mesh | Viewed,
    size: int = 128,
    views: int = 8,
    elevation_deg: float = 15.0,
    light: Light | None = STUDIO,
    cameras: Camera | None = None,
) -> Picture:
    """One picture (4 size, views size, 3): rows rgb, normal, depth and alpha; columns go round from the front.

    cameras: look from there instead.
    """
    viewed = MeshView(thing, light) if isinstance(thing, Mesh) else thing
    cameras = orbit_around(viewed, views, size, elevation_deg) if cameras is None else cameras
    output = RenderOutput.cat([viewed.look(cameras[i]) for i in range(len(cameras))])
    normal = torch.where(output.alpha > 0, 0.5 * output.normal + 0.5, torch.ones_like(output.normal))
    seen = output.depth[output.alpha > 0]
    low, high = (seen.min(), seen.max()) if len(seen) else (torch.zeros(()), torch.ones(()))
    nearness = 1 - 0.85 * (output.depth - low) / (high - low).clamp_min(1e-9)  # near is bright
    depth = torch.where(output.alpha > 0, nearness, torch.zeros_like(nearness)).expand(-1, -1, -1, 3)
    rows = [output.rgb, normal, depth, output.alpha.expand(-1, -1, -1, 3)]
    return _to_uint8(torch.cat([torch.cat(list(row), dim=1) for row in rows], dim=0))


def _to_uint8(image: torch.Tensor) -> Picture:
    return (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
