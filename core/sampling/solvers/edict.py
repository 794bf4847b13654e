"""EDICT (Wallace et al. 2023): DDIM on two coupled copies of the state, exactly invertible for any network.

A step of DDIM is affine, x' = a x + b E; VP: E = eps, a = alpha'/alpha, b = sigma' - a sigma; flow: E = u, a = 1,
b = sigma' - sigma. Denoising, with E always asked at the noisier level:
    x <- a x + b E(y);  y <- a y + b E(x);  x <- p x + (1 - p) y;  y <- p y + (1 - p) x   (x already mixed)
and inversion undoes these four lines from the last to the first. Which copy goes first alternates, counted from the
noisy end of the grid. Mixing holds the copies together: their distance shrinks by p^2 a step, and the round-off of an
inversion grows by p^-2.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise

from torch import Tensor

from ....utils.errors import InputError
from ..levels import Level
from ..prediction import Kind, Prediction
from .base import Generators, Solver, Steps, replaced

Pair = tuple[Tensor, Tensor]
Coupled = Generator[tuple[Tensor, Level], Prediction, Pair]


class EDICT(Solver):
    """Two calls a step; runs towards the clean end, or backwards on a reversed grid.

    The answer of a run is the first copy; `pair` holds both, without which nothing is exact. A state that is put in
    place of the one asked about replaces that copy within a step, both copies between two.
    """

    exact_inverse = True
    pair: Pair  # both copies at the end of the last run

    def __init__(self, mixing: float = 0.93, partner: Tensor | None = None) -> None:
        """Mixing p in (0, 1]; `partner` is the second copy at the start, by default the first one's double."""
        if not 0 < mixing <= 1:
            raise InputError(f"mixing={mixing} must lie in (0, 1]: 1 keeps the copies apart, 0.93 suits editing")
        self.mixing, self._given = mixing, partner

    @property
    def partner(self) -> Tensor:
        """The second copy at the end of the last run."""
        return self.pair[1]

    def check(self, x: Tensor, grid: Sequence[Level]) -> None:
        """See Solver.check."""
        super().check(x, grid)
        if self._given is not None and self._given.shape != x.shape:
            raise InputError(f"the partner has shape {tuple(self._given.shape)}, the state {tuple(x.shape)}")

    def steps(self, x: Tensor, grid: Sequence[Level], generator: Generators) -> Steps:
        """See Solver.steps; no randomness."""
        run = inverting if _backwards(grid) else denoising
        self.pair = yield from run(x, x if self._given is None else self._given.to(x), grid, self.mixing)
        return self.pair[0]

    def calls(self, steps: int) -> int:
        """See Solver.calls."""
        return 2 * steps

    def asks(self, grid: Sequence[Level]) -> list[int]:
        """See Solver.asks: the noisier end of every step, twice."""
        return [step + _backwards(grid) for step in range(len(grid) - 1) for _ in range(2)]


def denoising(x: Tensor, y: Tensor, grid: Sequence[Level], p: float) -> Coupled:
    """Both copies at the clean end of a grid that begins at the noisy one, from both at the noisy end."""
    for k, (level, after) in enumerate(pairwise(grid)):
        a, b, kind = affine_step(level, after)
        first, second = (y, x) if k % 2 else (x, y)
        e = yield second, level
        if replaced(e, second):
            first = second = e.x.to(x)
        first = a * first + b * e.read(kind).to(x)
        e = yield first, level
        first = e.x.to(x)
        second = a * second + b * e.read(kind).to(x)
        x, y = (second, first) if k % 2 else (first, second)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    return x, y


def inverting(x: Tensor, y: Tensor, grid: Sequence[Level], p: float) -> Coupled:
    """What `denoising` began with, from what it made, on the reversed grid: its lines from the last to the first."""
    for k, (after, level) in zip(reversed(range(len(grid) - 1)), pairwise(grid), strict=True):
        a, b, kind = affine_step(level, after)
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        first, second = (y, x) if k % 2 else (x, y)
        e = yield first, level
        if replaced(e, first):
            first = second = e.x.to(x)
        second = (second - b * e.read(kind).to(x)) / a
        e = yield second, level
        second = e.x.to(x)
        first = (first - b * e.read(kind).to(x)) / a
        x, y = (second, first) if k % 2 else (first, second)
    return x, y


def affine_step(noisier: Level, cleaner: Level) -> tuple[float, float, Kind]:
    """(a, b, kind) of DDIM as an affine map: cleaner = a * noisier + b * (the prediction read as `kind`)."""
    alpha, sigma, after, less = (float(v) for v in (noisier.alpha, noisier.sigma, cleaner.alpha, cleaner.sigma))
    if abs(alpha + sigma - 1) < 1e-9:
        return 1.0, less - sigma, "flow_prediction"
    return after / alpha, less - sigma * after / alpha, "epsilon"


def _backwards(grid: Sequence[Level]) -> bool:
    return float(grid[-1].lam) < float(grid[0].lam)
