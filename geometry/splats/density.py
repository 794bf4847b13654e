"""Density control: where the picture pulls hard, Gaussians are copied or split; faint ones go (3DGS, 2023, 5.2).

Thresholds and order are those of gsplat's DefaultStrategy, with times in shares of the run. Two things differ:
opacities are really reset (gsplat 1.5 never gets there: `step % every == 0 & step > 0` compares with 0), and a step
that resets them does not refine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.ramps import Moment

SHRINK = 1.6  # of the scales of a Gaussian that is split in two


@dataclass(frozen=True)
class DensityConfig:
    """When and where the number of Gaussians changes."""

    start: float = 0.016666666666666666  # share of the run
    stop: float = 0.5  # share of the run
    every: int = 100  # steps between refinements; 0: never
    reset_every: int = 3000  # steps between resets of the opacities; 0: never
    grow_grad2d: float = 0.0002  # mean gradient at the place in the picture, which spans [-1, 1]
    grow_scale3d: float = 0.01  # of the bounds; larger ones are split, others copied
    prune_opacity: float = 0.005
    prune_scale3d: float = 0.1  # of the bounds; larger ones go, after the first reset
    most: int = 200_000  # Gaussians; beyond it none are added
    seed: int = 0  # of the places of split Gaussians

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= 1 or self.every < 0 or self.reset_every < 0 or self.most < 1:
            raise InputError(
                f"density: start={self.start} <= stop={self.stop} are shares of the run, every={self.every} and "
                f"reset_every={self.reset_every} steps, 0 for never, and most={self.most} at least 1"
            )

    def refines(self, now: Moment) -> bool:
        """Whether Gaussians come and go after this step."""
        if not self.every or now.step % self.every:
            return False
        return now.step > round(self.start * now.steps) and not now.reached(self.stop)

    def resets(self, now: Moment) -> bool:
        """Whether opacities are reset after this step."""
        if not self.reset_every or now.step % self.reset_every or not now.step:
            return False
        return not now.reached(self.stop)


@dataclass(frozen=True)
class Change:
    """Old rows that stay, are copied, and are split in two; those of `split` are written twice in a row of blocks."""

    kept: Tensor
    cloned: Tensor
    split: Tensor


def decide(
    config: DensityConfig, now: Moment, pull: Tensor, scales: Tensor, opacities: Tensor, bounds: float
) -> Change:
    """What happens to Gaussians of a mean picture gradient `pull` (N,), largest scale (N,) and opacity (N,)."""
    strong = pull > config.grow_grad2d
    room = config.most - len(pull)
    if int(strong.sum()) > room:
        strongest = torch.topk(pull, max(room, 0)).indices
        strong &= torch.zeros_like(strong).index_fill(0, strongest, True)
    large = scales > config.grow_scale3d * bounds
    gone = opacities < config.prune_opacity
    halves_gone = gone.clone()
    if config.reset_every and now.step > config.reset_every:
        gone = gone | (scales > config.prune_scale3d * bounds)
        halves_gone |= scales / SHRINK > config.prune_scale3d * bounds
    split = strong & large
    rows = [(~split & ~gone), (strong & ~large & ~gone), (split & ~halves_gone)]
    kept, cloned, halves = (mask.nonzero()[:, 0] for mask in rows)
    return Change(kept, cloned, torch.cat([halves, halves]))


def split_places(means: Tensor, axes: Tensor, scales: Tensor, generator: torch.Generator) -> Tensor:
    """Places (S, 3) drawn from Gaussians with rotations (S, 3, 3) and scales (S, 3)."""
    noise = torch.randn(means.shape, generator=generator, dtype=torch.float32).to(means)
    return means + (axes @ (scales * noise)[..., None])[..., 0]


def reset_logit(config: DensityConfig) -> float:
    """Where opacities are cut off at a reset."""
    value = 2 * config.prune_opacity
    return math.log(value / (1 - value))
