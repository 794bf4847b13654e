"""Training of a head on images with exact maps; one objective, three losses.

"end_to_end" (Garcia et al. 2025): one call at t = T - 1 with z = 0, decoded inside the graph, task losses on pixels.
"regression": the same call, squared error of the latents. No decoder in the graph: a cheaper first stage.
"latent" (Ke et al. 2024): denoising of the target latents with annealed multi-resolution noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..core.sampling import Prediction
from ..core.training.adapters import learning
from ..core.training.loss import LossOut
from ..core.training.objectives.base import Objective, fixed_init
from ..utils.pictures import grid, save_image, to_uint8
from .data import AugmentConfig, GeometryData
from .geometry_head import GeometryHead, HeadConfig
from .metrics import masked_mean
from .noise import annealed_noise


@dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    loss: Literal["end_to_end", "regression", "latent"] = "end_to_end"
    weights: dict[str, float] = field(default_factory=dict)
    """of the parts of the end-to-end loss that do not weigh what their codec says (`TargetCodec.weights`), e.g.
    {depth: 3, relative: 1}"""
    annealed: float = 0.9
    """strength of the low frequencies of the latent loss's noise at t = T; 0 = plain noise"""
    validation_images: int = 256
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class HeadTraining:
    """What a run of the objective is defined by."""

    head: HeadConfig
    losses: LossConfig


class HeadObjective(Objective):
    """Trains the U-Net of a head; the prior's VAE stays frozen and inside the graph."""

    def __init__(self, config: LossConfig, head: GeometryHead, held_out: GeometryData | None = None) -> None:
        self.losses, self.head, self.held_out = config, head, held_out
        self.config = HeadTraining(head.config, config)
        self.weights = head.codec.weights(config.weights)
        learning(head.unet)
        head.empty_prompt()
        self.modules: dict[str, nn.Module] = {"unet": head.unet}
        self.frozen: dict[str, nn.Module] = {"vae": head.prior.vae}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        images, targets, valid = self.tensors(batch)
        with torch.no_grad():
            condition = self.head.encode_image(images)
        if self.losses.loss == "latent":
            return self._latent_loss(condition, targets, valid, rng)
        if self.losses.loss == "regression":
            return self._regression_loss(condition, targets, valid)
        return self._end_to_end_loss(condition, targets, valid)

    def tensors(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """See `tensors_of`."""
        return tensors_of(self.head, batch)

    def predict_pictures(self, condition: Tensor) -> Tensor:
        """The one-step regressor: pictures (B, n, 3, H, W), about [-1, 1], of image latents; differentiable."""
        return self.head.decode_pictures(self._one_step(condition))

    def _one_step(self, condition: Tensor) -> Tensor:
        x = condition.new_zeros((len(condition), *self.head.shape(condition)))
        prediction: Prediction = self.head.denoiser(condition)(x, self.head.first_level())
        return prediction.x0

    def _regression_loss(self, condition: Tensor, targets: dict[str, Tensor], valid: Tensor) -> LossOut:
        with torch.no_grad():
            clean, _ = self.head.encode_targets(targets, valid)
        keep = latent_mask(valid, self.head.prior.vae_factor)
        error = masked_mean((self._one_step(condition) - clean).square().mean(1), keep[:, 0]).nan_to_num(0.0).mean()
        return LossOut(error, {"latent_mse": error.detach()})

    def _end_to_end_loss(self, condition: Tensor, targets: dict[str, Tensor], valid: Tensor) -> LossOut:
        pictures = self.predict_pictures(condition)
        parts = self.head.codec.loss(pictures, targets, valid)
        total = pictures.new_zeros(())
        for name, value in parts.items():
            total = total + self.weights[name] * value
        return LossOut(total, {name: value.detach() for name, value in parts.items()})

    def _latent_loss(
        self, condition: Tensor, targets: dict[str, Tensor], valid: Tensor, rng: torch.Generator
    ) -> LossOut:
        head = self.head
        with torch.no_grad():
            clean, _ = head.encode_targets(targets, valid)
        steps = head.schedule.steps
        t = torch.randint(steps, (len(clean),), generator=rng)
        noise = annealed_noise(clean.shape, self.losses.annealed * t / steps, rng).to(clean)
        level = head.schedule.at_index(t.to(clean.device))
        noisy = head.schedule.add_noise(clean, noise, level)
        raw = head.denoiser(condition)(noisy, level).raw
        wanted = head.schedule.target(head.config.kind, clean, noise, level)
        keep = latent_mask(valid, head.prior.vae_factor)
        error = masked_mean((raw - wanted).square().mean(1), keep[:, 0]).nan_to_num(0.0).mean()
        return LossOut(error, {"latent_mse": error.detach()})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Errors on held-out images at the head's own settings, those the codecs report."""
        if self.held_out is None:
            return {}
        count = min(self.losses.validation_images, len(self.held_out))
        picked = np.linspace(0, len(self.held_out) - 1, count).astype(int)
        rows: dict[str, list[Tensor]] = {}
        for indices in np.array_split(picked, max(1, count // 16)):
            images, targets, valid = self.tensors(self.held_out.batch(indices, None))
            maps = self.predict(images, int(indices[0]))
            for key, value in self.head.codec.metrics(maps, targets, valid, summary=True).items():
                rows.setdefault(key, []).append(value)
        return {key: float(torch.cat(values).nanmean()) for key, values in rows.items()}

    @torch.no_grad()
    def predict(self, images: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """Maps by name at the head's own settings."""
        head = self.head
        condition = head.encode_image(images)
        shape = (len(images), *head.shape(condition))
        if head.config.start == "zeros":
            start = condition.new_zeros(shape)
        else:
            start = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(condition)
        return head.decode(head.predict(condition, start))

    @torch.no_grad()
    def preview(self, step: int, out: Path) -> list[Path]:
        """Rows of image, then prediction and truth of each target."""
        if self.held_out is None:
            return []
        indices = np.linspace(0, len(self.held_out) - 1, 6).astype(int)
        images, targets, valid = self.tensors(self.held_out.batch(indices, None))
        maps = self.predict(images)
        tiles: list[np.ndarray] = []
        for i, image in enumerate(images):
            one = slice(i, i + 1)
            tiles.append(to_uint8(image))
            for name, codec in self.head.codec.parts.items():
                tiles += codec.compared(maps[name][one], targets[name][one], valid[one])
        return [save_image(out / f"geometry-{step:07d}.png", grid(tiles, columns=1 + 2 * self.head.groups))]


def tensors_of(head: GeometryHead, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(images (B, 3, H, W) in [0, 1], targets by name, valid (B, 1, H, W)) of a batch of `GeometryData`."""
    images = torch.from_numpy(batch["images"]).to(head.device).permute(0, 3, 1, 2).float() / 255
    targets, valid = head.codec.truth(batch, head.device)
    return images, head.codec.beside(targets, images), valid


def latent_mask(valid: Tensor, factor: int) -> Tensor:
    """Latent cells (B, 1, h, w) all of whose pixels are valid."""
    return F.max_pool2d((~valid).float(), factor) == 0


def random_unet_like(unet: UNet2DConditionModel, seed: int) -> UNet2DConditionModel:
    """A network of the same shape with fresh random weights: the baseline without a prior."""
    with fixed_init(seed):
        return type(unet).from_config(unet.config)
