"""diffusers' schedulers as solvers, driven on our own grid of levels.

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
from ..prediction import Kind
from .base import Generators, Solver, Steps, replaced

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

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps; these draw no noise. The step to a state that is replaced is not corrected (UniPC)."""
        grid = _stepped(grid)
        levels = [grid[k] for k in self.asks(grid)]
        scheduler = self._scheduler(grid, levels)
        state = x / self._scale(grid[0])
        for time, level, after in zip(scheduler.timesteps, levels, [*levels[1:], grid[-1]], strict=True):
            p = yield x, level
            if replaced(p, x):
                state = p.x / self._scale(level)
                forget_last_sample(scheduler)
            state = scheduler.step(p.read(self.kind).to(state.dtype), time, state, return_dict=False)[0]
            x = state * self._scale(after)
        return x

    def calls(self, steps: int) -> int:
        """See Solver.calls."""
        return 2 * steps - 1 if self.recipe.repeats else steps

    def asks(self, grid: Sequence[Level]) -> list[int]:
        """See Solver.asks; an empty last step is not taken."""
        steps = list(range(len(_stepped(grid)) - 1))
        return _repeated(steps) if self.recipe.repeats else steps

    def _scale(self, level: Level) -> float:
        """What turns the scheduler's state into ours: alpha for variance-exploding schedulers, else 1."""
        return 1.0 if self.flow or self.recipe.multistep else float(level.alpha)

    def _noise(self, level: Level) -> float:
        if self.flow:
            return min(float(level.sigma), FLOW_SIGMA_MAX) if self.recipe.multistep else float(level.sigma)
        return math.exp(-float(level.lam))

    def _scheduler(self, grid: Sequence[Level], levels: Sequence[Level]) -> Any:
        """The scheduler set to a grid and to the levels it is asked at."""
        scheduler = self._built(grid[-1])
        scheduler.set_timesteps(len(grid) - 1)
        noise = [self._noise(level) for level in grid]
        scheduler.sigmas = torch.tensor([*_repeated(noise[:-1]), noise[-1]] if self.recipe.repeats else noise)
        times = torch.tensor([float(level.model_time) for level in levels])
        scheduler.timesteps = times.long() if self.recipe.multistep and not self.flow else times
        scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True
        return scheduler

    def _built(self, end: Level) -> Any:
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


def _repeated(values: list[Any]) -> list[Any]:
    """The list with everything after its first entry doubled."""
    return values[:1] + [value for value in values[1:] for _ in range(2)]
