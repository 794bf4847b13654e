"""EDICT (Wallace et al. 2023): DDIM on two coupled copies of the state, exactly invertible for any network.

A step of DDIM is affine, x' = a x + b E; VP: E = eps, a = alpha'/alpha, b = sigma' - a sigma; flow: E = u, a = 1,
b = sigma' - sigma. Denoising, with E always asked at the noisier level:
    x <- a x + b E(y);  y <- a y + b E(x);  x <- p x + (1 - p) y;  y <- p y + (1 - p) x   (x already mixed)
and inversion undoes these four lines from the last to the first. Which copy goes first alternates, counted from the
noisy end of the grid. Mixing holds the copies together: their distance shrinks by p^2 a step, and the round-off of an
inversion grows by p^-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ....utils.errors import InputError
from ..levels import Level
from ..prediction import Kind, Prediction
from .base import Done, Generators, Request, Solver


class EDICT(Solver):
    """Two calls a step; runs towards the clean end, or backwards on a reversed grid. `partner` is the other copy.

    The answer of a run is the first copy; `partner` holds the second, without which nothing is exact.
    """

    exact_inverse = True  # no cache may stand in for its network calls

    def __init__(self, mixing: float = 0.93, partner: Tensor | None = None) -> None:
        """Mixing p in (0, 1]; `partner` is the second copy at the start, by default the first one's double."""
        if not 0 < mixing <= 1:
            raise InputError(f"mixing={mixing} must lie in (0, 1]: 1 keeps the copies apart, 0.93 suits editing")
        self.mixing, self._given = mixing, partner

    @property
    def partner(self) -> Tensor:
        """The second copy at the current level (after a run: at its end)."""
        return self._pair[1]

    def start(self, x: Tensor, grid: Sequence[Level], generator: Generators = None) -> Request:
        """See Solver.start; no randomness."""
        self.check_grid(grid)
        if any(isinstance(level.alpha, Tensor) for level in grid):
            raise InputError("EDICT needs one level for the whole batch")
        if self._given is not None and self._given.shape != x.shape:
            raise InputError(f"the partner has shape {tuple(self._given.shape)}, the state {tuple(x.shape)}")
        self._pair = [x, x if self._given is None else self._given.to(x)]
        self._grid, self._step, self._half = grid, 0, 0
        self._answer: Request | Done
        self._back = float(grid[-1].lam) < float(grid[0].lam)
        return self._ask()

    def feed(self, prediction: Prediction) -> Request | Done:
        """See Solver.feed."""
        moved = self._order()[self._half]
        a, b, kind = affine_step(*self._ends())
        field = prediction.read(kind).to(self._pair[moved].dtype)
        state = self._pair[moved]
        self._pair[moved] = (state - b * field) / a if self._back else a * state + b * field
        self._half += 1
        if self._half == 2:
            if not self._back:
                self._pair = self._mixed(*self._pair)
            self._step, self._half = self._step + 1, 0
        return self._next()

    def replace(self, x: Tensor) -> Request | Done:
        """See Solver.replace: both copies between steps, the copy asked about within one; the same tensor: nothing."""
        if x is self._answer.x:
            return self._answer
        if self._half == 1:
            self._pair[self._order()[0]] = x
            self._answer = Request(x, self._ends()[0])
            return self._answer
        self._pair = [x, x]
        return self._next()

    def calls(self, steps: int) -> int:
        """See Solver.calls."""
        return 2 * steps

    def asks(self, grid: Sequence[Level]) -> list[Level]:
        """See Solver.asks: the noisier end of every step, twice."""
        return [max(ends, key=lambda level: -float(level.lam)) for ends in pairwise(grid) for _ in range(2)]

    def _next(self) -> Request | Done:
        """The end, or the question that holds now: about the copy that does not move."""
        if self._step == len(self._grid) - 1:
            self._answer = Done(self._pair[0])
            return self._answer
        return self._ask()

    def _ask(self) -> Request:
        if self._back and self._half == 0:
            self._pair = self._unmixed(*self._pair)
        self._answer = request = Request(self._pair[1 - self._order()[self._half]], self._ends()[0])
        return request

    def _ends(self) -> tuple[Level, Level]:
        """(noisier, cleaner) level of the current step."""
        here, there = self._grid[self._step], self._grid[self._step + 1]
        return (there, here) if self._back else (here, there)

    def _order(self) -> tuple[int, int]:
        """Which copy moves in the first and the second half of the current step."""
        steps = len(self._grid) - 1
        parity = (steps - 1 - self._step if self._back else self._step) % 2
        return (1 - parity, parity) if self._back else (parity, 1 - parity)

    def _mixed(self, x: Tensor, y: Tensor) -> list[Tensor]:
        x = self.mixing * x + (1 - self.mixing) * y
        return [x, self.mixing * y + (1 - self.mixing) * x]

    def _unmixed(self, x: Tensor, y: Tensor) -> list[Tensor]:
        y = (y - (1 - self.mixing) * x) / self.mixing
        return [(x - (1 - self.mixing) * y) / self.mixing, y]


def affine_step(noisier: Level, cleaner: Level) -> tuple[float, float, Kind]:
    """(a, b, kind) of DDIM as an affine map: cleaner = a * noisier + b * (the prediction read as `kind`)."""
    alpha, sigma, after, less = (float(v) for v in (noisier.alpha, noisier.sigma, cleaner.alpha, cleaner.sigma))
    if abs(alpha + sigma - 1) < 1e-9:
        return 1.0, less - sigma, "flow_prediction"
    return after / alpha, less - sigma * after / alpha, "epsilon"
