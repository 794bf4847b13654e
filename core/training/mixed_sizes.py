"""Training batches out of latent sets of several picture sizes, one size a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...utils.errors import InputError
from .latents import LatentSet


class MixedSizes:
    """Batches of the first set, or with the others' shares random samples of one of them instead.

    The length and the sample order are those of the first set. {"latents": float16 (B, C, h, w), "captions": list}
    """

    def __init__(self, sets: Sequence[LatentSet], shares: Sequence[float]) -> None:
        """`shares` are the relative numbers of batches. Raises InputError for sets of different codecs."""
        if not sets or len(sets) != len(shares) or min(shares) < 0 or sum(shares) <= 0:
            raise InputError(f"shares={list(shares)} must be {len(sets)} numbers >= 0 that are not all 0, one a set")
        codecs = sorted({latents.identity["vae"] for latents in sets})
        if len(codecs) > 1:
            raise InputError(f"the latent sets come from different codecs ({', '.join(codecs)}); encode them again")
        self.sets, self.shares = list(sets), np.asarray(shares, float) / sum(shares)
        self.identity = {
            "vae": codecs[0],
            "sizes": [list(latents.latents.shape) for latents in sets],
            "shares": self.shares.tolist(),
        }

    def __len__(self) -> int:
        return len(self.sets[0])

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Samples `indices` of the first set, or as many random ones of another."""
        chosen = int(rng.choice(len(self.sets), p=self.shares))
        if chosen:
            indices = rng.integers(len(self.sets[chosen]), size=len(indices))
        return self.sets[chosen].batch(indices, rng)
