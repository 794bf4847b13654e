"""The loop: ask the solver what it wants to know, ask the denoiser, feed the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .levels import Level
from .prediction import Prediction
from .solvers.base import Done, Solver

Denoise = Callable[[Tensor, Level], Prediction]
StepCallback = Callable[[int, Level, Tensor], Tensor | None]


class Sampler:
    """Runs a solver over a grid of levels."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver

    def run(
        self,
        denoiser: Denoise,
        noise: Tensor,
        levels: Sequence[Level],
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """The state at the last level.

        Args:
            denoiser: state and level to Prediction (usually a `Denoiser`).
            noise: state (B, C, h, w) at levels[0]: unit noise, or alpha x0 + sigma eps for a partial run.
            levels: n + 1 levels from noisy to clean (`NoiseSchedule.grid`).
            generator: randomness of stochastic solvers, one or one per sample.
            callback: called after every network call with (call number, level asked, new state); a tensor it
                returns replaces the state.
        """
        request = self.solver.start(noise, levels, generator)
        call = 0
        while True:
            asked = request.level
            answer = self.solver.feed(denoiser(request.x, asked))
            if callback is not None:
                changed = callback(call, asked, answer.x)
                if changed is not None:
                    answer = self.solver.replace(changed)
            if isinstance(answer, Done):
                return answer.x
            request, call = answer, call + 1
