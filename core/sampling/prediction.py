"""One network output, read as x0, noise, v, flow velocity or score.

x = alpha x0 + sigma eps;  v = alpha eps - sigma x0;  u = eps - x0;  score = -eps / sigma.
Every reading is affine in (x, raw); values are computed on demand, in float32 (float64 stays float64).
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ...utils.errors import InputError
from .levels import Level

Kind = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
KINDS: tuple[Kind, ...] = ("epsilon", "sample", "v_prediction", "flow_prediction")


class Prediction:
    """A network output `raw` of some `kind` at state x (B, C, h, w) and `level`."""

    def __init__(self, x: Tensor, level: Level, raw: Tensor, kind: Kind) -> None:
        if kind not in KINDS:
            raise InputError(f"prediction kind {kind!r} is unknown; have {', '.join(KINDS)}")
        dtype = torch.promote_types(x.dtype, torch.float32)
        self.x, self.raw, self.level, self.kind = x.to(dtype), raw.to(dtype), level, kind
        self.alpha, self.sigma = level.coefficients(self.x)

    @cached_property
    def x0(self) -> Tensor:
        """The clean estimate; from v or u it needs no division that can vanish."""
        x, raw, a, s = self.x, self.raw, self.alpha, self.sigma
        if self.kind == "sample":
            return raw
        if self.kind == "epsilon":
            return (x - s * raw) / a
        if self.kind == "v_prediction":
            return (a * x - s * raw) / (a * a + s * s)
        return (x - s * raw) / (a + s)

    @cached_property
    def eps(self) -> Tensor:
        """The noise estimate."""
        x, raw, a, s = self.x, self.raw, self.alpha, self.sigma
        if self.kind == "epsilon":
            return raw
        if self.kind == "sample":
            return (x - a * raw) / s
        if self.kind == "v_prediction":
            return (a * raw + s * x) / (a * a + s * s)
        return (x + a * raw) / (a + s)

    @cached_property
    def v(self) -> Tensor:
        """alpha eps - sigma x0."""
        return self.raw if self.kind == "v_prediction" else self.alpha * self.eps - self.sigma * self.x0

    @cached_property
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


def reread_v(x: Tensor, v: Tensor, level: Level, told: Level) -> Tensor:
    """v of `level` for a state x of that level, from the v of a network that was told another level.

    It answers v = alpha_tau eps - sigma_tau x0, so eps = (sigma_tau x + alpha_t v) / d and x0 = (alpha_tau x - sigma_t
    v) / d, d = alpha_t alpha_tau + sigma_t sigma_tau. The other kinds of answer do not depend on the level.
    """
    (alpha, sigma), (alpha_told, sigma_told) = level.coefficients(x), told.coefficients(x)
    total = alpha * alpha_told + sigma * sigma_told
    return (alpha * sigma_told - sigma * alpha_told) / total * x + (alpha * alpha + sigma * sigma) / total * v
