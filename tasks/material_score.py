"""A material prior as a force on rendered materials: the score distillation of MaterialFusion (2024).

The rendered albedo and surface pictures become latents z0, are noised to a level t ~ U and walked back in a few steps
by a head that sees the photograph; what it arrives at, z_hat, pulls on them:
    L = l_lat mean M (z_hat - z0)^2 + l_rgb [mean M (albedo_hat - albedo)^2 + mean M (surface_hat - surface)^2],
M the object's coverage. With one step and z_hat held fixed, dL/dz0 of the first part is score distillation with weight
sigma / alpha: z0 - z_hat = (sigma / alpha) (eps_hat - eps).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.sampling import DDIM, Level, Prediction, Sampler
from ..core.training.loss import LossOut
from ..utils.errors import InputError
from .geometry_head import GeometryHead

TARGETS = ("albedo", "surface")


@dataclass(frozen=True)
class ScoreConfig:
    """How hard and from where it pulls."""

    latent: float = 0.05
    """weight of the latents' part"""
    picture: float = 0.5
    """weight of the pictures' part"""
    window: tuple[float, float] = (0.02, 0.98)
    """of the train indices, from which the level is drawn"""
    steps: int = 5
    """back to the clean end"""
    through: bool = False
    """gradients pass through the affine part of the walk, as in the published code; else what it arrives at is fixed"""

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.window[0] <= self.window[1] <= 1:
            raise InputError(f"steps={self.steps} must be at least 1 and window={self.window} rising within [0, 1]")
        if min(self.latent, self.picture) < 0:
            raise InputError(f"latent={self.latent} and picture={self.picture} must be at least 0")


class MaterialScore:
    """The loss; `head` predicts albedo and surface from noise."""

    def __init__(self, head: GeometryHead, config: ScoreConfig | None = None) -> None:
        """Raises InputError for a head of other targets, or one that is asked once."""
        if head.config.targets != TARGETS or head.config.start != "noise":
            given = f"{', '.join(head.config.targets)} from {head.config.start}"
            raise InputError(f"the material prior has to draw {', '.join(TARGETS)} from noise, this head draws {given}")
        self.head, self.config = head, config or ScoreConfig()

    def __call__(self, photo: Tensor, albedo: Tensor, surface: Tensor, mask: Tensor, rng: torch.Generator) -> LossOut:
        """The loss of pictures; gradients reach albedo and surface.

        Args:
            photo: (B, 3, H, W) sRGB in [0, 1], of what is rendered.
            albedo: (B, 3, H, W) sRGB, and surface (B, 2, H, W), roughness and metallic, in [0, 1].
            mask: (B, 1, H, W) coverage in [0, 1].
            rng: draws level and noise.
        """
        head, valid = self.head, mask > 0.5
        pictures, _ = head.codec.encode({"albedo": albedo, "surface": surface}, valid)  # (B, 2, 3, H, W)
        latents = head.prior.encode(pictures.flatten(0, 1) / 2 + 0.5)
        z0 = latents.reshape(len(photo), -1, *latents.shape[2:])
        found = self.arrived(photo, z0, rng)
        cells = F.interpolate(mask, z0.shape[2:], mode="bilinear", antialias=True)
        lat = (cells * (found - z0)).square().mean()
        with torch.no_grad():
            drawn = head.decode_pictures(found.detach()).clamp(-1, 1)
        rgb = (mask[:, None] * (drawn - pictures) / 2).square().mean() * len(TARGETS)
        loss = self.config.latent * lat + self.config.picture * rgb
        return LossOut(loss, {"latent": lat.detach(), "picture": rgb.detach()})

    def arrived(self, photo: Tensor, z0: Tensor, rng: torch.Generator) -> Tensor:
        """z_hat (B, 2 C, h, w), without gradients unless `through`."""
        head, schedule = self.head, self.head.schedule
        low, high = (share * (schedule.steps - 1) for share in self.config.window)
        first = low + (high - low) * float(torch.rand((), generator=rng))
        indices = [first * k / self.config.steps for k in range(self.config.steps, 0, -1)]
        levels = [*(schedule.at_index(index) for index in indices), schedule.clean]
        with torch.no_grad():
            ask = head.denoiser(head.encode_image(photo))
            if not self.config.through:
                noisy, _ = schedule.noised(z0.detach(), levels[0], rng)
                return Sampler(DDIM()).run(ask, noisy, levels)
        noisy, _ = schedule.noised(z0, levels[0], rng)

        def answered(x: Tensor, level: Level) -> Prediction:
            with torch.no_grad():
                made = ask(x.detach(), level)
            return Prediction(x, level, made.raw, made.kind)

        return Sampler(DDIM()).run(answered, noisy, levels)
