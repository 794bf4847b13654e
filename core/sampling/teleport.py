"""Gaussian data: the probability-flow ODE in closed form, a start that skips steps, and an exact denoiser.

Data N(mu, Sigma), Sigma = U diag(v) U^T + tail (I - U U^T), flattened to D numbers. A mode has variance
d(t) = alpha_t^2 v + sigma_t^2 at level t, and every mode is rescaled on its own (Wang & Vastola 2023):
    x_t = alpha_t mu + sum_k sqrt(d_k(t) / d_k(T)) u_k u_k^T (x_T - alpha_T mu)   (and likewise outside span U),
    x0 = mu + sum_k (alpha v_k / d_k) u_k u_k^T (x - alpha mu),    eps = sum_k (sigma / d_k) u_k u_k^T (x - alpha mu).
The paper has tail = 0, which for a truncated U forgets variance; the fit sets it to the mean of what was cut. Where
latents are no more than their numbers, the sample covariance is singular and is shrunk towards its mean variance by the
oracle approximating weight for Gaussian data (Chen et al. 2010, eq. 23), which keeps the total.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.noise import on_cpu
from .calibration import Calibration, Fingerprint
from .levels import Level, Scalar
from .prediction import Prediction

KIND = "gaussian"
FULL_COVARIANCE = 4096  # largest D whose covariance is accumulated whole
OVERSAMPLED = 16  # extra directions kept while streaming a truncated fit
LARGE_RANK = 1024  # directions kept of larger latents
FLOOR = 1e-10  # share of the largest variance below which a mode counts as empty


class GaussianPrior:
    """N(mu, U diag(v) U^T + tail (I - U U^T)) over latents (C, h, w); everything in float64.

    Calling it with a state and a level gives the exact Prediction, so it serves as denoiser of any solver.
    """

    def __init__(self, mean: Tensor, basis: Tensor, variances: Tensor, tail: float = 0.0) -> None:
        """Mean (C, h, w), orthonormal rows `basis` (r, C h w), variances (r,) >= 0 along them, tail >= 0 elsewhere."""
        rank, size = basis.shape[0], mean.numel()
        if mean.ndim != 3 or basis.shape != (rank, size) or variances.shape != (rank,):
            raise InputError(
                f"mean {tuple(mean.shape)}, basis {tuple(basis.shape)} and variances {tuple(variances.shape)} do not "
                "fit; expected (C, h, w), (r, C h w) and (r,)"
            )
        if tail < 0:
            raise InputError(f"tail={tail} is a variance and cannot be negative")
        self.shape = tuple(mean.shape)
        self.mean, self.basis = on_cpu(mean).flatten(), on_cpu(basis)
        self.variances, self.tail = on_cpu(variances).clamp_min(0), float(tail)

    @property
    def complete(self) -> bool:
        """Whether the basis spans all of the space, so that the tail is empty."""
        return self.basis.shape[0] == self.basis.shape[1]

    @classmethod
    def fit(cls, batches: Iterable[Tensor], rank: int | None = None) -> GaussianPrior:
        """Mean and principal directions of latents streamed in batches (n, C, h, w), scaled as the network sees them.

        Args:
            batches: any sizes; read once. Small latents accumulate their whole covariance, larger ones a truncated
                singular value decomposition that every batch updates.
            rank: directions kept; None: all (small latents) or at most LARGE_RANK.
        """
        accumulated: _Covariance | _Streamed | None = None
        shape: tuple[int, ...] = ()
        small, size = True, 0
        for batch in batches:
            if batch.ndim != 4 or (shape and tuple(batch.shape[1:]) != shape):
                raise InputError(f"a batch has shape {tuple(batch.shape)}, expected (n, {', '.join(map(str, shape))})")
            rows = batch.detach().cpu().double().flatten(1)
            if accumulated is None:
                shape, size = tuple(batch.shape[1:]), rows.shape[1]
                small = size <= FULL_COVARIANCE
                accumulated = _Covariance(size) if small else _Streamed(size, (rank or LARGE_RANK) + OVERSAMPLED)
            accumulated.add(rows)
        if accumulated is None or accumulated.count < 2:
            raise InputError("a Gaussian needs at least 2 latents; give more batches")
        variances, basis, total = accumulated.modes()
        kept = min(rank or (len(variances) if small else LARGE_RANK), int((variances > FLOOR * variances[0]).sum()))
        if accumulated.count <= size and total > 0:
            weight = shrinkage(variances, total, size, accumulated.count - 1)
            variances = (1 - weight) * variances + weight * total / size
        missing, cut = total - float(variances[:kept].sum()), size - kept
        tail = missing / cut if cut and missing > FLOOR * total else 0.0
        return cls(accumulated.mean.reshape(shape), basis[:kept], variances[:kept], tail)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """The exact prediction at x (B, C, h, w)."""
        centred, modes = self._modes(x, _coefficients(level)[0])
        signal, noise = self._gains(self.variances, level)
        rest_signal, rest_noise = self._gains(self.tail, level)
        x0 = self.mean + self._scaled(centred, modes, signal, rest_signal)
        eps = self._scaled(centred, modes, noise, rest_noise)
        u = (eps - x0).reshape(x.shape).to(torch.promote_types(x.dtype, torch.float32)).to(x.device)
        return Prediction(x, level, u, "flow_prediction")

    def transport(self, x: Tensor, start: Level, end: Level) -> Tensor:
        """The exact flow of x (B, C, h, w) from one level to another, either direction.

        Raises InputError when `start` is the clean end and some direction has no variance there to be rescaled.
        """
        (a0, _), (a1, _) = _coefficients(start), _coefficients(end)
        if float(torch.as_tensor(start.sigma).min()) == 0 and (
            bool((self.variances == 0).any()) or (self.tail == 0 and not self.complete)
        ):
            raise InputError(
                "from the clean end the flow is unique only where every direction has variance; set a tail"
            )
        centred, modes = self._modes(x, a0)
        ratio = (self._noisy(self.variances, end) / self._noisy(self.variances, start)).sqrt()
        rest = (self._noisy(self.tail, end) / self._noisy(self.tail, start)).sqrt().nan_to_num()
        moved = a1 * self.mean + self._scaled(centred, modes, ratio, rest)
        return moved.reshape(x.shape).to(x.dtype).to(x.device)

    def emergence(self) -> Tensor:
        """lambda (r,) at which a mode's signal equals the noise, -log(v) / 2: high variance first."""
        return -0.5 * self.variances.log()

    def save(self, path: str | Path, made_for: Fingerprint) -> Path:
        """Writes the Gaussian as a calibration artefact."""
        tail = torch.tensor([self.tail], dtype=torch.float64)
        tensors = {
            "mean": self.mean.reshape(self.shape),
            "basis": self.basis,
            "variances": self.variances,
            "tail": tail,
        }
        return Calibration(KIND, tensors, made_for).save(path)

    @classmethod
    def load(cls, path: str | Path, expected: Fingerprint | None = None) -> GaussianPrior:
        """Reads a Gaussian; it must be of the same latents and guidance."""
        found = Calibration.load(path, KIND, expected).tensors
        return cls(found["mean"], found["basis"], found["variances"], float(found["tail"]))

    def _modes(self, x: Tensor, alpha: Scalar) -> tuple[Tensor, Tensor]:
        """(x - alpha mu (B, D), its coordinates (B, r)), in float64 on the CPU, as not every device has that."""
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"x has shape {tuple(x.shape)}, this Gaussian describes latents {self.shape}")
        centred = on_cpu(x).flatten(1) - alpha * self.mean
        return centred, centred @ self.basis.mT

    def _noisy(self, variances: Tensor | float, level: Level) -> Tensor:
        """alpha^2 v + sigma^2: (r,), or (B, r) for one level per sample; for the tail a number or (B, 1)."""
        alpha, sigma = _coefficients(level)
        return torch.as_tensor(alpha * alpha * variances + sigma * sigma, dtype=torch.float64)

    def _gains(self, variances: Tensor | float, level: Level) -> tuple[Tensor, Tensor]:
        """Factors from a centred coordinate to that of x0 - mu and of eps; 0 without signal and noise."""
        alpha, sigma = _coefficients(level)
        noisy = self._noisy(variances, level)
        return (alpha * variances / noisy).nan_to_num(posinf=0.0), (sigma / noisy).nan_to_num(posinf=0.0)

    def _scaled(self, centred: Tensor, modes: Tensor, gains: Tensor, rest: Tensor) -> Tensor:
        """Every mode times its gain, what lies outside the basis times `rest`."""
        if self.complete:
            return (modes * gains) @ self.basis
        return rest * centred + (modes * (gains - rest)) @ self.basis


def shrinkage(variances: Tensor, total: float, size: int, freedom: int) -> float:
    """Weight in [0, 1] of the mean variance against a sample covariance of that many degrees of freedom.

    Its leading `variances` (r,), their total and its size D are what the closed form needs; what is missing to the
    total counts as spread evenly over the other directions.
    """
    rest = total - float(variances.sum())
    squares = float(variances.square().sum()) + rest * rest / max(size - len(variances), 1)
    spread = (freedom + 1 - 2 / size) * (squares - total * total / size)
    return min(((1 - 2 / size) * squares + total * total) / spread, 1.0) if spread > 0 else 1.0


def _coefficients(level: Level) -> tuple[Scalar, Scalar]:
    """(alpha, sigma) as numbers, or (B, 1) float64 for one level per sample."""
    if isinstance(level.alpha, Tensor) and isinstance(level.sigma, Tensor):
        return level.alpha.double().reshape(-1, 1), level.sigma.double().reshape(-1, 1)
    return level.alpha, level.sigma


class _Moments:
    """Count, mean and total variance of rows that arrive in batches (Chan et al. 1983)."""

    def __init__(self, size: int) -> None:
        self.count, self.total = 0, 0.0
        self.mean = torch.zeros(size, dtype=torch.float64)

    def absorb(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Updates the mean; returns (rows about their own mean, the row that stands for the two means' distance)."""
        own = rows.mean(0)
        after = self.count + len(rows)
        correction = (own - self.mean) * (self.count * len(rows) / after) ** 0.5
        self.mean = self.mean + (own - self.mean) * (len(rows) / after)
        self.count = after
        centred = rows - own
        self.total += float(centred.square().sum() + correction.square().sum())
        return centred, correction


class _Covariance(_Moments):
    """The whole scatter matrix."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.scatter = torch.zeros(size, size, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        centred, correction = self.absorb(rows)
        self.scatter += centred.mT @ centred + torch.outer(correction, correction)

    def modes(self) -> tuple[Tensor, Tensor, float]:
        """(variances falling, basis rows, total variance)."""
        values, vectors = torch.linalg.eigh(self.scatter / (self.count - 1))
        return values.flip(0).clamp_min(0), vectors.mT.flip(0), self.total / (self.count - 1)


class _Streamed(_Moments):
    """A truncated singular value decomposition, updated by every batch (Ross et al. 2008)."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__(size)
        self.rank = rank
        self.scaled = torch.zeros(0, size, dtype=torch.float64)  # singular values times right vectors

    def add(self, rows: Tensor) -> None:
        centred, correction = self.absorb(rows)
        stacked = torch.cat([self.scaled, centred, correction[None]])
        _, values, vectors = torch.linalg.svd(stacked, full_matrices=False)
        self.scaled = (values[:, None] * vectors)[: self.rank]

    def modes(self) -> tuple[Tensor, Tensor, float]:
        """(variances falling, basis rows, total variance)."""
        values = self.scaled.norm(dim=1)
        return values.square() / (self.count - 1), self.scaled / values[:, None], self.total / (self.count - 1)
