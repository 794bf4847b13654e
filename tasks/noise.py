"""Annealed multi-resolution noise of Marigold's training (Ke et al. 2024, supplement)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LEVELS = 10


def annealed_noise(shape: Sequence[int], strength: Tensor, rng: torch.Generator) -> Tensor:
    """Noise (B, C, h, w): N_0 + sum_i s^i up(N_i), divided by the standard deviation of the whole batch.

    Args:
        shape: (B, C, h, w).
        strength: s (B,), e.g. 0.9 t / T: much low-frequency noise at high t, none at t = 0.
        rng: the sides of N_i shrink by r_i^i, r_i ~ U[2, 4], cumulatively, until one is 1 px.
    """
    height, width = shape[2:]
    factor = strength.reshape(-1, 1, 1, 1).cpu()
    noise = torch.randn(shape, generator=rng)
    for i in range(MAX_LEVELS):
        shrink = float(2 + 2 * torch.rand((), generator=rng)) ** i
        height, width = max(1, int(height / shrink)), max(1, int(width / shrink))
        coarse = torch.randn((*shape[:2], height, width), generator=rng)
        noise = noise + factor**i * F.interpolate(coarse, shape[2:], mode="bilinear", align_corners=False)
        if min(height, width) == 1:
            break
    return noise / noise.std()
