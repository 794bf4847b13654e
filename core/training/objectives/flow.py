"""A text-to-image rectified flow from scratch: a small SD3 transformer and its text encoders on encoded pictures.

Path x_t = (1 - t) x0 + t eps, target u = eps - x0 (Liu et al. 2022), loss mean |u - u_theta(x_t, 1000 t, text)|^2 with
logit-normal times (Esser et al. 2024, section 3.1) and empty prompts for classifier-free guidance.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ....utils.errors import InputError
from ....utils.files import read_json, write_json
from ....utils.pictures import grid, save_image
from ...sampling.levels import NoiseSchedule
from ..export import folder_path
from ..latents import LatentSet
from ..loss import LossOut
from .base import Objective, fixed_init
from .diffusion import drop, token_ids
from .flow_networks import FlowNetworks, HeavyLastKey, build_text_encoder, build_transformer
from .tokenizer import save_tokenizer

TRAIN_STEPS = 1000  # model time of pure noise
PATH = NoiseSchedule.from_config({"prediction_type": "flow_prediction", "num_train_timesteps": TRAIN_STEPS})
STOCK_PADDING = 256  # zero tokens that stock SD3 pipelines append when there is no T5 encoder
LARGEST_PADDING = 512


@dataclass(frozen=True)
class FlowLossConfig:
    """Times, prompts, and what is looked at meanwhile."""

    empty_share: float = 0.1
    """share of prompts replaced by the empty one"""
    uniform_share: float = 0.1
    """share of times drawn evenly from [0, 1]; the rest are sigmoid(N(mean, std)), which rarely reach the ends"""
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 1.0
    """sampling times t become shift t / (1 + (shift - 1) t)"""
    padded_share: float = 0.5
    """share of samples that see 1 to 512 zero tokens behind the text, as stock pipelines append them"""
    validation_samples: int = 512
    """of each size"""
    preview_prompts: tuple[str, ...] = ("a red chair", "a blue car", "a green teapot", "a yellow duck")
    preview_steps: int = 20
    preview_guidance: float = 3.0

    def __post_init__(self) -> None:
        for name in ("empty_share", "uniform_share", "padded_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if self.logit_std <= 0 or self.shift <= 0:
            raise InputError(f"logit_std={self.logit_std} and shift={self.shift} must be positive")


@dataclass(frozen=True)
class FlowConfig:
    """Shape of the networks and of the loss."""

    networks: FlowNetworks = field(default_factory=FlowNetworks)
    flow: FlowLossConfig = field(default_factory=FlowLossConfig)


class FlowObjective(Objective):
    """Trains transformer and text encoders; codec and tokenizer are given and only used for previews and export.

    Batches may differ in the size of their latents from step to step.
    """

    def __init__(
        self,
        config: FlowConfig,
        tokenizer: CLIPTokenizer,
        vae: AutoencoderKL | None = None,
        held_out: Sequence[LatentSet] = (),
        seed: int = 0,
    ) -> None:
        """`held_out` holds one set for each picture size."""
        self.config, self.tokenizer, self.held_out = config, tokenizer, list(held_out)
        self.vae = None if vae is None else _with_shift(vae)
        with fixed_init(seed):
            self.transformer = build_transformer(config.networks)
            self.text_encoder, self.text_encoder_2 = (
                build_text_encoder(config.networks, tokenizer, layers) for layers in config.networks.text_layers
            )
        self.modules: dict[str, nn.Module] = {
            "transformer": self.transformer,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
        }
        self.frozen: dict[str, nn.Module] = {} if self.vae is None else {"vae": self.vae}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """Mean squared velocity error, one time and one amount of padding per sample."""
        settings = self.config.flow
        latents = torch.from_numpy(batch["latents"]).to(self.transformer.device, torch.float32)  # (B, C, h, w)
        t = draw_times(len(latents), settings, rng)
        captions = drop(batch["captions"], settings.empty_share, rng)
        padding = draw_padding(len(latents), settings.padded_share, rng)
        noise = torch.randn(latents.shape, generator=rng)
        error = self._error(latents, noise, t, captions, padding)
        mean = error.detach().mean()
        return LossOut(error.mean(), {"v_mse": mean, f"v_mse_{latents.shape[-1]}": mean})

    def embed(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, 2 D) and pooled text (B, 2 D) as the stock pipeline makes them, without its zero tokens."""
        ids = token_ids(self.tokenizer, captions).to(self.transformer.device)
        outputs = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        tokens = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
        return tokens, torch.cat([out.text_embeds for out in outputs], dim=-1)

    def velocity(self, x: Tensor, t: Tensor, captions: list[str], padding: Tensor | None = None) -> Tensor:
        """u_theta (B, C, h, w) at times t (B,) in [0, 1], with `padding` (B,) zero tokens behind the text."""
        tokens, pooled = self.embed(captions)
        if padding is None:
            return self._transform(x, t, tokens, pooled)
        zero = tokens.new_zeros(len(tokens), 1, tokens.shape[-1])
        with HeavyLastKey(padding.to(tokens)):
            return self._transform(x, t, torch.cat([tokens, zero], dim=1), pooled)

    def validate(self) -> dict[str, float]:
        """Velocity error on held-out latents, fixed noise and evenly spread times: v_mse_SIDE for each size, their
        mean v_mse, and the same mean with the zero tokens of the stock pipeline, v_mse_padded."""
        if not self.held_out:
            return {}
        plain, padded = {}, []
        for latents in self.held_out:
            side = latents.latents.shape[-1]
            plain[f"v_mse_{side}"] = self._held_out_error(latents, None)
            padded.append(self._held_out_error(latents, STOCK_PADDING))
        return {"v_mse": float(np.mean(list(plain.values()))), **plain, "v_mse_padded": float(np.mean(padded))}

    def _held_out_error(self, held_out: LatentSet, padding: int | None) -> float:
        count = min(self.config.flow.validation_samples, len(held_out))
        rng = torch.Generator().manual_seed(0)
        errors = []
        for indices in np.array_split(np.arange(count), max(1, count // 32)):
            batch = held_out.batch(indices, np.random.default_rng(int(indices[0])))
            latents = torch.from_numpy(batch["latents"]).to(self.transformer.device, torch.float32)
            t = torch.from_numpy(((indices * 997 + 499) % TRAIN_STEPS + 0.5) / TRAIN_STEPS).float()
            noise = torch.randn(latents.shape, generator=rng)
            zeros = None if padding is None else torch.full((len(latents),), float(padding))
            errors.append(self._error(latents, noise, t, batch["captions"], zeros))
        return float(torch.cat(errors).mean())

    def preview(self, step: int, out: Path) -> list[Path]:
        """A grid of samples of fixed prompts and seeds through the stock pipeline, for each held-out size."""
        if self.vae is None:
            return []
        settings, pipeline, paths = self.config.flow, self.pipeline(), []
        pipeline.set_progress_bar_config(disable=True)
        sides = {latents.latents.shape[-1] for latents in self.held_out} or {self.config.networks.latent_size}
        for pixels in sorted(side * pipeline.vae_scale_factor for side in sides):
            images = pipeline(
                list(settings.preview_prompts),
                height=pixels,
                width=pixels,
                num_inference_steps=settings.preview_steps,
                guidance_scale=settings.preview_guidance,
                generator=torch.Generator().manual_seed(0),
                max_sequence_length=0,
                output_type="np",
            ).images
            paths.append(out / f"samples-{pixels}-{step:07d}.png")
            save_image(paths[-1], grid(list(images), columns=4))
        return paths

    def pipeline(self) -> StableDiffusion3Pipeline:
        """The stock pipeline around the current weights. Raises InputError without a codec."""
        if self.vae is None:
            raise InputError("a pipeline needs its codec: give the objective vae=AutoencoderKL")
        return StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS, shift=self.config.flow.shift),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer,
            text_encoder_3=None,
            tokenizer_3=None,
        )

    def save_pipeline(self, out: str | Path) -> Path:
        """Writes the folder that `StableDiffusion3Pipeline.from_pretrained` loads: fp16 safetensors.

        As for every SD3 without T5, the class wants to be told: `text_encoder_3=None, tokenizer_3=None`.
        Raises InputError without a codec.
        """
        pipeline = self.pipeline()
        parts = {**self.modules, **self.frozen}
        pipeline.register_modules(**{name: _half(part) for name, part in parts.items()})
        with folder_path(out) as temporary:
            pipeline.save_pretrained(temporary, safe_serialization=True)
            for number in ("", "_2"):
                save_tokenizer(self.tokenizer, temporary / f"tokenizer{number}")
                # transformers loads in the dtype of the config, diffusers in float32: agree on float32 unless asked
                settings = temporary / f"text_encoder{number}" / "config.json"
                write_json(settings, {**read_json(settings), "dtype": "float32"})
        return Path(out)

    def _transform(self, x: Tensor, t: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=TRAIN_STEPS * t,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            return_dict=False,
        )[0]

    def _error(self, latents: Tensor, noise: Tensor, t: Tensor, captions: list[str], padding: Tensor | None) -> Tensor:
        """Mean squared velocity error per sample (B,)."""
        level = PATH.path.at_sigma(t)
        x, noise = PATH.noised(latents, level, noise)
        answer = self.velocity(x, t.to(latents), captions, padding)
        target = PATH.target("flow_prediction", latents, noise, level)
        return (answer - target).float().square().mean(dim=(1, 2, 3))


def draw_times(count: int, config: FlowLossConfig, rng: torch.Generator) -> Tensor:
    """Times (count,) float32 in [0, 1], stratified: each follows the law, and a batch covers it evenly.

    One uniform offset for `count` equal strata (Kingma et al. 2021, appendix I.1), sent through the quantile function.
    """
    offset = torch.rand(1, generator=rng, dtype=torch.float64)
    strata = torch.arange(count, dtype=torch.float64) / count
    return time_quantile((offset + strata) % 1.0, config).float()


def time_quantile(u: Tensor, config: FlowLossConfig) -> Tensor:
    """Sends uniform u in [0, 1) to times: u below `uniform_share` evenly over [0, 1), the rest logit-normally."""
    share = config.uniform_share
    normal = torch.special.ndtri(((u - share) / max(1.0 - share, 1e-12)).clamp(0.0, 1.0))
    logit_normal = torch.sigmoid(config.logit_mean + config.logit_std * normal)
    return torch.where(u < share, u / max(share, 1e-12), logit_normal)


def draw_padding(count: int, share: float, rng: torch.Generator) -> Tensor:
    """Numbers of zero tokens (count,) float32: 0, or with probability `share` 1 to 512, evenly in the logarithm."""
    some = torch.rand(count, generator=rng) < share
    number = (torch.rand(count, generator=rng) * np.log(LARGEST_PADDING)).exp().round()
    return torch.where(some, number, torch.zeros(()))


def _with_shift(vae: AutoencoderKL) -> AutoencoderKL:
    """The codec with a shift_factor, which SD3 pipelines read; 0 where it has none."""
    copied = copy.deepcopy(vae)
    copied.register_to_config(shift_factor=vae.config.shift_factor or 0.0)
    return copied


def _half(module: nn.Module) -> nn.Module:
    """A contiguous half-precision copy on the CPU, ready to be saved."""
    copied = copy.deepcopy(module).cpu().half().eval()
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.contiguous()
    return copied
