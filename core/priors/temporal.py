"""Temporal blocks for a 2-D U-Net (Blattmann et al. 2023, "Stable Video Diffusion"): every spatial block is followed by
a twin that mixes frames,
    out = a spatial + (1 - a) temporal,  a = sigmoid(mix_factor),
a residual block by convolutions over frames (3 x 1 x 1), a transformer block by attention over the frames of each pixel
that is told the frame's number. Rows are frames, those of one object contiguous; (B F, C, h, w) becomes (B, C, F, h, w)
or (B h w, F, C). The twins are diffusers' own blocks; a transformer's works at a share of the width, between a
projection in and one out. What a twin adds is zero at first. Nothing of the 2-D network is changed, its weights are
shared: asked for still pictures, the answer is the 2-D network's bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import AlphaBlender, ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn

from ...geometry.cameras import orbit_pose, to_mvdream
from ...utils.errors import InputError
from .multiview import CameraEmbedding, JointAttention
from .planes import AttentionAdapter

GROUPS = 32  # of the normalisation in diffusers' temporal convolutions
CODE = 32  # numbers of a sine code


@dataclass
class Clip:
    """What the rows of the present call are; shared by all twins of a network."""

    frames: int = 1
    still: bool = True  # every row is a picture for itself


@dataclass(frozen=True)
class TemporalConfig:
    """Sizes of what is added to the 2-D network."""

    share: float = 0.375  # width of temporal attention beside the spatial one's
    rank: int = 8  # of the low-rank maps on spatial attention; 0: it stays as it is
    mix: float = 0.5  # mix_factor at the start, of which the sigmoid is the spatial share
    joint: bool = False  # spatial self-attention reads the pixels of all frames, as MVDream's does
    cameras: bool = False  # frames are told their pose as well, as MVDream's views are

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.rank < 0:
            raise InputError(f"temporal: share={self.share} in (0, 1] and rank={self.rank} >= 0 needed")


class ClipAttention(JointAttention):
    """Self-attention over the pixels of all frames of the present clip (Shi et al. 2023, MVDream)."""

    def __init__(self, clip: Clip) -> None:
        super().__init__(joint=True)
        self.clip = clip

    def __call__(self, attn: Attention, hidden_states: Tensor, *told: Any, **named: Any) -> Tensor:
        """See JointAttention; a picture for itself is a clip of one frame."""
        frames = 1 if self.clip.still else self.clip.frames
        return super().__call__(attn, hidden_states, *told, **{**named, "frames": frames})


class TemporalConvs(nn.Module):
    """The twin of a residual block."""

    def __init__(self, channels: int, embedding: int, mix: float) -> None:
        super().__init__()
        if channels % GROUPS:
            raise InputError(f"temporal convolutions need multiples of {GROUPS} channels, this network has {channels}")
        self.block, self.mix = TemporalResnetBlock(channels, channels, embedding, eps=1e-5), blender(mix)
        _silence(self.block.conv2)

    def forward(self, x: Tensor, embedding: Tensor, frames: int) -> Tensor:
        """Mixed (B F, C, h, w) of the spatial block's answer and the time embedding (B F, E) that it was told."""
        spatial = x.unflatten(0, (-1, frames)).transpose(1, 2)  # (B, C, F, h, w)
        temporal = self.block(spatial, embedding.unflatten(0, (-1, frames)))
        return self.mix(spatial, temporal, moving(x, frames)).transpose(1, 2).flatten(0, 1)


class TemporalAttention(nn.Module):
    """The twin of a transformer block."""

    def __init__(self, channels: int, heads: int, context: int, config: TemporalConfig) -> None:
        super().__init__()
        each = max(int(config.share * channels) // heads, 1)
        width = heads * each
        self.inside, self.outside = nn.Linear(channels, width), nn.Linear(width, channels)
        self.code = Timesteps(CODE, True, 0)
        self.place = TimestepEmbedding(CODE, width, out_dim=width)
        self.block, self.mix = TemporalBasicTransformerBlock(width, width, heads, each, context), blender(config.mix)
        _silence(self.outside)

    def forward(self, x: Tensor, context: Tensor, frames: int) -> Tensor:
        """Mixed (B F, L, C); of the context (B F, N, D) the first frame's last token is told to each pixel."""
        numbers = self.code(torch.arange(frames, device=x.device)).to(x.dtype)
        places = self.place(numbers).repeat(len(x) // frames, 1)[:, None]  # (B F, 1, w)
        told = context[::frames, -1:].repeat_interleave(x.shape[1], 0)  # (B L, 1, D)
        mixed = self.block(self.inside(x) + places, frames, told)
        return self.mix(x, x + self.outside(mixed), moving(x, frames))


class Angles(nn.Module):
    """Numbers (B, n), such as angles in radians, as an embedding (B, width) beside the time's; zero at first."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.code, self.mlp = Timesteps(CODE, True, 0), TimestepEmbedding(CODE * count, width, out_dim=width)
        _silence(self.mlp.linear_2)

    def forward(self, numbers: Tensor) -> Tensor:
        """See the class."""
        weight = self.mlp.linear_1.weight
        return self.mlp(self.code(numbers.flatten()).reshape(len(numbers), -1).to(weight.dtype))


class PictureToken(nn.Module):
    """Latents (B, C, h, w) of a picture as a token (B, 1, D) for cross-attention, in place of CLIP's."""

    def __init__(self, channels: int, width: int, cells: int = 4) -> None:
        super().__init__()
        self.pool, self.first = nn.AdaptiveAvgPool2d(cells), nn.Linear(channels * cells**2, width)
        self.last = nn.Linear(width, width)

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        return self.last(nn.functional.silu(self.first(self.pool(latents).flatten(1))))[:, None]


class TemporalParts(nn.Module):
    """All that learns of an inflated U-Net."""

    def __init__(self, unet: UNet2DConditionModel, channels: int, numbers: int, config: TemporalConfig) -> None:
        """channels: of a picture's latents; numbers: that are told of each frame."""
        super().__init__()
        self.joint = config.joint
        embedding, context = unet.time_embedding.linear_2.out_features, int(unet.config["cross_attention_dim"])
        self.concat = nn.Conv2d(channels, unet.conv_in.out_channels, unet.conv_in.kernel_size, padding=1, bias=False)
        nn.init.zeros_(self.concat.weight)
        self.cameras = CameraEmbedding(embedding) if config.cameras else None
        self.angles, self.token = Angles(numbers, embedding), PictureToken(channels, context)
        self.convs = nn.ModuleList(
            [TemporalConvs(one.out_channels, embedding, config.mix) for one in spatial(unet, ResnetBlock2D)]
        )
        blocks = list(spatial(unet, BasicTransformerBlock))
        self.attentions = nn.ModuleList(
            [TemporalAttention(one.attn1.query_dim, one.attn1.heads, context, config) for one in blocks]
        )
        pairs = [attention for one in blocks for attention in (one.attn1, one.attn2)] if config.rank else []
        self.lowrank = nn.ModuleList([AttentionAdapter(one, config.rank, planes=False) for one in pairs])

    def placed(self, numbers: Tensor) -> Tensor:
        """What is added to the embedding of time: numbers (B F, n), of which the last two are elevation and azimuth in
        radians where poses are told."""
        told = self.angles(numbers)
        if self.cameras is None:
            return told
        pose = to_mvdream(orbit_pose(numbers[:, -1], numbers[:, -2], torch.ones_like(numbers[:, -1])))
        return told + self.cameras(pose.to(told))

    def attach(self, unet: UNet2DConditionModel, clip: Clip) -> None:
        """Hangs everything on a U-Net of the form it was made for, whose input gains the concatenated channels."""
        for convs, block in zip(self.convs, spatial(unet, ResnetBlock2D), strict=True):
            block.register_forward_hook(
                lambda _, args, out, twin=convs: out if clip.still else twin(out, args[1], clip.frames)
            )
        blocks = list(spatial(unet, BasicTransformerBlock))
        for twin, block in zip(self.attentions, blocks, strict=True):

            def mixed(_: Any, args: Any, told: Any, out: Tensor, twin: nn.Module = twin) -> Tensor:
                return out if clip.still else twin(out, told["encoder_hidden_states"], clip.frames)

            block.register_forward_hook(mixed, with_kwargs=True)
        for block in blocks if self.joint else ():
            block.attn1.set_processor(ClipAttention(clip))
        pairs = [attention for one in blocks for attention in (one.attn1, one.attn2)]
        for adapter, attention in zip(self.lowrank, pairs, strict=bool(self.lowrank)):
            assert isinstance(adapter, AttentionAdapter)
            adapter.attach(attention, lambda: not clip.still)
        unet.conv_in = _WithConcat(unet.conv_in, self.concat)


class _WithConcat(nn.Module):
    """The first convolution with further channels behind its own; without them it is as it was."""

    def __init__(self, own: nn.Conv2d, added: nn.Conv2d) -> None:
        super().__init__()
        self.own, self.added = own, (added,)  # not a child: its weights belong to what learns

    def forward(self, x: Tensor) -> Tensor:
        """(B, C', h, w) of (B, C, h, w) or (B, C + concatenated, h, w)."""
        count = self.own.in_channels
        out = self.own(x[:, :count])
        return out if x.shape[1] == count else out + self.added[0](x[:, count:])


class TemporalUNet(nn.Module):
    """A 2-D U-Net with what was added to it; `unet` shares the 2-D network's parameters."""

    def __init__(self, unet: UNet2DConditionModel, parts: TemporalParts) -> None:
        """`unet`: a network of its own to hang hooks on (`planes.sharing`)."""
        super().__init__()
        if unet.class_embedding is not None:
            raise InputError("this U-Net has a class embedding already; only class-free U-Nets can be inflated")
        self.clip = Clip()
        parts.attach(unet, self.clip)
        unet.class_embedding = nn.Identity()  # the slot that adds to the time embedding
        self.unet, self.parts = unet, parts

    @property
    def config(self) -> Any:
        """That of the U-Net."""
        return self.unet.config

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        text: Tensor,
        token: Tensor | None = None,
        concat: Tensor | None = None,
        numbers: Tensor | None = None,
        frames: int = 1,
        still: bool = False,
    ) -> Tensor:
        """Raw prediction (B F, C, h, w).

        Args:
            x: states (B F, C, h, w), frames of one object contiguous.
            time: (B F,), equal within an object.
            text: (B F, L, D).
            token: (B F, 1, D) of the picture, read behind the text.
            concat: (B F, C', h, w), latents of the picture.
            numbers: (B F, n), what is told of each frame.
            frames: F.
            still: rows are pictures for themselves: the 2-D network, whatever was learnt.

        Raises InputError for rows that are no whole groups, and for a clip without its picture.
        """
        if len(x) % frames:
            raise InputError(f"a batch of {len(x)} rows does not hold whole groups of frames={frames}")
        if not still and (token is None or concat is None or numbers is None):
            raise InputError(
                "frames of a clip are told their picture: token, concat and numbers; still=True needs none"
            )
        self.clip.frames, self.clip.still = frames, still
        if still:
            added = x.new_zeros(())
        else:
            assert token is not None and concat is not None and numbers is not None
            added, text = self.parts.placed(numbers).to(x.dtype), torch.cat([text, token.to(text)], 1)
            x = torch.cat([x, concat.to(x)], 1)
        answer: Tensor = self.unet(x, time, text, class_labels=added, return_dict=False)[0]
        return answer


def spatial(unet: nn.Module, kind: type[nn.Module]) -> Iterator[Any]:
    """The spatial blocks of a kind in a U-Net, in its own order."""
    return (module for module in unet.modules() if type(module) is kind)


def blender(mix: float) -> AlphaBlender:
    """The mixture a spatial + (1 - a) temporal, a = sigmoid(mix_factor), as published."""
    return AlphaBlender(alpha=mix, merge_strategy="learned_with_images")


def moving(x: Tensor, frames: int) -> Tensor:
    """The image_only_indicator (B, F) of a clip: none is."""
    return x.new_zeros(len(x) // frames, frames)


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
