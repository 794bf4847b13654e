"""diffusers' schedulers behind the request/response protocol, driven on our own grid of levels.

The scheduler does the update; our grid replaces its timesteps and sigmas (VE noise e^{-lambda} for VP paths, sigma
for flows), so every solver is compared on the same levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from ....utils.errors import InputError
from ..levels import Level
from ..prediction import Kind, Prediction
from .base import Done, Generators, Request, Solver

FLOW_SIGMA_MAX = 0.999  # multistep schedulers take logarithms of 1 - sigma


@dataclass(frozen=True)
class Recipe:
    """How a diffusers scheduler is driven."""

    vp: str  # class for VP paths
    flow: str  # class for rectified flows
    options: tuple[tuple[str, Any], ...] = ()
    multistep: bool = False  # takes its state unscaled and logarithms of sigma
    repeats: bool = False  # two calls per step (Heun)


RECIPES = {
    "dpm++": Recipe(
        "DPMSolverMultistepScheduler",
        "DPMSolverMultistepScheduler",
        (("algorithm_type", "dpmsolver++"), ("solver_order", 2)),
        multistep=True,
    ),
    "dpm++3m": Recipe(
        "DPMSolverMultistepScheduler",
        "DPMSolverMultistepScheduler",
        (("algorithm_type", "dpmsolver++"), ("solver_order", 3)),
        multistep=True,
    ),
    "unipc": Recipe("UniPCMultistepScheduler", "UniPCMultistepScheduler", (("solver_order", 2),), multistep=True),
    "euler": Recipe("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    "heun": Recipe("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", repeats=True),
}


class WrappedSolver(Solver):
    """A diffusers scheduler as a Solver."""

    def __init__(self, name: str, flow: bool, kind: Kind = "epsilon") -> None:
        """`name` is a key of RECIPES; `kind` is the prior's prediction type (kept for VP paths)."""
        if name not in RECIPES:
            raise InputError(f"solver {name!r} is unknown; have {', '.join(RECIPES)}")
        self.recipe, self.flow = RECIPES[name], flow
        self.kind: Kind = "flow_prediction" if flow else kind
        if not flow and kind == "flow_prediction":
            self.kind = "epsilon"

    def start(self, x: Tensor, grid: Sequence[Level], generator: Generators = None) -> Request:
        """See Solver.start; these solvers draw no noise."""
        self.check_grid(grid)
        self.check_shared_levels(grid, "a diffusers scheduler")
        grid = _stepped(grid)
        steps = len(grid) - 1
        self._scheduler = self._build(grid[-1])
        self._scheduler.set_timesteps(steps)
        self._levels = self.asks(grid)
        noise = [self._noise(level) for level in grid]
        sigmas = [*_repeated(noise[:-1], 1), noise[-1]] if self.recipe.repeats else noise
        self._scheduler.sigmas = torch.tensor(sigmas)
        times = torch.tensor([float(level.model_time) for level in self._levels])
        self._scheduler.timesteps = times.long() if self.recipe.multistep and not self.flow else times
        self._scheduler.set_begin_index(0)
        self._scheduler.is_scale_input_called = True
        self._end, self._step = grid[-1], 0
        self._state = x / self._scale(grid[0])
        return Request(x, grid[0])

    def feed(self, prediction: Prediction) -> Request | Done:
        """See Solver.feed."""
        answer = prediction.read(self.kind).to(self._state.dtype)
        time = self._scheduler.timesteps[self._step]
        self._state = self._scheduler.step(answer, time, self._state, return_dict=False)[0]
        self._step += 1
        return self._request()

    def replace(self, x: Tensor) -> Request | Done:
        """See Solver.replace; the last step is then no longer corrected (UniPC), unless x is the state there is."""
        scale = self._scale(self._levels[self._step] if self._step < len(self._levels) else self._end)
        if not torch.equal(x, self._state * scale):
            self._state = x / scale
            forget_last_sample(self._scheduler)
        return self._request()

    def calls(self, steps: int) -> int:
        """See Solver.calls."""
        return 2 * steps - 1 if self.recipe.repeats else steps

    def asks(self, grid: Sequence[Level]) -> list[Level]:
        """See Solver.asks; an empty last step is not taken."""
        levels = list(_stepped(grid)[:-1])
        return _repeated(levels, 1) if self.recipe.repeats else levels

    def _request(self) -> Request | Done:
        if self._step == len(self._levels):
            return Done(self._state * self._scale(self._end))
        level = self._levels[self._step]
        return Request(self._state * self._scale(level), level)

    def _scale(self, level: Level) -> float:
        """What turns the scheduler's state into ours: alpha for variance-exploding schedulers, else 1."""
        return 1.0 if self.flow or self.recipe.multistep else float(level.alpha)

    def _noise(self, level: Level) -> float:
        if self.flow:
            return min(float(level.sigma), FLOW_SIGMA_MAX) if self.recipe.multistep else float(level.sigma)
        return math.exp(-float(level.lam))

    def _build(self, end: Level) -> Any:
        options = dict(self.recipe.options)
        if not self.flow:
            options["prediction_type"] = self.kind
        elif self.recipe.multistep:
            options |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        if self.recipe.multistep:
            options["final_sigmas_type"] = "zero" if float(end.sigma) == 0 else "sigma_min"
        return getattr(diffusers, self.recipe.flow if self.flow else self.recipe.vp)(**options)


def forget_last_sample(scheduler: Any) -> None:
    """Makes a diffusers scheduler go on from the state it is given: correctors begin anew at the one before."""
    if getattr(scheduler, "last_sample", None) is not None:
        scheduler.last_sample = None


def _stepped(grid: Sequence[Level]) -> Sequence[Level]:
    """The grid without an empty last step, which would divide by its length."""
    if len(grid) > 2 and math.isclose(float(grid[-2].sigma), float(grid[-1].sigma), rel_tol=1e-9):
        return [*grid[:-2], grid[-1]]
    return grid


def _repeated(values: list[Any], first: int) -> list[Any]:
    """The list with everything after the first `first` entries doubled."""
    return values[:first] + [value for value in values[first:] for _ in range(2)]
