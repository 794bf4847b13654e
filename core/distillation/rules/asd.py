"""ASD (Ma et al. 2024, "ScaleDreamer"): against the prior itself, asked a little further in the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....utils.errors import InputError
from ...priors.rows import COND
from .base import Pull, Rule, Seen


@dataclass(frozen=True)
class ASD(Rule):
    """g = w (eps_cfg(x_t, t) - eps_c(x_t', t')), t' = t + floor(U shift (t - t_min)), the same noise in both (eq. 9).

    At the end of the window, and with shift = 0, which asks once, it is (s - 1) times CSD.
    """

    shift: float = 0.1  # of the distance to the lower end of the window; towards more noise
    random: bool = True  # U ~ U[0, 1) for each group of views; False: U = 1

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise InputError(f"asd: shift={self.shift} moves towards more noise; give 0 or more")

    def __call__(self, seen: Seen) -> Pull:
        """See Rule."""
        if self.shift == 0:
            guided, plain = seen.guided()
            return Pull(guided, plain, plain)
        last = seen.schedule.steps - 1
        room = torch.minimum(self.shift * (seen.index - seen.lowest).clamp_min(0), last - seen.index)
        later = seen.index + ((seen.uniform() if self.random else 1.0) * room).floor()
        x = seen.schedule.add_noise(seen.x, seen.noise, seen.schedule.at_index(later))
        guided, plain = seen.guided()
        return Pull(guided, seen.noise_of(seen.ask(COND, x=x, index=later)[COND].eps), plain)
