"""Weights of a codec: beginning with another one's, latents of mean 0 and deviation 1, the diffusers folder."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ....utils.errors import InputError
from ..export import folder_path
from .vae import Pictures, posterior_means

CHANNEL_AXES: dict[str, tuple[int, ...]] = {
    "encoder.conv_out.weight": (0,),
    "encoder.conv_out.bias": (0,),
    "quant_conv.weight": (0, 1),
    "quant_conv.bias": (0,),
    "post_quant_conv.weight": (0, 1),
    "post_quant_conv.bias": (0,),
    "decoder.conv_in.weight": (1,),
}  # which axes of a codec's weights number latent channels


@torch.no_grad()
def begin_with_codec(vae: AutoencoderKL, given: AutoencoderKL, what: str) -> None:
    """Makes `vae` compute what `given` does; it may have more latent channels, which nothing reads at first, and be
    some times as wide (`widened`).

    The means of the channels they share are those of `given`; the further ones keep their initial encoder weights.
    Raises InputError when anything else differs in shape.
    """
    mine, theirs = vae.config.latent_channels, given.config.latent_channels
    state, source = vae.state_dict(), given.state_dict()
    if mine < theirs or state.keys() != source.keys():
        raise InputError(f"start_from={what} holds a codec of {theirs} latent channels and other layers than this one")
    rng = torch.Generator().manual_seed(0)
    for name, value in source.items():
        free = [axis for axis in range(min(value.ndim, 2)) if axis not in CHANNEL_AXES.get(name, ())]
        value = widened(value, {axis: state[name].shape[axis] // value.shape[axis] for axis in free}, rng)
        target, axes = state[name], CHANNEL_AXES.get(name, ())
        grown = [size * mine // theirs if axis in axes else size for axis, size in enumerate(value.shape)]
        if list(target.shape) != grown:
            raise InputError(f"start_from={what}: {name} is {tuple(value.shape)}, which does not fit {grown}")
        outputs, inputs = (_shared(target, axis, mine, theirs if axis in axes else mine) for axis in (0, 1))
        target.masked_fill_(outputs & ~inputs, 0.0)
        target[outputs & inputs] = value.flatten()


def widened(weight: Tensor, times: dict[int, int], rng: torch.Generator) -> Tensor:
    """A layer of which every output channel (axis 0) stands `times[0]` times in a row and every input channel (axis 1)
    `times[1]` times, each copy with a part of its weight, the parts summing to 1: the network computes what it did
    (Net2WiderNet, Chen et al. 2016, section 2.2), group norms included, since copies stay in their channel's group. The
    parts are drawn, so that the copies learn different things."""
    weight = weight.repeat_interleave(max(1, times.get(0, 1)), dim=0)
    count = times.get(1, 1)
    if count < 2:
        return weight
    parts = 0.5 + torch.rand((*weight.shape[:2], count, *weight.shape[2:]), generator=rng)
    return (weight.unsqueeze(2) * parts / parts.sum(2, keepdim=True)).flatten(1, 2)


def _shared(target: Tensor, axis: int, mine: int, theirs: int) -> Tensor:
    """Which entries of `target` have a number along `axis` that belongs to one of the first `theirs` channels; an axis
    of twice the channels holds means, then log-variances."""
    if axis >= target.ndim:
        return torch.ones_like(target, dtype=torch.bool)
    numbers = torch.arange(target.shape[axis]) % mine < theirs
    return numbers.view([-1 if a == axis else 1 for a in range(target.ndim)]).expand(target.shape)


@torch.no_grad()
def reset_posterior(vae: AutoencoderKL, logvar: float) -> None:
    """Makes the posterior's log-variance `logvar` for any picture; its mean stays."""
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = logvar


@torch.no_grad()
def standardised(vae: AutoencoderKL, means: Tensor, deviations: Tensor) -> AutoencoderKL:
    """A copy whose latents are (z - means) / deviations, channel by channel (C,), and which decodes them alike.

    The change is part of its two 1x1 convolutions, so its scaling_factor is 1 and its shift_factor 0 and whoever reads
    neither is right too.
    """
    vae, means, deviations = copy.deepcopy(vae), means.to(vae.device), deviations.to(vae.device)
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(means)
    before.bias[:channels] -= means
    before.weight[:channels] /= deviations[:, None, None, None]
    before.bias[:channels] /= deviations
    before.bias[channels:] -= 2 * deviations.log()
    after.bias += after.weight[:, :, 0, 0] @ means
    after.weight *= deviations[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    return vae


def save_vae(vae: AutoencoderKL, pictures: Pictures, out: str | Path, samples: int = 2048, seed: int = 0) -> Path:
    """Writes a diffusers folder (fp16 safetensors) of the codec, standardised on the latents of `pictures`."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(pictures), size=min(samples, len(pictures)), replace=False)
    parts = np.array_split(chosen, -(-len(chosen) // 64))
    latents = torch.cat([posterior_means(vae, pictures, part) for part in parts]).double()
    means, deviations = latents.mean(dim=(0, 2, 3)).float(), latents.std(dim=(0, 2, 3)).float()
    copied = standardised(vae.to("cpu"), means.cpu(), deviations.cpu())
    with folder_path(out) as temporary:
        copied.to(torch.float16, memory_format=torch.contiguous_format).eval().save_pretrained(temporary)
    return Path(out)
