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
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from ..core.sampling.preimage import Preimage, decoder_positions
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
    layout: Literal["narrow", "published"] = "narrow"
    """narrow: everything that is fused is as wide as the stage. published: features and attention maps keep `ratio` of
    their channels, upsampling has a convolution, normalisations have up to 32 groups, heads at most 64 channels"""

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 4 or self.out_channels < 1:
            raise InputError(
                f"ratio={self.ratio:g} must lie above 0 and up to 4, out_channels={self.out_channels} at least 1"
            )


class Widths(NamedTuple):
    """Channels within a stage."""

    before: int  # of r_k, 0 at the first position
    features: int  # in
    attention: int  # in, 0 where there is none
    fused: int  # out of C_feat
    noticed: int  # out of C_attn
    merged: int  # out of C_merge
    width: int  # of r_{k+1}


class Stage(nn.Module):
    """C_feat, C_attn, C_merge and R_k of one position."""

    def __init__(self, sizes: Widths, time: int, text: int, wide: bool = False, up: bool = False) -> None:
        """`time` and `text`: channels of the embeddings, 0 for no transformer. `wide`: as published (RefinerConfig);
        `up`: r_k is resized by an upsampler's convolution before this position."""
        super().__init__()
        width, most = sizes.width, 32 if wide else GROUPS
        self.up = nn.Conv2d(sizes.before, sizes.before, 3, padding=1) if up else None
        self.features = nn.Conv2d(sizes.features, sizes.fused, 1)
        self.attention = nn.Conv2d(sizes.attention, sizes.noticed, 1) if sizes.attention else None
        self.merge = nn.Conv2d(sizes.fused + sizes.noticed * bool(sizes.attention), sizes.merged, 1)
        read = sizes.before + sizes.merged
        self.block = ResnetBlock2D(
            in_channels=read,
            out_channels=width,
            temb_channels=time,
            groups=_divisor(read, most),
            groups_out=_divisor(width, most),
            eps=1e-5 if wide else 1e-6,
        )
        heads = width // _divisor(width, 64) if wide else max(width // 64, 1)
        self.transformer = (
            Transformer2DModel(
                heads,
                width // heads,
                width,
                norm_num_groups=_divisor(width, most),
                cross_attention_dim=text,
                use_linear_projection=wide,
            )
            if text
            else None
        )

    def forward(self, r: Tensor | None, features: Tensor, attention: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """r_{k+1} (B, width, h, w) before any resizing; r (B, before, h', w') or None at the first position."""
        if r is not None and r.shape[2:] != features.shape[2:]:
            r = F.interpolate(r, features.shape[2:], mode="nearest")
            r = r if self.up is None else self.up(r)
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
        self.config, wide = config, config.layout == "published"
        blocks = [(block, k) for block in unet.up_blocks for k in range(len(block.resnets))]
        crossed = [bool(getattr(block, "attentions", None)) for block, _ in blocks]
        resized = [k == 0 and number > 0 for number, (_, k) in enumerate(blocks)]
        time, text = int(unet.time_embedding.linear_2.out_features), int(unet.config.cross_attention_dim)
        sizes = published_widths(unet, like, config.ratio) if wide else _narrow_widths(blocks, like, config)
        with fixed_init(seed):
            self.stages = nn.ModuleList(
                Stage(size, time, text if config.transformers and crossed[k] else 0, wide, wide and resized[k])
                for k, size in enumerate(sizes)
            )
            last = sizes[-1].width
            self.norm = nn.GroupNorm(_divisor(last, 32 if wide else GROUPS), last)
            self.last = nn.Conv2d(last, config.out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, seen: Preimage, time: Tensor, text: Tensor, size: Sequence[int]) -> Tensor:
        """The map for latents of a size (h, w), with the prior's time embedding (B, T) and text (B, L, D)."""
        r: Tensor | None = None
        for stage, features, attention in zip(self.stages, seen.features, seen.attention, strict=True):
            r = stage(r, features, attention, time, text)
        assert r is not None
        r = r if r.shape[2:] == tuple(size) else F.interpolate(r, tuple(size), mode="nearest")
        out: Tensor = self.last(F.silu(self.norm(r)))
        return out


def _narrow_widths(blocks: Sequence[tuple[Any, int]], like: Preimage, config: RefinerConfig) -> list[Widths]:
    widths = [max(int(config.ratio * block.resnets[0].out_channels) // GROUPS, 1) * GROUPS for block, _ in blocks]
    attention = [one.shape[1] if config.attention else 0 for one in like.attention]
    return [
        Widths(widths[k - 1] if k else 0, like.features[k].shape[1], attention[k], width, width, width, width)
        for k, width in enumerate(widths)
    ]


def published_widths(unet: Any, like: Preimage, ratio: float) -> list[Widths]:
    """Of PrimeDepth's own refiner: `ratio` of the channels that a position has, of its maps those of the module (of the
    two whose attention it is shown) with more heads."""
    sizes, before = list[Widths](), 0
    widths = [int(ratio * resnet.out_channels) for block in unet.up_blocks for resnet in block.resnets]
    for width, features, attention, position in zip(
        widths, like.features, like.attention, decoder_positions(unet), strict=True
    ):
        heads = [one.transformer_blocks[0].attn1.heads for one in position.transformers]  # type: ignore[index,union-attr]
        noticed = int(attention.shape[1] * max(heads, default=0) / max(sum(heads), 1) * ratio)
        fused = int(ratio * features.shape[1])
        sizes.append(Widths(before, features.shape[1], attention.shape[1], fused, noticed, fused + noticed, width))
        before = width
    return sizes


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


def _divisor(channels: int, most: int) -> int:
    """The largest number up to `most` that divides the channels."""
    return next(n for n in range(min(most, channels), 0, -1) if channels % n == 0)
