"""Weights of a U-Net: beginning with those of a narrower one."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ....utils.errors import InputError
from ...priors.multiview import CameraEmbedding
from .vae_weights import widened

OUTER = ("conv_in.weight", "conv_out.weight", "conv_out.bias")  # where a U-Net meets the latents


@dataclass(frozen=True)
class Growth:
    """How many times as wide the levels of a U-Net become."""

    widths: tuple[int, ...]  # of the narrower one
    times: tuple[int, ...]
    layers: int  # residual blocks of a level on the way down

    def inputs(self, name: str) -> list[int]:
        """How often each channel that enters the layer `name` stands in the wider network; [] where none is wider.

        Layers of time, text and latents alone are not asked.
        """
        where = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
        if where is None:
            return self._same(len(self.widths) - 1 if name.startswith("mid_block") else 0)
        way, block, kind, place, layer = where[1], int(where[2]), where[3], int(where[4]), where[5]
        level = block if way == "down" else len(self.widths) - 1 - block
        if kind != "resnets" or not layer.startswith(("norm1", "conv1", "conv_shortcut")):
            return self._same(level)
        if way == "down":
            return self._same(max(level - 1, 0) if place == 0 else level)
        before = min(level + 1, len(self.widths) - 1) if place == 0 else level
        beside = max(level - 1, 0) if place == self.layers else level
        return self._same(before) + self._same(beside)

    def outputs(self, name: str) -> int:
        """How often each channel that leaves the layer `name` stands in the wider network."""
        where = re.match(r"(down|up)_blocks\.(\d+)\.", name)
        if where is None:
            return self.times[-1 if name.startswith("mid_block") else 0]
        block = int(where[2])
        return self.times[block if where[1] == "down" else len(self.widths) - 1 - block]

    def _same(self, level: int) -> list[int]:
        return [self.times[level]] * self.widths[level]


@torch.no_grad()
def begin_with_unet(unet: UNet2DConditionModel, given: UNet2DConditionModel, what: str) -> None:
    """Makes `unet` compute what `given` does, which may be narrower by whole factors, level by level (Net2WiderNet,
    Chen et al. 2016). Two things change where levels grow by different factors: group norms over what is joined on the
    way up, whose groups hold other channels then, and the map beside the first block of a level that has become as wide
    as the one above it, which has none. Layers that meet latents of another number of channels stay fresh.

    Raises InputError when anything else differs.
    """
    old, new = given.config["block_out_channels"], unet.config["block_out_channels"]
    state, source = unet.state_dict(), given.state_dict()
    odd = {key for key in state.keys() ^ source.keys() if key in state or "conv_shortcut" not in key}
    if len(old) != len(new) or any(b % a for a, b in zip(old, new, strict=True)) or odd:
        raise InputError(
            f"start_from={what} holds a network of another shape: its widths are {tuple(old)}, which {tuple(new)} must "
            "be multiples of, in the same blocks"
        )
    growth = Growth(tuple(old), tuple(b // a for a, b in zip(old, new, strict=True)), given.config["layers_per_block"])
    rng = torch.Generator().manual_seed(0)
    for name, value in ((name, source[name]) for name in state):
        grown = _grown(name, value, growth, rng)
        if name.endswith(OUTER) and grown.shape != state[name].shape:
            continue
        if grown.shape != state[name].shape:
            raise InputError(
                f"start_from={what} holds a network of another shape: {name} is {tuple(value.shape)}, which does not "
                f"fit {tuple(state[name].shape)}"
            )
        state[name].copy_(grown)


def _grown(name: str, value: Tensor, growth: Growth, rng: torch.Generator) -> Tensor:
    """A parameter of the narrower network as it stands in the wider one."""
    if name.startswith("time_embedding"):
        return _of_time(name, value, growth, rng)
    outside = 1 if name.startswith("conv_out") else growth.outputs(name)
    if value.ndim == 1 or name.startswith("conv_in") or ".attn2.to_k" in name or ".attn2.to_v" in name:
        if ".norm1." in name and "resnets" in name:
            return value.repeat_interleave(torch.tensor(growth.inputs(name)))
        return value.repeat_interleave(outside, dim=0)
    if "time_emb_proj" in name:
        return widened(value, {0: outside, 1: growth.times[0]}, rng)
    inside = growth.inputs(name)
    if value.shape[1] != len(inside):  # the hidden layer of a feed-forward network
        inside = [inside[0]] * value.shape[1]
    parts, start = [], 0
    for end in [i for i in range(1, len(inside) + 1) if i == len(inside) or inside[i] != inside[i - 1]]:
        parts.append(widened(value[:, start:end], {0: outside, 1: inside[start]}, rng))
        start = end
    grown = torch.cat(parts, dim=1)
    return grown * outside**-0.5 if name.endswith("to_q.weight") else grown  # heads are wider: so is their scale


def _of_time(name: str, value: Tensor, growth: Growth, rng: torch.Generator) -> Tensor:
    """Layers after the embedding of time, whose frequencies the wider network has all and others between them."""
    times = growth.times[0]
    if not name.endswith("linear_1.weight"):
        return widened(value, {0: times, 1: times} if value.ndim > 1 else {0: times}, rng)
    grown = value.new_zeros(len(value), value.shape[1] * times)
    grown[:, ::times] = value
    return grown.repeat_interleave(times, dim=0)


@torch.no_grad()
def begin_with_cameras(embedding: CameraEmbedding, given: CameraEmbedding, what: str) -> None:
    """Makes a camera embedding say what `given` does to a network some times as wide.

    Raises InputError when its width is no multiple.
    """
    mine, theirs = embedding.state_dict(), given.state_dict()
    times = len(mine["2.bias"]) // len(theirs["2.bias"])
    rng = torch.Generator().manual_seed(0)
    for name, value in theirs.items():
        grown = widened(value, {0: times, 1: times if name == "2.weight" else 1} if value.ndim > 1 else {0: times}, rng)
        if grown.shape != mine[name].shape:
            shapes = f"{tuple(value.shape)}, which does not fit {tuple(mine[name].shape)}"
            raise InputError(f"cameras={what} are those of a network of another shape: {name} is {shapes}")
        mine[name].copy_(grown)
