"""MeanFlow (Geng et al. 2025, "Mean Flows for One-step Generative Modeling") as a distillation, for comparison.

Of a flow dx/dt = v(x, t), t from 0 (clean) to 1 (noise), the student says the average velocity from t down to r,
    (t - r) u(x_t, r, t) = integral of v over [r, t],   whose derivative in t is   u = v - (t - r) du/dt,
with du/dt = v du/dx + du/dt the derivative along the path, in forward mode. The right-hand side is the aim and carries
no gradient; a row's squared error D is weighted by 1 / (D + c). A step of any length is x_r = x_t - (t - r) u.
Here v is the teacher's guided velocity, where the paper has the noise less the latent; the student begins as the
teacher without guidance, told t - r by an input that begins at nothing, so that u = v at first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.distillation.objective import Distillation, row_weight
from ..core.distillation.student import Student
from ..core.distillation.teacher import Teacher
from ..core.distillation.views import PathView, flow_view
from ..core.priors import Condition
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from ..core.training.loss import LossOut

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # u of x (B, C, h, w), r (B,), t (B,)
SPAN = 0.01  # of the scale that tells a U-Net t - r: its features of one are a thousand times as fast as the time


@dataclass(frozen=True)
class Averaging:
    """Settings, the paper's own."""

    scale: float = 3.0
    """guidance of the teacher"""
    apart: float = 0.25
    """share of rows with r < t; of the others the aim is v"""
    times: tuple[float, float] = (-0.4, 1.0)
    """mean and deviation of the logits of t and r"""
    floor: float = 1e-3
    """c of the weight"""


def identity(u: Velocity, x: Tensor, r: Tensor, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(u, v - (t - r) du/dt without gradient) at states x (B, C, h, w) with velocity v and times r <= t (B,)."""
    with sdpa_kernel(SDPBackend.MATH):  # the one attention with forward derivatives on every device
        found, slope = torch.func.jvp(u, (x, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))[:2]
    return found, (v - row_weight(t - r, x) * slope).detach()


def told_span(condition: Condition, span: Tensor) -> Condition:
    """The condition with t - r (B,) in the place of the guidance scale."""
    return condition.with_rows(guidance=1 + SPAN * span)


class MeanFlowObjective(Distillation):
    """On noised latents, in flow coordinates; the student is one that is told a scale."""

    method: Averaging

    def __init__(self, student: Student, teacher: Teacher, method: Averaging) -> None:
        super().__init__(student, teacher, method)
        # forward derivatives of group norms take contiguous maps alone
        student.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.view, self.flow = flow_view(student.prior), Teacher(flow_view(teacher.prior))
        self.noisiest = float(self.view.levels(1)[0].sigma)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        method, path = self.method, self.flow.schedule.path
        x0, condition = self.latents(batch), self.described(batch["captions"])
        r, t = self.spans(len(x0), rng)
        noise = torch.randn(x0.shape, generator=rng).to(x0)
        now = path.at_sigma(t)
        x = self.flow.schedule.add_noise(x0, noise, now)
        v = self.flow.guided(x, now, condition, torch.full((len(x0),), method.scale)).u

        def u(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return Denoiser(self.view, told_span(condition, t - r))(x, path.at_sigma(t)).u

        found, aim = identity(u, x, r.to(x), t.to(x), v)
        error = (found - aim).square().flatten(1).sum(1)
        loss = (error / (error.detach() + method.floor)).mean()
        return LossOut(loss, {"loss": loss.detach(), "error": error.mean().detach()})

    def spans(self, rows: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (r, t), each (B,) float64, r <= t within what the prior knows."""
        mean, deviation = self.method.times
        drawn = torch.sigmoid(mean + deviation * torch.randn(2, rows, generator=rng)).double().clamp_max(self.noisiest)
        t, r = drawn.amax(0), drawn.amin(0)
        return torch.where(torch.rand(rows, generator=rng) < self.method.apart, r, t), t


def drawn(student: DiffusersPrior, condition: Condition, noise: Tensor, calls: int) -> Tensor:
    """Latents (B, C, h, w) of even steps from unit noise (B, C, h, w)."""
    view = flow_view(student)
    levels = view.levels(calls)
    span = torch.full((len(noise),), float(levels[0].sigma) / calls)
    return Sampler(DDIM()).run(Denoiser(view, told_span(condition, span)), begun(view, noise), levels)


def begun(view: PathView, noise: Tensor) -> Tensor:
    """Unit noise at the noisiest level of the prior within, in flow coordinates."""
    schedule = NoiseSchedule.from_config(view.inner.scheduler_config)
    first = schedule.at_index(schedule.steps - 1)
    return noise / (float(first.alpha) + float(first.sigma))
