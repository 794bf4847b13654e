"""A sampling plan on a prior: solver, levels, start, controls and cache of the runs that draw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors import load_prior
from ..priors.base import Prior
from ..priors.rows import Condition
from .calibration import Fingerprint, fingerprint
from .denoiser import Control, Denoiser, Remap
from .focus import attention_control
from .guidance import ClassifierFree, Guidance, as_guidance, guided
from .init import Start, TeleportInit
from .levels import Level, NoiseSchedule
from .model_schedule import switched
from .noiseshift import TimeRemap
from .optimal_boundary import BoundaryNoise
from .plan import SamplingPlan
from .sampler import Sampler, StepCallback
from .solvers import CALIBRATED, Solver, make_solver
from .teleport import GaussianPrior

T = TypeVar("T")


@dataclass(frozen=True)
class Drawing:
    """A plan whose every setting is decided, for a prior and a latent shape."""

    plan: SamplingPlan
    prior: Prior  # several along the trajectory where the plan says so
    solver: Solver
    levels: Sequence[Level]  # n + 1, from noisy to clean
    expected: Callable[[], Fingerprint]  # what calibrated files have to be made for

    def started(self, noise: Tensor) -> Start:
        """The state to begin at and the levels that are left, for unit noise (B, C, h, w)."""
        start = Start(noise, self.levels)
        if self.plan.boundary is not None:
            chosen = self._read(self.plan.boundary, BoundaryNoise.load)
            start = chosen.init(str(self.plan.solver), start.levels)(*start)
        if self.plan.gaussian is not None:
            start = TeleportInit(self._read(self.plan.gaussian, GaussianPrior.load), self.plan.teleport or 0.0)(*start)
        return start if self.plan.init is None else self.plan.init(*start)

    def remap(self) -> Remap | None:
        """What the network is told instead of its own times."""
        return None if self.plan.time_remap is None else self._read(self.plan.time_remap, TimeRemap.load)

    def controls(self, prompts: Sequence[str]) -> tuple[Control, ...]:
        """What changes each guided prediction; a control named by text reads the one prompt."""
        if not isinstance(self.plan.control, str) or not self.plan.control:
            return self.plan.controls
        if len(prompts) != 1:
            raise InputError(
                f"control={self.plan.control!r} holds apart the subjects of one prompt, got {len(prompts)}; draw them "
                "one by one"
            )
        return (attention_control(self.plan.control, self.prior, prompts[0], self.plan.subjects),)

    def guided(self, condition: Condition) -> tuple[Guidance, Condition]:
        """(guidance, condition) the way the prior takes the plan's scale; a guidance of the plan as it is."""
        scale = self.plan.guidance
        if not isinstance(scale, (int, float)):
            return as_guidance(scale), condition
        return guided(self.prior, condition, scale, self.plan.guidance_rescale)

    def run(
        self,
        condition: Condition,
        start: Start,
        generators: torch.Generator | Sequence[torch.Generator] | None,
        remap: Remap | None = None,
        controls: Sequence[Control] = (),
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Final latents (B, C, h, w) of a start."""
        if len(start.levels) < 2:
            return start.x
        guidance, condition = self.guided(condition)
        denoiser = Denoiser(self.prior, condition, guidance, remap, controls)
        return Sampler(self.solver).run(denoiser, start.x, start.levels, generator=generators, callback=callback)

    def _read(self, value: T | str | Path, load: Callable[[Path, Fingerprint], T]) -> T:
        return load(Path(value), self.expected()) if isinstance(value, (str, Path)) else value


def drawing(
    plan: SamplingPlan,
    prior: Prior,
    shape: Sequence[int] | None = None,
    negative: str | Sequence[str] | None = None,
    defaults: SamplingPlan | None = None,
) -> Drawing:
    """A plan on a prior.

    Args:
        plan: settings; those that are open come from `defaults`.
        prior: what will be asked.
        shape: latents (C, h, w); None: the prior's own.
        negative: negative prompts of the run, which guidance of a calibrated file includes.
        defaults: None: what the prior's makers recommend.

    Raises InputError for settings that do not go together, unknown solvers, and files made for something else.
    """
    own = plan.spacing, plan.steps
    plan = plan.over(defaults or SamplingPlan.of(prior.recommended))
    plan.check()
    shape = tuple(shape or prior.latent_shape)

    @functools.cache
    def expected() -> Fingerprint:
        scale = plan.guidance
        chosen = ClassifierFree(scale, plan.guidance_rescale) if isinstance(scale, (int, float)) else scale
        return fingerprint(prior, shape, as_guidance(chosen), negative)

    counts = prior.recommended.step_counts
    if counts and plan.steps not in counts:
        able = ", ".join(map(str, counts))
        raise InputError(f"steps={plan.steps}: {prior.name} was distilled to {able}; take one of these")
    solver = _solver(plan, prior, expected)
    levels = _levels(plan, prior, solver, shape, own)
    if plan.model_schedule is not None:
        first, share = plan.model_share
        chosen = first if isinstance(first, Prior) else load_prior(first, prior.device, prior.dtype)
        recommended, prior = prior.recommended, switched(chosen, prior, levels, share)
        prior.recommended = recommended
    return Drawing(plan, prior, solver, levels, expected)


def _solver(plan: SamplingPlan, prior: Prior, expected: Callable[[], Fingerprint]) -> Solver:
    if isinstance(plan.solver, Solver):
        return plan.solver
    flow = NoiseSchedule.from_config(prior.scheduler_config).flow
    made_for = expected() if plan.family in CALIBRATED else None
    return make_solver(str(plan.solver), flow, prior.prediction_type, plan.eta, plan.statistics, made_for)


def _levels(
    plan: SamplingPlan, prior: Prior, solver: Solver, shape: Sequence[int], own: tuple[str | None, int | None]
) -> list[Level]:
    """The levels a solver brings, or the grid of the plan; `own` are the spacing and steps that were asked for."""
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    brought = solver.own_grid(schedule)
    if brought is None:
        tokens = prior.tokens(torch.empty(1, *shape))
        return schedule.grid(int(plan.steps or 0), plan.spacing, tokens=tokens)
    spacing, steps = own
    if spacing is not None:
        raise InputError(f"spacing={spacing}: this solver brings levels of its own; leave the spacing out")
    if steps not in (None, len(brought) - 1):
        raise InputError(f"{steps} steps: this solver was made for {len(brought) - 1}; leave the number out")
    return brought
