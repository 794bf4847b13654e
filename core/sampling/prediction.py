"""One network output, read as x0, noise, v, flow velocity or score.

x = alpha x0 + sigma eps;  v = alpha eps - sigma x0;  u = eps - x0;  score = -eps / sigma.
Every reading is affine in (x, raw); values are computed on demand, in float32 (float64 stays float64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ...utils.errors import InputError
from .levels import Level, Scalar

Kind = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
KINDS: tuple[Kind, ...] = ("epsilon", "sample", "v_prediction", "flow_prediction")


class _Kept:
    """A property computed once; that of functools takes a lock in Python 3.11, which no compiler can trace."""

    def __init__(self, make: Callable[[Any], Tensor]) -> None:
        self.make, self.name, self.__doc__ = make, make.__name__, make.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> Tensor:
        value: Tensor = self.make(owner)
        setattr(owner, self.name, value)  # found before this descriptor from now on
        return value


class Prediction:
    """A network output `raw` of some `kind` at state x (B, C, h, w) and `level`.

    Predictions at one state add, subtract and scale, so that a guidance reads as its equation. Every reading is linear
    in (x, raw) and a sum carries the sum of the states too: x0, eps, v, u and raw of a combination are the same
    combination of those of its parts. `weight` is the sum of the weights: 1 is a prediction, 0 a difference.
    """

    def __init__(self, x: Tensor, level: Level, raw: Tensor, kind: Kind, weight: Scalar = 1.0) -> None:
        if kind not in KINDS:
            raise InputError(f"prediction kind {kind!r} is unknown; have {', '.join(KINDS)}")
        dtype = torch.promote_types(x.dtype, torch.float32)
        self.x, self.raw, self.level, self.kind = x.to(dtype), raw.to(dtype), level, kind
        self.alpha, self.sigma = level.coefficients(self.x)
        self.weight = weight

    @_Kept
    def _state(self) -> Tensor:
        """The combination of the states, (B, C, h, w)."""
        return self.x if isinstance(self.weight, float) and self.weight == 1.0 else self.weight * self.x

    def with_raw(self, raw: Tensor) -> Prediction:
        """Another output of the same kind at the same state."""
        return Prediction(self.x, self.level, raw, self.kind, self.weight)

    def __add__(self, other: Prediction) -> Prediction:
        return self._combined(other, 1.0)

    def __sub__(self, other: Prediction) -> Prediction:
        return self._combined(other, -1.0)

    def __mul__(self, factor: Scalar) -> Prediction:
        """Scaled by a number, or one per sample (B, 1, 1, 1)."""
        return Prediction(self.x, self.level, factor * self.raw, self.kind, factor * self.weight)

    __rmul__ = __mul__

    def _combined(self, other: Prediction, sign: float) -> Prediction:
        if not _same(other.level, self.level) or not _same_state(other.x, self.x):
            raise InputError("predictions of different states or levels cannot be combined; ask for both in one call")
        raw = other.raw if other.kind == self.kind else other.read(self.kind)
        total = self.raw + raw if sign > 0 else self.raw - raw
        return Prediction(self.x, self.level, total, self.kind, self.weight + sign * other.weight)

    @_Kept
    def x0(self) -> Tensor:
        """The clean estimate; from v or u it needs no division that can vanish."""
        x, raw, a, s = self._state, self.raw, self.alpha, self.sigma
        if self.kind == "sample":
            return raw
        if self.kind == "epsilon":
            return (x - s * raw) / a
        if self.kind == "v_prediction":
            return (a * x - s * raw) / (a * a + s * s)
        return (x - s * raw) / (a + s)

    @_Kept
    def eps(self) -> Tensor:
        """The noise estimate."""
        x, raw, a, s = self._state, self.raw, self.alpha, self.sigma
        if self.kind == "epsilon":
            return raw
        if self.kind == "sample":
            return (x - a * raw) / s
        if self.kind == "v_prediction":
            return (a * raw + s * x) / (a * a + s * s)
        return (x + a * raw) / (a + s)

    @_Kept
    def v(self) -> Tensor:
        """alpha eps - sigma x0."""
        return self.raw if self.kind == "v_prediction" else self.alpha * self.eps - self.sigma * self.x0

    @_Kept
    def u(self) -> Tensor:
        """eps - x0, the velocity dx/dsigma of a rectified flow (diffusers' sign)."""
        return self.raw if self.kind == "flow_prediction" else self.eps - self.x0

    @property
    def score(self) -> Tensor:
        """Gradient of log p(x) at this level, -eps / sigma."""
        return -self.eps / self.sigma

    def read(self, kind: Kind) -> Tensor:
        """This prediction in another parameterisation."""
        if kind == "sample":
            return self.x0
        if kind == "epsilon":
            return self.eps
        return self.v if kind == "v_prediction" else self.u


def _same(a: Level, b: Level) -> bool:
    """Whether two levels are one; those of one per sample are not compared number by number."""
    return a is b or (not isinstance(a.alpha, Tensor) and not isinstance(b.alpha, Tensor) and a == b)


def _same_state(a: Tensor, b: Tensor) -> bool:
    """Whether two states are one. Those of one network call share their memory, and nothing is compared on a device."""
    if a is b or (a.shape == b.shape and a.dtype == b.dtype and a.data_ptr() == b.data_ptr()):
        return True
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b.to(a.dtype))


def reread_v(x: Tensor, v: Tensor, level: Level, told: Level) -> Tensor:
    """v of `level` for a state x of that level, from the v of a network that was told another level.

    It answers v = alpha_tau eps - sigma_tau x0, so eps = (sigma_tau x + alpha_t v) / d and x0 = (alpha_tau x - sigma_t
    v) / d, d = alpha_t alpha_tau + sigma_t sigma_tau. The other kinds of answer do not depend on the level.
    """
    (alpha, sigma), (alpha_told, sigma_told) = level.coefficients(x), told.coefficients(x)
    total = alpha * alpha_told + sigma * sigma_told
    return (alpha * sigma_told - sigma * alpha_told) / total * x + (alpha * alpha + sigma * sigma) / total * v
