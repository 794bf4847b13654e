"""Q-Sched (2025): two factors per step for a quantised or few-step model, found by a score of what it draws.

Every solver step takes c_e times the network output and c_x times the state, before anything else:
x0 = (c_x x - sigma c_e eps) / alpha, x_s = alpha_s x0 + sigma_s c_e eps; flow Euler: x_s = c_x x + (sigma_s - sigma)
c_e u. Profiles fall off linearly from (m, q) at the noisiest step to (1, 1) at the last.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.base import Prior
from .calibration import Calibration, Fingerprint, fingerprint
from .guidance import Guidance
from .levels import Level
from .prediction import Prediction
from .sampler import Denoise
from .solvers.base import Generators, Solver, SolverAround, Steps, advanced
from .solvers.wrapped import forget_last_sample

KIND = "q-sched"
Score = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [0, 1] to scores (B,), higher is better


@dataclass(frozen=True)
class Coefficients:
    """Factors of the network output (c_e) and of the state (c_x), one pair per step, noisiest first."""

    output: tuple[float, ...]
    state: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.output) != len(self.state) or not self.output:
            got = f"{len(self.output)} output and {len(self.state)} state factors"
            raise InputError(f"coefficients need one pair per step, got {got}")

    @classmethod
    def constant(cls, steps: int, output: float = 1.0, state: float = 1.0) -> Coefficients:
        """The same pair at every step."""
        return cls((float(output),) * steps, (float(state),) * steps)

    @classmethod
    def profile(cls, steps: int, output: float = 1.0, state: float = 1.0) -> Coefficients:
        """linspace(m, 1, N) and linspace(q, 1, N): the pair given at the first step, (1, 1) at the last."""
        ends = (torch.linspace(first, 1.0, steps, dtype=torch.float64).tolist() for first in (output, state))
        return cls(*(tuple(end) for end in ends))

    @property
    def steps(self) -> int:
        """Steps of the run they are for."""
        return len(self.output)

    @property
    def plain(self) -> bool:
        """Whether they change nothing."""
        return set(self.output) | set(self.state) == {1.0}

    def check_one_call(self, once: bool, name: str) -> None:
        """Raises InputError for a solver with another number of calls a step, where factors of a step mean nothing."""
        if not once and not self.plain:
            raise InputError(
                f"{name} does not ask the network exactly once a step, which factors other than 1 are made for; use a "
                "solver of one call a step, such as DDIM"
            )

    def check_steps(self, steps: int) -> None:
        """Raises InputError unless a run has exactly as many steps: a profile means something else on another grid."""
        if steps != self.steps:
            raise InputError(f"these coefficients are for steps={self.steps}, the run has {steps}; calibrate for it")

    def applied(self, prediction: Prediction, step: int) -> Prediction:
        """The prediction that a solver takes at this step."""
        c_e, c_x = self.output[step], self.state[step]
        return Prediction(c_x * prediction.x, prediction.level, c_e * prediction.raw, prediction.kind)


class RescaledDenoiser:
    """A denoiser whose answers carry the factors, told apart by their model times."""

    def __init__(self, denoiser: Denoise, coefficients: Coefficients, levels: Sequence[Level]) -> None:
        """`levels` is the grid of the run, one step per pair of factors."""
        self.denoiser, self.coefficients = denoiser, coefficients
        coefficients.check_steps(len(levels) - 1)
        self._times = torch.tensor([float(level.model_time) for level in levels[:-1]], dtype=torch.float64)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """The rescaled prediction at x (B, C, h, w)."""
        step = int((self._times - float(level.model_time)).abs().argmin())
        return self.coefficients.applied(self.denoiser(x, level), step)


class RescaledSolver(SolverAround):
    """A solver of one call a step (factors of 1: any) with the factors applied to its state and to what it is fed."""

    def __init__(self, solver: Solver, coefficients: Coefficients) -> None:
        coefficients.check_one_call(solver.asks_once, type(solver).__name__)
        super().__init__(solver)
        self.coefficients = coefficients

    def check(self, x: Tensor, grid: Sequence[Level]) -> None:
        """See Solver.check; the grid has one step per pair of factors."""
        self.coefficients.check_steps(len(grid) - 1)
        super().check(x, grid)

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps."""
        run, asked = self.inner.steps(x, grid, generator), iter(self.asks(grid))
        x, level = advanced(run)
        while level is not None:
            p = yield x, level
            x, level = advanced(run, self.coefficients.applied(p, next(asked)))
        return x


def rescaled_scheduler(scheduler: Any, coefficients: Coefficients) -> Any:
    """A diffusers scheduler of the same class and config whose `step` applies the factors; the given one is unchanged.

    For any pipeline: `pipe.scheduler = rescaled_scheduler(pipe.scheduler, coefficients)`. Image-to-image runs use the
    factors of the steps they take. Raises InputError at `set_timesteps` for another number of steps, and for schedulers
    with several calls a step (Heun, PNDM, single-step DPM-Solver).
    """
    base = type(scheduler)

    class Rescaled(base):  # type: ignore[misc, valid-type]
        """The scheduler with its factors."""

        @functools.wraps(base.set_timesteps)  # pipelines read the arguments a scheduler knows off its methods
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self._distinct = list(dict.fromkeys(self.timesteps.tolist()))
            once = len(self._distinct) == len(self.timesteps) and not hasattr(self, "sample")  # kept between calls
            coefficients.check_one_call(once, base.__name__)
            coefficients.check_steps(len(self._distinct))

        @functools.wraps(base.step)
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            i = min(range(len(self._distinct)), key=lambda k: abs(self._distinct[k] - float(timestep)))
            c_e, c_x = coefficients.output[i], coefficients.state[i]
            if c_x != 1:
                forget_last_sample(self)
            return super().step(c_e * model_output, timestep, c_x * sample, *args, **kwargs)

    Rescaled.__name__ = Rescaled.__qualname__ = base.__name__
    return Rescaled.from_config(scheduler.config)


def jaq(compatibility: Score, quality: Score, weight: float = 2.0) -> Score:
    """JAQ(x) = TC(x) + k IQ(x): agreement of picture and text plus k times picture quality; k = 2 in the paper."""

    def score(images: Tensor) -> Tensor:
        return compatibility(images) + weight * quality(images)

    return score


@dataclass(frozen=True)
class Calibrated:
    """The best factors of a grid search, and the whole landscape to see how flat it is."""

    coefficients: Coefficients
    scores: Tensor  # (G_m, G_q) float64, mean score of each pair
    output_grid: Tensor  # (G_m,) float64
    state_grid: Tensor  # (G_q,) float64
    plain: float  # mean score at (1, 1)

    @property
    def gain(self) -> float:
        """Best mean score minus the plain one; 0 when (1, 1) wins."""
        return max(float(self.scores.max()) - self.plain, 0.0)

    def flatness(self, within: float = 0.5) -> float:
        """Share of the grid that keeps at least this part of the best gain; near 0 a lone peak, perhaps noise."""
        return float((self.scores - self.plain >= within * self.gain).double().mean()) if self.gain else 1.0

    def save(
        self, path: str | Path, prior: Prior, latent_shape: tuple[int, int, int], guidance: Guidance | float
    ) -> Path:
        """Writes the artefact with the fingerprint of the (quantised) prior, latent shape and guidance."""
        tensors = {
            "output": torch.tensor(self.coefficients.output, dtype=torch.float64),
            "state": torch.tensor(self.coefficients.state, dtype=torch.float64),
            "scores": self.scores,
            "output_grid": self.output_grid,
            "state_grid": self.state_grid,
        }
        settings = {"steps": self.coefficients.steps, "plain": self.plain, "gain": self.gain}
        return Calibration(KIND, tensors, fingerprint(prior, latent_shape, guidance), settings).save(path)


def load_coefficients(path: str | Path, expected: Fingerprint | None = None) -> Coefficients:
    """The factors of an artefact. Raises InputError for another prior, shape or guidance than `expected`."""
    tensors = Calibration.load(path, KIND, expected).tensors
    return Coefficients(tuple(tensors["output"].tolist()), tuple(tensors["state"].tolist()))


def calibrate(
    draw: Callable[[Coefficients], Tensor],
    score: Score,
    steps: int,
    output_grid: Sequence[float] | Tensor | None = None,
    state_grid: Sequence[float] | Tensor | None = None,
    constant: bool = False,
) -> Calibrated:
    """Scores every pair (m, q) of two grids on what the model draws with it and keeps the best.

    Args:
        draw: images (B, 3, H, W) in [0, 1] with these factors; the same prompts and seeds every time, or the search
            ranks noise.
        score: scores (B,) of images, higher is better, e.g. `jaq(...)`.
        steps: steps of a run.
        output_grid: values of m; None: 10 from 0.8 to 1.1. Likewise `state_grid` for q.
        constant: the same factors at every step instead of profiles that end at 1.

    The plain pair is scored as well and wins ties, so that the result is never worse on the calibration images.
    """
    m_grid, q_grid = (_grid(values) for values in (output_grid, state_grid))
    make = Coefficients.constant if constant else Coefficients.profile

    def mean(m: float, q: float) -> float:
        value = float(score(draw(make(steps, m, q))).cpu().double().mean())
        return value if math.isfinite(value) else -math.inf

    plain = mean(1.0, 1.0)
    scores = torch.tensor([[mean(m, q) for q in q_grid.tolist()] for m in m_grid.tolist()], dtype=torch.float64)
    best = int(scores.argmax())
    m, q = (m_grid[best // len(q_grid)].item(), q_grid[best % len(q_grid)].item())
    if scores.max() <= plain:
        m, q = 1.0, 1.0
    return Calibrated(make(steps, m, q), scores, m_grid, q_grid, plain)


def _grid(values: Sequence[float] | Tensor | None) -> Tensor:
    if values is None:
        return torch.linspace(0.8, 1.1, 10, dtype=torch.float64)
    grid = torch.as_tensor(values, dtype=torch.float64).flatten()
    if len(grid) == 0 or not bool(torch.isfinite(grid).all()):
        raise InputError("a grid of factors must hold finite numbers")
    return grid
