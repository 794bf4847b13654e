"""Classifier-free guidance (Ho & Salimans 2022) with std rescale (Lin et al. 2023) and interval (Kynkaanniemi 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...utils.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """out = uncond + scale (cond - uncond); the weights sum to 1, so it commutes with every parameterisation."""

    scale: float = 7.5  # 1 is the plain conditional model, 0 the unconditional one
    rescale: float = 0.0  # [0, 1], pulls the per-sample std back to that of the conditional output
    interval: tuple[float, float] = (0.0, 1.0)  # fraction of the train time in which guidance acts

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise InputError(f"guidance rescale={self.rescale} must lie in [0, 1]")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise InputError(f"guidance interval={self.interval} must be (low, high) with 0 <= low <= high <= 1")

    def active(self, fraction: float) -> bool:
        """Whether both branches are needed at this fraction of the train time."""
        return self.scale != 1.0 and self.interval[0] <= fraction <= self.interval[1]

    def combine(self, uncond: Tensor, cond: Tensor) -> Tensor:
        """The guided output, shapes (B, C, h, w)."""
        guided = uncond + self.scale * (cond - uncond)
        if self.rescale == 0:
            return guided
        axes = tuple(range(1, cond.ndim))
        matched = guided * (cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        return self.rescale * matched + (1 - self.rescale) * guided
