"""How far latents have left the range of real ones: the magnitude score (Wizadwongsa et al. 2023)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...utils.errors import InputError

CELL = 4  # latent pixels
THRESHOLD = 3.0  # standard deviations


class Magnitude(NamedTuple):
    """Per image, (B,) each."""

    score: Tensor  # mean of the cells above the threshold in standard deviations, 0 without any
    share: Tensor  # of cells above it, [0, 1]


def magnitude_score(latents: Tensor, mean: Tensor, std: Tensor, threshold: float = THRESHOLD) -> Magnitude:
    """Standardises latents (B, C, h, w) by channel (mean and std (C,) of real ones), takes the largest magnitude over
    channels and 4x4 cells, and averages what exceeds the threshold."""
    if mean.shape != (latents.shape[1],) or std.shape != mean.shape or bool((std <= 0).any()):
        raise InputError(
            f"mean {tuple(mean.shape)} and std {tuple(std.shape)} must be one positive scale for each of the "
            f"{latents.shape[1]} channels"
        )
    shape = (1, -1, 1, 1)
    standard = (latents.float() - mean.float().reshape(shape)) / std.float().reshape(shape)
    largest = standard.abs().amax(1, keepdim=True)
    cells = F.max_pool2d(largest, min(CELL, *latents.shape[-2:]), ceil_mode=True).flatten(1)
    above = cells > threshold
    score = torch.where(above, cells, 0).sum(1) / above.sum(1).clamp(min=1)
    return Magnitude(score, above.float().mean(1))
