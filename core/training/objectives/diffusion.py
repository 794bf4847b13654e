"""A text-to-image latent diffusion model from scratch: U-Net and text encoder trained together on encoded pictures.

Loss: mean over the batch of w_t |eps - eps_theta(alpha_t z + sigma_t eps, t, text)|^2 with the min-SNR weight
w_t = min(SNR_t, gamma) / SNR_t (Hang et al. 2023) and empty prompts for classifier-free guidance (Ho & Salimans 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ....utils.errors import InputError
from ....utils.files import read_json, write_json
from ....utils.pictures import grid, save_image
from ...sampling.levels import Level, NoiseSchedule
from ..export import folder_path
from ..latents import LatentSet
from ..loss import LossOut
from .base import Objective, fixed_init
from .tokenizer import save_tokenizer, text_config

# Stable Diffusion's schedule. Trailing spacing starts few-step sampling at t = 999, where the noise of training ends.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "prediction_type": "epsilon",
}


NoisePrediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseLossConfig:
    """What the denoising losses share."""

    prediction: NoisePrediction = "epsilon"
    """what the network's output means; v is the clean picture where noise dominates, so its error is not divided by the
    little signal that is left"""
    empty_share: float = 0.1
    """share of prompts replaced by the empty one"""
    snr_gamma: float = 5.0
    """min-SNR cap; 0 = unweighted"""
    snr_floor: float = 0.0
    """SNR below which the clean estimate keeps this weight: what a picture is at all, and that four views agree, is
    learnt where noise dominates, and there the noise error alone says next to nothing"""
    validation_samples: int = 512
    preview_prompts: tuple[str, ...] = ("a red chair", "a blue car", "a green teapot", "a yellow duck")
    preview_steps: int = 20
    preview_guidance: float = 3.0


@dataclass(frozen=True)
class DiffusionConfig:
    """Shape of the networks and of the loss."""

    widths: tuple[int, int, int] = (32, 64, 128)
    """channels of the three levels; the lower two have cross-attention"""
    layers_per_block: int = 1
    transformer_layers: int = 2
    """depth of each cross-attention stage"""
    heads: tuple[int, int, int] = (2, 4, 4)
    norm_groups: int = 16
    latent_size: int = 16
    latent_channels: int = 4
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    noise: NoiseLossConfig = field(default_factory=NoiseLossConfig)


class DiffusionObjective(Objective):
    """Trains U-Net and text encoder; the codec and the tokenizer are given and only used for previews and export."""

    def __init__(
        self,
        config: DiffusionConfig,
        tokenizer: CLIPTokenizer,
        vae: AutoencoderKL | None = None,
        held_out: LatentSet | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.tokenizer, self.vae, self.held_out = config, tokenizer, vae, held_out
        with fixed_init(seed):
            self.unet, self.text_encoder = build_unet(config), build_text_encoder(config, tokenizer)
        self.scheduler = DDIMScheduler(**{**SCHEDULE, "prediction_type": config.noise.prediction})
        self.schedule = NoiseSchedule.from_config({**self.scheduler.config, "_class_name": "DDIMScheduler"})
        self.modules: dict[str, nn.Module] = {"unet": self.unet, "text_encoder": self.text_encoder}
        self.frozen: dict[str, nn.Module] = {} if vae is None else {"vae": vae}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """Min-SNR-weighted noise error with one t per sample."""
        latents = torch.from_numpy(batch["latents"]).to(self.unet.device, torch.float32)  # (B, C, h, w)
        t = torch.randint(self.schedule.steps, (len(latents),), generator=rng)
        embeds = self.embed(drop(batch["captions"], self.config.noise.empty_share, rng))
        noise = torch.randn(latents.shape, generator=rng).to(latents)
        error = self._error(latents, noise, t, embeds)
        weight = noise_weight(self.schedule.at_index(t), self.config.noise).to(error)
        return LossOut((weight * error).mean(), {"eps_mse": error.detach().mean()})

    def embed(self, captions: list[str]) -> Tensor:
        """Text embeddings (B, L, D), padded with the end token and unmasked as Stable Diffusion does."""
        return self.text_encoder(token_ids(self.tokenizer, captions).to(self.unet.device)).last_hidden_state

    def validate(self) -> dict[str, float]:
        """Unweighted noise error on held-out latents with fixed noise and times spread evenly."""
        if self.held_out is None:
            return {}
        count = min(self.config.noise.validation_samples, len(self.held_out))
        rng = torch.Generator().manual_seed(0)
        errors = []
        for indices in np.array_split(np.arange(count), max(1, count // 32)):
            batch = self.held_out.batch(indices, np.random.default_rng(int(indices[0])))
            latents = torch.from_numpy(batch["latents"]).to(self.unet.device, torch.float32)
            t = torch.from_numpy((indices * 997 + 499) % self.schedule.steps)
            noise = torch.randn(latents.shape, generator=rng).to(latents)
            errors.append(self._error(latents, noise, t, self.embed(batch["captions"])))
        return {"eps_mse": float(torch.cat(errors).mean())}

    def preview(self, step: int, out: Path) -> list[Path]:
        """A grid of samples of fixed prompts and seeds through the stock diffusers pipeline."""
        if self.vae is None:
            return []
        noise = self.config.noise
        pipeline = self.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            list(noise.preview_prompts),
            num_inference_steps=noise.preview_steps,
            guidance_scale=noise.preview_guidance,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
        path = out / f"samples-{step:07d}.png"
        save_image(path, grid(list(images), columns=4))
        return [path]

    def pipeline(self) -> StableDiffusionPipeline:
        """The stock pipeline around the current weights."""
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=DDIMScheduler.from_config(self.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def save_pipeline(self, out: str | Path) -> Path:
        """Writes the folder that plain `StableDiffusionPipeline.from_pretrained` loads: fp16 safetensors.

        Raises InputError without a codec.
        """
        if self.vae is None:
            raise InputError("a pipeline needs its codec: give the objective vae=AutoencoderKL")
        return write_pipeline(self.pipeline(), out)

    def _error(self, latents: Tensor, noise: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        """Mean squared noise error per sample (B,)."""
        level, kind = self.schedule.at_index(t), self.config.noise.prediction
        noisy, _ = self.schedule.noised(latents, level, noise)
        raw = self.unet(noisy, t.to(latents.device), embeds, return_dict=False)[0]
        return noise_error(self.schedule, kind, raw, latents, noise, level)


def write_pipeline(pipeline: StableDiffusionPipeline, out: str | Path) -> Path:
    """Writes fp16 copies of a pipeline's networks; the pipeline itself keeps its precision."""
    networks = {"unet": pipeline.unet, "vae": pipeline.vae}
    copies: dict[str, nn.Module] = {name: type(net).from_config(net.config) for name, net in networks.items()}
    copies["text_encoder"] = CLIPTextModel(pipeline.text_encoder.config)
    for name, copied in copies.items():
        copied.load_state_dict(getattr(pipeline, name).state_dict())
    kept = {name: part for name, part in pipeline.components.items() if name not in copies}
    halved = {name: copied.half() for name, copied in copies.items()}
    with folder_path(out) as temporary:
        StableDiffusionPipeline(**kept, **halved, requires_safety_checker=False).save_pretrained(
            temporary, safe_serialization=True
        )
        save_tokenizer(pipeline.tokenizer, temporary / "tokenizer")
        # transformers loads in the dtype of the config, diffusers in float32: agree on float32 unless asked
        settings = temporary / "text_encoder" / "config.json"
        write_json(settings, {**read_json(settings), "dtype": "float32"})
    return Path(out)


def build_unet(config: DiffusionConfig) -> UNet2DConditionModel:
    """Three levels: plain, cross-attention, cross-attention; mirrored on the way up."""
    return UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=config.layers_per_block,
        transformer_layers_per_block=(1, config.transformer_layers, config.transformer_layers),
        cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,  # diffusers' historical name for the number of heads
        norm_num_groups=config.norm_groups,
    )


def build_text_encoder(config: DiffusionConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text model for this tokenizer."""
    return CLIPTextModel(text_config(tokenizer, config.text_width, config.text_layers, config.text_heads))


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """int64 (B, L), padded to the model's length and truncated."""
    length = tokenizer.model_max_length
    return tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def drop(captions: list[str], share: float, rng: torch.Generator, frames: int = 1) -> list[str]:
    """Captions with a random share replaced by the empty prompt, the `frames` rows of a group together."""
    gone = (torch.rand(len(captions) // frames, generator=rng) < share).repeat_interleave(frames).tolist()
    return ["" if empty else text for empty, text in zip(gone, captions, strict=True)]


def noise_error(
    schedule: NoiseSchedule, kind: NoisePrediction, raw: Tensor, latents: Tensor, noise: Tensor, level: Level
) -> Tensor:
    """Mean squared error (B,) of the noise that a network output stands for; of v it is alpha^2 |v error|^2."""
    error = (raw - schedule.target(kind, latents, noise, level)).float().square().mean(dim=(1, 2, 3))
    return error if kind == "epsilon" else level.coefficients(error)[0] ** 2 * error


def noise_weight(level: Level, config: NoiseLossConfig) -> Tensor:
    """Weight (B,) of the noise error: clamp(SNR, floor, gamma) / SNR with SNR = alpha^2 / sigma^2.

    The weight of the clean estimate's error is SNR times that (Hang et al. 2023 without the floor). A gamma of 0
    has no cap.
    """
    snr = torch.as_tensor(2 * level.lam).exp()
    cap = config.snr_gamma if config.snr_gamma > 0 else float("inf")
    return snr.clamp(min(config.snr_floor, cap), cap) / snr
