"""Fields: geometry and colour at every point of a cube, as dense grids, hash grids or triplanes."""

from __future__ import annotations

from .base import Field, Snapshot
from .build import FieldConfig, make_field
from .dual import DualConfig, DualField
from .grid import GridConfig, GridField
from .hashgrid import HashConfig, HashField
from .heads import Head, HeadConfig, make_head
from .triplane import TriplaneConfig, TriplaneField

__all__ = [
    "DualConfig",
    "DualField",
    "Field",
    "FieldConfig",
    "GridConfig",
    "GridField",
    "HashConfig",
    "HashField",
    "Head",
    "HeadConfig",
    "Snapshot",
    "TriplaneConfig",
    "TriplaneField",
    "make_field",
    "make_head",
]
