"""Checkpoints in the layout MVDream publishes: LDM keys `model.diffusion_model.*` plus `camera_embed.{0,2}`.

The 2-D part goes through diffusers' own LDM conversion; the camera embedding, which has no slot there, is ours. The
file that is published is pickled: it is read as tensors only, once, and kept as safetensors. Ports to diffusers are
folders whose U-Net has the same tensors without the prefix and whose class is not part of diffusers; none of their
code is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ...utils.errors import InputError
from ...utils.files import read_json
from . import pickled
from .base import Recommended
from .build import class_of, quiet, told
from .diffusers import StableDiffusionPrior
from .embedded import MultiViewPrior
from .multiview import CameraEmbedding, MultiViewUNet

PREFIX = "model.diffusion_model."
CAMERA = f"{PREFIX}camera_embed."
SIDE_PX = 256  # of the pictures that it learnt, whatever its base draws
RECOMMENDED = Recommended(guidance=10.0, steps=50)
PORTS = ("MVDreamPipeline",)  # classes of pipelines outside of diffusers


def convert_mvdream(checkpoint: Mapping[str, Tensor], config: Mapping[str, Any]) -> MultiViewUNet:
    """The inflated U-Net of an LDM-layout state dict; `config` is the diffusers config of its 2-D base."""
    camera = {key.removeprefix(CAMERA): value for key, value in checkpoint.items() if key.startswith(CAMERA)}
    if set(camera) != {"0.weight", "0.bias", "2.weight", "2.bias"}:
        raise InputError(f"the checkpoint lacks {CAMERA}{{0,2}}; it is not a multi-view checkpoint in LDM layout")
    plain = {key: value for key, value in checkpoint.items() if not key.startswith(CAMERA)}
    unet = UNet2DConditionModel.from_config(dict(config))
    embedding = CameraEmbedding(camera["2.weight"].shape[0], camera["0.weight"].shape[1])
    try:
        unet.load_state_dict(convert_ldm_unet_checkpoint(plain, dict(config)))
        embedding.load_state_dict(camera)
    except (RuntimeError, KeyError) as error:
        raise InputError(f"the checkpoint does not fit its base U-Net: {str(error).splitlines()[0]}") from error
    return MultiViewUNet(unet, embedding)


def load_mvdream(
    path: str | Path,
    base: StableDiffusionPrior,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MultiViewPrior:
    """A multi-view prior from a safetensors file; `base` gives VAE, text encoder and schedule (SD 2.1 base)."""
    views = convert_mvdream(load_file(path), base.pipe.unet.config).to(device, dtype)
    prior = MultiViewPrior(base.pipe, views, Path(path).stem)
    prior.recommended = RECOMMENDED
    return prior.learnt_at(min(SIDE_PX, prior.image_size))


def as_safetensors(path: Path) -> Path:
    """The network of a pickled checkpoint as a safetensors file in the cache, made when it is first asked for.

    Only tensors are unpickled. Raises InputError for a file that is no multi-view checkpoint.
    """
    other = f"{path} is not MVDream's checkpoint; other pickled weights are never loaded, convert them to safetensors"

    def network(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = {key: value for key, value in checkpoint.items() if key.startswith(PREFIX)}
        if not any(key.startswith(CAMERA) for key in kept):
            raise InputError(other)
        return kept

    try:
        return pickled.as_safetensors(path, "mvdream", network)
    except InputError as error:
        raise InputError(other) from error


def is_port(index: Any) -> bool:
    """Whether a model_index.json is that of a port to diffusers."""
    return class_of(index) in PORTS


def load_port(
    folder: Path, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MultiViewPrior:
    """The prior of a folder that a port of MVDream wrote. Raises InputError for one that lacks a part."""
    files = sorted((folder / "unet").glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder / 'unet'} holds no safetensors; pickled weights of a port are not loaded")
    with told(f"the multi-view prior in {folder}", device), quiet():
        settings = unet_config(read_json(folder / "unet" / "config.json"))
        weights = {PREFIX + key: value for path in files for key, value in load_file(path).items()}
        views = convert_mvdream(weights, settings)
        parts = {
            "vae": AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype, use_safetensors=True),
            "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype, use_safetensors=True),
            "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler"),
        }
        pipe = StableDiffusionPipeline(
            **parts, unet=views.unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        pipe.to(device, dtype)
        prior = MultiViewPrior(pipe, views.to(device, dtype), name)
    prior.recommended = RECOMMENDED
    return prior


def unet_config(port: Mapping[str, Any]) -> dict[str, Any]:
    """The diffusers config of the 2-D U-Net that a port's MultiViewUNetModel config describes.

    Level i has channel_mult[i] model_channels, attention where 2^i is in attention_resolutions, heads of
    num_head_channels. Raises InputError for settings that it does not have.
    """
    needed = ("model_channels", "channel_mult", "attention_resolutions", "num_head_channels", "num_res_blocks")
    missing = [key for key in (*needed, "context_dim") if not port.get(key)]
    if missing or not isinstance(port["num_res_blocks"], int) or port.get("transformer_depth", 1) != 1:
        raise InputError(
            f"the U-Net of this port is not MVDream's: its config lacks {', '.join(missing) or 'its form'}"
        )
    widths = [factor * port["model_channels"] for factor in port["channel_mult"]]
    attends = [2**level in port["attention_resolutions"] for level in range(len(widths))]
    return {
        "sample_size": port.get("image_size", 32),
        "in_channels": port.get("in_channels", 4),
        "out_channels": port.get("out_channels", 4),
        "block_out_channels": widths,
        "layers_per_block": port["num_res_blocks"],
        "cross_attention_dim": port["context_dim"],
        "attention_head_dim": [width // port["num_head_channels"] for width in widths],
        "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)],
        "use_linear_projection": True,
    }
