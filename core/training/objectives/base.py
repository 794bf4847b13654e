"""What a trainer needs to know about an objective."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


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


class Trainable(Protocol):
    """What a trainer needs of an objective, for those of packages that do not import this one."""

    modules: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    config: Any

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> Loss: ...

    def validate(self) -> dict[str, float]: ...

    def preview(self, step: int, out: Path) -> list[Path]: ...


class Objective(ABC):
    """One thing to minimise. No device calls, no file access in `loss`; all randomness from the generator.

    modules: name -> network; trained, averaged and checkpointed by the trainer.
    frozen: name -> network; moved to the device with the others, never changed.
    config: the dataclass that defines the objective; a checkpoint refuses to resume under another one.
    """

    modules: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    config: Any

    @abstractmethod
    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """The loss of one batch; the same batch, weights, generator state and step give the same value."""

    def validate(self) -> dict[str, float]:
        """Numbers on held-out data, with the weights the modules hold now (the trainer puts the average there)."""
        return {}

    def preview(self, step: int, out: Path) -> list[Path]:
        """Pictures of the state of the training, written into the folder `out`. Returns their paths."""
        return []


@contextlib.contextmanager
def fixed_init(seed: int) -> Iterator[None]:
    """Networks built inside get initial weights that depend on the seed only; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        yield
