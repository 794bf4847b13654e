"""Tiny random-weight models of the real classes, built once and saved as diffusers folders."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = ("a", "red", "blue", "chair", "wagon", "dog", "of", "the", "tall")
UNET_PREFIX = "model.diffusion_model."
SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tiny_tokenizer(length: int = 32) -> CLIPTokenizer:
    """A CLIP tokenizer over single characters and a few words."""
    characters = [chr(c) for c in range(33, 127)]
    words = [f"{word}</w>" for word in WORDS]
    entries = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(entries + words))}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def tiny_text_encoder(width: int = 32, projected: bool = False, length: int = 32) -> CLIPTextModel:
    """A two-layer CLIP text model."""
    config = CLIPTextConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def tiny_vae(channels: int = 4, **options) -> AutoencoderKL:
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


def tiny_unet(cross: int = 32, **options) -> UNet2DConditionModel:
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


def _seeded(build, seed: int = 0):
    """Random weights that do not depend on, and do not change, the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return build()


def tiny_sd(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x pipeline."""
    return _seeded(
        lambda: StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(),
            tokenizer=tiny_tokenizer(),
            unet=tiny_unet(),
            scheduler=DDIMScheduler(
                **SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """An SDXL pipeline."""
    return _seeded(
        lambda: StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(),
            text_encoder_2=tiny_text_encoder(projected=True),
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
    transformer = SD3Transformer2DModel(
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
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=tiny_text_encoder(projected=True, length=77),
        tokenizer=tiny_tokenizer(77),
        text_encoder_2=tiny_text_encoder(projected=True, length=77),
        tokenizer_2=tiny_tokenizer(77),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def tiny_flux() -> FluxPipeline:
    """A guidance-distilled FLUX pipeline."""
    transformer = FluxTransformer2DModel(
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
    )
    t5 = T5Config(vocab_size=104, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return FluxPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny_vae(4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=tiny_text_encoder(length=77),
        tokenizer=tiny_tokenizer(77),
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=T5Tokenizer(),
    )


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny pipelines: sd, sd-v (v-prediction), toybox (with a vocabulary), sdxl, sd3, flux."""
    root = tmp_path_factory.mktemp("tiny")
    builders = {
        "sd": tiny_sd,
        "sd-v": lambda: tiny_sd("v_prediction"),
        "toybox": tiny_sd,
        "sdxl": tiny_sdxl,
        "sd3": lambda: _seeded(tiny_sd3),
        "flux": lambda: _seeded(tiny_flux),
    }
    for name, build in builders.items():
        build().save_pretrained(root / name, safe_serialization=True)
    (root / "toybox" / "vocabulary.json").write_text(json.dumps(list(WORDS)))
    return {name: root / name for name in builders}


@pytest.fixture
def make_unet():
    """Builds tiny U-Nets with seeded weights."""
    return lambda seed=0, **options: _seeded(lambda: tiny_unet(**options), seed)


def ldm_unet_name(key: str) -> str:
    """The LDM name of a parameter of the tiny two-level, one-layer U-Net."""
    top = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    down = {
        (0, "r"): "input_blocks.1.0",
        (0, "a"): "input_blocks.1.1",
        (0, "d"): "input_blocks.2.0.op",
        (1, "r"): "input_blocks.3.0",
        (1, "a"): "input_blocks.3.1",
    }
    layer = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    stem, kind = key.rsplit(".", 1)
    if stem in top:
        return f"{UNET_PREFIX}{top[stem]}.{kind}"
    parts = stem.split(".")
    if parts[0] == "mid_block":
        place = f"middle_block.{2 * int(parts[2]) if parts[1] == 'resnets' else 1}"
        rest = parts[3:]
    else:
        block, what, number, rest = int(parts[1]), parts[2][0], int(parts[3]), parts[4:]
        if parts[0] == "down_blocks":
            place = down[block, what]
        elif what == "u":
            place = "output_blocks.1.2"
        else:
            place = f"output_blocks.{2 * block + number}.{'0' if what == 'r' else '1'}"
        rest = [] if what == "d" else rest
    if "resnets" in parts:
        rest = [layer[rest[0]]]
    return UNET_PREFIX + ".".join([place, *rest, kind])


def ldm_vae_name(key: str, blocks: int = 3) -> str:
    """The LDM name of a parameter of the tiny VAE."""
    for block in range(blocks):
        key = key.replace(f"down_blocks.{block}.", f"down.{block}.").replace(
            f"up_blocks.{block}.", f"up.{blocks - 1 - block}."
        )
    for ours, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("resnets", "block"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ):
        key = key.replace(ours, theirs)
    return f"first_stage_model.{key}"


def ldm_checkpoint(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """A tiny Stable Diffusion 1.x pipeline as it is shared in one file."""
    text = {key.removeprefix("text_model."): value for key, value in pipe.text_encoder.state_dict().items()}
    return {
        **{ldm_unet_name(key): value.contiguous() for key, value in pipe.unet.state_dict().items()},
        **{ldm_vae_name(key): value.contiguous() for key, value in pipe.vae.state_dict().items()},
        **{f"cond_stage_model.transformer.text_model.{key}": value.contiguous() for key, value in text.items()},
    }


@pytest.fixture
def ldm():
    """Names and checkpoints in the layout of single files."""
    return SimpleNamespace(unet=ldm_unet_name, checkpoint=ldm_checkpoint)
