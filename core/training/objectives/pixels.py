"""A diffusion model of small pictures, told what a frozen text encoder says; the loss is that of `diffusion`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ....utils.errors import InputError
from ....utils.pictures import grid, save_image
from ...priors.diffusers import StableDiffusionPrior
from ...priors.pixels import PixelPrior, save_pixels
from ...sampling.denoiser import Denoiser
from ...sampling.levels import NoiseSchedule
from ...sampling.sampler import Sampler
from ...sampling.solvers import DDIM
from ..latents import Captioned
from ..loss import LossOut
from .base import Objective, fixed_init
from .diffusion import DiffusionConfig, build_unet, drop, noise_error, noise_weight
from .vae import Pictures


class CaptionedImages(Pictures, Captioned, Protocol):
    """Pictures with texts."""


@dataclass(frozen=True)
class PixelConfig:
    """Shape of the network and of the loss; `network.latent_size` times the factor is the pictures' size."""

    factor: int = 2
    """pixels of a picture along a side that become one"""
    network: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(latent_channels=3, latent_size=32))


class PixelBatches:
    """Training batches {"images": uint8 (n, H, W, 3), "captions": list of n}."""

    def __init__(self, pictures: CaptionedImages) -> None:
        self.pictures, self.identity = pictures, dict(getattr(pictures, "identity", {}))

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """Pictures and one caption each: a paraphrase drawn with `rng`, the canonical one without."""
        return {"images": self.pictures.images(indices), "captions": self.pictures.captions(indices, rng)}


class PixelObjective(Objective):
    """Trains the U-Net alone."""

    def __init__(
        self, config: PixelConfig, base: StableDiffusionPrior, held_out: PixelBatches | None = None, seed: int = 0
    ) -> None:
        """`base`: its text encoder and noise path are used. Raises InputError when the network reads other texts."""
        width = int(base.pipe.text_encoder.config.hidden_size)
        if config.network.text_width != width:
            raise InputError(f"model.network.text_width={config.network.text_width}, but {base.name} has {width}")
        with fixed_init(seed):
            self.unet = build_unet(config.network)
        self.config, self.base, self.held_out = config, base, held_out
        self.prior = PixelPrior(base, self.unet, config.factor)
        self.unet.requires_grad_(True).train()
        self.schedule = NoiseSchedule.from_config(base.scheduler_config)
        self.modules = {"unet": self.unet}
        self.frozen = {"text_encoder": base.pipe.text_encoder}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """Min-SNR-weighted noise error with one t per sample."""
        noise = self.config.network.noise
        pixels = self._pixels(batch["images"])
        index = torch.randint(self.schedule.steps, (len(pixels),), generator=rng)
        error = self._error(pixels, index, drop(batch["captions"], noise.empty_share, rng), rng)
        weight = noise_weight(self.schedule.at_index(index), noise).to(error)
        return LossOut((weight * error).mean(), {"eps_mse": error.detach().mean()})

    def validate(self) -> dict[str, float]:
        """Unweighted noise error on held-out pictures with fixed noise and times spread evenly."""
        if self.held_out is None:
            return {}
        count = min(self.config.network.noise.validation_samples, len(self.held_out))
        rng, errors = torch.Generator().manual_seed(0), []
        for rows in np.array_split(np.arange(count), max(1, count // 32)):
            batch = self.held_out.batch(rows, np.random.default_rng(int(rows[0])))
            index = torch.from_numpy((rows * 997 + 499) % self.schedule.steps)
            with torch.no_grad():
                errors.append(self._error(self._pixels(batch["images"]), index, batch["captions"], rng))
        return {"eps_mse": float(torch.cat(errors).mean())}

    @torch.no_grad()
    def preview(self, step: int, out: Path) -> list[Path]:
        """A grid of samples of fixed prompts."""
        noise, shape = self.config.network.noise, self.prior.latent_shape
        condition = self.prior.encode_text(list(noise.preview_prompts))
        start = torch.randn(condition.rows, *shape, generator=torch.Generator().manual_seed(0)).to(self.unet.device)
        denoiser = Denoiser(self.prior, condition, noise.preview_guidance)
        images = self.prior.decode(Sampler(DDIM()).run(denoiser, start, self.schedule.grid(noise.preview_steps)))
        tiles = [image.permute(1, 2, 0).cpu().numpy() for image in images]
        return [save_image(out / f"samples-{step:07d}.png", grid(tiles, columns=4))]

    def save(self, folder: str | Path, base: str) -> Path:
        """Writes the folder that `load_prior` reads; `base` is the name under which it finds the other parts."""
        return save_pixels(self.unet, folder, base, self.config.factor)

    def _pixels(self, images: np.ndarray) -> Tensor:
        shown = torch.from_numpy(images).to(self.unet.device, torch.float32).permute(0, 3, 1, 2) / 255
        return self.prior.encode(shown)

    def _error(self, pixels: Tensor, index: Tensor, captions: list[str], rng: torch.Generator) -> Tensor:
        """Mean squared noise error per sample (B,)."""
        level, kind = self.schedule.at_index(index), self.base.prediction_type
        noised, noise = self.schedule.noised(pixels, level, rng)
        told = self.base.encode_text(captions)["cond"]["text"].to(pixels)
        raw = self.unet(noised, level.times(pixels), told, return_dict=False)[0]
        assert kind in ("epsilon", "v_prediction")
        return noise_error(self.schedule, kind, raw, pixels, noise, level)
