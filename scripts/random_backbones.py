"""Pipelines of diffusers' own classes with random weights, as small as they go or in their published sizes.

    python -m unproject.scripts.random_backbones sd15 --full --out runs/random-sd15

What holds for weights of any value is checked on them: agreement with the stock pipelines, devices and dtypes, memory
and speed. Small ones take milliseconds; those of full size are what the published checkpoints are, without having
learnt anything.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = ("a", "red", "blue", "chair", "wagon", "dog", "of", "the", "tall")
SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD_STEPS = {**SD_BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
CLIP_TOKENS = 77
M = TypeVar("M")


def seeded(build: Callable[[], M], seed: int = 0) -> M:
    """What `build` makes, with random weights that neither depend on nor change the global generators."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.random.manual_seed(seed)
        return build()


def tiny_tokenizer(length: int = 32) -> CLIPTokenizer:
    """A CLIP tokenizer over single characters and a few words."""
    characters = [chr(c) for c in range(33, 127)]
    words = [f"{word}</w>" for word in WORDS]
    entries = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(entries + words))}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def text_encoder(
    width: int = 32, projected: bool = False, length: int = 32, layers: int = 2, heads: int = 4, words: int = 256
) -> CLIPTextModel:
    """A CLIP text model; as it is called, one of two small layers."""
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=width * (2 if layers == 2 else 4),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def tiny_vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    """Factor 4, eight channels."""
    blocks = 3
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        mid_block_add_attention=False,
        sample_size=32,
        **options,
    ).eval()


def tiny_unet(cross: int = 32, **options: Any) -> UNet2DConditionModel:
    """Two levels, attention in both, 8x8 latents."""
    settings = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": cross,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        **options,
    }
    return UNet2DConditionModel(**settings).eval()


def tiny_sd(prediction_type: str = "epsilon", **options: Any) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x pipeline; `options` are the U-Net's."""
    return seeded(
        lambda: StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=text_encoder(),
            tokenizer=tiny_tokenizer(),
            unet=tiny_unet(**options),
            scheduler=DDIMScheduler(**SD_STEPS, prediction_type=prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """An SDXL pipeline."""
    return seeded(
        lambda: StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=text_encoder(),
            text_encoder_2=text_encoder(projected=True),
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
            unet=tiny_unet(
                64,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=32 + 6 * 8,
            ),
            scheduler=EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"),
        )
    )


def tiny_sd3() -> StableDiffusion3Pipeline:
    """An SD3 pipeline without T5."""
    return seeded(
        lambda: StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=64,
                caption_projection_dim=32,
                pooled_projection_dim=64,
                out_channels=4,
                pos_embed_max_size=8,
            ).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=tiny_vae(4, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=text_encoder(projected=True, length=CLIP_TOKENS),
            tokenizer=tiny_tokenizer(CLIP_TOKENS),
            text_encoder_2=text_encoder(projected=True, length=CLIP_TOKENS),
            tokenizer_2=tiny_tokenizer(CLIP_TOKENS),
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def tiny_flux() -> FluxPipeline:
    """A guidance-distilled FLUX pipeline."""
    t5 = T5Config(vocab_size=104, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return seeded(
        lambda: FluxPipeline(
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                guidance_embeds=True,
                axes_dims_rope=(4, 4, 8),
            ).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=tiny_vae(4, shift_factor=0.1, scaling_factor=0.4),
            text_encoder=text_encoder(length=CLIP_TOKENS),
            tokenizer=tiny_tokenizer(CLIP_TOKENS),
            text_encoder_2=T5EncoderModel(t5).eval(),
            tokenizer_2=T5Tokenizer(),
        )
    )


def tiny_svd(told: int = 3, frames: int = 4) -> StableVideoDiffusionPipeline:
    """A Stable Video Diffusion pipeline whose network is told 3 numbers, or 1 as that of SV3D-u; factor 2."""
    eyes = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,
        patch_size=56,
    )
    return seeded(
        lambda: StableVideoDiffusionPipeline(
            vae=AutoencoderKLTemporalDecoder(
                block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
            ).eval(),
            image_encoder=CLIPVisionModelWithProjection(eyes).eval(),
            unet=UNetSpatioTemporalConditionModel(
                sample_size=16,
                block_out_channels=(32, 64),
                down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
                up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
                layers_per_block=1,
                cross_attention_dim=32,
                num_attention_heads=(2, 4),
                addition_time_embed_dim=32,
                projection_class_embeddings_input_dim=32 * told,
                num_frames=frames,
            ).eval(),
            scheduler=EulerDiscreteScheduler(
                **SD_BETAS,
                prediction_type="v_prediction",
                sigma_min=0.002,
                sigma_max=700.0,
                steps_offset=1,
                timestep_spacing="leading",
                timestep_type="continuous",
                use_karras_sigmas=True,
            ),
            feature_extractor=CLIPImageProcessor(size=224, crop_size=224),
        )
    )


def _full_vae(side: int, scaling: float, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=side,
        scaling_factor=scaling,
        **options,
    ).eval()


def _full_encoder(width: int, layers: int, heads: int, projected: bool = False) -> CLIPTextModel:
    return text_encoder(width, projected, CLIP_TOKENS, layers, heads, words=49408)


def full_sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 as published: a U-Net of 860 M parameters, 512 px; its tokenizer knows letters only."""
    return seeded(
        lambda: StableDiffusionPipeline(
            vae=_full_vae(512, 0.18215, force_upcast=False),
            text_encoder=_full_encoder(768, 12, 12),
            tokenizer=tiny_tokenizer(CLIP_TOKENS),
            unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval(),
            scheduler=DDIMScheduler(**SD_STEPS),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def full_sdxl() -> StableDiffusionXLPipeline:
    """SDXL as published: a U-Net of 2.6 G parameters, 1024 px; its tokenizers know letters only."""
    return seeded(
        lambda: StableDiffusionXLPipeline(
            vae=_full_vae(1024, 0.13025, force_upcast=True),
            text_encoder=_full_encoder(768, 12, 12),
            text_encoder_2=_full_encoder(1280, 32, 20, projected=True),
            tokenizer=tiny_tokenizer(CLIP_TOKENS),
            tokenizer_2=tiny_tokenizer(CLIP_TOKENS),
            unet=UNet2DConditionModel(
                sample_size=128,
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=[1, 2, 10],
                attention_head_dim=[5, 10, 20],
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ).eval(),
            scheduler=EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"),
        )
    )


TINY: dict[str, Callable[[], Any]] = {
    "sd15": tiny_sd,
    "sd21": lambda: tiny_sd("v_prediction"),
    "sdxl": tiny_sdxl,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
}
FRAMES: dict[str, Callable[[], Any]] = {"svd": tiny_svd, "sv3d": lambda: tiny_svd(1, 5)}  # told a picture, not words
FULL: dict[str, Callable[[], Any]] = {"sd15": full_sd15, "sdxl": full_sdxl}


def random_control(network: nn.Module, factor: int = 4, seed: int = 3, std: float = 0.3, **changes: Any) -> nn.Module:
    """A ControlNet for a denoising network: of its form, with as few blocks as go, and nothing in it zero.

    `factor`: of the VAE; `changes`: settings of the control's class.
    """

    def build() -> nn.Module:
        if isinstance(network, UNet2DConditionModel):
            widths = {8: (16, 32, 96, 256), 4: (4, 8, 8)}[factor]
            made: nn.Module = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=widths)
        else:
            kind = FluxControlNetModel if isinstance(network, FluxTransformer2DModel) else SD3ControlNetModel
            config: Any = network.config
            known = {name: config[name] for name in inspect.signature(kind.__init__).parameters if name in config}
            few: dict[str, Any] = {name: 1 for name in ("num_layers", "num_single_layers") if name in known}
            made = kind(**{**known, **few, **changes})
        for layer in made.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and not bool(layer.weight.any()):
                nn.init.normal_(layer.weight, std=std)
        return made.eval()

    return seeded(build, seed)


def write_folder(pipe: Any, folder: Path, vocabulary: bool = False) -> Path:
    """A pipeline as a folder of safetensors; with a vocabulary it is one of a closed world."""
    pipe.save_pretrained(folder, safe_serialization=True)
    if vocabulary:
        (folder / "vocabulary.json").write_text(json.dumps(list(WORDS)))
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="random_backbones", description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=(*TINY, *FRAMES))
    parser.add_argument("--full", action="store_true", help="in the published size (sd15, sdxl)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    known = FULL if options.full else {**TINY, **FRAMES}
    if options.family not in known:
        parser.error(f"{options.family} has no published size here; have {', '.join(known)}")
    pipe = known[options.family]().to(getattr(torch, options.dtype))
    print(write_folder(pipe, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
