"""Latents as networks want them: scaled by what a VAE's config says, and packed as FLUX reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError


def latent_affine(config: Mapping[str, Any], like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """(shift, scale) of a VAE config with latents = (posterior - shift) scale: floats, or (1, C, 1, 1) like `like`.

    The scale is scaling_factor, divided by latents_std where there are such statistics; the shift is shift_factor or
    latents_mean. Raises InputError for one of mean and standard deviation alone, and for both kinds of shift.
    """
    scale, shift = float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None and std is None:
        return shift, scale
    if mean is None or std is None:
        have, lack = ("latents_mean", "latents_std") if std is None else ("latents_std", "latents_mean")
        raise InputError(f"the VAE config has {have} but no {lack}; give both or neither")
    if shift:
        raise InputError(f"the VAE config has shift_factor={shift} and latents_mean; take one of them out")
    channels = like.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"latents_mean and latents_std have {len(mean)} and {len(std)} entries for {channels} channels"
        )
    offset, spread = (like.new_tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))
    return offset, scale / spread


def packed(x: Tensor) -> Tensor:
    """(B, h w / 4, 4 C): the 2x2 patches of x (B, C, h, w), row by row."""
    batch, channels, height, width = x.shape
    patches = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height * width // 4, channels * 4)


def unpacked(patches: Tensor, height: int, width: int) -> Tensor:
    """(B, C, height, width) of its patches (B, height width / 4, 4 C)."""
    batch, _, numbers = patches.shape
    grid = patches.reshape(batch, height // 2, width // 2, numbers // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(batch, numbers // 4, height, width)


def patch_positions(rows: int, columns: int) -> Tensor:
    """(rows * columns, 3): zero, row, column of every patch."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).reshape(-1, 3)
