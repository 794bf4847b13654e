"""Which samples and which random numbers belong to a training step: pure functions of (seed, step)."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import default_collate

from ...utils.errors import InputError


@runtime_checkable
class BatchedData(Protocol):
    """A data set that makes whole batches, the fast way."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]: ...


class ItemData(Protocol):
    """A map-style data set; its items are collated."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Data = BatchedData | ItemData
ORDER = 2  # version of SampleOrder: a checkpoint of another one saw other samples than it would go on with


class SampleOrder:
    """Every epoch is a fresh permutation from (seed, epoch); batches run across epoch borders without dropping any."""

    def __init__(self, length: int, seed: int) -> None:
        if length < 1:
            raise InputError("the training data is empty; build the data set first")
        self.length, self.seed = length, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def take(self, start: int, count: int) -> np.ndarray:
        """Indices (count,) int64 of the samples at positions start .. start + count - 1 of the endless stream."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self.length)
            piece = self._of_epoch(epoch)[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces)

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = torch.Generator().manual_seed(seed_of(self.seed, epoch))
            self._epoch, self._permutation = epoch, torch.randperm(self.length, generator=rng).numpy()
        return self._permutation


def seed_of(*parts: int) -> int:
    """One 63-bit seed out of several non-negative integers, such as (seed, step, rank)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def fetch(data: Data, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """One batch; `rng` serves data sets that draw something per visit (a paraphrase, a view)."""
    if isinstance(data, BatchedData):
        return data.batch(indices, rng)
    return default_collate([data[int(i)] for i in indices])
