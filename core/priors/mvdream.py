"""Checkpoints in the layout MVDream publishes: LDM keys `model.diffusion_model.*` plus `camera_embed.{0,2}`.

The 2-D part goes through diffusers' own LDM conversion; the camera embedding, which has no slot there, is ours. The
file that is published is pickled: it is read as tensors only, once, and kept as safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...utils.errors import InputError
from ...utils.files import atomic_path, cache_root
from .base import Recommended
from .diffusers import StableDiffusionPrior
from .embedded import MultiViewPrior
from .multiview import CameraEmbedding, MultiViewUNet

PREFIX = "model.diffusion_model."
CAMERA = f"{PREFIX}camera_embed."
PICKLED = (".pt", ".pth", ".ckpt")
SIDE_PX = 256  # of the pictures that it learnt, whatever its base draws
RECOMMENDED = Recommended(guidance=10.0, steps=50)


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
    about = path.resolve().stat()
    key = sha256(f"{path.resolve()} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_root() / "mvdream" / f"{path.stem}-{key}.safetensors"
    if target.is_file():
        return target
    other = f"{path} is not MVDream's checkpoint; other pickled weights are never loaded, convert them to safetensors"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many kinds for what is no checkpoint or holds more than tensors
        raise InputError(other) from error
    checkpoint = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    network = {k: v for k, v in checkpoint.items() if isinstance(k, str) and k.startswith(PREFIX)}
    if not any(key.startswith(CAMERA) for key in network):
        raise InputError(other)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        save_file({key: value.contiguous() for key, value in network.items()}, temporary)
    return target
