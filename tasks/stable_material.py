"""The material prior of MaterialFusion as published (thebluser/stable-material): albedo and surface of a photograph.

Its network gets [noisy albedo, noisy surface, picture], the picture's latents unscaled, and one token in the place of
words: CLIP's projected embedding of the picture, twice side by side. Guidance compares with neither token nor picture.
The token rides on channels behind the picture's latents that are the same at every place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ..core.priors import Condition, Rows, StableDiffusionPrior
from ..core.priors.rows import COND, NULL
from ..core.sampling import Denoiser
from ..utils.errors import InputError
from .geometry_head import GeometryHead, HeadConfig
from .native_materials import clip_pixels

GUIDANCE = 3.0


class StableMaterialHead(GeometryHead):
    """A `GeometryHead` that is told the picture by a token too, and guided."""

    def __init__(
        self, prior: StableDiffusionPrior, unet: UNet2DConditionModel, vision: Any, config: HeadConfig
    ) -> None:
        """`unet` with the picture first; `vision`: CLIP's picture encoder with its projection."""
        super().__init__(prior, unet, config)
        self.vision, self.guidance = vision, GUIDANCE

    def encode_image(self, images: Tensor) -> Tensor:
        """Latents (B, C + D, h, w) of images (B, 3, H, W) in [0, 1]; D of the token."""
        latents = super().encode_image(images)
        token = self.vision(clip_pixels(images, self.vision)).image_embeds.repeat(1, 2).to(latents)
        return torch.cat([latents, token[..., None, None].expand(-1, -1, *latents.shape[2:])], 1)

    def denoiser(self, image_latents: Tensor) -> Denoiser:
        """See GeometryHead.denoiser, for what `encode_image` says."""
        latents, token = image_latents.split([self.latent_channels, image_latents.shape[1] - self.latent_channels], 1)
        told = Rows({"concat": latents, "text": token[:, None, :, 0, 0]})
        nothing = Rows({name: torch.zeros_like(told[name]) for name in ("concat", "text")})
        return Denoiser(self.asked, Condition({COND: told, NULL: nothing}), self.guidance)

    def with_config(self, **changes: Any) -> GeometryHead:
        """See GeometryHead.with_config."""
        raise InputError("a published material prior is asked as it was published")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GeometryHead:
        """Moves and casts the networks."""
        self.vision.to(device=device, dtype=dtype)
        return super().to(device, dtype)

    def save(self, folder: str | Path, base: str | None = None, **facts: Any) -> Path:
        """It lies in files as it was published. Raises InputError."""
        raise InputError("this head lies in files as it was published; copy its folder")
