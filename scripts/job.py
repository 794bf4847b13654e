"""What a recipe makes: a training ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.training.config import TrainerConfig
from ..core.training.objectives.base import Trainable
from ..core.training.sampling_order import Data


@dataclass(frozen=True)
class Job:
    """A training ready to run; `export(folder)` writes the weights the modules hold at that time."""

    trainer: TrainerConfig
    objective: Trainable
    data: Data
    export: Callable[[Path], Path]
