"""Where in one picture a point of another one is: features of a frozen prior, fused with those of a second encoder.

Two features (Zhang et al. 2023): decoder levels of one pass at a low noise level, brought down by one principal
component analysis of both pictures, f = [alpha f_prior / |f_prior|, (1 - alpha) f_encoder / |f_encoder|]. Both halves
have unit length, so |f_a - f_b|^2 = 2 alpha^2 (1 - cos_prior) + 2 (1 - alpha)^2 (1 - cos_encoder): the nearest
neighbour has the largest weighted sum of cosines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.priors import Prior
from ..core.sampling.features import Look, noise_map, picture_features
from ..geometry.matching import cell_centres, cells_at, cosines, margins, mutual_nearest, sampled, soft_argmax
from ..utils.errors import InputError

Encoder = Callable[[Tensor], Tensor]
"""Pictures (B, 3, H, W) in [-1, 1] to features (B, C, h, w)."""
LARGEST = 2.0  # difference of two cosines
PUBLISHED_SCALE = 960 / 512  # of the square that is looked at to the prior's own size


@dataclass(frozen=True)
class MatchConfig:
    """How pictures are described; the defaults are the published ones."""

    look: Look = field(default_factory=Look)
    dims: int = 256
    """of each level after the analysis of its principal components; fewer where there are fewer cells or channels"""
    level_weights: tuple[float, ...] = ()
    """one for each layer, coarse to fine; empty: 1"""
    alpha: float = 0.5
    """weight of the prior's half, 0 to 1; 1: the prior alone"""
    size: int = 0
    """px of the square that both pictures are fitted into; 0: 15/8 of the prior's own size, as published"""
    shared_noise: bool = True
    """both pictures are looked at through one noise map; False: through one each"""

    def __post_init__(self) -> None:
        if self.dims < 1 or self.size < 0:
            raise InputError(f"dims={self.dims} must be 1 or more and size={self.size} 0 or more")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha={self.alpha:g} must lie in 0 to 1")

    def side(self, prior: Prior) -> int:
        """The square's side in px: a multiple of what the prior's network takes."""
        step = prior.vae_factor * prior.latent_multiple * _deepest(prior)
        return max(round((self.size or PUBLISHED_SCALE * prior.image_size) / step), 1) * step


def _deepest(prior: Prior) -> int:
    """How many latent cells a side of the network's coarsest one has."""
    levels = getattr(prior.network, "up_blocks", None)
    return 1 if levels is None else int(2 ** (len(levels) - 1))


def co_pca(a: Tensor, b: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Rows (N, C) and (M, C) along the first principal directions of all of them, about their common mean.

    (N, d) and (M, d) with d = min(dims, N + M, C); not divided by the deviations. With d = C all distances stay what
    they were. Exact and the same on every machine but for signs, which are those of the largest entry.
    """
    together = torch.cat([a, b]).cpu().double()
    together = together - together.mean(0)
    count = min(dims, *together.shape)
    if len(together) >= together.shape[1]:  # the smaller of two equal problems
        directions = torch.linalg.eigh(together.mT @ together).eigenvectors.mT.flip(0)[:count]  # (d, C)
    else:
        directions = torch.linalg.svd(together, full_matrices=False).Vh[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    found = (together @ (directions * largest.sign()).mT).float().to(a.device)
    return found[: len(a)], found[len(a) :]


def reduced(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """`co_pca` of the cells of two pictures' features, (C, h, w) each: (2, d, h, w)."""
    rows = co_pca(a.flatten(1).mT, b.flatten(1).mT, dims)
    return torch.stack([row.mT.reshape(-1, *a.shape[1:]) for row in rows])


def prior_features(prior: Prior, pictures: Tensor, config: MatchConfig) -> Tensor:
    """Descriptors (2, D, h, w) of a pair of square pictures (2, 3, S, S) in [0, 1], at the finest level's cells.

    Raises InputError where weights and levels differ in number.
    """
    latents, seed = prior.encode(pictures), config.look.noise_seed
    seeds = (seed,) if config.shared_noise else (seed, seed + 1)
    noise = torch.cat([noise_map(prior, latents.shape[2:], one) for one in seeds])
    levels = picture_features(prior, latents, config.look, noise)
    weights = config.level_weights or (1.0,) * len(levels)
    if len(weights) != len(levels):
        raise InputError(f"level_weights has {len(weights)} numbers for {len(levels)} levels; give one for each")
    size = tuple(max(level.shape[k] for level in levels) for k in (2, 3))
    parts = [w * _at(reduced(level[0], level[1], config.dims), size) for level, w in zip(levels, weights, strict=True)]
    return torch.cat(parts[::-1], 1)  # the finest first


def described(prior: Prior, pictures: Tensor, config: MatchConfig, encoder: Encoder | None = None) -> Tensor:
    """Fused descriptors (2, D, h, w) of a pair of square pictures (2, 3, S, S) in [0, 1]; without an encoder, or with
    alpha 1, the prior's alone, of unit length."""
    own = None if config.alpha == 0 and encoder is not None else prior_features(prior, pictures, config)
    if encoder is None or config.alpha == 1:
        assert own is not None
        return F.normalize(own, dim=1)
    other = encoder(2 * pictures - 1).float()
    if own is None:
        return F.normalize(other, dim=1)
    return fused(own, _at(other, own.shape[2:]), config.alpha)


def fused(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """[alpha a / |a|, (1 - alpha) b / |b|] along the channels of two maps (B, C, h, w) and (B, D, h, w)."""
    return torch.cat([alpha * F.normalize(a, dim=1), (1 - alpha) * F.normalize(b, dim=1)], 1)


def _at(maps: Tensor, size: Sequence[int]) -> Tensor:
    same = tuple(maps.shape[2:]) == tuple(size)
    return maps if same else F.interpolate(maps, tuple(size), mode="bilinear")


@dataclass(frozen=True)
class Found:
    """K points of one grid of cells and where they are in another, (x, y) in cells with centres at +0.5."""

    a: Tensor  # (K, 2)
    b: Tensor  # (K, 2)
    score: Tensor  # (K,) cosine of the fused descriptors, at most 1
    margin: Tensor  # (K,) how far the score stands above all cells beyond the window
    spread: Tensor  # (K,) cells, of the soft maximum
    cycle: Tensor  # (K,) cells, how far the way there and back ends from where it began


@dataclass(frozen=True)
class Matcher:
    """Searches in descriptors (2, D, h, w) of two pictures; cells that show nothing (2, h w) are never found."""

    descriptors: Tensor
    shown: Tensor
    window: int = 2
    """cells about the largest one that a place between cells is the mean of; 0: its centre, as published"""
    temperature: float = 0.05

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) in cells."""
        return self.descriptors.shape[2], self.descriptors.shape[3]

    def mutual(self, edge: int = 0) -> Found:
        """The cells that are each other's nearest, and not within `edge` cells of where a picture ends: a network sees
        edges of any two pictures alike."""
        a, b = (one.flatten(1).mT for one in self.descriptors)
        similarity = cosines(a, b).masked_fill(~self.shown[0][:, None] | ~self.shown[1][None], -torch.inf)
        cells, partners = mutual_nearest(similarity)
        inside = self._inside(edge)
        cells = cells[inside[0][cells] & inside[1][partners]]
        return self.moved(cell_centres(cells, self.grid[1]).to(a))

    def _inside(self, edge: int) -> Tensor:
        """(2, h w) bool: cells that are shown, as are all within `edge` of them."""
        hidden = F.pad((~self.shown).float().reshape(2, 1, *self.grid), (edge,) * 4, value=1.0)
        return F.max_pool2d(hidden, 2 * edge + 1, stride=1).flatten(1) == 0

    def moved(self, places: Tensor) -> Found:
        """Where places (K, 2) of the first picture are in the second."""
        b, score, margin, spread = self._there(places, 0)
        back, *_ = self._there(b, 1)
        return Found(places, b, score, margin, spread, (back - places).norm(dim=1))

    def _there(self, places: Tensor, source: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(places, cosines, margins, spreads) in the other picture of places (K, 2) in picture number `source`."""
        here, there = self.descriptors[source], self.descriptors[1 - source].flatten(1).mT
        height, width = self.grid
        if self.window:
            mine = sampled(here, places)
        else:
            mine = here.flatten(1).mT[cells_at(places, width, height)]
        similarity = cosines(mine, there).masked_fill(~self.shown[1 - source][None], -torch.inf)
        found, spread = soft_argmax(similarity, width, self.window, self.temperature)
        return (
            found.to(places),
            similarity.amax(1),
            margins(similarity, width, self.window).clamp(max=LARGEST),
            spread.to(places),
        )
