"""The loop: ask the denoiser what the solver asks, send it the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .levels import Level
from .prediction import Prediction
from .solvers.base import Solver, advanced

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
            denoiser: state and level to Prediction (usually a `Denoiser`); at another state than it was given, the run
                goes on from there.
            noise: state (B, C, h, w) at levels[0]: unit noise, or alpha x0 + sigma eps for a partial run.
            levels: n + 1 levels from noisy to clean (`NoiseSchedule.grid`).
            generator: randomness of stochastic solvers, one or one per sample.
            callback: called after every network call with (call number, level asked, new state); a tensor it
                returns replaces the state, and so does what it writes into the state.
        """
        run = self.solver(noise, levels, generator)
        x, level = advanced(run)
        call = 0
        while level is not None:
            asked = level
            x, level = advanced(run, denoiser(x, asked))
            if callback is not None:
                shown = x.clone()  # a run compares its own state with the one that was asked at
                version = shown._version
                changed = callback(call, asked, shown)
                left = shown if changed is None else changed
                # on a device only its operations can write; to compare there means to wait for it
                as_it_was = left is shown and x.device.type != "cpu" and shown._version == version
                x = x if as_it_was or (left.dtype == x.dtype and torch.equal(left, x)) else left
            call += 1
        return x
