"""How to train: the trainer's settings, and the schedule and the optimiser that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from ...utils.errors import InputError
from .accelerated import Precision
from .muon import Muon, matrix_groups
from .players import Groups, MakeOptimizer, trainable


@dataclass(frozen=True)
class TrainerConfig:
    """How to train; what to train is the objective's own config."""

    steps: int = 1000
    """updates of the weights; the learning-rate schedule spans them; may grow when a run is resumed"""
    batch: int = 32
    """samples per process and accumulation step"""
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: matrices by orthogonalised momentum, the rest by AdamW"""
    lr: float = 1e-3
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup: int = 0
    """steps of linear warm-up"""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    """largest gradient norm"""
    ema: float = 0.999
    """largest decay of the average; it starts as (1 + n) / (10 + n)"""
    seed: int = 0
    channels_last: bool = False
    precision: Precision = "no"
    """autocast; on the CPU bf16 pays with AVX512-BF16 or AMX, and with channels_last off"""
    max_minutes: float | None = None
    """stop cleanly with a checkpoint after this time; the schedule does not change"""
    max_skips: int = 20
    """abort after this many updates in a row without a finite loss and gradient"""
    log_every: int = 50
    save_every: int = 1000
    validate_every: int = 0
    """0 = at the end only"""
    preview_every: int = 0
    """0 = never"""
    keep: int = 2
    """checkpoints kept"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "save_every", "keep", "max_skips"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0.0 <= self.ema < 1.0:
            raise InputError(f"ema={self.ema} must lie in [0, 1)")


def optimizer_of(config: TrainerConfig, nets: nn.Module) -> tuple[Groups, MakeOptimizer]:
    """The named groups of all trainable parameters, and what makes the optimiser of the config out of them."""
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "muon":
        half = torch.bfloat16 if config.precision == "bf16" else None
        return lambda: matrix_groups(nets), partial(Muon, dtype=half, **options)
    return lambda: [trainable(nets)], partial(torch.optim.AdamW, fused=True, **options)


def learning_rate(config: TrainerConfig) -> Callable[[int], float]:
    """Factor on the rates at a step: diffusers' formula, read off the schedule of an optimiser of nothing."""
    nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(config.schedule, nothing, num_warmup_steps=config.warmup, num_training_steps=config.steps)
    return schedule.lr_lambdas[0]
