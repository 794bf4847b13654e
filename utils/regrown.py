"""What becomes of the rows of parameters that grow and shrink, and of all that goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Regrown:
    """What became of the rows of parameters: the new rows are those kept, then the copies, then the split ones.

    Each entry is the old row that a new one comes from. The optimiser's moments stay with kept rows and begin at zero
    for others. The average of a copy is that of its origin; that of a split row, which lies elsewhere, is the row.
    """

    kept: Tensor  # (K,) int64
    cloned: Tensor = field(default_factory=_none)  # (C,) int64
    split: Tensor = field(default_factory=_none)  # (S,) int64
    names: tuple[str, ...] = ()  # of the parameters it happened to; empty: all of the player's

    def __len__(self) -> int:
        return len(self.kept) + len(self.cloned) + len(self.split)

    def moments(self, old: Tensor) -> Tensor:
        """Rows of an optimiser slot."""
        fresh = old.new_zeros(len(self.cloned) + len(self.split), *old.shape[1:])
        return torch.cat([old[self.kept.to(old.device)], fresh])

    def averages(self, old: Tensor, now: Tensor) -> Tensor:
        """Rows of an average of parameters that are `now`."""
        origins = torch.cat([self.kept, self.cloned]).to(old.device)
        return torch.cat([old[origins], now.detach()[len(origins) :]])
