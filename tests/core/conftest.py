"""Tiny random-weight models of the real classes, built once and saved as diffusers folders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from unproject.scripts.random_backbones import (
    seeded,
    tiny_flux,
    tiny_sd,
    tiny_sd3,
    tiny_sdxl,
    tiny_unet,
    write_folder,
)

UNET_PREFIX = "model.diffusion_model."


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny pipelines: sd, sd-v (v-prediction), toybox (with a vocabulary), sdxl, sd3, flux."""
    root = tmp_path_factory.mktemp("tiny")
    builders = {
        "sd": tiny_sd,
        "sd-v": lambda: tiny_sd("v_prediction"),
        "toybox": tiny_sd,
        "sdxl": tiny_sdxl,
        "sd3": tiny_sd3,
        "flux": tiny_flux,
    }
    return {name: write_folder(build(), root / name, name == "toybox") for name, build in builders.items()}


@pytest.fixture
def make_unet():
    """Builds tiny U-Nets with seeded weights."""
    return lambda seed=0, **options: seeded(lambda: tiny_unet(**options), seed)


def ldm_unet_name(key: str) -> str:
    """The LDM name of a parameter of the tiny two-level, one-layer U-Net."""
    top = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
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
