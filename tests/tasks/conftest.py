"""Tiny random-weight heads and Marigold pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LCMScheduler,
    MarigoldDepthPipeline,
    MarigoldNormalsPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def tiny_parts(seed: int = 0, in_channels: int = 4, **scheduler) -> dict:
    """VAE (factor 4), U-Net (16, 32), text encoder, tokenizer and a DDIM scheduler."""
    entries = ["<|startoftext|>", "<|endoftext|>", *(f"{chr(c)}</w>" for c in range(97, 123))]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(entries)}, merges=[], model_max_length=8)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(entries),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=8,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
        vae = AutoencoderKL(
            block_out_channels=(8,) * 3,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            mid_block_add_attention=False,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
    settings = {**BETAS, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing", **scheduler}
    parts = {"vae": vae, "unet": unet, "text_encoder": text}
    for part in parts.values():
        part.eval()
    return {**parts, "tokenizer": tokenizer, "scheduler": DDIMScheduler(**settings)}


def tiny_marigold(target: str, **scheduler):
    """A Marigold pipeline as published: v-prediction, zero terminal signal, trailing."""
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, **scheduler}
    parts = tiny_parts(1, 8, **{name: value for name, value in settings.items() if name != "few"})
    if settings.get("few"):
        parts["scheduler"] = LCMScheduler(**BETAS, set_alpha_to_one=False, prediction_type=settings["prediction_type"])
    defaults = {"default_denoising_steps": 2, "default_processing_resolution": 32}
    if target == "depth":
        pipe = MarigoldDepthPipeline(
            **parts, prediction_type="depth", scale_invariant=True, shift_invariant=True, **defaults
        )
    else:
        pipe = MarigoldNormalsPipeline(**parts, prediction_type="normals", **defaults)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd_prior():
    """A Stable Diffusion prior with random weights."""
    from unproject.core.priors import StableDiffusionPrior

    pipe = StableDiffusionPipeline(
        **tiny_parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    return StableDiffusionPrior(pipe, "tiny")


@pytest.fixture(scope="session")
def tiny_prior():
    return tiny_sd_prior()


@pytest.fixture(scope="session")
def marigold():
    """Builds tiny Marigold pipelines."""
    return tiny_marigold


class PlaneSet:
    """Pictures whose brightness is their depth: tilted planes with exact normals, like a rendered set."""

    def __init__(self, count: int = 8, size: int = 32, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        x, y = np.meshgrid(*(np.linspace(-1, 1, size),) * 2)
        slopes = rng.uniform(-0.5, 0.5, (count, 2, 1, 1))
        depth = 2 + slopes[:, 0] * x + slopes[:, 1] * y
        normals = np.broadcast_to(
            np.stack([slopes[:, 0], slopes[:, 1], -np.ones((count, 1, 1))], -1), (*depth.shape, 3)
        )
        normals = normals / np.linalg.norm(normals, axis=-1, keepdims=True)
        self.columns = {"depth_m": depth.astype(np.float16), "normal": np.round(normals * 127).astype(np.int8)}
        self.rgb = np.repeat((255 * (depth - 1) / 2)[..., None], 3, -1).clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.rgb)

    def images(self, indices):
        return self.rgb[indices]

    def column(self, name, indices):
        return self.columns[name][indices]


@pytest.fixture
def planes():
    """Builds sets of tilted planes."""
    return PlaneSet


@pytest.fixture(scope="session")
def head_folder(tiny_prior, tmp_path_factory) -> Path:
    """A saved two-target head beside its base prior."""
    from unproject.tasks.geometry_head import GeometryHead, HeadConfig

    root = tmp_path_factory.mktemp("heads")
    tiny_prior.save(root / "tiny")
    GeometryHead.from_prior(tiny_prior, HeadConfig(processing_resolution=32)).save(root / "tiny-geometry", "tiny")
    return root / "tiny-geometry"
