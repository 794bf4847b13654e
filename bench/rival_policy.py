"""A student that says a policy, in the manner of pi-Flow (Chen et al. 2025), for comparison.

One call says K clean images x0_1 ... x0_K at even times of the step that follows, t = sigma / (alpha + sigma) of flow
coordinates; between them x0(t) is linear in t, and the velocity is that of who expects it ("DX policy"):
    dx/dt = (x - x0(t)) / t.
Where x0(t) = a + b t, x / t has the derivative -(a + b t) / t^2, so that the steps are exact without a network,
    x_e = (e / s) x_s + (1 - e / s) a - b e ln(e / s).
It imitates the teacher: at states that its own policy visits, its velocity has to be the teacher's (on-policy, without
the mixing of the two paths that ArcFlow begins with). An adapter and the last layer learn, as in ArcFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..core.distillation.arcflow import FACTOR, WINDOW, ArcObjective, Mixture, shares
from ..core.priors import Condition
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling import Level, Prediction
from ..core.sampling.sampler import Denoise
from ..core.sampling.solvers.arc import flow_sigma
from ..core.sampling.solvers.base import Generators, Solver, Steps


@dataclass(frozen=True)
class Expectations:
    """The policy of one call."""

    clean: Tensor  # (B, K, C, h, w), the first at `start`, the last at `end`
    start: float
    end: float

    @classmethod
    def of(cls, prediction: Prediction, end: float) -> Expectations:
        """That of a network output (B, K C, h, w), down to the flow sigma `end`."""
        x, level = prediction.x, prediction.level
        parts = prediction.raw.unflatten(1, (-1, x.shape[1])).unbind(1)
        clean = [Prediction(x, level, one, prediction.kind).x0 for one in parts]
        return cls(torch.stack(clean, 1), flow_sigma(level), end)

    def expected(self, t: float) -> Tensor:
        """x0(t), (B, C, h, w)."""
        count = self.clean.shape[1]
        place = (self.start - t) / (self.start - self.end) * (count - 1)
        low = min(max(int(place), 0), max(count - 2, 0))
        return torch.lerp(self.clean[:, low], self.clean[:, min(low + 1, count - 1)], place - low)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """dx/dt (B, C, h, w) at a state in flow coordinates, t > 0."""
        return (x - self.expected(t)) / t

    def step(self, x: Tensor, start: float, end: float) -> Tensor:
        """The state (B, C, h, w) in flow coordinates at `end`, from one at `start`, within the policy's span."""
        knots = torch.linspace(self.start, self.end, self.clean.shape[1], dtype=torch.float64).tolist()
        times = [start, *(t for t in knots if end < t < start), end]
        for s, e in pairwise(times):
            if s == e:
                continue
            first, last = self.expected(s), self.expected(e)
            slope, ratio = (last - first) / (e - s), e / s
            bend = e * float(torch.tensor(ratio, dtype=torch.float64).log()) if e > 0 else 0.0
            x = ratio * x + (1 - ratio) * (first - s * slope) - bend * slope
        return x

    def detached(self) -> Expectations:
        """Without gradients."""
        return Expectations(self.clean.detach(), self.start, self.end)


@dataclass(frozen=True)
class Points(Mixture):
    """A low-rank adapter and a last layer that says K answers, at first K times the prior's."""

    name: ClassVar[str] = "points"

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted."""
        fitted = self._lora.fitted(prior, seed)
        network = cast(Any, fitted.network)
        last, count = network.conv_out, self.components
        made = nn.Conv2d(last.in_channels, count * last.out_channels, last.kernel_size, padding=last.padding)
        made.weight = nn.Parameter(last.weight.detach().repeat(count, 1, 1, 1))
        made.bias = nn.Parameter(last.bias.detach().repeat(count))
        network.conv_out = made
        network.conv_norm_out.requires_grad_(True)
        return fitted


class PolicyObjective(ArcObjective):
    """Runs from noise, as of `ArcObjective`."""

    def policy(self, x: Tensor, level: Level, condition: Condition) -> Expectations:  # type: ignore[override]
        """The student's policy at a state in flow coordinates, for the step that begins there."""
        z = x * (float(level.alpha) + float(level.sigma))
        after = self.levels[self.levels.index(level) + 1]
        return Expectations.of(self.student.ask(z, level, condition), flow_sigma(after))

    def _within(  # type: ignore[override]
        self, policy: Expectations, x: Tensor, start: float, end: float, ratio: float, teach: Denoise,
        rng: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """The mean loss over the states of one step."""
        blind, at, losses = policy.detached(), start, []
        for share in shares(self.method.states, rng):
            before, at = at, max(at - (start - end) * share, WINDOW)
            x = blind.step(x, before, at)
            with torch.no_grad():
                wanted = teach(x, self._flow_level(at)).u
            losses.append(FACTOR * (policy.velocity(x, at) - wanted).square().mean())
        return torch.stack(losses).mean()


class Following(Solver):
    """One call a step, integrated exactly along its policy."""

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps."""
        for level, after in pairwise(grid):
            p = yield x, level
            total, total_after = (float(one.alpha) + float(one.sigma) for one in (level, after))
            x = total_after * Expectations.of(p, flow_sigma(after)).step(p.x / total, flow_sigma(level),
                                                                         flow_sigma(after))  # fmt: skip
        return x
