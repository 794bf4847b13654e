"""A prior without a codec: its U-Net draws small pictures, everything else is that of another prior.

A score of pixels sees geometry that a codec blurs, and its gradient needs no encoder: the first stage of StableDreamer
(Guo et al. 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.files import read_json, write_json
from .diffusers import StableDiffusionPrior
from .embedded import EmbeddedPrior
from .multiview import base_beside

MANIFEST = "pixels.json"


class PixelPrior(EmbeddedPrior):
    """Latents are pictures in [-1, 1], each pixel the mean of factor x factor of the picture that is shown."""

    def __init__(self, base: StableDiffusionPrior, unet: UNet2DConditionModel, factor: int, name: str = "") -> None:
        """`base` gives text encoder, tokenizer and noise path, and what the U-Net's answer means."""
        side = int(unet.config["sample_size"])
        if factor < 1 or unet.config["in_channels"] != 3:
            raise InputError(
                f"a prior of pixels has a factor of at least 1 and 3 channels, got {factor} and {unet.config}"
            )
        pipe = copy.copy(base.pipe)
        pipe.register_modules(unet=unet)
        vocabulary = base.vocabulary if isinstance(base, EmbeddedPrior) else ()
        super().__init__(pipe, name or f"{base.name}-pixels", vocabulary)
        self.base, self.vae_factor = base, factor
        self.latent_shape, self.image_size = (3, side, side), side * factor

    def modules(self) -> dict[str, nn.Module]:
        """See Prior.modules; the base's codec is not among them."""
        return {name: module for name, module in super().modules().items() if name != "vae"}

    def encode(
        self, images: Tensor, sample: bool = False, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """See Prior.encode; nothing is drawn."""
        pooled = torch.nn.functional.avg_pool2d(images, self.vae_factor) if self.vae_factor > 1 else images
        return (2 * pooled - 1).to(torch.promote_types(images.dtype, torch.float32))

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """See Prior.decode; the pixels are spread evenly, so that `encode` gives them back."""
        images = (latents / 2 + 0.5).repeat_interleave(self.vae_factor, -1).repeat_interleave(self.vae_factor, -2)
        return images.clamp(0, 1) if clamp else images

    def save(self, folder: str | Path) -> Path:
        """See Prior.save: unet/ and pixels.json, and the base in base/."""
        folder = Path(folder)
        self.base.save(folder / "base")
        return save_pixels(self.pipe.unet, folder, "base", self.vae_factor)


def save_pixels(unet: UNet2DConditionModel, folder: str | Path, base: str, factor: int) -> Path:
    """Writes what `read_pixels` takes; `base` is a folder inside or beside, or the name of a prior."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unet.save_pretrained(folder / "unet")
    write_json(folder / MANIFEST, {"base": base, "factor": factor})
    return folder


def read_pixels(folder: str | Path, dtype: torch.dtype) -> tuple[UNet2DConditionModel, str, int]:
    """(U-Net, base, factor) of a folder. Raises InputError when its manifest is malformed."""
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    base, factor = (manifest.get(key) if isinstance(manifest, dict) else None for key in ("base", "factor"))
    if not isinstance(base, str) or not isinstance(factor, int):
        raise InputError(f'{folder / MANIFEST} must say {{"base": "toybox", "factor": 2}}')
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, torch_dtype=dtype)
    return unet, str(base_beside(folder, base)), factor
