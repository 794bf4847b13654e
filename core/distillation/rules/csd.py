"""CSD (Yu et al. 2023, "Text-to-3D with Classifier Score Distillation"): the classifier's gradient alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ....utils.errors import InputError
from ....utils.ramps import Ramp
from ...priors.rows import COND, NULL
from .base import NEGATIVE, Pull, Rule, Seen


@dataclass(frozen=True)
class CSD(Rule):
    """g = w (a eps_c + b eps_- + e eps_0 - f n), weights as numbers or [start, v0, v1, end] in shares of the run.

    The published geometry stage is the default, its texture stage (a, b, e) = (1, -1 -> -.5, 0 -> -.5); SDS is
    (s, 0, 1 - s, 1).
    """

    negative: ClassVar[bool] = True
    guided: ClassVar[bool] = False
    condition: tuple[float, ...] = (1.0,)  # a
    against: tuple[float, ...] = (0, 0.0, -1.0, 1)  # b, of the negative prompt
    empty: tuple[float, ...] = (0, -1.0, 0.0, 1)  # e, of the empty prompt
    noise: float = 0.0  # f, of the injected noise

    def __post_init__(self) -> None:
        for share in (0.0, 0.5, 1.0):
            if abs(sum(self.weights(share)) - self.noise) > 1e-6:
                raise InputError(
                    f"csd: condition={self.condition}, against={self.against} and empty={self.empty} must sum to "
                    f"noise={self.noise} all the time, so that what does not depend on the prompt cancels"
                )

    def weights(self, share: float) -> tuple[float, float, float]:
        """(a, b, e) at a share of the run."""
        a, b, e = (Ramp.of(ramp).at(share) for ramp in (self.condition, self.against, self.empty))
        return a, b, e

    def __call__(self, seen: Seen) -> Pull:
        """See Rule."""
        weights = dict(zip((COND, NEGATIVE, NULL), self.weights(seen.share), strict=True))
        p = seen.ask(*(name for name, weight in weights.items() if weight))
        total = sum((weights[name] * one for name, one in p.items()), start=0.0 * next(iter(p.values())))
        return Pull(total, self.noise * seen.render())
