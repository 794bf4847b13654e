"""Splats as samples of a Markov chain (3DGS-MCMC, Kheradmand et al. 2024): dead ones go to live ones, all tremble.

Numbers, order and times are those of gsplat's MCMCStrategy, with times in shares of the run. Two things differ: dead
and new Gaussians are drawn at once rather than one after the other, and lengths count in extents of the scene, so that
a scene in other units is fitted alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.ramps import Moment
from .cloud import GaussianCloud, rotation_matrices

MOST_COPIES = 51  # of one Gaussian at a time
SHARPNESS, FAINT = 100.0, 0.005  # the paper's k and t: only Gaussians about as faint as t tremble


@dataclass(frozen=True)
class RelocationConfig:
    """When Gaussians move and come, and how much they tremble."""

    start: float = 0.016666666666666666  # share of the run
    stop: float = 0.8333333333333334  # share of the run
    every: int = 100  # steps between relocations; 0: never
    growth: float = 1.05  # factor on the number of Gaussians at each
    most: int = 200_000  # Gaussians; beyond it none are added
    least_opacity: float = 0.005  # below it a Gaussian is dead
    noise: float = 5e5  # factor on the rate of means; 0: none
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= 1 or self.every < 0 or self.most < 1 or self.growth < 1:
            raise InputError(
                f"mcmc: start={self.start} <= stop={self.stop} are shares of the run, every={self.every} steps, 0 for "
                f"never, growth={self.growth} and most={self.most} at least 1"
            )

    def relocates(self, now: Moment) -> bool:
        """Whether Gaussians move after this step."""
        if not self.every or now.step % self.every:
            return False
        return now.step > round(self.start * now.steps) and not now.reached(self.stop)


@dataclass(frozen=True)
class Relocation:
    """Old rows that stay as they are, and those from which the other new rows come, each shared by `copies`."""

    kept: Tensor  # (K,) int64
    sources: Tensor  # (S,) int64
    copies: Tensor  # (S,) int64, how many new rows their source becomes


def draw_relocation(config: RelocationConfig, opacities: Tensor, generator: torch.Generator) -> Relocation | None:
    """Where dead Gaussians go and new ones come from, drawn by opacity (N,); None when all are dead."""
    chance = opacities.detach().double().cpu()
    dead = chance <= config.least_opacity
    count = len(chance)
    grown = max(count, min(config.most, int(config.growth * count)))
    if bool(dead.all()):
        return None
    wanted = int(dead.sum()) + grown - count
    if not wanted:
        return Relocation(torch.arange(count), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    picked = torch.multinomial(chance * ~dead, wanted, replacement=True, generator=generator)
    copies = 1 + torch.bincount(picked, minlength=count)
    sources = torch.cat([(copies > 1).nonzero()[:, 0], picked])
    return Relocation((~dead & (copies == 1)).nonzero()[:, 0], sources, copies[sources])


def shared_values(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity (N,) and scales (N, 3) with which so many copies (N,) of a Gaussian look together as it did (eq. 9).

    o' = 1 - (1 - o)^(1/n) and s' = s o / sum_k C(n, k) (-1)^(k - 1) o'^k / sqrt(k), k = 1 .. n; the paper's double sum
    with its inner binomials added up.
    """
    n = copies.clamp(1, MOST_COPIES).to(opacities.device)
    whole = opacities.double()
    part = -torch.expm1(torch.log1p(-whole.clamp_max(1 - 1e-9)) / n)
    k = torch.arange(1, MOST_COPIES + 1, dtype=torch.float64, device=part.device)
    powers = part[:, None] ** k / k.sqrt() * (-1) ** (k - 1)
    total = (powers * _binomials().to(part.device)[n]).sum(dim=1)
    return part.to(opacities), scales * (whole / total).to(scales)[:, None]


def tremble(cloud: GaussianCloud, strength: float, generator: torch.Generator) -> Tensor:
    """Steps (N, 3) in metres: strength Sigma eta sigmoid(k (t - o)), eta standard normal (eq. 8)."""
    eta = torch.randn(cloud.means.shape, generator=generator).to(cloud.means)
    eta = eta * torch.sigmoid(SHARPNESS * (FAINT - cloud.opacities))[:, None]
    axes = rotation_matrices(cloud.quaternions)
    along = (axes.mT @ eta[..., None])[..., 0] * cloud.scales**2
    return strength * (axes @ along[..., None])[..., 0]


def _binomials() -> Tensor:
    """C(n, k) at [n, k - 1], n and k to MOST_COPIES, in float64."""
    rows = [[float(math.comb(n, k)) for k in range(1, MOST_COPIES + 1)] for n in range(MOST_COPIES + 1)]
    return torch.tensor(rows, dtype=torch.float64)
