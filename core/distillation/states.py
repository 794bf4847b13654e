"""Where states to compare at come from: data with noise on it, pure noise, or a run of a teacher or student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.rows import Condition
from ..sampling.levels import Level, NoiseSchedule
from ..sampling.sampler import Denoise
from ..sampling.solvers import Solver
from .teacher import rollout


class State(NamedTuple):
    """A state at its level, and what it was made of where that is known."""

    x: Tensor  # (B, C, h, w)
    level: Level  # of all rows, or one a row
    x0: Tensor | None = None
    noise: Tensor | None = None


class StateSource(Protocol):
    """A frozen dataclass that draws states; the same generator state gives the same ones."""

    def __call__(self, like: Tensor, condition: Condition, rng: torch.Generator) -> State:
        """States for latents (B, C, h, w), which also say shape, device and dtype."""
        ...


@dataclass(frozen=True)
class FromData:
    """alpha x0 + sigma eps of the latents, an evenly drawn train index a row."""

    schedule: NoiseSchedule
    window: tuple[float, float] = (0.0, 1.0)  # fractions of the train indices

    def __post_init__(self) -> None:
        if not 0 <= self.window[0] < self.window[1] <= 1:
            raise InputError(f"window={self.window} must be (low, high) with 0 <= low < high <= 1")

    def __call__(self, like: Tensor, condition: Condition, rng: torch.Generator) -> State:
        """See StateSource."""
        low, high = (round(share * self.schedule.steps) for share in self.window)
        index = torch.randint(low, max(high, low + 1), (len(like),), generator=rng)
        level, noise = self.schedule.at_index(index), _noise(like, rng)
        return State(self.schedule.add_noise(like, noise, level), level, like, noise)


@dataclass(frozen=True)
class FromNoise:
    """Unit noise at the level where sampling begins: the latents give the shape only."""

    level: Level

    def __call__(self, like: Tensor, condition: Condition, rng: torch.Generator) -> State:
        """See StateSource."""
        noise = _noise(like, rng)
        return State(noise, self.level, noise=noise)


@dataclass(frozen=True)
class FromRollout:
    """A random state of a run from noise: what whoever samples visits. The clean end is never drawn."""

    denoiser: Callable[[Condition], Denoise]  # of a teacher or a student
    levels: Sequence[Level]
    solver: Solver | None = None  # None: DDIM; of one call a step

    def __call__(self, like: Tensor, condition: Condition, rng: torch.Generator) -> State:
        """See StateSource."""
        noise = _noise(like, rng)
        last = int(torch.randint(len(self.levels) - 1, (), generator=rng))
        states = [noise]
        if last:
            states = rollout(self.denoiser(condition), noise, self.levels[: last + 1], rng, self.solver)
        return State(states[-1], self.levels[last], noise=noise)


def of_each(levels: Sequence[Level], rows: Tensor) -> Level:
    """One level a row: levels[i] for i in rows (B,)."""
    columns = ("alpha", "sigma", "lam", "model_time", "index")
    chosen = {}
    for name in columns:
        values = torch.tensor([float(getattr(level, name)) for level in levels], dtype=torch.float64)
        chosen[name] = values[rows.cpu()]
    return Level(**chosen, span=levels[0].span, continuous=levels[0].continuous)


def _noise(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)
