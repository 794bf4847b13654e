"""Adjoint matching with a running cost: fine-tuning a prior to do what the optimal control of its sampling would do.

Sampling is the memoryless process (ancestral steps; Domingo-Enrich et al. 2024): from a level to the next,
    x' = m(x) + s z,   m = alpha' x0 + sqrt(sigma'^2 - s^2) eps,   s = sigma' sqrt(1 - e^{-2h}),   h = lambda' - lambda,
which for small steps is dx = (2 v - kappa x) dt + sigma_m dB with sigma_m^2 = 2 (1 - t) / t in data time t (0 noise, 1
data; t = alpha / (alpha + sigma) on any path, v = -u), and unlike its Euler steps stays stable from pure noise on.
Adding sum_k dt_k f(x_k) to the control energy (Bill et al. 2025), the lean adjoint of the base model
    a_k = (dm_base/dx)^T a_{k+1} + dt_k grad f(x_k),   a_K = 0,
is exact for these steps, and the optimal mean is m_base - s^2 a_{k+1}. The loss is what is missing to it,
    |(m_fine - m_base) / s + s a_{k+1}|^2 / dt,   for small steps |2 (v_fine - v_base) / sigma_m + sigma_m a|^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.seeds import sample_noise
from ..sampling import DDIM, Denoiser, Level, Prediction
from ..sampling.focus import Cost, cost_gradient
from ..sampling.sampler import Denoise
from ..sampling.solvers.ddim import ancestral_std, noised_mean
from ..training.loss import LossOut
from ..training.objectives.base import Objective
from .objective import frozen_parts
from .student import Student
from .teacher import Teacher, rollout


class Trajectory(NamedTuple):
    """States of a memoryless run and the lean adjoints along it."""

    states: list[Tensor]  # K + 1 of (B, C, h, w), from noise to clean
    adjoints: list[Tensor]  # K + 1; adjoints[k] belongs to states[k]
    levels: Sequence[Level]


def data_time(level: Level) -> float:
    """alpha / (alpha + sigma): 0 noise, 1 data."""
    return float(level.alpha) / (float(level.alpha) + float(level.sigma))


def step_mean(prediction: Prediction, level: Level, after: Level) -> Tensor:
    """m(x) of the step between two levels, (B, C, h, w); differentiable in the prediction."""
    return noised_mean(prediction, after, ancestral_std(level, after))


def lean_adjoint(
    base: Denoise, states: Sequence[Tensor], levels: Sequence[Level], slopes: Sequence[Tensor]
) -> list[Tensor]:
    """Adjoints (K + 1 of (B, C, h, w)) of the base model along stored states; slopes are grad f at the first K."""
    adjoint = torch.zeros_like(states[-1])
    found = [adjoint]
    for k in reversed(range(len(levels) - 1)):
        level, after = levels[k], levels[k + 1]
        with torch.enable_grad():
            x = states[k].detach().requires_grad_(True)
            mean = step_mean(base(x, level), level, after)
            pulled = torch.autograd.grad((mean * adjoint.to(mean)).sum(), x)[0]
        adjoint = pulled + (data_time(after) - data_time(level)) * slopes[k]
        found.append(adjoint.detach())
    return found[::-1]


def matching_loss(fine: Prediction, base: Prediction, level: Level, after: Level, adjoint: Tensor) -> Tensor:
    """Mean square over each row (B,) of what the fine model's step lacks of the optimal one.

    `adjoint` is that of the state after the step. Raises InputError for a step without noise, which has no control.
    """
    std, span = ancestral_std(level, after), data_time(after) - data_time(level)
    if std == 0 or span <= 0:
        raise InputError(f"the step to sigma={after.sigma} draws no noise, so it cannot be controlled; leave it out")
    missing = (step_mean(fine, level, after) - step_mean(base, level, after).detach()) / std + std * adjoint
    return missing.square().mean(tuple(range(1, missing.ndim))) / span


@dataclass(frozen=True)
class AdjointConfig:
    """Settings of adjoint matching."""

    strength: float = 1.0  # lambda, factor of the cost
    steps: int = 28
    trajectories: int = 5  # per prompt
    times: int = 8  # steps regressed in each update, drawn without the first and the last
    height: int = 0  # latent rows and columns; 0: the prior's own
    width: int = 0

    def __post_init__(self) -> None:
        if self.steps < 3 or not 1 <= self.times <= self.steps - 2:
            raise InputError(f"times={self.times} must lie between 1 and steps - 2 = {self.steps - 2}")
        if self.trajectories < 1:
            raise InputError(f"trajectories={self.trajectories} must be at least 1")


@dataclass(frozen=True)
class AdjointTraining:
    """What a run of the objective is defined by, beside its cost."""

    matching: AdjointConfig
    student: dict[str, Any]
    teacher: str  # hash


class AdjointMatching(Objective):
    """Trains a student against its teacher, which shares its memory where the student is an adapter.

    A batch holds "prompts", a list of texts; every one is sampled `trajectories` times.
    """

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        cost: Callable[[Sequence[str]], Cost],
        matching: AdjointConfig = AdjointConfig(),
    ) -> None:
        """`cost` makes the running cost for the prompts of all rows (`AttentionCost`)."""
        self.student, self.teacher, self.cost, self.matching = student, teacher, cost, matching
        self.config = AdjointTraining(matching, student.recipe, teacher.hash)
        self.modules, self.schedule = student.trainable(), teacher.schedule
        self.frozen = frozen_parts(student, teacher)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        config = self.matching
        prompts = [text for text in batch["prompts"] for _ in range(config.trajectories)]
        fine, base = (part.denoiser(part.prior.encode_text(prompts)) for part in (self.student, self.teacher))
        cost = self.cost(prompts)
        path = self.trajectory(fine, base, cost, len(prompts), rng)
        chosen = torch.randperm(config.steps - 2, generator=rng)[: config.times] + 1
        losses = []
        for k in chosen.tolist():
            x, level, after = path.states[k], path.levels[k], path.levels[k + 1]
            with torch.no_grad():
                wanted = base(x, level)
            losses.append(matching_loss(fine(x, level), wanted, level, after, path.adjoints[k + 1]))
        loss = torch.stack(losses).mean()
        with torch.no_grad():
            size = torch.stack([adjoint.square().mean() for adjoint in path.adjoints]).mean().sqrt()
            final = cost(fine, path.states[-2], path.levels[-2]).mean()
        return LossOut(loss, {"loss": loss.detach(), "adjoint": size, "cost": final})

    def trajectory(self, fine: Denoiser, base: Denoiser, cost: Cost, rows: int, rng: torch.Generator) -> Trajectory:
        """A memoryless run of the fine model with the slopes of its own cost and the adjoints of the base model."""
        prior, config = self.teacher.prior, self.matching
        channels, height, width = prior.latent_shape
        noise = sample_noise((channels, config.height or height, config.width or width), rng, rows, prior.device)
        levels = self.schedule.grid(config.steps, tokens=prior.tokens(noise))
        states = rollout(fine, noise, levels, rng, DDIM(eta=1.0))  # the memoryless process
        slopes = [config.strength * cost_gradient(cost, fine, x, lv) for x, lv in zip(states, levels[:-1])]
        return Trajectory(states, lean_adjoint(base, states, levels, slopes), levels)
