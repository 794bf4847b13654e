"""What reads a preimage: fusion by 1 x 1 convolutions, a narrow copy of the decoder, a copy of the VAE's decoder
(Zavadski et al. 2024, PrimeDepth).

At position k: f = C_feat(h_k), a = C_attn(attention), m = C_merge([f, a]); r_{k+1} = R_k([r_k, m]), where R_k is a
residual block, a transformer where the prior has one, and an upsampler where a level ends. GroupNorm, SiLU and a 3 x 3
convolution that begins with zeros end at the latents' size; a copy of the VAE's decoder makes the picture.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from ..core.sampling.preimage import Preimage
from ..core.training.objectives.base import fixed_init
from ..utils.errors import InputError

GROUPS = 8  # most groups of a normalisation


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes of the reader."""

    ratio: float = 0.5
    """its widths to those of the prior's decoder"""
    out_channels: int = 512
    """of what the picture decoder reads"""
    attention: bool = True
    """whether the preimage's attention maps are read"""
    transformers: bool = True
    """where the prior has some"""

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 4 or self.out_channels < 1:
            raise InputError(
                f"ratio={self.ratio:g} must lie above 0 and up to 4, out_channels={self.out_channels} at least 1"
            )


class Stage(nn.Module):
    """C_feat, C_attn, C_merge and R_k of one position."""

    def __init__(self, before: int, features: int, attention: int, width: int, time: int, text: int) -> None:
        """`before` channels of r_k; `time` and `text`: of the embeddings, 0 for no transformer."""
        super().__init__()
        self.features = nn.Conv2d(features, width, 1)
        self.attention = nn.Conv2d(attention, width, 1) if attention else None
        self.merge = nn.Conv2d(width * (2 if attention else 1), width, 1)
        groups = _groups(before + width), _groups(width)
        self.block = ResnetBlock2D(
            in_channels=before + width, out_channels=width, temb_channels=time, groups=groups[0], groups_out=groups[1]
        )
        heads = max(width // 64, 1)
        self.transformer = (
            Transformer2DModel(heads, width // heads, width, norm_num_groups=groups[1], cross_attention_dim=text)
            if text
            else None
        )

    def forward(self, r: Tensor | None, features: Tensor, attention: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """r_{k+1} (B, width, h, w) before any resizing; r (B, before, h, w) or None at the first position."""
        fused = self.features(features)
        if self.attention is not None:
            fused = torch.cat([fused, self.attention(attention)], 1)
        fused = self.merge(fused)
        x = self.block(fused if r is None else torch.cat([r, fused], 1), time)
        return x if self.transformer is None else self.transformer(x, text, return_dict=False)[0]


class Refiner(nn.Module):
    """A preimage to a map (B, out_channels, h, w) at the latents' size."""

    def __init__(self, unet: Any, like: Preimage, config: RefinerConfig, seed: int = 0) -> None:
        """`like`: a preimage of the prior, for the numbers of channels. The same seed gives the same weights."""
        super().__init__()
        self.config = config
        widths = [
            max(int(config.ratio * block.resnets[0].out_channels) // GROUPS, 1) * GROUPS
            for block in unet.up_blocks
            for _ in block.resnets
        ]
        crossed = [bool(getattr(block, "attentions", None)) for block in unet.up_blocks for _ in block.resnets]
        time, text = int(unet.time_embedding.linear_2.out_features), int(unet.config.cross_attention_dim)
        with fixed_init(seed):
            self.stages = nn.ModuleList(
                Stage(
                    widths[k - 1] if k else 0,
                    like.features[k].shape[1],
                    like.attention[k].shape[1] if config.attention else 0,
                    width,
                    time,
                    text if config.transformers and crossed[k] else 0,
                )
                for k, width in enumerate(widths)
            )
            self.norm = nn.GroupNorm(_groups(widths[-1]), widths[-1])
            self.last = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, seen: Preimage, time: Tensor, text: Tensor, size: Sequence[int]) -> Tensor:
        """The map for latents of a size (h, w), with the prior's time embedding (B, T) and text (B, L, D)."""
        r: Tensor | None = None
        for stage, features, attention in zip(self.stages, seen.features, seen.attention, strict=True):
            if r is not None and r.shape[2:] != features.shape[2:]:
                r = F.interpolate(r, features.shape[2:], mode="nearest")
            r = stage(r, features, attention, time, text)
        assert r is not None
        r = r if r.shape[2:] == tuple(size) else F.interpolate(r, tuple(size), mode="nearest")
        out: Tensor = self.last(F.silu(self.norm(r)))
        return out


class PictureBranch(nn.Module):
    """A copy of a VAE's decoder that reads another map: (B, out_channels, h, w) to a picture (B, 3, H, W)."""

    def __init__(self, vae: Any, channels: int, seed: int = 0) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(vae.decoder)
        first = self.decoder.conv_in
        with fixed_init(seed):
            self.decoder.conv_in = nn.Conv2d(channels, first.out_channels, 3, padding=1).to(first.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures, about [-1, 1]."""
        out: Tensor = self.decoder(x)
        return out


def _groups(channels: int) -> int:
    """The largest number of groups up to 8 that divides the channels."""
    return next(n for n in range(GROUPS, 0, -1) if channels % n == 0)
