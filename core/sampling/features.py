"""What a frozen backbone computes while it looks at a picture: features of its levels at one noise level.

The picture's latents are noised to x_t = alpha_t z0 + sigma_t eps and asked once; the features are what stands in the
decoder just before the last layer of a level, before it meets its skip connection (Zhang et al. 2023, "A Tale of Two
Features"; Tang et al. 2023, "Emergent Correspondence from Image Diffusion", take whole levels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.seeds import generator
from ..priors.base import Prior
from ..priors.taps import Taps
from .denoiser import Denoiser
from .levels import NoiseSchedule

LEVELS = 3  # of a decoder that are looked at, from its coarsest


@dataclass(frozen=True)
class Look:
    """How a prior is asked for features."""

    index: float = 100.0
    """train index of the noise level, 0 = least noise, -1 = none"""
    layers: tuple[str, ...] = ()
    """modules of the network, coarse to fine; empty: `decoder_layers`"""
    prompt: str = ""
    """what the picture shows, where it is known"""
    noise_seed: int = 42
    """of the one noise map that all pictures share"""

    def __post_init__(self) -> None:
        if self.index < -1:
            raise InputError(f"index={self.index:g} must be a train index of the prior, or -1 for no noise")


def decoder_layers(network: nn.Module | None) -> tuple[str, ...]:
    """Up to three layers of a network, coarse to fine: of a U-Net the one before the last of each decoder level, of a
    transformer blocks at a third, a half and two thirds of its depth.

    Raises InputError for a network that is neither.
    """
    levels = getattr(network, "up_blocks", None)
    if levels is not None:
        return tuple(_before_last(f"up_blocks.{i}", level) for i, level in enumerate(levels[:LEVELS]))
    blocks = getattr(network, "transformer_blocks", None)
    if blocks is None:
        raise InputError(f"{type(network).__name__} has neither decoder levels nor blocks to take features from")
    depths = (len(blocks) * share // 6 for share in (2, 3, 4))
    return tuple(dict.fromkeys(f"transformer_blocks.{min(depth, len(blocks) - 1)}" for depth in depths))


def _before_last(name: str, level: nn.Module) -> str:
    layers = "attentions" if len(getattr(level, "attentions", None) or ()) else "resnets"
    return f"{name}.{layers}.{max(len(getattr(level, layers)) - 2, 0)}"


def noise_map(prior: Prior, size: Sequence[int], seed: int) -> Tensor:
    """One map (1, C, h, w) of noise: drawn at the prior's own size, bicubic at any other, as published."""
    shape = prior.latent_shape
    noise = torch.randn(1, *shape, generator=generator(seed))
    if tuple(size) != tuple(shape[1:]):
        noise = F.interpolate(noise, tuple(size), mode="bicubic")
    return noise.to(prior.device)


@torch.no_grad()
def picture_features(prior: Prior, latents: Tensor, look: Look = Look(), noise: Tensor | None = None) -> list[Tensor]:
    """Features (B, C_i, h_i, w_i) float32 of latents (B, C, h, w), one for each layer of `look`.

    Args:
        prior: a U-Net or a transformer; it is asked once for each row and left as it was.
        latents: scaled, of pictures; sides as the network takes them.
        look: level, layers, prompt.
        noise: (1 or B, C, h, w) instead of the shared map.
    """
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    names = look.layers or decoder_layers(prior.network)
    assert prior.network is not None
    level = schedule.at_index(look.index)
    noise = noise_map(prior, latents.shape[2:], look.noise_seed) if noise is None else noise
    alpha, sigma = level.coefficients(latents)
    state = alpha * latents + sigma * noise.to(latents)
    ask = Denoiser(prior, prior.encode_text([look.prompt]))
    with Taps(prior.network, names, which=-1) as taps:
        ask.ask(state, level, ("cond",))
        return [_as_map(taps[name].float(), latents, prior.latent_multiple) for name in names]


def _as_map(features: Tensor, latents: Tensor, patch: int) -> Tensor:
    """Features as (B, C, h, w): tokens (B, N, C) of a transformer are laid out as the picture is."""
    if features.ndim == 4:
        return features
    height, width = latents.shape[2] // patch, latents.shape[3] // patch
    return features.transpose(1, 2).reshape(len(features), -1, height, width)
