"""What a step minimises, and what it tells the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor


class LossOut(NamedTuple):
    """A scalar to minimise and named scalars to log."""

    loss: Tensor
    logs: Mapping[str, Tensor | float]


class Loss(Protocol):
    """What a trainer reads of a loss; `LossOut` is one."""

    @property
    def loss(self) -> Tensor: ...

    @property
    def logs(self) -> Mapping[str, Tensor | float]: ...
