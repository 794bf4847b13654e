"""Targets that are kept for a while: one look by the prior feeds many gradient steps on random rays.

A step of score distillation in recon form is a regression to a detached target (StableDreamer, Guo et al. 2023), so the
target may be held: the field is fitted to the decoded targets of the newest guided view sets as to photographs, ray by
ray, and the prior is asked again when it has followed. This costs a fraction of a gradient through whole renders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..geometry.cameras import Camera
from ..geometry.outputs import background_like
from ..utils.errors import InputError

WIDTHS = (3, 3, 3, 3, 1, 1)  # columns of a stored ray, in the order of RayBatch
CONTRAST = 0.95  # quantile of the distances from the backdrop over a view


@dataclass(frozen=True)
class FitConfig:
    """How held targets are followed."""

    steps: int = 0  # gradient steps after each guided view set; 0: one step through the renders of the set itself
    rays: int = 4096  # of each gradient step
    sets: int = 3  # guided view sets held, the newest
    backdrop: Literal["given", "border"] = "given"  # behind the object: as rendered, or what the target's border shows
    matte: float = 0.0  # share of the contrast within which a target shows its backdrop, which is exchanged; 0: never

    def __post_init__(self) -> None:
        if not 0 <= self.matte < 1:
            raise InputError(f"fit.matte={self.matte}: a share of the contrast, in [0, 1)")
        if self.steps < 0 or self.rays < 1 or self.sets < 1:
            raise InputError(f"fit: steps={self.steps} >= 0, rays={self.rays} >= 1 and sets={self.sets} >= 1 needed")


class RayBatch(NamedTuple):
    """R rays and what should be seen along them."""

    origins: Tensor  # (R, 3) world
    directions: Tensor  # (R, 3) world, unit camera z
    background: Tensor  # (R, 3) sRGB
    target: Tensor  # (R, 3) sRGB
    weight: Tensor  # (R, 1) W of the recon form
    contrast: Tensor  # (R, 1) sRGB distance of the object in the view from its backdrop

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and directions (1, 1, R, 3), as of a camera."""
        return self.origins[None, None], self.directions[None, None]


class HeldTargets:
    """The rays of the newest guided view sets, all of one size: targets that have grown replace the smaller ones."""

    def __init__(self, config: FitConfig) -> None:
        self.config = config
        self.sets: list[Tensor] = []  # each (B H W, 14)
        self.pixels = 0  # of one view

    def add(self, camera: Camera, background: Tensor, target_rgb: Tensor, weight: Tensor) -> None:
        """Holds B views: background (B, 3) sRGB, target (B, 3, H, W) in [0, 1], weight (B,)."""
        height, width = target_rgb.shape[-2:]
        origins, directions = camera.resized(width, height).rays()
        colour = target_rgb.permute(0, 2, 3, 1).to(origins)
        if self.config.backdrop == "border":
            background = border_colour(colour)
        behind = background_like(background.to(origins), colour)
        pull = weight.to(origins)[:, None, None, None].expand(*colour.shape[:3], 1)
        contrast = (colour - behind).norm(dim=-1).flatten(1).quantile(CONTRAST, dim=1)
        range_of = contrast[:, None, None, None].expand_as(pull)
        rows = torch.cat([origins, directions, behind, colour, pull, range_of], dim=-1).flatten(0, 2)
        equal = self.sets if self.pixels == height * width else []  # rays of others would weigh otherwise in the loss
        self.sets = [*equal, rows][-self.config.sets :]
        self.pixels = height * width

    def draw(self, generator: torch.Generator) -> RayBatch:
        """Random rays of all held sets, with replacement."""
        per_set = len(self.sets[0])
        index = torch.randint(per_set * len(self.sets), (self.config.rays,), generator=generator)
        rows = torch.stack(self.sets).flatten(0, 1)[index.to(self.sets[0].device)]
        batch = RayBatch(*rows.split(WIDTHS, dim=-1))
        return exchanged(batch, self.config.matte, generator) if self.config.matte else batch

    def loss(self, rgb: Tensor, batch: RayBatch) -> Tensor:
        """Unbiased estimate of score.image_loss from rays: sums over a view's pixels, mean over views."""
        return 0.5 * self.pixels * (batch.weight * (rgb - batch.target).square()).sum(-1).mean()


def exchanged(batch: RayBatch, matte: float, generator: torch.Generator) -> RayBatch:
    """The rays before a backdrop of random colours, which their targets show where they showed the old one.

    A field that paints the backdrop on a surface, instead of leaving a gap, is wrong before any other backdrop.
    """
    drawn = torch.rand(batch.background.shape, generator=generator).to(batch.background)
    distance = (batch.target - batch.background).norm(dim=-1, keepdim=True)
    within = matte * batch.contrast.clamp_min(1e-6)
    seen = torch.exp(-((distance / within) ** 2))  # share of the backdrop in the target
    return batch._replace(background=drawn, target=batch.target + seen * (drawn - batch.background))


def border_colour(images: Tensor) -> Tensor:
    """Median sRGB (B, 3) of the outermost pixels of images (B, H, W, 3).

    Near pure noise a prior draws a background of its own, which a field could only follow with fog.
    """
    rows, columns = images[:, [0, -1]].flatten(1, 2), images[:, 1:-1, [0, -1]].flatten(1, 2)
    return torch.cat([rows, columns], dim=1).median(dim=1).values
