"""Retraining on what the teacher's own runs made of noises: InstaFlow and Rectified Diffusion.

A pair (eps, x0) is a noise and the end of the teacher's deterministic run from it. States lie on the chord between,
x_t = alpha_t x0 + sigma_t eps, and the student says x0 (Wang et al. 2024, "Rectified Diffusion"), on its own noise path
and in its own parameterisation. On a rectified flow, in velocities, that is reflow (Liu et al. 2023, InstaFlow):
    E |(eps - x0) - u(x_t, t)|^2,
and at t = 1 alone, where x_t = eps, distillation into one Euler step. Phased: the same within segments of the path,
from noised latents, whose noisier end s and the teacher's end e of the segment imply one noise,
    eps* = (x_e / alpha_e - x_s / alpha_s) / (nsr_e - nsr_s),   nsr = sigma / alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..sampling.levels import Level, NoiseSchedule
from ..sampling.prediction import Prediction
from ..sampling.sampler import Denoise
from ..training.loss import LossOut
from .guided import without_text
from .objective import Distillation, huber, row_weight
from .pairs import PairSet
from .states import of_each
from .teacher import rollout

NEAREST = 1e-3  # to the clean end of a flow that a state is drawn


@dataclass(frozen=True)
class Rectifying:
    """Settings."""

    times: Literal["all", "noise"] = "all"
    """where on the chord: anywhere, or at the noise alone (one-step distillation)"""
    distance: Literal["huber-x0", "velocity", "pixels"] = "huber-x0"
    """pseudo-Huber of x0, squared error of the velocity eps - x0, or squared error of decoded pictures"""
    drop: float = 0.1
    """share of rows whose text is the null branch's, so that guidance still works afterwards"""
    shuffled: bool = False
    """pairs noises and ends anew at random: a control that must not straighten anything"""

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise InputError(f"drop={self.drop} must lie in [0, 1)")


class RectifyObjective(Distillation):
    """On batches of a `PairSet`."""

    method: Rectifying

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        method, schedule = self.method, self.student.schedule
        x0, noise = self.latents(batch), self.latents(batch, "noise")
        condition = self.described(batch["captions"])
        if method.drop:
            condition = without_text(condition, torch.rand(len(x0), generator=rng) < method.drop)
        if method.shuffled:
            noise = noise[torch.randperm(len(noise), generator=rng)]
        if method.times == "noise":
            level = schedule.grid(1, "trailing")[0]
            x = noise  # nothing of the answer is in it
        else:
            level = random_level(schedule, len(x0), rng)
            x = schedule.add_noise(x0, noise, level)
        found = self.student.ask(x, level, condition)
        loss = self._distance(found, x0, noise).mean()
        return LossOut(loss, {"loss": loss.detach()})

    def _distance(self, found: Prediction, x0: Tensor, noise: Tensor) -> Tensor:
        if self.method.distance == "huber-x0":
            return huber(found.x0, x0)
        if self.method.distance == "velocity":
            return (found.u - (noise - x0)).square()
        decode = self.student.prior.decode
        with torch.no_grad():
            aim = decode(x0, clamp=False)
        return (decode(found.x0, clamp=False) - aim).square()


def check_coupled(pairs: PairSet) -> PairSet:
    """The set. Raises InputError for pairs of a stochastic solver, whose ends do not belong to their noises."""
    if not pairs.deterministic:
        raise InputError(f"pairs of {pairs.plan.solver}, which adds noise, do not belong together; take another solver")
    return pairs


def random_level(schedule: NoiseSchedule, rows: int, rng: torch.Generator) -> Level:
    """A level a row: flows evenly in sigma, VP paths evenly among the train indices."""
    if schedule.flow:
        share = torch.rand(rows, generator=rng).double()
        return schedule.path.at_sigma(NEAREST + (1 - NEAREST) * share)
    return schedule.at_index(torch.randint(schedule.steps, (rows,), generator=rng))


@dataclass(frozen=True)
class Phased:
    """Settings of the phased form."""

    scale: float = 3.0
    """guidance of the teacher's steps"""
    grid: int = 40
    """levels of a whole run of the teacher"""
    phases: int = 4
    """segments of equally many of its steps"""

    def __post_init__(self) -> None:
        if self.phases < 1 or self.grid % self.phases:
            raise InputError(f"grid={self.grid} must be a multiple of phases={self.phases}")


class PhasedObjective(Distillation):
    """On latents of data."""

    method: Phased

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        method, schedule = self.method, self.teacher.schedule
        x0, condition = self.latents(batch), self.described(batch["captions"])
        levels = schedule.grid(method.grid, "trailing")
        each = method.grid // method.phases
        phase = int(torch.randint(method.phases, (), generator=rng))
        segment = levels[phase * each : (phase + 1) * each + 1]
        start, end = segment[0], segment[-1]
        xs, _ = schedule.noised(x0, start, rng)
        scale = torch.full((len(x0),), method.scale)
        xe = rollout(self.teacher.denoiser_at(condition, scale), xs, segment)[-1]
        noise = implied_noise(xs, start, xe, end)
        now = of_each(segment[:-1], torch.randint(len(segment) - 1, (len(x0),), generator=rng))
        x = jump(xs, noise, start, now)
        found = self.student.ask(x, now, condition)
        loss = huber(jump(x, found.eps, now, end), xe).mean()
        return LossOut(loss, {"loss": loss.detach()})


def _nsr(level: Level) -> Tensor:
    alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in (level.alpha, level.sigma))
    return sigma / alpha


def implied_noise(xs: Tensor, start: Level, xe: Tensor, end: Level) -> Tensor:
    """The noise (B, C, h, w) that one straight line from (xs, start) to (xe, end) has, in x / alpha over nsr."""
    gap = (_nsr(end) - _nsr(start)).expand(len(xs))
    ends = [x / torch.as_tensor(level.coefficients(x)[0]) for x, level in ((xe, end), (xs, start))]
    return (ends[0] - ends[1]) / row_weight(gap, xs)


def jump(x: Tensor, noise: Tensor, now: Level, after: Level) -> Tensor:
    """alpha' (x / alpha + (nsr' - nsr) eps), (B, C, h, w): a first-order step of any length."""
    alpha, alpha_after = (torch.as_tensor(level.coefficients(x)[0]) for level in (now, after))
    gap = (_nsr(after) - _nsr(now)).expand(len(x))
    return alpha_after * (x / alpha + row_weight(gap, x) * noise)


@torch.no_grad()
def straightness(denoiser: Denoise, noise: Tensor, levels: Sequence[Level]) -> Tensor:
    """S (B,) of a flow: the mean over its own runs of |(z_noise - z_clean) - u(z_t)|^2; 0 where one step is exact."""
    states = rollout(denoiser, noise, levels)
    velocity = states[0] - states[-1]
    told = [(denoiser(x, level).u - velocity).square().flatten(1).mean(1) for x, level in zip(states, levels[:-1])]
    return torch.stack(told).mean(0)


@torch.no_grad()
def first_order_defect(denoiser: Denoise, x0: Tensor, noise: Tensor, levels: Sequence[Level]) -> Tensor:
    """F (B,): the mean over levels of |eps(alpha x0 + sigma eps) - eps|^2 of coupled pairs; 0 where every step of any
    length is exact."""
    told = []
    for level in levels:
        alpha, sigma = level.coefficients(x0)
        told.append((denoiser(alpha * x0 + sigma * noise, level).eps - noise).square().flatten(1).mean(1))
    return torch.stack(told).mean(0)


def negated_output(network: torch.nn.Module) -> None:
    """Turns a network of InstaFlow's sign (x0 - eps) into one of diffusers' (eps - x0), or back, in place.

    Raises InputError for networks without a `conv_out`.
    """
    last = getattr(network, "conv_out", None)
    if not isinstance(last, torch.nn.Conv2d):
        raise InputError(f"{type(network).__name__} has no conv_out whose sign could be changed")
    with torch.no_grad():
        for value in last.parameters():
            value.neg_()
