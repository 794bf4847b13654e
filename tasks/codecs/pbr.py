"""Maps of a surface material: as three pictures for a picture codec, and as the eight channels of a codec of its own.

StableMaterials (2024) stacks [base colour 3, normal x y, height, roughness, metallic] in [-1, 1] for a VAE of nine
channels (the ninth is not read). A picture VAE holds them in threes instead, as Marigold's intrinsic heads do: albedo;
normal; (roughness, metallic, height). Either way the third component of the normal follows from the others,
z = sqrt(1 - x^2 - y^2), and where x^2 + y^2 > 1 they are divided by their length and z = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import InputError

GROUPS = 3  # pictures of a material
NATIVE = 9  # channels of a codec of its own
PLANES = {"albedo": 3, "normal": 3, "height": 1, "roughness": 1, "metallic": 1}


@dataclass(frozen=True)
class MaterialMaps:
    """A batch of materials, float; `normal` is unit, x right, y up, z out of the surface, the others in [0, 1]."""

    albedo: Tensor  # (B, 3, H, W) sRGB
    normal: Tensor  # (B, 3, H, W)
    height: Tensor  # (B, 1, H, W)
    roughness: Tensor  # (B, 1, H, W)
    metallic: Tensor  # (B, 1, H, W)

    def __post_init__(self) -> None:
        shape = self.albedo.shape
        for name, channels in PLANES.items():
            given = getattr(self, name).shape
            if len(given) != 4 or given != (shape[0], channels, *shape[2:]):
                raise InputError(f"{name} has shape {tuple(given)}, expected {(shape[0], channels, *shape[2:])}")

    def __len__(self) -> int:
        return len(self.albedo)

    def __getitem__(self, rows: slice | Tensor) -> MaterialMaps:
        return MaterialMaps(*(getattr(self, name)[rows] for name in PLANES))

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any], device: torch.device) -> MaterialMaps:
        """Of arrays (B, H, W) or (B, H, W, 3) by name."""
        made = {}
        for name in PLANES:
            values = torch.as_tensor(batch[name]).to(device).float()
            made[name] = values[:, None] if values.ndim == 3 else values.permute(0, 3, 1, 2)
        return cls(**made)

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """One material as float32 (H, W, 3) and (H, W)."""
        found = {name: getattr(self, name)[index].detach().float().permute(1, 2, 0).cpu().numpy() for name in PLANES}
        return {name: one[..., 0] if one.shape[-1] == 1 else one for name, one in found.items()}


def to_pictures(maps: MaterialMaps) -> Tensor:
    """Three pictures (B, 3, 3, H, W) in [-1, 1]: albedo; normal; roughness, metallic and height."""
    surface = torch.cat([maps.roughness, maps.metallic, maps.height], 1)
    return torch.stack([2 * maps.albedo - 1, maps.normal, 2 * surface - 1], 1)


def from_pictures(pictures: Tensor) -> MaterialMaps:
    """Inverse of `to_pictures` for normals with z >= 0."""
    if pictures.ndim != 5 or pictures.shape[1:3] != (GROUPS, 3):
        raise InputError(f"pictures have shape {tuple(pictures.shape)}, expected (B, {GROUPS}, 3, H, W)")
    albedo, normal, surface = pictures.unbind(1)
    roughness, metallic, height = _unit(surface).split(1, 1)
    return MaterialMaps(_unit(albedo), lifted(normal[:, :2]), height, roughness, metallic)


def to_native(maps: MaterialMaps) -> Tensor:
    """Channels (B, 9, H, W) in [-1, 1] of a codec of its own; the ninth is 0."""
    planes = [
        2 * maps.albedo - 1,
        maps.normal[:, :2],
        *(2 * one - 1 for one in (maps.height, maps.roughness, maps.metallic)),
    ]
    return torch.cat([*planes, torch.zeros_like(maps.height)], 1)


def from_native(channels: Tensor) -> MaterialMaps:
    """Inverse of `to_native` for normals with z >= 0; channels beyond the eighth are not read."""
    if channels.ndim != 4 or channels.shape[1] < NATIVE - 1:
        raise InputError(f"channels have shape {tuple(channels.shape)}, expected (B, {NATIVE}, H, W)")
    height, roughness, metallic = (_unit(channels[:, k : k + 1]) for k in (5, 6, 7))
    return MaterialMaps(_unit(channels[:, :3]), lifted(channels[:, 3:5]), height, roughness, metallic)


def lifted(xy: Tensor) -> Tensor:
    """Unit normals (B, 3, H, W) of their first two components (B, 2, H, W)."""
    xy = xy.clamp(-1, 1)
    length = xy.square().sum(1, keepdim=True)
    outside = length > 1
    xy = torch.where(outside, xy / length.clamp(min=1).sqrt(), xy)
    z = torch.where(outside, 0.0, (1 - length).clamp(min=0).sqrt())
    return torch.cat([xy, z], 1)


def joined_maps(parts: Sequence[MaterialMaps]) -> MaterialMaps:
    """Several batches as one."""
    return MaterialMaps(*(torch.cat([getattr(part, name) for part in parts]) for name in PLANES))


def _unit(picture: Tensor) -> Tensor:
    return (picture.clamp(-1, 1) + 1) / 2
