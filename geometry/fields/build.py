"""One config, any field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from .base import Field
from .dual import DualConfig, DualField
from .grid import GridConfig, GridField
from .hashgrid import HashConfig, HashField
from .heads import HeadConfig, make_head
from .triplane import TriplaneConfig, TriplaneField


@dataclass(frozen=True)
class FieldConfig:
    """`kind` chooses the representation; the parts of the others are ignored."""

    kind: Literal["grid", "hash", "triplane", "dual"] = "grid"
    half: float = 1.0  # metres; the world is [-half, half]^3
    head: HeadConfig = field(default_factory=HeadConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    hash: HashConfig = field(default_factory=HashConfig)
    triplane: TriplaneConfig = field(default_factory=TriplaneConfig)
    dual: DualConfig = field(default_factory=DualConfig)


def make_field(config: FieldConfig, generator: torch.Generator | None = None) -> Field:
    """A fresh field; random initial values (hash, triplane) come from the generator."""
    head = make_head(config.head)
    if config.kind == "grid":
        return GridField(config.grid, head, config.half)
    if config.kind == "hash":
        return HashField(config.hash, head, config.half, generator)
    if config.kind == "dual":
        return DualField(config.dual, head, config.half, generator)
    return TriplaneField(config.triplane, head, config.half, generator)
