"""Everything a frozen U-Net computes while it looks at an almost clean picture once: its preimage (PrimeDepth, Zavadski
et al. 2024).

At the decoder's position k (one for each residual block, coarse to fine): the block's input [h, skip], and the
attention of the module before it beside that of the encoder layer which supplies the skip. Self-attention (B, heads,
HW, HW) keeps its queries as places and 8 x 8 coarse cells of its keys as channels; cross-attention (B, heads, HW, L)
its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import InputError
from ..priors.base import Prior
from ..priors.rows import Condition
from .denoiser import Denoiser
from .features import noise_map
from .levels import NoiseSchedule

CELLS = 8  # of the keys' coarse grid, a side
INDEX = 1  # train index that the published head looks at


@dataclass(frozen=True)
class Preimage:
    """Of B pictures, at each position of the decoder, coarse to fine."""

    features: tuple[Tensor, ...]  # (B, C_k, h_k, w_k), the input of the residual block
    attention: tuple[Tensor, ...]  # (B, A_k, h_k, w_k); A_k may be 0


@dataclass(frozen=True)
class Position:
    """A position of the decoder: its residual block, and the transformers whose attention belongs to it."""

    block: nn.Module
    transformers: tuple[nn.Module, ...]  # of the module before it, and of the layer that supplies the skip


def decoder_positions(unet: Any) -> list[Position]:
    """The positions, coarse to fine. Raises InputError for a network that is no U-Net of diffusers."""
    if getattr(unet, "up_blocks", None) is None or getattr(unet, "down_blocks", None) is None:
        raise InputError(f"a preimage needs a U-Net with down and up blocks, not a {type(unet).__name__}")
    skips: list[nn.Module | None] = [None]  # conv_in
    for block in unet.down_blocks:
        skips += list(block.attentions) if _attentive(block) else [None] * len(block.resnets)
        skips += [None] * len(block.downsamplers or ())
    before: nn.Module | None = unet.mid_block.attentions[0] if _attentive(unet.mid_block) else None
    positions = []
    for block in unet.up_blocks:
        for number, resnet in enumerate(block.resnets):
            known = (part for part in (before, skips.pop()) if part is not None)
            positions.append(Position(resnet, tuple(known)))
            before = block.attentions[number] if _attentive(block) else None
    return positions


def _attentive(block: Any) -> bool:
    return bool(getattr(block, "attentions", None))


@torch.no_grad()
def preimage(
    prior: Prior,
    latents: Tensor,
    condition: Condition | None = None,
    index: float = INDEX,
    attention: bool = True,
    noise: Tensor | None = None,
) -> Preimage:
    """The preimage of latents (B, C, h, w), float32, from one network call; the network is left as it was.

    Args:
        prior: one with a U-Net of diffusers.
        latents: scaled.
        condition: what the pictures show, one row for all or one each; None: the empty prompt.
        index: train index of the noise level.
        attention: False leaves the maps out.
        noise: (1 or B, C, h, w); None: the shared map of `features.noise_map`.
    """
    positions = decoder_positions(prior.network)
    level = NoiseSchedule.from_config(prior.scheduler_config).at_index(index)
    noise = noise_map(prior, latents.shape[2:], 0) if noise is None else noise
    alpha, sigma = level.coefficients(latents)
    state = alpha * latents + sigma * noise.to(latents)
    inputs: dict[int, Tensor] = {}
    maps: dict[nn.Module, list[Tensor]] = {}
    with ExitStack() as stack:
        for number, position in enumerate(positions):
            hook = position.block.register_forward_pre_hook(_keeper(inputs, number))
            stack.callback(hook.remove)
        if attention:
            wanted = dict.fromkeys(part for position in positions for part in position.transformers)
            stack.enter_context(_attending(prior.network, list(wanted), maps, latents.shape[2:]))
        ask = Denoiser(prior, prior.encode_text([""]) if condition is None else condition)
        ask.ask(state, level, ("cond",))
    features = tuple(inputs[number].float() for number in range(len(positions)))
    told = [
        _beside(one, [m for part in p.transformers for m in maps.get(part, ())]) for one, p in zip(features, positions)
    ]
    return Preimage(features, tuple(told))


def _keeper(inputs: dict[int, Tensor], number: int) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[number] = args[0]

    return keep


def _beside(features: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, A, h', w') joined at the size of features (B, C, h, w)."""
    size = features.shape[2:]
    sized = [one if one.shape[2:] == size else F.interpolate(one, size, mode="bilinear") for one in maps]
    return torch.cat(sized, 1) if sized else features.new_zeros((len(features), 0, *size))


@contextmanager
def _attending(
    network: Any, transformers: Sequence[nn.Module], maps: dict[nn.Module, list[Tensor]], size: Sequence[int]
) -> Iterator[None]:
    """Inside, the last block of each transformer leaves its reduced maps; the processors of before come back."""
    before = dict(network.attn_processors)
    names = {module: name for name, module in network.named_modules()}
    keepers = dict(before)
    for one in transformers:
        last: Any = one.transformer_blocks[-1]  # type: ignore[index]
        for part, reduce in ((last.attn1, self_maps), (last.attn2, cross_maps)):
            key = f"{names[part]}.processor"
            keepers[key] = _MapKeeper(before[key], maps.setdefault(one, []), reduce, size)
    network.set_attn_processor(keepers)
    try:
        yield
    finally:
        network.set_attn_processor(before)


class _MapKeeper:
    """An attention processor that answers as another one does and keeps the reduced probabilities."""

    def __init__(self, inner: Any, kept: list[Tensor], reduce: Callable[..., Tensor], size: Sequence[int]) -> None:
        self.inner, self.kept, self.reduce, self.size = inner, kept, reduce, size

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = attn.head_to_batch_dim(attn.to_q(hidden_states)), attn.head_to_batch_dim(attn.to_k(seen))
        probabilities = attn.get_attention_scores(query, key, attention_mask).float()
        by_head = probabilities.unflatten(0, (len(hidden_states), -1))  # (B, heads, HW, keys)
        self.kept.append(self.reduce(by_head, grid_of(hidden_states.shape[1], self.size)))
        out: Tensor = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **more)
        return out


def grid_of(tokens: int, size: Sequence[int]) -> tuple[int, int]:
    """(H, W) of so many tokens of latents of a size (h, w), halved (and rounded up) some times."""
    height, width = size
    while height * width > tokens:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != tokens:
        raise InputError(f"{tokens} tokens are no halved grid of latents {tuple(size)}; use sides that are powers of 2")
    return height, width


def self_maps(probabilities: Tensor, grid: tuple[int, int]) -> Tensor:
    """Self-attention (B, heads, HW, HW) as (B, heads 64, H, W): the query's place, and 8 x 8 coarse cells of the keys.

    As published: keys are resized to sides that are larger by 8 - (side mod 8), so also by 8 where that is a multiple
    of 8, pooled with floor(side / 8), resized to 8 x 8, and divided by the largest value of the picture and head.
    """
    batch, heads, queries, _ = probabilities.shape
    height, width = grid
    keys = probabilities.reshape(batch * heads, queries, height, width)
    keys = F.interpolate(keys, tuple(side + CELLS - side % CELLS for side in grid), mode="bilinear")
    keys = F.avg_pool2d(keys, tuple(max(side // CELLS, 1) for side in grid))
    keys = F.interpolate(keys, (CELLS, CELLS), mode="bilinear").reshape(batch, heads, queries, CELLS * CELLS)
    keys = keys / keys.amax((2, 3), keepdim=True)
    return keys.transpose(2, 3).reshape(batch, heads * CELLS * CELLS, height, width)


def cross_maps(probabilities: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cross-attention (B, heads, HW, L) as (B, heads L, H, W)."""
    batch, heads, _, tokens = probabilities.shape
    return probabilities.transpose(2, 3).reshape(batch, heads * tokens, *grid)
