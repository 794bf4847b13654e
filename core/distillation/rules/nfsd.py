"""NFSD (Katzir et al. 2023, "Noise-Free Score Distillation"): the prior's own noise estimate is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ....utils.errors import InputError
from ...priors.rows import COND, NULL
from .base import NEGATIVE, Pull, Rule, Seen


@dataclass(frozen=True)
class NFSD(Rule):
    """g = w (s d_c + d_D), d_c = eps_c - eps_0; d_D = eps_0 below `clean`, where noise is little, else eps_0 - eps_-.

    Where eps_- = eps_0 it is s d_c above `clean`.
    """

    negative: ClassVar[bool] = True
    clean: float = 0.2  # share of the train time

    def __post_init__(self) -> None:
        if not 0 <= self.clean <= 1:
            raise InputError(f"nfsd: clean={self.clean} must be a share of the train time in [0, 1]")

    def __call__(self, seen: Seen) -> Pull:
        """See Rule."""
        guidance = seen.denoiser.guidance
        p = seen.ask(*dict.fromkeys((*guidance.needs(seen.level), COND, NULL, NEGATIVE)))
        noisy = (seen.fraction >= self.clean).to(seen.x)[:, None, None, None]
        return Pull(guidance(p), seen.noise_of(noisy * p[NEGATIVE].eps), p[COND])
