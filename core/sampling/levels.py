"""Noise levels and the schedules that make them.

x = alpha x0 + sigma eps, lambda = log(alpha / sigma). VP: alpha^2 + sigma^2 = 1; rectified flow: alpha = 1 - sigma.
Indices run over the train steps, 0 = least noise; model time is what the prior's network is asked with
(VP: the index; flow: 1000 sigma). Tables and coefficients are float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.noise import interpolate_lambda, is_flow, lambda_table, train_steps
from .grids import Spacing, lambda_spaced, time_spaced

Scalar = float | Tensor


@dataclass(frozen=True)
class Level:
    """One noise level; fields are floats, or float64 tensors (B, 1, 1, 1) (time and index (B,)) for one per sample."""

    alpha: Scalar
    sigma: Scalar
    lam: Scalar  # log(alpha / sigma); +inf without noise, -inf without signal
    model_time: Scalar
    index: Scalar  # train index, fractional allowed; -1 for the clean end
    span: float = 1000.0  # model time of the whole path: N for VP, 1000 for flows

    def within(self, interval: tuple[float, float]) -> bool:
        """Whether the level, or the mean of one per sample, lies in an interval of fractions of the train time."""
        time = self.model_time
        mean = float(time.mean()) if isinstance(time, Tensor) else time
        return interval[0] <= mean / self.span <= interval[1]

    def coefficients(self, x: Tensor) -> tuple[Scalar, Scalar]:
        """(alpha, sigma) ready to multiply x: floats as they are, tensors in the dtype and on the device of x."""
        if isinstance(self.alpha, Tensor) and isinstance(self.sigma, Tensor):
            # cast before they move: some devices (MPS) have no float64
            return self.alpha.to(x.dtype).to(x.device), self.sigma.to(x.dtype).to(x.device)
        return self.alpha, self.sigma

    def times(self, x: Tensor) -> Tensor:
        """Model time (B,) for a batch x, float32 (float64 for a float64 state)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(self.model_time, Tensor):
            return self.model_time.to(dtype).to(x.device).expand(x.shape[0])
        return torch.full((x.shape[0],), self.model_time, device=x.device, dtype=dtype)


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise path of a prior: levels from indices or lambdas, grids, forward noising."""

    flow: bool
    steps: int  # train steps N
    lambdas: Tensor | None = None  # (N,) float64, decreasing; None for flows
    shift: float = 1.0  # of flow grids: sigma' = s sigma / (1 + (s - 1) sigma)
    spacing: Spacing = "leading"  # default of `grid`
    offset: int = 0  # added to "leading" timesteps
    final: str = "index0"  # default end of `grid`
    dynamic: Mapping[str, Any] | None = None  # flow shift that depends on the number of tokens

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule of any diffusers scheduler config (VP or flow matching)."""
        if is_flow(config):
            dynamic = dict(config) if config.get("use_dynamic_shifting") else None
            shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
            spacing: Spacing = "trailing" if dynamic else "linspace"
            return cls(True, train_steps(config), None, shift, spacing, final="zero", dynamic=dynamic)
        lambdas = lambda_table(config)
        spacing = config.get("timestep_spacing", "leading")
        final = "zero" if config.get("set_alpha_to_one", True) else "index0"
        return cls(False, len(lambdas), lambdas, 1.0, spacing, int(config.get("steps_offset", 0)), final)

    @property
    def clean(self) -> Level:
        """The level without noise."""
        return Level(1.0, 0.0, math.inf, 0.0, -1.0)

    def at_index(self, index: float | Tensor) -> Level:
        """Level at train index (fractional allowed, lambda interpolated): a number, or (B,) for one per sample.

        Flows: sigma = (index + 1) / N.
        """
        if isinstance(index, Tensor) and index.ndim:
            return self._batched(index)
        position = float(index)
        if not -1 <= position <= self.steps - 1:
            raise InputError(f"index {position} is outside the {self.steps} train steps (0 to {self.steps - 1})")
        if self.flow:
            return self._flow_level((position + 1) / self.steps)
        if position < 0:
            return self.clean
        low = min(int(position), self.steps - 2)
        assert self.lambdas is not None
        below, above = self.lambdas[low].item(), self.lambdas[low + 1].item()
        lam = below + (position - low) * (above - below)
        return Level(*_vp_coefficients(lam), lam, position, position, float(self.steps))

    def _batched(self, index: Tensor) -> Level:
        position = index.detach().cpu().double()
        if position.min() < 0 or position.max() > self.steps - 1:
            raise InputError(f"indices must lie in [0, {self.steps - 1}], got {position.min()} to {position.max()}")
        if self.flow:
            sigma = (position + 1) / self.steps
            lam = torch.log1p(-sigma) - sigma.log()
            time = 1000 * sigma
            alpha = 1 - sigma
        else:
            assert self.lambdas is not None
            lam = interpolate_lambda(self.lambdas, position)
            alpha, sigma, time = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt(), position
        dtype = torch.float32 if index.device.type == "mps" else torch.float64  # that device has no float64
        alpha, sigma, lam, time, position = (v.to(index.device, dtype) for v in (alpha, sigma, lam, time, position))
        shape = (-1, 1, 1, 1)
        span = 1000.0 if self.flow else float(self.steps)
        return Level(alpha.reshape(shape), sigma.reshape(shape), lam.reshape(shape), time, position, span)

    def at_lambda(self, lam: float) -> Level:
        """Level with this log-SNR/2; +inf is the clean end, -inf the pure-noise end (flows)."""
        if lam == math.inf:
            return self.clean
        if self.flow:
            sigma = 1 / (1 + math.exp(min(lam, 700.0))) if lam > -math.inf else 1.0
            return self._flow_level(sigma, lam)
        assert self.lambdas is not None
        ascending = torch.flip(self.lambdas, [0])
        place = int(torch.searchsorted(ascending, torch.tensor(lam, dtype=torch.float64)))
        low = min(max(self.steps - 1 - place, 0), self.steps - 2)
        below, above = self.lambdas[low].item(), self.lambdas[low + 1].item()
        index = min(max(low + (lam - below) / (above - below), 0.0), self.steps - 1.0)
        return Level(*_vp_coefficients(lam), lam, index, index, float(self.steps))

    def _flow_level(self, sigma: float, lam: float | None = None) -> Level:
        if lam is None:
            lam = math.inf if sigma <= 0 else -math.inf if sigma >= 1 else math.log1p(-sigma) - math.log(sigma)
        return Level(1 - sigma, sigma, lam, 1000 * sigma, sigma * self.steps - 1)

    def grid(self, n: int, spacing: Spacing | None = None, final: str | None = None, tokens: int = 0) -> list[Level]:
        """n + 1 levels from the noisiest to the end.

        Args:
            n: number of steps.
            spacing: "trailing", "leading", "linspace" (as diffusers), "logsnr" or "karras"; None: the prior's own.
            final: "zero" (no noise) or "index0" (the least-noise train step); None: the prior's own.
            tokens: image tokens, for flows whose shift depends on them (FLUX); 0: not used.
        """
        if n < 1 or n > self.steps:
            raise InputError(f"steps={n} must lie between 1 and the {self.steps} train steps of this prior")
        spacing, final = spacing or self.spacing, final or self.final
        if final not in ("zero", "index0"):
            raise InputError(f"final={final!r} is unknown; have zero, index0")
        last = self.clean if final == "zero" else self.at_index(0)
        if spacing in ("logsnr", "karras"):
            return self._lambda_grid(n, spacing, last, keep=final == "index0")
        indices = time_spaced(n, self.steps, spacing, 0 if self.flow else self.offset)
        if not self.flow:
            return [self.at_index(i) for i in indices] + [last]
        shift = self.dynamic_shift(tokens) if self.dynamic and tokens else self.shift
        sigmas = [1 - k / n for k in range(n)] if spacing == "trailing" else [(i + 1) / self.steps for i in indices]
        if spacing == "linspace":  # diffusers stretches to the shifted smallest train sigma, then shifts again
            smallest = _shifted(1 / self.steps, shift)
            sigmas = [1 - k * (1 - smallest) / max(n - 1, 1) for k in range(n)]
        return [self._flow_level(_shifted(sigma, shift)) for sigma in sigmas] + [last]

    def _lambda_grid(self, n: int, spacing: Spacing, last: Level, keep: bool) -> list[Level]:
        """Levels spaced in lambda or by Karras' rule between the ends of the train range."""
        if self.flow:
            edge = math.log(self.steps - 1)
            low, high = -edge, edge
        else:
            assert self.lambdas is not None
            low, high = self.lambdas[-1].item(), self.lambdas[0].item()
        levels = [self.at_lambda(lam) for lam in lambda_spaced(n + keep, low, high, spacing)]
        if self.flow:
            levels[0] = self._flow_level(1.0)
        return levels if keep else [*levels, last]

    def dynamic_shift(self, tokens: int) -> float:
        """exp(mu) with mu linear in the number of image tokens, as FLUX pipelines compute it."""
        config = self.dynamic or {}
        t0, t1 = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        m0, m1 = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return math.exp(m0 + (m1 - m0) * (tokens - t0) / (t1 - t0))

    def add_noise(self, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """alpha x0 + sigma noise, (B, C, h, w)."""
        alpha, sigma = level.coefficients(x0)
        return alpha * x0 + sigma * noise


def _vp_coefficients(lam: float) -> tuple[float, float]:
    """(alpha, sigma) with alpha^2 = sigmoid(2 lambda), stable at both ends."""
    small = math.exp(-2 * abs(lam))
    large, small = math.sqrt(1 / (1 + small)), math.sqrt(small / (1 + small))
    return (large, small) if lam >= 0 else (small, large)


def _shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)
