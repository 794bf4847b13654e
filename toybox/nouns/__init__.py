"""The nouns of the toybox: one builder each, grouped in families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..parts import Blueprint


@dataclass(frozen=True)
class Noun:
    """How one noun is built and named."""

    build: Callable[[np.random.Generator], Blueprint]
    synonyms: tuple[str, ...]  # the first is the canonical name; none is shared between nouns
    height_m: tuple[float, float]  # natural height range, metres
    family: str
    floor: bool = True  # stands on a floor
