"""Linear multistep solvers with momentum (Wizadwongsa et al. 2023, "Diffusion Sampling with Momentum").

The ODE is dy/dtau = d: y = x / alpha, tau = sigma / alpha, d = eps on VP paths; y = x, tau = sigma, d = u on rectified
flows. GHVB averages the direction, v <- (1 - beta) v + beta d, and then combines: y += dtau sum_k w_k v_{n-k}. Its
weights, from gamma = 1, 1/2, 5/12, ... of Adams-Bashforth, keep the order r for every beta; beta = 1 is Adams-Bashforth
(PLMS). Heavy ball (HB) averages the combined direction instead and is of first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, comb, floor

import torch
from torch import Tensor

from ....utils.errors import InputError
from ..levels import Level
from ..prediction import Kind, Prediction
from .base import Done, Generators, Request, Solver, SolverAround

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

    def start(self, x: Tensor, grid: Sequence[Level], generator: Generators = None) -> Request:
        """See Solver.start; draws no noise."""
        self.check_grid(grid)
        self.check_shared_levels(grid, "a linear multistep solver")
        self.direction = "flow_prediction" if is_flow_grid(grid) else "epsilon"
        self._grid, self._step, self._x = grid, 0, x
        self._velocity: Tensor | None = None
        self._history: list[Tensor] = []  # velocities, newest first
        return Request(x, grid[0])

    def feed(self, prediction: Prediction) -> Request | Done:
        """See Solver.feed."""
        level, target = self._grid[self._step], self._grid[self._step + 1]
        given = prediction.read(self.direction)
        previous = given if self._velocity is None else self._velocity
        self._velocity = (1 - self.beta) * previous + self.beta * given if self.beta != 1 else given
        self._history = [self._velocity, *self._history[: self.order - 1]]
        weights = self._weights[len(self._history) - 1]
        combined = torch.stack([w * v for w, v in zip(weights, self._history, strict=True)]).sum(0)
        keep, gain = step_coefficients(level, target, self.direction)
        self._step += 1
        return self.replace(keep * prediction.x + gain * combined)

    def replace(self, x: Tensor) -> Request | Done:
        """See Solver.replace; the velocities stay."""
        self._x = x
        if self._step == len(self._grid) - 1:
            return Done(x)
        return Request(x, self._grid[self._step])


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

    def start(self, x: Tensor, grid: Sequence[Level], generator: Generators = None) -> Request:
        """See Solver.start."""
        request = self.inner.start(x, grid, generator)
        self.direction = self.kind or self.inner.direction
        self._grid, self._level = grid, request.level
        self._velocity: Tensor | None = None
        return request

    def feed(self, prediction: Prediction) -> Request | Done:
        """See Solver.feed."""
        answer = self.inner.feed(prediction)
        if self.beta == 1:
            return answer
        level, target = self._level, answer.level if isinstance(answer, Request) else self._grid[-1]
        self._level = target
        keep, gain = step_coefficients(level, target, self.direction)
        if gain == 0:
            return answer
        given = (answer.x - keep * prediction.x) / gain
        if self._velocity is None:  # the average of one direction: the step as it was
            self._velocity = given
            return answer
        velocity = (1 - self.beta) * self._velocity + self.beta * given
        taken = (1 - self.beta) * velocity + self.beta * given if self.nesterov else velocity
        self._velocity = velocity
        return self.inner.replace(keep * prediction.x + gain * taken)
