"""Randomness as an argument: one seed per sample, so that a batch of 8 equals 8 batches of 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    """A CPU generator with this seed; noise is drawn on the CPU so that every device sees the same."""
    return torch.Generator().manual_seed(seed)


def sample_noise(
    shape: Sequence[int],
    generators: torch.Generator | Sequence[torch.Generator],
    batch: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise (batch, *shape); a list of generators gives one to each sample, a single one is shared."""
    if isinstance(generators, torch.Generator):
        return torch.randn((batch, *shape), generator=generators, dtype=dtype).to(device)
    if len(generators) != batch:
        raise ValueError(f"got {len(generators)} generators for a batch of {batch}; give one per sample or one for all")
    return torch.stack([torch.randn(tuple(shape), generator=g, dtype=dtype) for g in generators]).to(device)
