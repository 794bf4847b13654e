"""Linear multistep solvers with momentum (Wizadwongsa et al. 2023, "Diffusion Sampling with Momentum").

The ODE is dy/dtau = d: y = x / alpha, tau = sigma / alpha, d = eps on VP paths; y = x, tau = sigma, d = u on rectified
flows. GHVB averages the direction, v <- (1 - beta) v + beta d, and then combines: y += dtau sum_k w_k v_{n-k}. Its
weights, from gamma = 1, 1/2, 5/12, ... of Adams-Bashforth, keep the order r for every beta; beta = 1 is Adams-Bashforth
(PLMS). Heavy ball (HB) averages the combined direction instead and is of first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil, comb, floor

import torch
from torch import Tensor

from ....utils.errors import InputError
from ..levels import Level
from ..prediction import Kind
from .base import Generators, Solver, SolverAround, Steps, advanced

GAMMA = tuple(Fraction(*ratio) for ratio in ((1, 1), (1, 2), (5, 12), (3, 8), (251, 720)))
MAX_ORDER = len(GAMMA)


def multistep_weights(order: int, beta: float = 1.0) -> tuple[float, ...]:
    """Weights of v_n, v_{n-1}, ... of GHVB (appendix D); they sum to 1, and beta = 1 is Adams-Bashforth.

    The coefficient of the k-th backward difference is gamma_k + (1 - beta) gamma_{k-1} / beta.
    """
    if not 1 <= order <= MAX_ORDER:
        raise InputError(f"order={order} of a linear multistep solver must lie between 1 and {MAX_ORDER}")
    rate = Fraction(_checked_beta(beta))
    terms = [GAMMA[0]] + [GAMMA[k] + (1 - rate) * GAMMA[k - 1] / rate for k in range(1, order)]
    return tuple(float((-1) ** j * sum(terms[k] * comb(k, j) for k in range(j, order))) for j in range(order))


def momentum_number(number: float) -> tuple[int, float]:
    """(order, beta) of a "momentum number": 1.8 is order 2 with beta 0.8, 4 is order 4 without damping."""
    if not 0 < number <= MAX_ORDER:
        raise InputError(f"momentum number {number} must lie in (0, {MAX_ORDER}]")
    part = round(number - floor(number), 12)
    return ceil(number), part or 1.0


def _checked_beta(beta: float) -> float:
    if not 0 < beta <= 1:
        raise InputError(f"beta={beta} must lie in (0, 1]: 1 is no momentum, smaller values damp more")
    return beta


def is_flow_grid(grid: Sequence[Level]) -> bool:
    """Whether alpha + sigma = 1 at every level."""
    return all(abs(float(level.alpha) + float(level.sigma) - 1) < 1e-9 for level in grid)


class LinearMultistep(Solver):
    """Adams-Bashforth of order 1 to 5 with constant-step weights (PLMS), or GHVB for beta < 1.

    Warm-up takes the order that the history allows. Order 1 with beta 1 is DDIM.
    """

    def __init__(self, order: int = 4, beta: float = 1.0) -> None:
        self._weights = [multistep_weights(min(r, order), beta) for r in range(1, max(order, 1) + 1)]
        self.order, self.beta = order, beta

    def direction(self, grid: Sequence[Level]) -> Kind:
        """See Solver.direction: noise on VP paths, u on rectified flows."""
        return "flow_prediction" if is_flow_grid(grid) else "epsilon"

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps; draws no noise. The velocities stay when the state is replaced."""
        kind = self.direction(grid)
        velocities: list[Tensor] = []  # newest first
        for level, after in pairwise(grid):
            p = yield x, level
            d = p.read(kind)
            if self.beta != 1:
                d = (1 - self.beta) * (velocities[0] if velocities else d) + self.beta * d
            velocities = [d, *velocities[: self.order - 1]]
            weights = self._weights[len(velocities) - 1]
            combined = torch.stack([w * v for w, v in zip(weights, velocities, strict=True)]).sum(0)
            keep, gain = step_coefficients(level, after, kind)
            x = keep * p.x + gain * combined
        return x


def step_coefficients(level: Level, target: Level, kind: Kind) -> tuple[float, float]:
    """(keep, gain) with x_t = keep x_s + gain d exact for a constant direction d of this kind (eps, x0 or flow u)."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    if kind == "flow_prediction":
        return 1.0, float(target.sigma) - sigma
    if kind == "epsilon":
        return float(target.alpha) / alpha, float(target.sigma) - float(target.alpha) * sigma / alpha
    if kind == "sample":
        return float(target.sigma) / sigma, float(target.alpha) - float(target.sigma) * alpha / sigma
    raise InputError(f"kind={kind!r} has no step of constant direction; have epsilon, sample, flow_prediction")


class HeavyBall(SolverAround):
    """Heavy-ball momentum on any solver with one network call per step.

    Each step of the inner solver is read as a constant direction (its own `direction`, or `kind`), averaged with the
    past, v <- (1 - beta) v + beta d, and taken again with v. With `nesterov`, (1 - beta) v + beta d is taken. That
    replaces the state, so a corrector of the inner solver (UniPC's, say) has a turn after the first step only.
    """

    def __init__(self, inner: Solver, beta: float, kind: Kind | None = None, nesterov: bool = False) -> None:
        """`kind`: "epsilon", "sample" or "flow_prediction"; beta = 1 is the inner solver, bit for bit."""
        if not inner.asks_once:
            raise InputError(f"momentum needs one network call per step; {type(inner).__name__} makes more or fewer")
        if kind is not None and kind not in ("epsilon", "sample", "flow_prediction"):
            raise InputError(f"kind={kind!r} is no direction of a step; have epsilon, sample, flow_prediction")
        super().__init__(inner)
        self.beta, self.kind, self.nesterov = _checked_beta(beta), kind, nesterov

    def direction(self, grid: Sequence[Level]) -> Kind:
        """See Solver.direction."""
        return self.kind or self.inner.direction(grid)

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps."""
        kind = self.direction(grid)
        velocity: Tensor | None = None
        run = self.inner.steps(x, grid, generator)
        x, level = advanced(run)
        while level is not None:
            p = yield x, level
            x, after = advanced(run, p)
            if self.beta != 1:
                x, velocity = self._pushed(p.x, x, velocity, *step_coefficients(level, after or grid[-1], kind))
            level = after
        return x

    def _pushed(
        self, x: Tensor, after: Tensor, velocity: Tensor | None, keep: float, gain: float
    ) -> tuple[Tensor, Tensor | None]:
        """The state with momentum after a step of the inner solver from x to `after`, and the new velocity."""
        if gain == 0:
            return after, velocity
        d = (after - keep * x) / gain
        if velocity is None:  # the average of one direction: the step as it was
            return after, d
        velocity = (1 - self.beta) * velocity + self.beta * d
        taken = (1 - self.beta) * velocity + self.beta * d if self.nesterov else velocity
        return keep * x + gain * taken, velocity
