"""Changes to renders that leave their meaning alone, so that the judge also reads generated pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augment:
    """Shares of the pictures that are changed in each way, and how far."""

    background: float = 0.25
    """share whose flat background becomes a gradient"""
    move: float = 0.7
    shift: float = 0.1
    """largest shift, fraction of the picture"""
    scale: tuple[float, float] = (0.8, 1.12)
    soften: float = 0.4
    """share that is scaled down and up again, which looks like a latent codec's softness"""
    soft_sizes: tuple[int, ...] = (24, 32, 40, 48)
    noise: float = 0.4
    noise_std: float = 0.04
    """largest standard deviation of the noise, pictures in [0, 1]"""
    contrast: float = 0.06
    """brightness and contrast change by at most this"""

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Changed copies of pictures (B, 3, S, S) in [0, 1]; each draws from `rng` for itself."""
        images = self._background(images, rng)
        images = self._moved(images, rng)
        images = self._softened(images, rng)
        level = self.noise_std * _uniform(images, rng) * (_uniform(images, rng) < self.noise)
        images = images + level * torch.randn(images.shape, generator=rng).to(images)
        gain = 1 + self.contrast * (2 * _uniform(images, rng) - 1)
        offset = 0.5 * self.contrast * (2 * _uniform(images, rng) - 1)
        return ((images - 0.5) * gain + 0.5 + offset).clamp(0, 1)

    def _background(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """A linear gradient for the colour all four corners share, unless that is white (highlights are)."""
        size = images.shape[-1]
        corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]  # (B, 3, 4)
        flat = (corners - corners[..., :1]).abs().amax(dim=(1, 2)) < 0.006
        chosen = flat & (corners.amax(dim=(1, 2)) < 0.97) & (_uniform(images, rng)[:, 0, 0, 0] < self.background)
        ends = torch.rand((2, len(images), 3, 1, 1), generator=rng).to(images)
        angle = 2 * torch.pi * _uniform(images, rng)
        line = torch.linspace(-0.5, 0.5, size, device=images.device)
        share = (0.5 + angle.cos() * line[None, :] + angle.sin() * line[:, None]).clamp(0, 1)
        outside = (images - corners[..., :1, None]).abs().amax(dim=1, keepdim=True) < 0.006
        return torch.where(outside & chosen[:, None, None, None], torch.lerp(ends[0], ends[1], share), images)

    def _moved(self, images: Tensor, rng: torch.Generator) -> Tensor:
        count = len(images)
        keep = (_uniform(images, rng)[:, 0, 0, 0] < self.move).to(images)
        low, high = self.scale
        size = 1 + keep * (low + (high - low) * torch.rand(count, generator=rng).to(images) - 1)
        shift = keep[:, None] * 2 * self.shift * (2 * torch.rand((count, 2), generator=rng).to(images) - 1)
        matrix = torch.zeros((count, 2, 3), device=images.device)
        matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / size
        matrix[:, :, 2] = shift
        places = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, places, padding_mode="border", align_corners=False)

    def _softened(self, images: Tensor, rng: torch.Generator) -> Tensor:
        size = self.soft_sizes[int(torch.randint(len(self.soft_sizes), (1,), generator=rng))]
        chosen = _uniform(images, rng) < self.soften
        small = F.interpolate(images, (size, size), mode="area")
        soft = F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)
        return torch.where(chosen, soft, images)


def _uniform(images: Tensor, rng: torch.Generator) -> Tensor:
    """One number in [0, 1) for each picture, (B, 1, 1, 1)."""
    return torch.rand((len(images), 1, 1, 1), generator=rng).to(images)
