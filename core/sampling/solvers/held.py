"""Renoise at one level, then DDIM: few steps that refine a guess (Ye et al. 2024, StableNormal, "SG-DRN").

The run begins with a guess of x0 itself, given to the network at level t*. While it is held there, each answer is
noised anew, x = alpha_* x0 + sigma_* z; the last of these steps reads the state at a level one stride noisier and comes
back to t* without new noise. Then DDIM, to the answer at the least noisy level. A network that always answers x0* gives
exactly x0*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ....utils.errors import InputError
from ....utils.seeds import sample_noise
from ..levels import Level, NoiseSchedule
from ..prediction import Prediction
from .base import Generators, Solver, Steps
from .ddim import ddim_step


@dataclass(frozen=True)
class HeldGrid:
    """The levels of such a run: those that are asked and the clean end; how many steps are held; the noisier level."""

    levels: tuple[Level, ...]
    held: int
    noisier: Level | None

    @classmethod
    def of(cls, schedule: NoiseSchedule, steps: int, share: float = 0.5) -> HeldGrid:
        """Leading times, T/n apart, plus 1; the first round(share n) steps are asked at the time of the next one.

        Of 1000 train steps, 10 steps and a half of them: 401 six times, 301, 201, 101, 1. Without a share it is DDIM's
        leading grid.

        Raises InputError for fewer than 1 or more than T steps, and shares outside [0, 1).
        """
        if not 1 <= steps < schedule.steps or not 0 <= share < 1:
            raise InputError(
                f"steps={steps} must lie in 1 to {schedule.steps - 1} and the held share={share:g} in [0, 1)"
            )
        stride, held = schedule.steps // steps, min(round(share * steps), steps - 1)
        times = [stride * (steps - 1 - i) for i in range(steps)]
        times[:held] = [times[held]] * held
        noisier = schedule.at_index(min(times[held] + 1 + stride, schedule.steps - 1)) if held else None
        return cls((*(schedule.at_index(time + 1) for time in times), schedule.clean), held, noisier)


class HeldThenDDIM(Solver):
    """The loop over the levels of a `HeldGrid`; x at its beginning is a guess of x0."""

    def __init__(self, grid: HeldGrid) -> None:
        self.grid, self.stochastic = grid, grid.held > 1

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps."""
        for number, (level, after) in enumerate(pairwise(grid), 1):
            p = yield x, level
            if number < self.grid.held:
                assert generator is not None
                alpha, sigma = after.coefficients(p.x)
                x = alpha * p.x0 + sigma * sample_noise(x.shape[1:], generator, x.shape[0], x.device, x.dtype)
            elif number == self.grid.held and self.grid.noisier is not None:
                x = ddim_step(Prediction(p.x, self.grid.noisier, p.x0, "sample"), after)
            else:
                x = ddim_step(p, after)
        return x
