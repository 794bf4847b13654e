"""Checkpoints in the layout MVDream publishes: LDM keys `model.diffusion_model.*` plus `camera_embed.{0,2}`.

The 2-D part goes through diffusers' own LDM conversion; the camera embedding, which has no slot there, is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from ...utils.errors import InputError
from .diffusers import StableDiffusionPrior
from .embedded import MultiViewPrior
from .multiview import CameraEmbedding, MultiViewUNet

PREFIX = "model.diffusion_model."
CAMERA = f"{PREFIX}camera_embed."


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
    return MultiViewPrior(base.pipe, views, Path(path).stem)
