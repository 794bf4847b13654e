"""The prior that saved weights name and stand on."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL

from ..core.priors import StableDiffusionPrior, load_prior
from ..core.priors.build import quiet, told
from ..core.priors.diffusers import DiffusersPrior
from ..utils.errors import InputError

CODEC = "vae"
P = TypeVar("P", bound=DiffusersPrior)


def named_prior(
    folder: Path, base: str, kinds: tuple[type[P], ...], device: torch.device | str, dtype: torch.dtype = torch.float32
) -> P:
    """The prior `base` of what lies in a folder: the folder beside it, or found by name.

    What learnt on another codec has that one in its folder, as vae/; it takes the place of the prior's.

    Raises InputError for a prior of other kinds.
    """
    beside = folder.resolve().parent / base
    codec = own_codec(folder, device, dtype)
    try:
        prior = load_prior(beside if beside.is_dir() else base, device, dtype, **codec)
    except InputError as error:
        raise InputError(f"{folder} stands on the prior {base!r}, which cannot be loaded: {error}") from error
    if not isinstance(prior, kinds):
        raise InputError(f"the base {base!r} of {folder} is not a Stable Diffusion prior")
    return prior


def own_codec(folder: Path, device: torch.device | str, dtype: torch.dtype) -> dict[str, AutoencoderKL]:
    """{"vae": the codec that lies in a folder}; empty without one."""
    if not (folder / CODEC).is_dir():
        return {}
    with told(f"the codec in {folder}", device), quiet():
        return {CODEC: AutoencoderKL.from_pretrained(folder / CODEC, use_safetensors=True, torch_dtype=dtype)}


def base_prior(
    folder: Path, base: str, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> StableDiffusionPrior:
    """`named_prior` of the kind that most heads stand on."""
    return named_prior(folder, base, (StableDiffusionPrior,), device, dtype)
