"""Layers whose weights lie in memory as packed integers and are unpacked while they are used: less memory, more time.

Scales are those with which a quantised student begins (`quantised.weight_scales`); inputs are not rounded.
"""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .quantised import integers, packed, unpacked, weight_scales
from .quest import OUTER, OUTER_BITS


class PackedLayer(nn.Module):
    """A linear map or convolution with weights of few bits."""

    values: Tensor
    delta: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, bits: int) -> None:
        super().__init__()
        self.bits, self.shape, self.dtype = bits, layer.weight.shape, layer.weight.dtype
        self.conv: tuple[Any, ...] | None = None
        if isinstance(layer, nn.Conv2d):
            self.conv = (layer.stride, layer.padding, layer.dilation, layer.groups)
        weight = layer.weight.detach().float()
        delta, zero = weight_scales(weight, bits)
        self.register_buffer("values", packed(integers(weight, delta, zero, bits), bits).contiguous())
        self.register_buffer("delta", delta)
        self.register_buffer("zero", zero)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The rounded weight, as the layer's was."""
        whole = unpacked(self.values, self.bits, self.shape).to(self.delta.dtype)
        return ((whole - self.zero) * self.delta).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """See the layer."""
        if self.conv is None:
            return F.linear(x, self.weight, self.bias)
        stride, padding, dilation, groups = self.conv
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


def packed_network(network: UNet2DConditionModel, bits: int) -> UNet2DConditionModel:
    """A frozen copy with packed layers; the first and the last keep 8 bits, as of `Quantised`."""
    made = copy.deepcopy(network).requires_grad_(False)
    for name, layer in list(made.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, PackedLayer(layer, OUTER_BITS if name in OUTER else bits))
    return made
