"""How many bytes of tensors live at once, on any device and of tensors without values (fake, meta) too."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside create, for as long as anything holds them.

    What was there before is not counted; workspaces inside an operation are not seen.

    >>> with LiveBytes() as live:
    ...     (weight @ x).relu().sum().backward()
    >>> live.peak
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0  # bytes
        self._seen: set[int] = set()  # ids of living storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See TorchDispatchMode."""
        for tensor in tree_leaves((args, kwargs)):
            self._meet(tensor, counts=False)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            self._meet(tensor, counts=True)
        return out

    def _meet(self, tensor: Any, counts: bool) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        if id(storage) in self._seen:
            return
        size = storage.nbytes() if counts else 0
        self._seen.add(id(storage))
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, id(storage), size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
