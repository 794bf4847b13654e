"""Noise schedules: the levels a sampler visits on the noise path of a prior, and what training asks of that path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.seeds import sample_noise
from ..priors.base import PredictionType, Spacing
from ..priors.noise import Level, NoisePath, Scalar, on_cpu
from .grids import GridRule, flow_shaped, flow_spaced, lambda_spaced, thinned, time_spaced

__all__ = ["Level", "NoiseSchedule", "Scalar"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise path of a prior: levels from indices or lambdas, grids, forward noising, targets."""

    path: NoisePath
    rule: GridRule

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule of any diffusers scheduler config (VP or flow matching); raises InputError where it cannot."""
        return cls(NoisePath.from_config(config), GridRule.from_config(config))

    @property
    def flow(self) -> bool:
        """Whether the path is a rectified flow."""
        return self.path.flow

    @property
    def steps(self) -> int:
        """Train steps N."""
        return self.path.steps

    @property
    def lambdas(self) -> Tensor | None:
        """(N,) float64, decreasing; None for flows."""
        return self.path.lambdas

    @property
    def final(self) -> str:
        """How grids end unless told otherwise: "zero" (no noise) or "index0" (the least noisy train step)."""
        return self.rule.final

    @property
    def clean(self) -> Level:
        """The level without noise."""
        return Level(1.0, 0.0, math.inf, 0.0, -1.0, float(self.steps))

    def at_index(self, index: float | Tensor) -> Level:
        """Level at train index (fractional allowed, lambda interpolated): a number, or (B,) for one per sample.

        Flows: sigma = (index + 1) / N.
        """
        if isinstance(index, Tensor) and index.ndim:
            position = on_cpu(index.detach())
            if position.min() < 0 or position.max() > self.steps - 1:
                raise InputError(
                    f"indices must lie in [0, {self.steps - 1}], got {float(position.min())} to {float(position.max())}"
                )
            return self.path.at_index(position)
        number = float(index)
        if not -1 <= number <= self.steps - 1:
            raise InputError(f"index {number} is outside the {self.steps} train steps (0 to {self.steps - 1})")
        return self.clean if number < 0 else self.path.at_index(torch.tensor(number, dtype=torch.float64)).item()

    def at_time(self, time: Tensor) -> Level:
        """Levels at model times (B,), held within the train range."""
        position = self.path.at_time(time).index
        return self.at_index(torch.as_tensor(position).clamp(0, self.steps - 1))

    def at_lambda(self, lam: float | Tensor) -> Level:
        """Level with this log-SNR/2; +inf is the clean end, -inf the pure-noise end (flows).

        Of a tensor (B,): one per sample, differentiable in finite lambdas.
        """
        if isinstance(lam, Tensor) and lam.ndim:
            return self.path.at_lambda(lam)
        if lam == math.inf:
            return self.clean
        return self.path.at_lambda(torch.tensor(float(lam), dtype=torch.float64)).item()

    def grid(self, n: int, spacing: Spacing | None = None, final: str | None = None, tokens: int = 0) -> list[Level]:
        """n + 1 levels from the noisiest to the end.

        Args:
            n: number of steps.
            spacing: "trailing", "leading", "linspace" (as diffusers), "logsnr" or "karras"; None: the prior's own,
                Karras', exponential, lu and beta sigmas of its config among them.
            final: "zero" (no noise) or "index0" (the least-noise train step); None: the prior's own.
            tokens: image tokens, for flows whose shift depends on them (FLUX); 0: not used.
        """
        self.checked(n)
        final = final or self.final
        if final not in ("zero", "index0"):
            raise InputError(f"final={final!r} is unknown; have zero, index0")
        last = self.clean if final == "zero" else self.at_index(0)
        if spacing in ("logsnr", "karras") or (spacing is None and self.rule.spacing in ("logsnr", "karras")):
            return self._lambda_grid(n, spacing or self.rule.spacing, last, keep=final == "index0")
        if self.flow:
            dynamic = self.rule.dynamic is not None and tokens > 0
            shift = self.rule.dynamic_shift(tokens) if dynamic else self.rule.shift
            return [*self.flow_grid(shift, n, spacing, moving=dynamic), last]
        if spacing is None and self.rule.sigmas is not None:
            levels = self._sigma_grid(n, self.rule.sigmas)
            again = final != "zero" and self.rule.layout.edges == "table"  # diffusers then stays where it is
            return [*levels, levels[-1] if again else last]
        return [self.at_index(i) for i in self._indices(n, spacing)] + [last]

    def checked(self, n: int) -> int:
        """n, which must be a possible number of steps."""
        if n < 1 or n > self.steps:
            raise InputError(f"steps={n} must lie between 1 and the {self.steps} train steps of this prior")
        return n

    def flow_grid(
        self,
        shift: float,
        n: int = 0,
        spacing: Spacing | None = None,
        sigmas: Sequence[float] | None = None,
        moving: bool = False,
    ) -> list[Level]:
        """Levels of a flow without the end, n of a spacing (None: the prior's own) or those of given sigmas.

        Sigmas are as before the shift; what the prior's config does to them (terminal, Karras' ...) is done unless a
        spacing is asked for. `moving`: the shift depends on the picture.
        """
        rule = self.rule if spacing is None else None
        if sigmas is None:
            sigmas = flow_spaced(n, self.steps, spacing or self.rule.spacing, shift, moving)
        return [self._flow_level(sigma) for sigma in flow_shaped(sigmas, shift, rule)]

    def _flow_level(self, sigma: float) -> Level:
        return self.path.at_sigma(torch.tensor(sigma, dtype=torch.float64)).item()

    def _indices(self, n: int, spacing: Spacing | None) -> list[float]:
        """n train indices of a spacing as DDIM lays it out, or as the prior's own scheduler does."""
        rule = self.rule
        if spacing is not None:
            return time_spaced(n, self.steps, spacing, rule.offset)
        if rule.layout.thinned:
            return thinned(n, self.steps, rule.distilled)
        return time_spaced(n, self.steps, rule.spacing, rule.offset, rule.layout.spare, rule.layout.whole)

    def _sigma_grid(self, n: int, sigmas: str) -> list[Level]:
        """n levels of a VP path whose sigma / alpha is spaced as the config says."""
        rule, ends = self.rule, [self.steps - 1.0, 0.0]
        if rule.layout.edges == "grid":
            ends = self._indices(n, None)
        low, high = float(self.at_index(ends[0]).lam), float(self.at_index(ends[-1]).lam)
        low = low if rule.sigma_max is None else -math.log(rule.sigma_max)
        high = high if rule.sigma_min is None else -math.log(rule.sigma_min)
        return [self.at_lambda(lam) for lam in lambda_spaced(n, low, high, sigmas)]

    def _lambda_grid(self, n: int, spacing: str, last: Level, keep: bool) -> list[Level]:
        """Levels spaced in lambda or by Karras' rule between the ends of the train range."""
        if self.flow:
            edge = math.log(self.steps - 1)
            low, high = -edge, edge
        else:
            low, high = float(self.at_index(self.steps - 1).lam), float(self.at_index(0).lam)
        levels = [self.at_lambda(lam) for lam in lambda_spaced(n + keep, low, high, spacing)]
        if self.flow:
            levels[0] = self._flow_level(1.0)
        return levels if keep else [*levels, last]

    def add_noise(self, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """alpha x0 + sigma noise, (B, ...)."""
        alpha, sigma = level.coefficients(x0)
        return alpha * x0 + sigma * noise

    def noised(
        self, x0: Tensor, level: Level, source: Tensor | torch.Generator | Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """(x, eps), both like x0 (B, ...): clean states at a level, and the noise they got.

        `source`: that noise, or the generator(s) to draw it from, one for all or one per row.
        """
        if isinstance(source, Tensor):
            eps = source.to(x0)
        else:
            eps = sample_noise(x0.shape[1:], source, x0.shape[0], x0.device, x0.dtype)
        return self.add_noise(x0, eps, level), eps

    def target(self, kind: PredictionType, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """What a network of this kind should answer at alpha x0 + sigma eps, like x0 (B, ...)."""
        if kind == "epsilon":
            return eps
        if kind == "sample":
            return x0
        if kind == "flow_prediction":
            return eps - x0
        if kind != "v_prediction":
            raise InputError(
                f"prediction kind {kind!r} is unknown; have epsilon, sample, v_prediction, flow_prediction"
            )
        alpha, sigma = level.coefficients(x0)
        return alpha * eps - sigma * x0
