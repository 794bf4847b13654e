"""How alike two pictures are: signal-to-noise ratio, and structural similarity (Wang et al. 2004) with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..utils.errors import InputError

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Decibels (B,) between pictures (B, H, W, C) in [0, 1]: -10 log10 of the mean squared difference."""
    return -10 * (a - b).square().flatten(1).mean(dim=1).clamp_min(1e-12).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (B,) of pictures (B, H, W, C) in [0, 1]; differentiable.

    (2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_a^2 + s_b^2 + C2)) with moments under a Gaussian of 1.5
    pixels in windows of 11 that lie within the picture, each channel for itself. Raises InputError for smaller ones.
    """
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(f"ssim: pictures {tuple(a.shape)} and {tuple(b.shape)} must have one shape (B, H, W, C)")
    batch, height, width, _ = a.shape
    if min(height, width) < WINDOW:
        raise InputError(f"ssim: pictures of {width} x {height} px are smaller than its windows of {WINDOW}")
    x, y = (p.permute(0, 3, 1, 2).reshape(-1, 1, height, width) for p in (a, b))
    moments = _blurred(torch.cat([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = moments.chunk(5)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    alike = (2 * mean_x * mean_y + C1) * (2 * cov + C2)
    of = (mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)
    return (alike / of).view(batch, -1).mean(dim=1)


def _blurred(images: Tensor) -> Tensor:
    """Images (N, 1, H, W) under the Gaussian window, (N, 1, H - 10, W - 10)."""
    place = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weight = torch.exp(-0.5 * (place / SIGMA) ** 2)
    weight = weight / weight.sum()
    rows = torch.nn.functional.conv2d(images, weight.view(1, 1, -1, 1))
    return torch.nn.functional.conv2d(rows, weight.view(1, 1, 1, -1))
