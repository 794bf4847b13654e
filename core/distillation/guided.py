"""Guidance in one call, then fewer steps (Meng et al. 2022, "On Distillation of Guided Diffusion Models").

Stage one: the student says alone what its teacher says of two branches at guidance scale s,
    E w(lambda) |x0_student(z, s) - (null + s (cond - null))|^2,
with s an input of the network (kind `Told`), or one scale in the weights of a low-rank adapter, whose teacher is the
same network with the adapter off (Golnari 2023, "LoRA-Enhanced Distillation on Guided Diffusion Models").
Stage two: N steps of the student from 2 N of the teacher (Salimans & Ho 2022). From z_t two DDIM steps of the teacher
lead to z'', and the x0 that leads there in one is the aim:
    x0 = (z'' - r z_t) / (alpha'' - r alpha_t),   r = sigma'' / sigma_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.rows import COND, NULL, Condition
from ..sampling.levels import Level, NoiseSchedule
from ..sampling.prediction import Prediction
from ..training.loss import LossOut
from .objective import Distillation, distance, row_weight, step_to, uniform
from .states import FromData, FromRollout, State, of_each

Distance = Literal["raw", "x0", "eps", "v", "truncated"]


@dataclass(frozen=True)
class Guiding:
    """Settings of stage one."""

    scale: tuple[float, float] = (1.0, 7.0)
    """range of guidance scales s; the paper's w is s - 1"""
    distance: Distance = "v"
    states: Literal["data", "rollout"] = "data"
    """noised latents, or what guided runs of the teacher visit"""
    steps: int = 20
    """of those runs"""
    drop: float = 0.0
    """share of rows whose text is the null branch's, so that the student still knows it"""

    def __post_init__(self) -> None:
        if not 0 <= self.scale[0] <= self.scale[1]:
            raise InputError(f"scale={self.scale} must be (low, high) with 0 <= low <= high")
        if not 0 <= self.drop < 1:
            raise InputError(f"drop={self.drop} must lie in [0, 1)")


class GuidanceObjective(Distillation):
    """Stage one."""

    method: Guiding

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        z0, condition = self.latents(batch), self.described(batch["captions"])
        scale = uniform(self.method.scale, len(z0), rng)
        if self.method.drop:
            gone = torch.rand(len(z0), generator=rng) < self.method.drop
            condition = without_text(condition, gone)
        state = self._state(z0, condition, scale, rng)
        aim = self.teacher.guided(state.x, state.level, condition, scale)
        found = self.student.ask(state.x, state.level, condition, scale)
        loss = distance(found, aim, self.method.distance).mean()
        return LossOut(loss, {"loss": loss.detach()})

    def _state(self, z0: Tensor, condition: Condition, scale: Tensor, rng: torch.Generator) -> State:
        schedule = self.teacher.schedule
        if self.method.states == "data":
            return FromData(schedule)(z0, condition, rng)
        levels = schedule.grid(self.method.steps, tokens=self.teacher.prior.tokens(z0))
        return FromRollout(lambda told: self.teacher.denoiser_at(told, scale), levels)(z0, condition, rng)


def without_text(condition: Condition, gone: Tensor) -> Condition:
    """The condition with the null branch's tensors in the conditional branch of the chosen rows (B,)."""
    if NULL not in condition:  # a prior that knows no text but its own guidance's has nothing to fall back to
        return condition
    null, cond = condition[NULL], condition[COND]
    rows = gone.reshape(-1)
    mixed = {
        name: torch.where(row_weight(rows, value).bool(), null[name], value) for name, value in cond.tensors.items()
    }
    return condition.branch(COND, cond.with_tensors(**mixed))


@dataclass(frozen=True)
class Halving:
    """Settings of one round of stage two."""

    steps: int = 8
    """N, of the student; its teacher takes 2 N"""
    scale: tuple[float, float] | None = None
    """range of the guidance scales that teacher and student are told; None: none is told"""
    distance: Distance = "truncated"


class ProgressiveObjective(Distillation):
    """A round of stage two."""

    method: Halving

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        z0, condition = self.latents(batch), self.described(batch["captions"])
        scale = None if self.method.scale is None else uniform(self.method.scale, len(z0), rng)
        levels = halves(self.teacher.schedule, self.method.steps)
        number = torch.randint(1, self.method.steps + 1, (len(z0),), generator=rng)
        now, middle, after = (of_each(levels, 2 * number - k) for k in range(3))
        z, _ = self.teacher.schedule.noised(z0, now, rng)
        first = self._teach(z, now, condition, scale)
        between = step_to(first, middle)
        end = step_to(self._teach(between, middle, condition, scale), after)
        aim = Prediction(z, now, solved(z, end, now, after), "sample")
        loss = distance(self.student.ask(z, now, condition, scale), aim, self.method.distance).mean()
        return LossOut(loss, {"loss": loss.detach()})

    def _teach(self, z: Tensor, level: Level, condition: Condition, scale: Tensor | None) -> Prediction:
        if scale is None:
            return self.teacher.predict(z, level, condition)
        return self.teacher.guided(z, level, condition, scale)


def halves(schedule: NoiseSchedule, steps: int) -> list[Level]:
    """Levels at times j / (2 N) of the train range, j = 0 (clean) to 2 N (the noisiest)."""
    if 2 * steps > schedule.steps:
        raise InputError(f"steps={steps} of a student have 2 x {steps} of a teacher behind them; have {schedule.steps}")
    indices = [j * schedule.steps / (2 * steps) - 1 for j in range(1, 2 * steps + 1)]
    return [schedule.clean, *(schedule.at_index(index) for index in indices)]


def solved(z: Tensor, end: Tensor, now: Level, after: Level) -> Tensor:
    """The x0 (B, C, h, w) from which one DDIM step leads from z at `now` to `end` at `after`."""
    alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in (now.alpha, now.sigma))
    alpha_end, sigma_end = (torch.as_tensor(value, dtype=torch.float64) for value in (after.alpha, after.sigma))
    ratio = sigma_end / sigma
    short = 1 / (alpha_end - ratio * alpha)  # tiny denominators: in float64
    return row_weight(short, z) * (end - row_weight(ratio, z) * z)
