"""What becomes of the rows of parameters that grow and shrink, and of all that goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Regrown:
    """What became of the rows of parameters: those kept, then the copies, the split ones, those between two others.

    Each entry is the old row that a new one comes from. The optimiser's moments stay with kept rows, are the mean of
    both for a row between two, and begin at zero for others. The average of a copy is that of its origin, that of a row
    between two the mean of theirs; that of a split row, which lies elsewhere, is the row.
    """

    kept: Tensor  # (K,) int64
    cloned: Tensor = field(default_factory=_none)  # (C,) int64
    split: Tensor = field(default_factory=_none)  # (S,) int64
    names: tuple[str, ...] = ()  # of the parameters it happened to; empty: all of the player's
    between: Tensor = field(default_factory=lambda: _none().view(0, 2))  # (B, 2) int64

    def __len__(self) -> int:
        return len(self.kept) + len(self.cloned) + len(self.split) + len(self.between)

    def moments(self, old: Tensor) -> Tensor:
        """Rows of an optimiser slot."""
        fresh = old.new_zeros(len(self.cloned) + len(self.split), *old.shape[1:])
        return torch.cat([old[self.kept.to(old.device)], fresh, self._means(old)])

    def carry(self, optimizer: torch.optim.Optimizer, old: Tensor, now: Tensor, grown: bool = True) -> None:
        """Gives the slots of a parameter to the one in its place; grown: its rows are what this tells of."""
        slots = optimizer.state.pop(old, {})
        rowed = {k for k, v in slots.items() if grown and isinstance(v, Tensor) and v.shape == old.shape}
        optimizer.state[now] = {k: self.moments(v) if k in rowed else v for k, v in slots.items()}

    def averages(self, old: Tensor, now: Tensor) -> Tensor:
        """Rows of an average of parameters that are `now`."""
        origins = torch.cat([self.kept, self.cloned]).to(old.device)
        split = now.detach()[len(origins) : len(origins) + len(self.split)]
        return torch.cat([old[origins], split, self._means(old)])

    def _means(self, old: Tensor) -> Tensor:
        """Rows half-way between two old ones."""
        return old[self.between.to(old.device)].mean(1) if len(self.between) else old[:0]
