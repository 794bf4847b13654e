"""A short training inside an experiment, and what it gives while its averaged weights are in the modules."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.training.config import TrainerConfig
from ..core.training.objectives.base import Trainable
from ..core.training.sampling_order import Data
from ..core.training.trainer import Trainer


@contextmanager
def trained(objective: Trainable, data: Data, settings: TrainerConfig) -> Iterator[Trainer]:
    """The run's trainer; inside, the modules hold the average."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings, objective, data, Path(folder) / "run", "cpu")
        trainer.run()
    with trainer.averaged():
        yield trainer
