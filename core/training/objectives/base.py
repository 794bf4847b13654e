"""What a trainer needs to know about an objective."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..config import TrainerConfig
from ..loss import Loss, LossOut
from ..players import Player


class Trainable(Protocol):
    """What a trainer needs of an objective, for those of packages that do not import this one."""

    modules: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    config: Any

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> Loss: ...

    def validate(self) -> dict[str, float]: ...

    def preview(self, step: int, out: Path) -> list[Path]: ...


BatchLoss = Callable[[dict[str, Any], torch.Generator, int], Loss]  # see Objective.loss


@runtime_checkable
class Playing(Protocol):
    """An objective that says itself who moves: a discriminator beside its student, say.

    Without it the trainer makes one player of all `modules`, with the optimiser of its config and `loss`.
    """

    def players(self, config: TrainerConfig) -> Sequence[Player]:
        """Players on parameters of `modules`; those without a rate of their own follow the trainer's schedule."""

    def losses(self) -> Mapping[str, BatchLoss]:
        """The loss of each player by its name."""


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
