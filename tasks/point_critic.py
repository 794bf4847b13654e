"""Which parts of a simulated depth map give it away: patches lifted to points, told apart by a small PointNet.

Stable-Sim2Real (2025): a discriminator learns real against drawn patches; those of low realness are the places where
stage 2 has to do better, with weight 1.5 there, .5 elsewhere, and 1 everywhere where none is marked.
PointNet: Qi et al., CVPR 2017 (per-point layers, a symmetric function, layers), here with maximum and mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.training.objectives.base import fixed_init
from ..utils.errors import InputError

FARTHEST = 100.0  # units of `depth_patches`: beyond it a point flies, however far


@dataclass(frozen=True)
class CriticConfig:
    """How patches are judged."""

    patch: int = 8
    """pixels of a side"""
    width: int = 32
    steps: int = 300
    batch: int = 128
    """patches of each kind"""
    lr: float = 2e-3
    threshold: float = 0.5
    """realness below which a patch is marked"""
    weights: tuple[float, float] = (1.5, 0.5)
    """of the loss of stage 2 in marked patches, and elsewhere"""

    def __post_init__(self) -> None:
        if self.patch < 2 or self.steps < 1 or not 0 < self.threshold < 1:
            raise InputError(f"patch={self.patch} >= 2, steps={self.steps} >= 1, 0 < threshold={self.threshold} < 1")


class PointCritic(nn.Module):
    """Logit of being real (P,) of point sets (P, 3, n) with which of them exist (P, n)."""

    def __init__(self, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        with fixed_init(seed):
            self.points = nn.Sequential(
                nn.Conv1d(3, width, 1), nn.LeakyReLU(0.1), nn.Conv1d(width, 2 * width, 1), nn.LeakyReLU(0.1)
            )
            self.head = nn.Sequential(nn.Linear(4 * width + 1, width), nn.LeakyReLU(0.1), nn.Linear(width, 1))

    def forward(self, points: Tensor, there: Tensor) -> Tensor:
        """See the class; the order of points does not matter."""
        keep = there[:, None]
        seen = self.points(points * keep)
        count = keep.sum(2).clamp(min=1)
        highest = torch.where(keep, seen, -torch.inf).amax(2)
        highest = torch.where(torch.isfinite(highest), highest, 0.0)
        mean = (seen * keep).sum(2) / count
        return self.head(torch.cat([highest, mean, there.to(seen).mean(1, keepdim=True)], 1))[:, 0]


def depth_patches(measured: Tensor, clean: Tensor, K: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Point sets (B h w, 3, patch^2) and which points exist, of depth (B, 1, H, W) with intrinsics K (B, 3, 3).

    With z the mean depth of the patch's clean surface: x and y from its middle in tenths of z, and along the axis how
    far the measurement is off that surface, in thousandths of z. Pixels beyond the last whole patch are left out.
    """
    rows, columns = torch.meshgrid(
        torch.arange(clean.shape[2], device=clean.device) + 0.5,
        torch.arange(clean.shape[3], device=clean.device) + 0.5,
        indexing="ij",
    )
    x = (columns - K[:, 0, 2, None, None]) / K[:, 0, 0, None, None]
    y = (rows - K[:, 1, 2, None, None]) / K[:, 1, 1, None, None]
    rays = torch.stack([x, y, torch.ones_like(x)], 1)  # (B, 3, H, W), z = 1
    points = _unfolded(rays * measured, patch)  # (B h w, 3, n)
    surface, there = _unfolded(rays * clean, patch), _unfolded(measured, patch)[:, 0] > 0
    known = (_unfolded(clean, patch) > 0).to(points)
    middle = (surface * known).sum(2, keepdim=True) / known.sum(2, keepdim=True).clamp(min=1)
    distance = middle[:, 2:].clamp(min=1e-3)
    aside, off = (points - middle)[:, :2] / (0.1 * distance), (points - surface)[:, 2:] / (0.001 * distance)
    return torch.cat([aside, off], 1).clamp(-FARTHEST, FARTHEST) * there[:, None], there


def _unfolded(values: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) as (B h w, C, patch^2)."""
    cut = values[..., : values.shape[2] // patch * patch, : values.shape[3] // patch * patch]
    parts = F.unfold(cut, patch, stride=patch)  # (B, C n, h w)
    return parts.transpose(1, 2).reshape(-1, values.shape[1], patch * patch)


@dataclass(frozen=True)
class DepthPairs:
    """Depth (N, 1, H, W) in metres, drawn and real measurements of the same clean depth, and K (N, 3, 3)."""

    clean: Tensor
    real: Tensor
    drawn: Tensor
    K: Tensor

    def patches(self, which: str, patch: int) -> tuple[Tensor, Tensor]:
        """`depth_patches` of "real" or "drawn"."""
        return depth_patches(getattr(self, which), self.clean, self.K, patch)


@torch.enable_grad()
def trained_critic(pairs: DepthPairs, config: CriticConfig = CriticConfig(), seed: int = 0) -> PointCritic:
    """A critic that has learnt to tell real patches from drawn ones (binary cross-entropy, Adam)."""
    critic = PointCritic(config.width, seed).to(pairs.clean.device)
    kinds = [pairs.patches(name, config.patch) for name in ("real", "drawn")]
    optimizer = torch.optim.Adam(critic.parameters(), config.lr)
    rng = np.random.default_rng(seed)
    for _ in range(config.steps):
        loss = pairs.clean.new_zeros(())
        for (points, there), label in zip(kinds, (1.0, 0.0), strict=True):
            chosen = torch.from_numpy(rng.integers(len(points), size=config.batch)).to(points.device)
            logits = critic(points[chosen], there[chosen])
            loss = loss + F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic.requires_grad_(False).eval()


@torch.no_grad()
def realness(critic: PointCritic, measured: Tensor, clean: Tensor, K: Tensor, patch: int) -> Tensor:
    """Probability of being real (B, h, w) of each patch."""
    points, there = depth_patches(measured, clean, K, patch)
    return critic(points, there).sigmoid().reshape(len(clean), clean.shape[2] // patch, clean.shape[3] // patch)


def weight_map(real: Tensor, config: CriticConfig, size: Sequence[int]) -> Tensor:
    """Weights (B, 1, h, w) of the loss at `size` of patches' realness (B, a, b); 1 for a map without marks."""
    marked = (real < config.threshold)[:, None]
    inside, outside = config.weights
    weights = torch.where(marked, inside, outside).to(real)
    weights = torch.where(marked.flatten(1).any(1)[:, None, None, None], weights, 1.0)
    return F.interpolate(weights, tuple(size), mode="nearest")


def auc(real: Tensor, drawn: Tensor) -> float:
    """Share of pairs (real, drawn) of realness values in which the real one is higher, ties half; .5: told apart by
    nothing (Mann-Whitney)."""
    from scipy.stats import rankdata

    values = torch.cat([real.flatten(), drawn.flatten()]).double().cpu().numpy()
    count, other = real.numel(), drawn.numel()
    ranks = rankdata(values)[:count].sum()
    return float((ranks - count * (count + 1) / 2) / (count * other))
