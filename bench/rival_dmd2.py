"""DMD2 (Yin et al. 2024, "Improved Distribution Matching Distillation"), for comparison, without its GAN and its data.

What the student makes, x, gets noise, x_t = alpha x + sigma eps. The gradient of KL(student || teacher) there is
    alpha (score_fake - score_real) = (alpha / sigma)^2 (x0_fake - x0_real),
of the guided teacher and of a second network that learns to denoise what the student makes, several times for every
update of the student. The authors' code gives each row the size (x0_fake - x0_real) / mean |x - x0_real|. Students of
several steps are taught on what they will be asked: a run of their own from noise (x0, fresh noise, the next level)
that stops at a random step, and the gradient enters the answer there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.distillation.objective import Distillation, row_weight
from ..core.distillation.student import Student
from ..core.distillation.teacher import Teacher, rollout
from ..core.priors import Condition
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling import Prediction
from ..core.sampling.solvers.consistency import Consistency, consistent
from ..core.training.config import TrainerConfig, optimizer_of
from ..core.training.loss import LossOut
from ..core.training.objectives.base import BatchLoss
from ..core.training.players import Moves, Player


@dataclass(frozen=True)
class Matching:
    """Settings."""

    scale: float = 3.0
    """guidance of the teacher"""
    calls: int = 4
    """steps of the student's runs"""
    turns: int = 2
    """updates of the second network for each of the student's; the paper has 5 to 10"""
    window: tuple[float, float] = (0.02, 0.98)
    """shares of the train indices at which the two are compared"""


def sized(made: Tensor, fake: Prediction, real: Prediction) -> Tensor:
    """(x0_fake - x0_real) / mean |x - x0_real|, (B, C, h, w): the same direction, of the size that a row has left."""
    size = (made - real.x0).abs().flatten(1).mean(1).clamp_min(1e-6)
    return (fake.x0 - real.x0) / row_weight(size, made)


class MatchingObjective(Distillation):
    """Of a batch noises and captions are used."""

    method: Matching

    def __init__(self, student: Student, teacher: Teacher, method: Matching) -> None:
        super().__init__(student, teacher, method)
        assert isinstance(teacher.prior, DiffusersPrior)
        self.fake = Student(teacher.prior)
        self.modules = {**self.modules, "fake": self.fake.network}
        self.levels = teacher.schedule.grid(method.calls, "trailing")

    def players(self, config: TrainerConfig) -> Sequence[Player]:
        """The student, and after it the network that learns what it makes."""
        made = []
        for name, moves in (("student", Moves()), ("fake", Moves(times=self.method.turns, after="student"))):
            owns, make = optimizer_of(config, nn.ModuleDict({name: self.modules[name]}))
            made.append(Player(name, owns, make, ema=config.ema, clip=config.clip, moves=moves))
        return made

    def losses(self) -> Mapping[str, BatchLoss]:
        """See Playing.losses."""
        return {"student": self.loss, "fake": self.fake_loss}

    def made(self, batch: dict[str, Any], condition: Condition, rng: torch.Generator) -> Tensor:
        """What the student says (B, C, h, w) at a random step of its own run; gradients reach that answer alone."""
        noise = self.latents(batch, "noise")
        last = int(torch.randint(self.method.calls, (), generator=rng))
        if last:
            noise = rollout(self.student.denoiser(condition), noise, self.levels[: last + 1], rng, Consistency())[-1]
        return consistent(self.student.ask(noise, self.levels[last], condition))

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        schedule, condition = self.teacher.schedule, self.told(batch, rng)
        x = self.made(batch, condition, rng)
        low, high = (share * (schedule.steps - 1) for share in self.method.window)
        level = schedule.at_index(low + (high - low) * torch.rand(len(x), generator=rng).double())
        z, _ = schedule.noised(x.detach(), level, rng)
        with torch.no_grad():
            real = self.teacher.guided(z, level, condition, torch.full((len(x),), self.method.scale))
            gradient = sized(x, self.fake.ask(z, level, condition), real)
        return LossOut((x * gradient).mean(), {"loss": gradient.square().mean()})

    def fake_loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """The denoising loss of the second network on what the student makes."""
        schedule, condition = self.teacher.schedule, self.told(batch, rng)
        with torch.no_grad():
            x = self.made(batch, condition, rng)
        level = schedule.at_index(torch.randint(schedule.steps, (len(x),), generator=rng))
        z, noise = schedule.noised(x, level, rng)
        aim = schedule.target(self.fake.prior.prediction_type, x, noise, level)
        loss = (self.fake.ask(z, level, condition).raw - aim).square().mean()
        return LossOut(loss, {"loss": loss.detach()})
