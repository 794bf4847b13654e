"""What every renderer is given and returns, and the maps that are derived from it rather than rendered."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from ..utils.errors import InputError
from .cameras import Camera

ALPHA_VISIBLE = 1e-3  # below this, depth and normal are 0


class Rays(Protocol):
    """A camera, or anything else that looks along rays."""

    def rays(self) -> tuple[Tensor, Tensor]:
        """World origins and directions (B, H, W, 3); depth counts in lengths of the directions."""
        ...


@dataclass
class RenderOutput:
    """Maps (B, H, W, C), float32; row 0 is the top row."""

    rgb: Tensor  # (B, H, W, 3) display-referred sRGB in [0, 1], composited on the background
    alpha: Tensor  # (B, H, W, 1) in [0, 1]
    depth: Tensor  # (B, H, W, 1) camera z-depth in metres, alpha-normalised, 0 where alpha < 1e-3
    normal: Tensor  # (B, H, W, 3) unit, world space, 0 on the background
    albedo: Tensor | None = None  # (B, H, W, 3) sRGB
    roughness: Tensor | None = None  # (B, H, W, 1) linear
    metallic: Tensor | None = None  # (B, H, W, 1) linear
    extras: dict[str, Any] = field(default_factory=dict)  # renderer-specific maps and scalars

    def to(self, device: torch.device | str) -> RenderOutput:
        """All tensors on another device."""
        moved = {f.name: _move(getattr(self, f.name), device) for f in fields(self) if f.name != "extras"}
        return RenderOutput(**moved, extras={name: _move(value, device) for name, value in self.extras.items()})

    def __getitem__(self, index: int | slice) -> RenderOutput:
        """A sub-batch of views; an integer keeps the batch dimension. Extras of the same batch size follow."""
        count = self.rgb.shape[0]
        if isinstance(index, int):
            index = slice(range(count)[index], range(count)[index] + 1)

        def pick(value: Any) -> Any:
            return value[index] if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == count else value

        picked = {f.name: pick(getattr(self, f.name)) for f in fields(self) if f.name != "extras"}
        return RenderOutput(**picked, extras={name: pick(value) for name, value in self.extras.items()})

    @classmethod
    def cat(cls, outputs: list[RenderOutput]) -> RenderOutput:
        """Joins batches of views; extras kept when every output has them as tensors."""
        if not outputs:
            raise InputError("RenderOutput.cat got no outputs")
        names = ("rgb", "alpha", "depth", "normal", "albedo", "roughness", "metallic")
        joined: dict[str, Any] = {}
        for name in names:
            values = [getattr(output, name) for output in outputs]
            joined[name] = None if any(v is None for v in values) else torch.cat(values)
        shared = set.intersection(*(set(o.extras) for o in outputs))
        extras = {
            key: torch.cat([o.extras[key] for o in outputs])
            for key in sorted(shared)
            if all(isinstance(o.extras[key], Tensor) and o.extras[key].ndim > 0 for o in outputs)
        }
        return cls(**joined, extras=extras)


def ray_distance(depth: Tensor, camera: Camera) -> Tensor:
    """Distance along the ray (B, H, W, 1) from z-depth (B, H, W, 1): depth |K^-1 (u, v, 1)|."""
    return depth * camera.pixel_directions().norm(dim=-1, keepdim=True)


def disparity(depth: Tensor) -> Tensor:
    """1 / depth where depth > 0, else 0."""
    return torch.where(depth > 0, 1 / depth.clamp_min(1e-12), torch.zeros_like(depth))


def camera_normals(normal: Tensor, camera: Camera, opengl: bool = False) -> Tensor:
    """World normals (B, H, W, 3) in camera axes: OpenCV (y down, z away) or OpenGL (y up, z towards the viewer)."""
    rotated = (camera.w2c[:, None, None, :3, :3] @ normal[..., None])[..., 0]
    return rotated * rotated.new_tensor([1.0, -1.0, -1.0]) if opengl else rotated


def world_normals(normal: Tensor, camera: Camera, opengl: bool = False) -> Tensor:
    """Inverse of `camera_normals`."""
    local = normal * normal.new_tensor([1.0, -1.0, -1.0]) if opengl else normal
    return (camera.c2w[:, None, None, :3, :3] @ local[..., None])[..., 0]


def normals_from_depth(depth: Tensor, camera: Camera) -> Tensor:
    """World normals (B, H, W, 3) facing the camera, by central differences of depth (B, H, W, 1); 0 at holes."""
    points = camera.unproject(depth)  # (B, H, W, 3)
    valid = depth[..., 0] > 0
    normal = torch.zeros_like(points)
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    inner = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1)
    complete = valid[:, 1:-1, 2:] & valid[:, 1:-1, :-2] & valid[:, 2:, 1:-1] & valid[:, :-2, 1:-1]
    complete &= valid[:, 1:-1, 1:-1]
    normal[:, 1:-1, 1:-1] = inner * complete[..., None]
    return normal


def over_background(rgb: Tensor, alpha: Tensor, background: float | Tensor) -> Tensor:
    """Pre-multiplied colour (B, H, W, 3) over a constant, (3,), (B, 3) or (B, H, W, 3) background."""
    return rgb + (1 - alpha) * background_like(background, rgb)


def background_like(background: float | Tensor, rgb: Tensor) -> Tensor:
    """A background broadcast to (B, H, W, 3)."""
    value = torch.as_tensor(background, dtype=rgb.dtype, device=rgb.device)
    if value.ndim == 2:
        value = value[:, None, None, :]
    return value.expand_as(rgb) if value.ndim else torch.full_like(rgb, float(value))


def _move(value: Any, device: torch.device | str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
