"""How far drawings are from renders in the judge's features: Frechet distance beside its floor, and an unbiased one.

The Frechet distance of finite samples is biased upwards, the more the fewer objects they show: another sample of
renders has one too, its floor. What drawings lack is the excess over the floor of as many renders of other objects, in
as many views of each as the drawings have. The kernel distance (KID) is a U-statistic and needs no floor. Several views
of an object are not independent: they are resampled together, and pairs of them are left out of the U-statistic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError
from .intervals import digits, resamples

FRECHET_PICTURES = 200  # features are 192 numbers: the covariance of fewer pictures is singular
FRECHET_DRAWS = 40  # resamplings of the objects
KERNEL_DRAWS = 400


@dataclass(frozen=True)
class Features:
    """Feature vectors (N, D) of pictures and the number (N,) of the object that each shows."""

    values: Tensor
    objects: np.ndarray

    @classmethod
    def of(cls, values: Tensor, views: int = 1) -> Features:
        """Of pictures that show one object after another in so many views each."""
        return cls(values, np.arange(len(values)) // views)

    def __len__(self) -> int:
        return len(self.values)

    def first(self, count: int) -> Features:
        """Those of the first pictures."""
        return Features(self.values[:count], self.objects[:count])

    def draws(self, count: int, seed: int = 0) -> list[np.ndarray]:
        """Rows of samples of as many objects with replacement, all views of each; alike for equal numbers of objects
        and seeds."""
        names = np.unique(self.objects)
        rows = [np.flatnonzero(self.objects == name) for name in names]
        return [np.concatenate([rows[i] for i in drawn]) for drawn in resamples(len(names), count, seed)]


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features (N, D), (M, D), N, M >= 2.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) with covariances A, B (Dowson and Landau 1982; FID).
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise InputError(f"features of shape {tuple(a.shape)} and {tuple(b.shape)}: need (N, D), (M, D), N, M >= 2")
    a, b = a.double(), b.double()
    first, second = torch.cov(a.mT).reshape(a.shape[1], -1), torch.cov(b.mT).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * mixed
    return float(distance.clamp_min(0))


def frechet_draws(seen: Features, reference: Features, seed: int = 0) -> np.ndarray:
    """The Frechet distance of `seen` to the reference, then of FRECHET_DRAWS resamplings of its objects."""
    resampled = [seen.values[rows] for rows in seen.draws(FRECHET_DRAWS, seed)]
    return np.array([frechet(reference.values, part) for part in (seen.values, *resampled)])


def kernel_draws(seen: Features, reference: Features) -> np.ndarray:
    """The squared kernel distance of two sets, then of KERNEL_DRAWS resamplings of the objects of both.

    E k(x, x') + E k(y, y') - 2 E k(x, y) over pairs of different objects, k(x, y) = (x y / D + 1)^3 (Binkowski et al.
    2018, KID): without bias, so that it may be negative for sets of one distribution.
    """
    first, second = (_multiplicities(part, seed) for part, seed in ((seen, 0), (reference, 1)))
    cross = _kernel(seen.values, reference.values)
    between = ((first @ cross) * second).sum(1) / (first.sum(1) * second.sum(1))
    return _within(seen, first) + _within(reference, second) - 2 * between


def _kernel(a: Tensor, b: Tensor) -> np.ndarray:
    return ((a.double() @ b.double().mT) / a.shape[1] + 1).pow(3).numpy()


def _multiplicities(part: Features, seed: int) -> np.ndarray:
    """How often each picture is in a sample: once in the first row, then in resamplings of the objects; once where
    all draws are of one object, which has no pairs."""
    _, numbers = np.unique(part.objects, return_inverse=True)
    count = int(numbers.max()) + 1
    drawn = np.stack([np.bincount(rows, minlength=count) for rows in resamples(count, KERNEL_DRAWS, seed)])
    drawn[(drawn > 0).sum(1) < 2] = 1
    return np.concatenate([np.ones((1, count)), drawn])[:, numbers]


def _within(part: Features, weights: np.ndarray) -> np.ndarray:
    """Mean kernel over pairs of pictures of different objects."""
    apart = (part.objects[:, None] != part.objects[None]).astype(float)
    if not apart.any():
        raise InputError("a kernel distance needs pictures of two objects or more in each set")
    kernel = _kernel(part.values, part.values) * apart
    return ((weights @ kernel) * weights).sum(1) / ((weights @ apart) * weights).sum(1)


@dataclass(frozen=True)
class Yardstick:
    """What drawings are measured against: features of renders, and of other renders that stand in for drawings."""

    reference: Features
    others: Features
    """as many as there are drawings, in as many views of each object"""

    def row(self, seen: Features, plain: Features | None = None) -> dict[str, Any]:
        """Cells of a table: `toy_kid`, and `toy_fid` with its floor from FRECHET_PICTURES pictures on.

        With the features `plain` of drawings of the same sentences from the same noises also `excess_ratio`, where the
        excess of those is above its noise: the same objects are resampled in both. Raises InputError when there are
        more or fewer drawings than renders that stand in for them.
        """
        if len(seen) != len(self.others):
            raise InputError(f"{len(seen)} drawings are compared with {len(self.others)} renders; need as many")
        kid = kernel_draws(seen, self.reference)
        low, high = np.quantile(kid[1:], (0.025, 0.975))
        row: dict[str, Any] = {"toy_kid": {"kid": digits(kid[0]), "low": digits(low), "high": digits(high)}}
        if min(len(seen), len(self.reference)) < FRECHET_PICTURES:
            return row
        found = frechet_draws(seen, self.reference)
        row["toy_fid"] = beside_floor(found, self.floor)
        if plain is not None:
            row |= excess_ratio(found - self.floor, frechet_draws(plain, self.reference) - self.floor)
        return row

    @cached_property
    def floor(self) -> np.ndarray:
        """The Frechet distance of the other renders, then of their resamplings."""
        return frechet_draws(self.others, self.reference, seed=1)


def beside_floor(found: np.ndarray, floor: np.ndarray) -> dict[str, float]:
    """A distance beside its floor, each the value first and then its resamplings: values, deviations and excess."""
    return {
        "fid": digits(found[0]),
        "std": digits(found[1:].std(ddof=1), 3),
        "floor": digits(floor[0]),
        "floor_std": digits(floor[1:].std(ddof=1), 3),
        "excess": digits(found[0] - floor[0]),
        "excess_std": digits((found - floor)[1:].std(ddof=1), 3),
    }


def excess_ratio(excess: np.ndarray, plain: np.ndarray) -> Mapping[str, dict[str, float]]:
    """Ratio of two excesses, each the value first and then its paired resamplings, with its 95 % interval.

    The interval is the delta method's, of excess - ratio * plain: single resamplings may have a plain excess near 0.
    Nothing when the plain excess is within two of its deviations: its floor then hides what a ratio would say.
    """
    if plain[0] <= 2 * plain[1:].std(ddof=1):
        return {}
    middle = excess[0] / plain[0]
    reach = 1.96 * (excess - middle * plain)[1:].std(ddof=1) / plain[0]
    return {"excess_ratio": {"ratio": digits(middle), "low": digits(middle - reach), "high": digits(middle + reach)}}
