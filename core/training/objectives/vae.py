"""The picture codec of a latent prior: diffusers' AutoencoderKL on L1 + MSE + a little KL (Kingma & Welling; LDM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from ....utils.errors import InputError
from ....utils.pictures import grid, save_image
from ..loss import LossOut
from .base import Objective, fixed_init


class Pictures(Protocol):
    """A data set of pictures: `images(indices)` gives uint8 (n, H, W, 3) sRGB."""

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the codec and weights of its loss; images in [-1, 1]."""

    widths: tuple[int, ...] = (16, 32, 64)
    """channels per level; every level but the last halves the size, so three levels give a factor of 4"""
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_groups: int = 8
    image_size: int = 64
    l1: float = 1.0
    mse: float = 1.0
    gradient: float = 0.0
    """weight of the absolute differences between neighbouring pixels of the error, which keep edges"""
    features: float = 0.0
    """weight of the squared distance of unit feature vectors of a frozen network"""
    trained: Literal["all", "decoder"] = "all"
    """decoder: the latents stay what they are"""
    opponent_gain: float = 4.0
    """how much colour differences are amplified in the opponent-space loss and in the first and last convolution's
    initial weights; deep narrow nets otherwise learn brightness only, the direction of nearly all the variance"""
    opponent: tuple[float, float] = (1.0, 0.1)
    """weight of L1 + MSE in opponent space at the first and at the last step, linear between"""
    opponent_steps: int = 2000
    logvar_start: float = -6.0
    """initial log-variance of the posterior: at 0 the noise drowns the latents for thousands of steps"""
    kl: float = 1e-6
    """weight of the KL divergence summed over one image's latents, against per-pixel means of the others"""
    mean_steps: int = 300
    """the first steps decode the posterior mean: sampling at once hides the image in noise before it is learned"""
    validation_images: int = 256


Scores = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""what is lost between held-out pictures of some numbers and what came back of them (n, H, W, 3) in [0, 1]"""


class VAEObjective(Objective):
    """Trains the codec; `held_out` are pictures that no training batch contains, `scores` says more about them.

    `eyes` maps pictures (B, 3, H, W) in [-1, 1] to feature maps (B, C, h, w) of several levels.
    """

    def __init__(
        self,
        config: VAEConfig,
        held_out: Pictures | None = None,
        seed: int = 0,
        scores: Scores | None = None,
        eyes: nn.Module | None = None,
    ) -> None:
        if config.features and eyes is None:
            raise InputError(f"features={config.features} needs a network that sees features")
        self.config, self.held_out, self.scores, self.eyes = config, held_out, scores, eyes
        self.vae = build_vae(config, seed)
        if config.trained == "decoder":
            for part in (self.vae.encoder, self.vae.quant_conv):
                part.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"vae": self.vae}
        self.frozen: dict[str, nn.Module] = {} if eyes is None else {"eyes": eyes}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """l1 |x - y| + mse (x - y)^2 + the same in opponent space + gradient |grad (x - y)| + features' distance
        + kl KL(q(z|x) || N(0, 1))."""
        config = self.config
        target = self._to_model(batch["images"])  # (B, 3, H, W)
        posterior = self.vae.encode(target).latent_dist
        if step < config.mean_steps:
            latents = posterior.mean
        else:
            noise = torch.randn(posterior.mean.shape, generator=rng).to(posterior.mean)
            latents = posterior.mean + posterior.std * noise
        decoded = self.vae.decode(latents).sample
        error = decoded - target
        l1, mse, kl = error.abs().mean(), error.square().mean(), posterior.kl().mean()
        amplified = opponent(error, config.opponent_gain)
        start, end = config.opponent
        weight = start + (end - start) * min(1.0, step / max(1, config.opponent_steps))
        colour = amplified.abs().mean() + amplified.square().mean()
        logs = {"l1": l1.detach(), "mse": mse.detach(), "kl": kl.detach(), "opponent": colour.detach()}
        loss = config.l1 * l1 + config.mse * mse + weight * colour + config.kl * kl
        if config.gradient:
            steps = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
            loss, logs = loss + config.gradient * steps, {**logs, "gradient": steps.detach()}
        if config.features:
            assert self.eyes is not None
            distance = feature_distance(self.eyes(decoded), self.eyes(target))
            loss, logs = loss + config.features * distance, {**logs, "features": distance.detach()}
        return LossOut(loss, logs)

    def validate(self) -> dict[str, float]:
        """Mean PSNR (dB, images in [0, 1]) of held-out pictures through the posterior mean, that of their pooled MSE,
        and mean and median of each score."""
        if self.held_out is None:
            return {}
        count = min(self.config.validation_images, len(self.held_out))
        errors, scores = [], dict[str, list[np.ndarray]]()
        spread = np.linspace(0, len(self.held_out) - 1, count).round().astype(np.int64)
        for indices in np.array_split(spread, max(1, count // 32)):
            images = self._to_model(self.held_out.images(indices))
            back = self._through(images)
            errors.append(((back - images) / 2).square().mean(dim=(1, 2, 3)))
            shown = (back / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy()
            for name, values in (self.scores(indices, shown) if self.scores else {}).items():
                scores.setdefault(name, []).append(values)
        mse = torch.cat(errors).double().clamp_min(1e-10)
        found = {"psnr": float((-10 * mse.log10()).mean()), "psnr_pooled": float(-10 * mse.mean().log10())}
        for name, parts in scores.items():
            values = np.concatenate(parts)
            found |= {name: float(values.mean()), f"{name}_median": float(np.median(values))}
        return found

    def preview(self, step: int, out: Path) -> list[Path]:
        """Held-out pictures above their reconstructions."""
        if self.held_out is None:
            return []
        images = self._to_model(self.held_out.images(np.arange(min(18, len(self.held_out)))))
        both = torch.cat([images, self._through(images)]).permute(0, 2, 3, 1) / 2 + 0.5
        path = out / f"vae-{step:06d}.png"
        save_image(path, grid(list(both.clamp(0, 1).cpu().numpy()), columns=len(images)))
        return [path]

    def _through(self, images: Tensor) -> Tensor:
        return self.vae.decode(self.vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)

    def _to_model(self, images: np.ndarray) -> Tensor:
        return to_model(images, self.vae.device)


def build_vae(config: VAEConfig, seed: int) -> AutoencoderKL:
    """A fresh codec whose initial weights depend on the seed only."""
    levels = len(config.widths)
    with fixed_init(seed):
        vae = AutoencoderKL(
            block_out_channels=config.widths,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            sample_size=config.image_size,
            mid_block_add_attention=False,
        )
        _open_paths(vae, config)
    return vae


def feature_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Mean over levels and places of |a / |a| - b / |b||^2, feature vectors along the channels (LPIPS, eq. 1)."""
    levels = [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean() for x, y in zip(a, b, strict=True)]
    return torch.stack(levels).mean()


def opponent(error: Tensor, gain: float) -> Tensor:
    """The channel mean plus `gain` times the deviation from it; (B, 3, H, W)."""
    mean = error.mean(dim=1, keepdim=True)
    return mean + gain * (error - mean)


@torch.no_grad()
def _open_paths(vae: AutoencoderKL, config: VAEConfig) -> None:
    """Initial weights that pass brightness and colour alike: residual branches start at zero, resampling and
    shortcut convolutions as orthogonal maps, the outermost convolutions amplify and attenuate colour differences."""
    for name, module in vae.named_modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        if isinstance(module, nn.Conv2d) and ("shortcut" in name or "sampler" in name or name.endswith("conv_in")):
            centre = module.kernel_size[0] // 2
            module.weight.mul_(0.1)
            module.weight[:, :, centre, centre] += nn.init.orthogonal_(torch.empty(module.weight.shape[:2]))
    first, last = vae.encoder.conv_in.weight, vae.decoder.conv_out.weight
    grey = torch.full((3, 3), 1 / 3)
    amplify = grey + config.opponent_gain * (torch.eye(3) - grey)
    first[:, :, 1, 1] = 2 * nn.init.orthogonal_(torch.empty(first.shape[:2])) @ amplify
    last.mul_(0.1)
    last[:, :, 1, 1] += torch.linalg.inv(amplify) @ nn.init.orthogonal_(torch.empty(last.shape[:2]))
    vae.quant_conv.bias[config.latent_channels :] = config.logvar_start


def to_model(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]; a channels_last view of the same memory order."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


@torch.no_grad()
def posterior_means(vae: AutoencoderKL, pictures: Pictures, indices: np.ndarray) -> Tensor:
    """Unscaled latents (n, C, h, w) of pictures: the mean of the posterior."""
    return vae.encode(to_model(pictures.images(indices), vae.device)).latent_dist.mean
