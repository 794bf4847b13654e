"""Empirical model statistics of DPM-Solver-v3 (Zheng et al. 2023, section 3 and appendix C): tables and integrals.

l, s, b are (C, h, w) for each lambda, all products element-wise. With N = sigma eps - l x, f = N / alpha, and
g(lambda) = e^{-S} f - B, S = integral of s, B = integral of e^{-S} b, the probability-flow ODE has the exact solution
x_t = alpha_t e^{-L} [x_s / alpha_s - integral of e^{L + S} (g + B) dlambda], L = integral of l, all taken from s to t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import InputError
from .calibration import Calibration, Fingerprint

KIND = "model-statistics"
STRONG_GUIDANCE = 3.0  # above it runs meet states that no noised sample resembles
_NODES = 5  # Gauss-Legendre points in a cell
_WIDEST = 0.25  # lambda width of a cell; quadrature error of e^{lambda} over it is below 1e-16


@dataclass(frozen=True)
class Segment:
    """Integrals over [lambda_s, lambda_t] seen from s (signed when t lies before s); (C, h, w) float64 each."""

    ell: Tensor  # of l
    s: Tensor  # of s
    b: Tensor  # of e^{-S} b
    moments: tuple[Tensor, ...]  # of e^{L + S} (lambda - lambda_s)^k / k!, k = 0, 1, ...
    drift: Tensor  # of e^{L + S} B


@dataclass(frozen=True)
class ModelStatistics:
    """l, s, b over a rising lambda grid; linear between its points, held constant outside."""

    lambdas: Tensor  # (N + 1,) float64, rising: most noise first
    ell: Tensor  # l, (N + 1, C, h, w); sides of 1 fit any latent
    s: Tensor
    b: Tensor
    fingerprint: Fingerprint | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.lambdas)
        if self.lambdas.ndim != 1 or count < 2 or not bool((self.lambdas.diff() > 0).all()):
            raise InputError("lambdas of model statistics must rise (most noise first) and have at least 2 entries")
        for name, table in (("l", self.ell), ("s", self.s), ("b", self.b)):
            if table.ndim != 4 or table.shape[0] != count:
                raise InputError(f"table {name} has shape {tuple(table.shape)}, expected ({count}, C, h, w)")
            if not bool(torch.isfinite(table).all()):
                raise InputError(f"table {name} holds values that are not finite; calibrate again with more samples")

    @classmethod
    def constant(cls, ell: float = 1.0, s: float = 0.0, b: float = 0.0) -> ModelStatistics:
        """The same l, s, b everywhere: (1, 0, 0) is data prediction (DPM-Solver++), (0, -1, 0) noise prediction."""
        ells, slopes, shifts = (torch.full((2, 1, 1, 1), float(v), dtype=torch.float64) for v in (ell, s, b))
        return cls(torch.tensor([-1.0, 1.0], dtype=torch.float64), ells, slopes, shifts)

    @property
    def strongly_guided(self) -> bool:
        """Whether they were measured at a guidance above STRONG_GUIDANCE; False where nobody knows."""
        return self.fingerprint is not None and self.fingerprint.guidance_scale > STRONG_GUIDANCE

    def save(self, path: str | Path) -> Path:
        """Writes a calibration artefact; only measured statistics have the fingerprint it needs."""
        if self.fingerprint is None:
            raise InputError("these statistics carry no fingerprint: only estimated ones can be saved")
        tensors = {"lambdas": self.lambdas, "l": self.ell, "s": self.s, "b": self.b}
        return Calibration(KIND, tensors, self.fingerprint, self.settings).save(path)

    @classmethod
    def load(cls, path: str | Path, expected: Fingerprint | None = None) -> ModelStatistics:
        """Reads what `save` wrote; InputError when it was measured on something else than `expected`."""
        made = Calibration.load(path, KIND, expected)
        missing = {"lambdas", "l", "s", "b"} - set(made.tensors)
        if missing:
            raise InputError(f"{path} lacks the tables {', '.join(sorted(missing))}; calibrate again")
        lambdas, ell, s, b = (made.tensors[name].double() for name in ("lambdas", "l", "s", "b"))
        return cls(lambdas, ell, s, b, made.fingerprint, made.settings)

    def check_shape(self, x: Tensor) -> None:
        """Raises InputError when the tables do not fit states like x, (B, C, h, w) or packed (B, tokens, 4 C)."""
        table, sides = tuple(self.ell.shape[1:]), tuple(x.shape[1:])
        aligned = (1,) * (3 - len(sides)) + sides
        if any(own not in (1, side) for own, side in zip(table, aligned, strict=True)):
            raise InputError(
                f"model statistics of latent shape {table} do not fit latents of shape {sides}; calibrate for this size"
            )

    def packed(self) -> ModelStatistics:
        """Tables (N + 1, 1, tokens, 4 C) for latents packed in 2x2 patches, as FLUX pipelines keep them."""
        if self.ell.shape[-1] % 2 or self.ell.shape[-2] % 2:
            raise InputError(f"statistics of latent shape {tuple(self.ell.shape[1:])} cannot be packed: odd sides")
        ell, s, b = (unfold_patches(table)[:, None] for table in (self.ell, self.s, self.b))
        return ModelStatistics(self.lambdas, ell, s, b, self.fingerprint, self.settings)

    def at(self, lam: float) -> Tensor:
        """l (C, h, w) at this lambda."""
        return self._lookup(self.ell, torch.tensor([lam], dtype=torch.float64))[0]

    def segment(self, start: float, end: float, moments: int = 4) -> Segment:
        """The integrals from lambda `start` to `end` (either order), with that many moments."""
        zero = torch.zeros(self.ell.shape[1:], dtype=torch.float64)
        big_l, big_s, big_b, drift = zero, zero, zero, zero
        sums = [zero] * moments
        edges = self._edges(start, end)
        for left, right in zip(edges[:-1], edges[1:], strict=True):
            width = right - left
            lam = left + width * _POINTS
            ell, s, b = (self._lookup(table, lam) for table in (self.ell, self.s, self.b))
            at_l, at_s = (total + width * _along(_INNER, rate) for total, rate in ((big_l, ell), (big_s, s)))
            source = torch.exp(-at_s) * b
            at_b = big_b + width * _along(_INNER, source)
            weight = width * _WEIGHTS[:, None, None, None] * torch.exp(at_l + at_s)
            drift = drift + (weight * at_b).sum(0)
            for k in range(moments):
                power = (lam - start) ** k / math.factorial(k)
                sums[k] = sums[k] + (weight * power[:, None, None, None]).sum(0)
            big_l, big_s = (total + width * _along(_WEIGHTS, rate) for total, rate in ((big_l, ell), (big_s, s)))
            big_b = big_b + width * _along(_WEIGHTS, source)
        return Segment(big_l, big_s, big_b, tuple(sums), drift)

    def _edges(self, start: float, end: float) -> list[float]:
        """Cell borders from start to end: the table's points between them, wide cells divided."""
        low, high = min(start, end), max(start, end)
        inside = self.lambdas[(self.lambdas > low) & (self.lambdas < high)].tolist()
        edges = [low]
        for right in [*inside, high]:
            parts = max(math.ceil((right - edges[-1]) / _WIDEST), 1)
            edges += [float(e) for e in np.linspace(edges[-1], right, parts + 1)[1:]]
        return edges if end >= start else edges[::-1]

    def _lookup(self, table: Tensor, lam: Tensor) -> Tensor:
        """Table (Q, C, h, w) at lambdas (Q,)."""
        lam = lam.clamp(float(self.lambdas[0]), float(self.lambdas[-1]))
        low = (torch.searchsorted(self.lambdas, lam, right=True) - 1).clamp(0, len(self.lambdas) - 2)
        share = (lam - self.lambdas[low]) / (self.lambdas[low + 1] - self.lambdas[low])
        return torch.lerp(table[low].double(), table[low + 1].double(), share[:, None, None, None])


def _quadrature(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre points and weights on [0, 1], and the matrix (count, count) that integrates from 0 to each."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    points = (nodes + 1) / 2
    inner = np.empty((count, count))
    for j in range(count):
        lagrange = np.polynomial.Polynomial([1.0])
        for i in range(count):
            if i != j:
                lagrange = lagrange * np.polynomial.Polynomial([-points[i], 1.0]) / (points[j] - points[i])
        inner[:, j] = lagrange.integ()(points)
    return torch.from_numpy(points), torch.from_numpy(weights / 2), torch.from_numpy(inner)


_POINTS, _WEIGHTS, _INNER = _quadrature(_NODES)


def _along(matrix: Tensor, values: Tensor) -> Tensor:
    """matrix (..., Q) applied to the first axis of values (Q, C, h, w)."""
    return torch.tensordot(matrix, values, dims=1)


def unfold_patches(x: Tensor) -> Tensor:
    """(N, C, h, w) to (N, h w / 4, 4 C), a token for each 2x2 patch, its channels ordered (C, row, column)."""
    count, channels, height, width = x.shape
    patches = x.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(count, height * width // 4, 4 * channels)
