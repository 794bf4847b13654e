"""SDS (Poole et al. 2022, "DreamFusion") and SJC (Wang et al. 2022, "Score Jacobian Chaining"): against the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Pull, Rule, Seen


@dataclass(frozen=True)
class SDS(Rule):
    """g = w (eps_cfg - n)."""

    targets: ClassVar[bool] = True

    def __call__(self, seen: Seen) -> Pull:
        """See Rule."""
        guided, plain = seen.guided()
        return Pull(guided, seen.render(), plain)


@dataclass(frozen=True)
class SJC(Rule):
    """In variance-exploding units, z = x + s n with s = sigma / alpha and D(z) = z - s eps_cfg:

    g = -(D - x) / s = eps_cfg - n, or -(D - z) / s = eps_cfg as the method was first derived.
    """

    reduced: bool = True  # the variance-reduced form, which the published code uses

    def __call__(self, seen: Seen) -> Pull:
        """See Rule."""
        guided, plain = seen.guided()
        return Pull(guided, seen.render() if self.reduced else seen.noise_of(torch.zeros_like(seen.x)), plain)
