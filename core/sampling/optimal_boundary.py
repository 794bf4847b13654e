"""Optimal boundary conditions: one starting noise, chosen on reference images, for every image to come.

With a deterministic solver the only randomness of a conditional sampler is its starting noise, and part of what makes a
noise good does not depend on the image. Losses M_ij of noise j on reference i split as a_i + b_j + e_ij; picking the
noise of least mean loss gains about std(b) sqrt(2 log K) of K candidates, and transfers as far as b outweighs e / R.
A choice belongs to its prior, solver, grid and latent shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.seeds import generator, sample_noise
from .calibration import Calibration, Fingerprint
from .init import FixedNoiseInit
from .levels import Level

KIND = "boundary-noise"
Loss = Callable[[Tensor, list[int]], Tensor]


@dataclass(frozen=True)
class BoundaryNoise:
    """A chosen starting noise and what it was chosen for."""

    noise: Tensor  # (C, h, w)
    solver: str
    lambdas: tuple[float, ...]  # of the grid
    seed: int
    loss: float  # mean over the references; optimistic for the winner

    def init(self, solver: str, levels: Sequence[Level]) -> FixedNoiseInit:
        """The start of a run. Raises InputError for another solver or grid, where the choice means nothing."""
        if solver != self.solver:
            raise InputError(f"this noise was chosen for the solver {self.solver}, not {solver}; search again")
        lambdas = grid_lambdas(levels)
        if len(lambdas) != len(self.lambdas):
            raise InputError(
                f"this noise was chosen for {len(self.lambdas) - 1} steps, not {len(lambdas) - 1}; search again"
            )
        if not all(a == b or abs(a - b) < 1e-6 for a, b in zip(lambdas, self.lambdas)):
            raise InputError("this noise was chosen for another spacing of the same number of steps; search again")
        return FixedNoiseInit(self.noise)

    def save(self, path: str | Path, made_for: Fingerprint) -> Path:
        """Writes the noise as a calibration artefact."""
        tensors = {"noise": self.noise, "lambdas": torch.tensor(self.lambdas, dtype=torch.float64)}
        settings = {"solver": self.solver, "seed": self.seed, "loss": self.loss}
        return Calibration(KIND, tensors, made_for, settings).save(path)

    @classmethod
    def load(cls, path: str | Path, expected: Fingerprint | None = None) -> BoundaryNoise:
        """Reads a noise."""
        made = Calibration.load(path, KIND, expected)
        return cls(made.tensors["noise"], lambdas=tuple(made.tensors["lambdas"].tolist()), **made.settings)


class BoundarySearch(NamedTuple):
    """What a search saw."""

    best: int  # index of the winner
    means: Tensor  # (K,) mean loss over the references a candidate was tried on
    losses: Tensor  # (K, R) float64, nan where a candidate had been dropped


def candidates(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Noises (K, C, h, w), one per seed: the draws that plain sampling with these seeds would begin from."""
    return sample_noise(shape, [generator(seed) for seed in seeds], len(seeds))


def search_boundary(
    loss: Loss, noises: Tensor, references: int, batch: int = 32, halving: bool = False
) -> BoundarySearch:
    """The noise of least mean loss.

    Args:
        loss: (noise repeated to (n, C, h, w), n reference numbers) to n losses; it samples with a deterministic solver
            and compares with the truth.
        noises: (K, C, h, w) candidates; one is plain sampling.
        references: number R of reference images, in the order they are used.
        batch: references sampled at once.
        halving: drop the worse half of the candidates after a quarter and after half of the references.
    """
    if noises.ndim != 4 or references < 1:
        raise InputError(f"noises {tuple(noises.shape)} must be (K, C, h, w) and references={references} at least 1")
    table = torch.full((noises.shape[0], references), math.nan, dtype=torch.float64)
    alive = list(range(noises.shape[0]))
    cuts = sorted({math.ceil(references / 4), math.ceil(references / 2), references} if halving else {references})
    begin = 0
    for end in cuts:
        for number in alive:
            for start in range(begin, end, batch):
                rows = list(range(start, min(start + batch, end)))
                repeated = noises[number].expand(len(rows), *noises.shape[1:])
                table[number, rows] = loss(repeated, rows).detach().cpu().double()
        begin = end
        if end < references:
            order = sorted(alive, key=lambda number: float(table[number, :end].mean()))
            alive = order[: max(len(order) // 2, 1)]
    means = torch.nanmean(table, 1)
    best = min(alive, key=lambda number: float(means[number]))
    return BoundarySearch(best, means, table)


class Shares(NamedTuple):
    """How the losses vary."""

    noise: float  # var(b), what a noise does for every image
    interaction: float  # var(e), what it does for one image
    transfer: float  # var(b) / (var(b) + var(e) / R): how much of a choice on R references holds for other images


def variance_shares(losses: Tensor) -> Shares:
    """Two-way analysis of variance, unbiased, of complete losses (K, R) with K, R >= 2."""
    if losses.ndim != 2 or min(losses.shape) < 2 or bool(losses.isnan().any()):
        raise InputError(f"losses {tuple(losses.shape)} must be complete (K, R) with K, R >= 2; search without halving")
    table = losses.double()
    count, references = table.shape
    rows, columns = table.mean(1, keepdim=True), table.mean(0, keepdim=True)
    residual = table - rows - columns + table.mean()
    interaction = float(residual.square().sum()) / ((count - 1) * (references - 1))
    noise = max(float(rows.var()) - interaction / references, 0.0)
    whole = noise + interaction / references
    return Shares(noise, interaction, noise / whole if whole > 0 else 0.0)


def grid_lambdas(levels: Sequence[Level]) -> tuple[float, ...]:
    """lambda of every level of a grid."""
    return tuple(float(level.lam) for level in levels)
