"""How a head is walked from a starting state to its answer, where a caller wants it otherwise than the head does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.sampling.grids import Spacing
from ..core.sampling.sampler import StepCallback


@dataclass(frozen=True)
class Walk:
    """Wishes of a caller; a head that is asked once has nothing to heed."""

    steps: int | None = None
    """None: as many as suit the head"""
    spacing: Spacing | None = None
    """of the levels; None: the head's"""
    callback: StepCallback | None = None
    """see `Sampler.run`"""
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    """one or one a row, for a head that is `stochastic`"""


USUAL = Walk()
