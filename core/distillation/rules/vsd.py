"""VSD (Wang et al. 2023, "ProlificDreamer"): against the score of the renders themselves, which a twin learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ....utils.errors import InputError
from .base import Pull, Rule, Seen


@dataclass(frozen=True)
class VSD(Rule):
    """g = w (eps_cfg(x_t; y, view) - eps_phi(x_t; y, camera)); phi is asked without guidance (eq. 9).

    With phi the score of a single render, eps_phi = n and this is SDS.
    """

    twin: ClassVar[bool] = True
    rank: int = 16  # of the low-rank adapter that makes phi of the prior
    lr: float = 1e-3  # of phi; 1e-4 in the paper, whose runs are 100 times longer
    no_camera: float = 0.1  # share of phi's lessons without a camera

    def __post_init__(self) -> None:
        if self.rank < 1 or self.lr <= 0 or not 0 <= self.no_camera <= 1:
            raise InputError(
                f"vsd: rank={self.rank} at least 1, lr={self.lr} positive and no_camera={self.no_camera} in [0, 1]"
            )

    def __call__(self, seen: Seen) -> Pull:
        """See Rule."""
        assert seen.twin is not None
        guided, plain = seen.guided()
        return Pull(guided, seen.twin(seen.noised, seen.level), plain)
