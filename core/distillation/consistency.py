"""Consistency distillation: LCM (Luo et al. 2023), LCM-LoRA (2023) and SCott (2024).

The student f (see `solvers.consistency`) says the same at two points of the guided teacher's path, a step apart:
    d(f_theta(z_n, s), f_theta-(z_m, s)),   z_n = alpha_n x0 + sigma_n eps,   n, m neighbours on the grid
with z_m reached by the teacher, by one DDIM step (LCM) or, in SCott, by several steps of
    z' = alpha' x0 + sqrt(sigma'^2 - v^2) eps + v xi,   v = eta sigma' sqrt(1 - e^{-2h}),   h = lambda' - lambda.
A stochastic target makes the optimum an average, E[f(z_m) | z_n], for eta = 1 the posterior mean; there a critic has to
say what is sharp (`adversarial`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.rows import Condition
from ..sampling.levels import Level, NoiseSchedule
from ..sampling.prediction import Prediction
from ..sampling.solvers.consistency import consistent
from ..training.config import TrainerConfig, optimizer_of
from ..training.loss import LossOut
from ..training.objectives.base import BatchLoss
from ..training.players import Player
from .adversarial import Critic, Critical, critic_loss, realism
from .objective import Distillation, huber, row_weight, step_to, uniform
from .states import of_each
from .student import Student
from .teacher import Teacher


@dataclass(frozen=True)
class Consistent:
    """Settings; the defaults are LCM's."""

    scale: tuple[float, float] = (2.0, 14.0)
    """range of guidance scales s; the paper's w is s - 1"""
    grid: int = 50
    """levels that the student learns; how many steps it can take later must divide or be taken from these"""
    target: Literal["average", "itself"] = "average"
    """whose answer is the aim: the running average of the student, or it itself (LoRA)"""
    average: float = 0.95
    distance: Literal["huber", "l2"] = "huber"
    eta: float = 0.0
    """randomness of the teacher's steps, [0, 1]"""
    substeps: int = 1
    """of the teacher from one level of the grid to the next"""
    critic: Critical | None = None

    def __post_init__(self) -> None:
        if self.grid < 2 or self.substeps < 1 or not 0 <= self.eta <= 1:
            raise InputError(
                f"grid={self.grid} must be at least 2, substeps={self.substeps} at least 1, eta={self.eta} in [0, 1]"
            )


class ConsistencyObjective(Distillation):
    """LCM and SCott."""

    method: Consistent

    def __init__(self, student: Student, teacher: Teacher, method: Consistent) -> None:
        super().__init__(student, teacher, method)
        self.levels = trained_levels(teacher.schedule, method.grid)
        self._player: Player | None = None
        self.critic = None if method.critic is None else Critic(teacher.prior, method.critic)
        if self.critic is not None:
            self.modules = {**self.modules, "critic": self.critic}

    def players(self, config: TrainerConfig) -> Sequence[Player]:
        """The student, whose average is the aim and the result, and the critic after it."""
        owns, make = optimizer_of(config, torch.nn.ModuleDict(self.student.trainable()))
        ema = self.method.average if self.method.target == "average" else config.ema
        self._player = Player("student", owns, make, ema=ema, clip=config.clip)
        return [self._player] if self.critic is None else [self._player, self.critic.player(config)]

    def losses(self) -> Mapping[str, BatchLoss]:
        """See Playing.losses."""
        return {"student": self.loss} | ({} if self.critic is None else {"critic": self._critic_loss})

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        z0, condition = self.latents(batch), self.told(batch, rng)
        scale = uniform(self.method.scale, len(z0), rng)
        number = torch.randint(len(self.levels) - 1, (len(z0),), generator=rng)
        now, before = of_each(self.levels, number), of_each(self.levels, number + 1)
        z, _ = self.teacher.schedule.noised(z0, now, rng)
        back = self.taught(z, now, before, condition, scale, rng)
        with torch.no_grad(), self._aiming():
            aim = consistent(self.student.ask(back, before, condition, scale))
        found = consistent(self.student.ask(z, now, condition, scale))
        loss = (huber(found, aim) if self.method.distance == "huber" else (found - aim).square()).mean()
        logs: dict[str, Tensor] = {"loss": loss.detach()}
        if self.critic is not None and self.method.critic is not None:
            real = realism(self.critic, found, self.teacher.schedule, condition, rng)
            loss, logs["realism"] = loss - self.method.critic.weight * real, real.detach()
        return LossOut(loss, logs)

    @torch.no_grad()
    def taught(
        self, z: Tensor, now: Level, before: Level, condition: Condition, scale: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Where the teacher's steps lead from z at `now`, (B, C, h, w) at `before`."""
        levels = between(self.teacher.schedule, now, before, self.method.substeps)
        for level, after in zip(levels[:-1], levels[1:], strict=True):
            prediction = self.teacher.guided(z, level, condition, scale)
            z = stochastic_step(prediction, after, self.method.eta, rng)
        return z

    def _aiming(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the student holds the weights whose answer is the aim."""
        if self.method.target == "itself" or self._player is None:
            return contextlib.nullcontext()
        return self._player.averaged()

    def _critic_loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """The critic's on latents and on what the student makes of noised ones."""
        assert self.critic is not None
        z0, condition = self.latents(batch), self.told(batch, rng)
        now = of_each(self.levels, torch.randint(len(self.levels) - 1, (len(z0),), generator=rng))
        z, _ = self.teacher.schedule.noised(z0, now, rng)
        with torch.no_grad():
            made = consistent(self.student.ask(z, now, condition, uniform(self.method.scale, len(z0), rng)))
        return critic_loss(self.critic, z0, made, self.teacher.schedule, condition, rng)


def trained_levels(schedule: NoiseSchedule, grid: int) -> list[Level]:
    """The levels a consistency model learns, from the noisiest on, and the one behind them.

    VP: train indices j N / grid - 1 and index 0, as LCMScheduler takes its steps from; flows: an even grid to 0.
    """
    if schedule.flow:
        return schedule.grid(grid, "trailing")
    if grid > schedule.steps:
        raise InputError(f"grid={grid} exceeds the {schedule.steps} train steps of this prior")
    return [schedule.at_index(j * (schedule.steps // grid) - 1) for j in range(grid, 0, -1)] + [schedule.at_index(0)]


def between(schedule: NoiseSchedule, now: Level, before: Level, substeps: int) -> list[Level]:
    """substeps + 1 levels, one a row each, from `now` to `before`, even in the index (`before` stays as it is)."""
    first, last = (torch.as_tensor(level.index) for level in (now, before))
    inner = [schedule.path.at_index(torch.lerp(first, last, k / substeps)) for k in range(1, substeps)]
    return [now, *inner, before]


def stochastic_step(prediction: Prediction, after: Level, eta: float, rng: torch.Generator | None) -> Tensor:
    """A step of DDIM with randomness eta to one level a row, (B, C, h, w)."""
    if not eta:
        return step_to(prediction, after)
    x, level = prediction.x, prediction.level
    lam, lam_after = (torch.as_tensor(one.lam, dtype=torch.float64) for one in (level, after))
    sigma_after = torch.as_tensor(after.sigma, dtype=torch.float64)
    spread = eta * sigma_after * torch.sqrt(-torch.expm1(-2 * (lam_after - lam)))
    kept = (sigma_after.square() - spread.square()).clamp_min(0).sqrt()  # rounding may make it negative at eta 1
    noise = torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device)
    alpha, _ = after.coefficients(x)
    return alpha * prediction.x0 + row_weight(kept, x) * prediction.eps + row_weight(spread, x) * noise
