"""Which tokens of a diffusion transformer are worth updating (RAS, 2025, section 3).

Priority of token p: log m_p + k D_p, where m_p measures how far the last step moved it and D_p counts how often it
was left out; the tokens of highest priority are updated. With k > 0 no token waits for ever: under a constant metric
at most about (max log m - min log m) / (k ratio) steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ....utils.errors import InputError

Metric = Literal["std", "l2"]
Selector = Callable[[Tensor, Tensor, "Regions"], tuple[Tensor, Tensor]]
Focus = Literal["high", "low"]
FLOOR = 1e-6  # of the metric, relative to its mean over the tokens


@dataclass(frozen=True)
class Regions:
    """How many tokens run, when, and which."""

    ratio: float = 0.5  # of the image tokens that run on sparse steps, (0, 1]; 1 is the plain network
    start: int = 4  # dense steps at the start of a run, at least 1
    refresh: int = 8  # then every so many steps a dense one; 0: none
    metric: Metric = "std"  # of the displacement of a token over its channels: standard deviation or norm
    focus: Focus = "high"  # update the tokens that move most, or least
    starvation: float = 0.1  # k, >= 0
    select: Selector | None = None  # another way to choose: (m, D, config) to (active, D); None: `select_tokens`

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise InputError(f"regions ratio={self.ratio} must lie in (0, 1]; 1 updates every token")
        if self.start < 1:
            raise InputError(f"regions start={self.start} must be at least 1: the first step has nothing to go by")
        if self.refresh < 0 or self.starvation < 0:
            raise InputError(f"regions refresh={self.refresh} and starvation={self.starvation} must not be negative")
        for name, value, known in (("metric", self.metric, Metric), ("focus", self.focus, Focus)):
            if value not in get_args(known):
                raise InputError(f"regions {name}={value!r} is unknown; have {', '.join(get_args(known))}")

    def dense(self, step: int) -> bool:
        """Whether all tokens run at this step."""
        if self.ratio == 1 or step < self.start:
            return True
        return self.refresh > 0 and step > self.start and (step - self.start) % self.refresh == 0

    def kept(self, tokens: int) -> int:
        """Number of tokens that run on a sparse step, at least one."""
        return max(tokens - int(tokens * (1 - self.ratio)), 1)


def importance(displacement: Tensor, metric: Metric) -> Tensor:
    """m (B, P) of displacements (B, P, C, s): spread or norm over the channels, mean over the s pixels of a token."""
    spread = displacement.std(2, correction=0) if metric == "std" else displacement.norm(dim=2)
    return spread.mean(-1)


def select_tokens(measure: Tensor, dropped: Tensor, config: Regions) -> tuple[Tensor, Tensor]:
    """(active (B, A) token numbers in rising order, counts (B, P) after this step) from m and D, both (B, P).

    Every sample of a batch chooses for itself; ties go to the lower number.
    """
    mean = measure.mean(1, keepdim=True).clamp(min=torch.finfo(measure.dtype).tiny)
    log_m = (measure / mean + FLOOR).log()
    priority = (log_m if config.focus == "high" else -log_m) + config.starvation * dropped
    order = priority.argsort(dim=1, descending=True, stable=True)
    active = order[:, : config.kept(measure.shape[1])].sort(1).values
    return active, (dropped + 1).scatter(1, active, dropped.gather(1, active))
