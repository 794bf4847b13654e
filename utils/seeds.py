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
    """Standard normal noise (batch, *shape); a list of generators gives one to each sample, a single one is shared.

    A generator draws where it lives: one on a GPU gives other numbers than the CPU's with the same seed.
    """
    if isinstance(generators, torch.Generator):
        return _drawn((batch, *shape), generators, dtype).to(device)
    if len(generators) != batch:
        raise ValueError(f"got {len(generators)} generators for a batch of {batch}; give one per sample or one for all")
    return torch.stack([_drawn(shape, g, dtype).to(device) for g in generators])


def _drawn(shape: Sequence[int], source: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(tuple(shape), generator=source, device=source.device, dtype=dtype)
