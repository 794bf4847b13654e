"""The sRGB transfer curve (IEC 61966-2-1) both ways, and texture lookup."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_from_srgb(srgb: Tensor) -> Tensor:
    """Linear light in [0, 1] from sRGB-encoded values in [0, 1]; differentiable."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(linear: Tensor) -> Tensor:
    """sRGB-encoded values from linear light, both in [0, 1]; differentiable away from the clamp."""
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def sample_texture(image: Tensor, uv: Tensor) -> Tensor:
    """Bilinear lookup (N, C) in an image (H, W, C), row 0 on top, at uv (N, 2) with the origin at the bottom left.

    Texel centres lie at (j + 0.5) / W; outside [0, 1] the picture repeats. Differentiable in both arguments.
    """
    uv = torch.where((uv < 0) | (uv > 1), uv - uv.floor(), uv)
    grid = torch.stack([uv[:, 0] * 2 - 1, 1 - uv[:, 1] * 2], dim=-1)[None, :, None]  # (1, N, 1, 2)
    sampled = torch.nn.functional.grid_sample(
        image.movedim(-1, 0)[None].to(uv.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False
    )  # (1, C, N, 1)
    return sampled[0, :, :, 0].T


def texture_at_vertices(image: Tensor, uv: Tensor, uv_faces: Tensor, faces: Tensor, count: int) -> Tensor:
    """Colours (V, C) of `count` vertices: the mean over their corners of an image (H, W, C) at uv (Vt, 2).

    A corner is looked up half a texel further into its triangle, so that what borders on its chart does not mix in.
    """
    corners = uv[uv_faces]  # (F, 3, 2)
    texels = uv.new_tensor([image.shape[1], image.shape[0]])
    inwards = (corners.mean(dim=1, keepdim=True) - corners) * texels
    moved = corners + (0.5 * inwards).clamp(-0.5, 0.5) / texels
    whole = corners.amin(dim=1, keepdim=True).add(1e-6).floor()  # repeated pictures: all corners in the same copy
    looked = sample_texture(image, (moved - whole).reshape(-1, 2))  # (3F, C)
    index = faces.reshape(-1)
    total = looked.new_zeros(count, image.shape[-1]).index_add(0, index, looked)
    used = looked.new_zeros(count, 1).index_add(0, index, torch.ones_like(looked[:, :1]))
    return (total / used.clamp_min(1)).clamp(0, 1)
