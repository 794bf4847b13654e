"""How good a solver is: the paired terminal error against a many-step reference from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...utils.digests import digest
from ..priors.base import Prior
from ..priors.rows import Condition
from .calibration import Calibration, condition_digest, fingerprint
from .denoiser import Denoiser
from .dpm_v3_statistics import ModelStatistics
from .guidance import Guidance
from .levels import Level, NoiseSchedule
from .sampler import Sampler
from .solvers import Solver, SolverSchedule, UnifiedSolver, WrappedSolver

REFERENCE_KIND = "reference-states"


class PairedError:
    """Mean squared distance per latent value between a solver's end states and the reference's, same noise."""

    def __init__(
        self,
        prior: Prior,
        condition: Condition,
        noise: Tensor,
        guidance: Guidance | float = 1.0,
        *,
        steps: int = 200,
        final: str | None = None,
        statistics: ModelStatistics | None = None,
        mean: Tensor | None = None,
        batch: int = 32,
        cache: str | Path | None = None,
    ) -> None:
        """Runs or reads the reference.

        Args:
            prior: whose sampling is to be matched.
            condition: one row for each noise, or one for all.
            noise: starting states (n, C, h, w).
            guidance: of reference and candidates.
            steps: of the reference (second-order DPM-Solver++).
            final: end of the reference grid, "zero" or "index0"; None: the prior's own.
            statistics: for schedules with v3 steps.
            mean: average clean latent, for schedules that begin with it.
            batch: states run at once.
            cache: file of the reference end states; read when it fits, written otherwise.
        """
        self.prior, self.noise, self.guidance, self.batch = prior, noise, guidance, batch
        self.condition = condition.for_batch(noise.shape[0])
        self.statistics, self.mean = statistics, mean
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        levels = self.schedule.grid(steps, final=final, tokens=prior.tokens(noise))
        self.end = levels[-1]
        self.reference = self._reference(levels, cache)

    def _reference(self, levels: Sequence[Level], cache: str | Path | None) -> Tensor:
        mark = fingerprint(self.prior, tuple(self.noise.shape[1:]), self.guidance)
        settings = {"steps": len(levels) - 1, "noise": digest({"noise": self.noise}), "end": self.end.index}
        settings |= {"conditions": condition_digest(self.condition)}
        if cache is not None and Path(cache).exists():
            made = Calibration.load(cache, REFERENCE_KIND, mark)
            if dict(made.settings) == settings:
                return made.tensors["states"].to(self.noise)
        states = self.run(WrappedSolver("dpm++", self.schedule.flow, self.prior.prediction_type), levels)
        if cache is not None:
            Calibration(REFERENCE_KIND, {"states": states}, mark, settings).save(cache)
        return states

    @torch.no_grad()
    def run(self, solver: Solver, levels: Sequence[Level]) -> Tensor:
        """End states (n, C, h, w) of any solver on these levels."""
        parts = []
        for start in range(0, self.noise.shape[0], self.batch):
            rows = slice(start, start + self.batch)
            denoiser = Denoiser(self.prior, self.condition.index(rows), self.guidance)
            parts.append(Sampler(solver).run(denoiser, self.noise[rows], levels))
        return torch.cat(parts)

    def errors(self, states: Tensor) -> Tensor:
        """Mean squared distance of each end state to its reference, (n,) float64."""
        return (states.cpu().double() - self.reference.cpu().double()).square().flatten(1).mean(1)

    def __call__(self, schedule: SolverSchedule) -> float:
        """The error of a schedule, on its own levels (their end becomes the reference's); inf when it diverges."""
        levels = schedule.levels(self.schedule)
        if levels is None:
            levels = self.schedule.grid(schedule.steps, final="zero" if self.end.sigma == 0 else "index0")
        levels[-1] = self.end
        error = float(self.errors(self.run(UnifiedSolver(schedule, self.statistics, self.mean), levels)).mean())
        return error if np.isfinite(error) else float("inf")
