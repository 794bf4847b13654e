"""The picture codec of a latent prior: diffusers' AutoencoderKL on L1 + MSE + a little KL (Kingma & Welling; LDM)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ....utils.pictures import grid, save_image
from ..export import folder_path
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


class PictureBatches:
    """Training batches {"images": uint8 (B, H, W, 3)} of a picture data set."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures
        self.identity = dict(getattr(pictures, "identity", {}))

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """`rng` is unused: the pictures are not augmented."""
        return {"images": self.pictures.images(indices)}


class VAEObjective(Objective):
    """Trains the codec; `held_out` are pictures that no training batch contains."""

    def __init__(self, config: VAEConfig, held_out: Pictures | None = None, seed: int = 0) -> None:
        self.config, self.held_out = config, held_out
        self.vae = build_vae(config, seed)
        self.modules: dict[str, nn.Module] = {"vae": self.vae}
        self.frozen: dict[str, nn.Module] = {}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """l1 |x - y| + mse (x - y)^2 + the same in opponent space + kl KL(q(z|x) || N(0, 1))."""
        config = self.config
        target = self._to_model(batch["images"])  # (B, 3, H, W)
        posterior = self.vae.encode(target).latent_dist
        if step < config.mean_steps:
            latents = posterior.mean
        else:
            noise = torch.randn(posterior.mean.shape, generator=rng).to(posterior.mean)
            latents = posterior.mean + posterior.std * noise
        error = self.vae.decode(latents).sample - target
        l1, mse, kl = error.abs().mean(), error.square().mean(), posterior.kl().mean()
        amplified = opponent(error, config.opponent_gain)
        start, end = config.opponent
        weight = start + (end - start) * min(1.0, step / max(1, config.opponent_steps))
        colour = amplified.abs().mean() + amplified.square().mean()
        logs = {"l1": l1.detach(), "mse": mse.detach(), "kl": kl.detach(), "opponent": colour.detach()}
        return LossOut(config.l1 * l1 + config.mse * mse + weight * colour + config.kl * kl, logs)

    def validate(self) -> dict[str, float]:
        """Mean PSNR (dB, images in [0, 1]) of held-out pictures through the posterior mean, and of their pooled MSE."""
        if self.held_out is None:
            return {}
        count = min(self.config.validation_images, len(self.held_out))
        errors = []
        for indices in np.array_split(np.arange(count), max(1, count // 32)):
            images = self._to_model(self.held_out.images(indices))
            errors.append(((self._through(images) - images) / 2).square().mean(dim=(1, 2, 3)))
        mse = torch.cat(errors).double().clamp_min(1e-10)
        return {"psnr": float((-10 * mse.log10()).mean()), "psnr_pooled": float(-10 * mse.mean().log10())}

    def preview(self, step: int, out: Path) -> list[Path]:
        """Held-out pictures above their reconstructions."""
        if self.held_out is None:
            return []
        images = self._to_model(self.held_out.images(np.arange(min(8, len(self.held_out)))))
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


def save_vae(vae: AutoencoderKL, pictures: Pictures, out: str | Path, samples: int = 2048, seed: int = 0) -> Path:
    """Writes a diffusers folder (fp16 safetensors) whose scaling_factor is 1 / std of the latents of `pictures`."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(pictures), size=min(samples, len(pictures)), replace=False)
    latents = torch.cat(
        [posterior_means(vae, pictures, part) for part in np.array_split(chosen, -(-len(chosen) // 64))]
    )
    copied = copy.deepcopy(vae).to("cpu", torch.float16, memory_format=torch.contiguous_format).eval()
    copied.register_to_config(scaling_factor=1.0 / float(latents.double().std()))
    with folder_path(out) as temporary:
        copied.save_pretrained(temporary)
    return Path(out)
