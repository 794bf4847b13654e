"""Layers of few bits that compute with integers where torch has a product of 8 bits, for students that are done.

With q_x = round(x / d_x) + z_x and q_w alike, a quantised layer's product of inputs and weights is
    y = d_x d_w sum (q_x - z_x) (q_w - z_w) + b = d_x d_w (sum x' w' + c_x sum w' + c_w sum x' + K c_x c_w) + b
with x' = q_x - 2^(bits - 1) and w' of 8 signed bits and c the rest of the zero points: an integer product (`_int_mm`),
one factor and one shift. Weights below 8 bits lie whole in w' (c_w = 0). A convolution is the product with its windows,
beyond whose edge lies z_x, which is 0. The sums are exact; what is left is the rounding of the last two operations.

Whether this is quicker than float32 depends on the processor and on the sizes of layers: `bench students` measures it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import InputError
from ..priors.diffusers import DiffusersPrior
from .quantised import LEAST, QuantLayer, integers
from .quest import quant_layers

Kernels = Literal["reference", "int8"]
WIDEST = 8  # bits of what is multiplied
CUDA_ROWS, CUDA_MULTIPLE = 17, 8  # fewest rows of a product, and what its other sides have to be multiples of


class IntegerLayer(nn.Module):
    """What a `QuantLayer` computes, with integers; without gradients."""

    weight: Tensor
    weight_rest: Tensor
    input_delta: Tensor
    input_zero: Tensor
    factor: Tensor
    shift: Tensor

    def __init__(self, layer: QuantLayer) -> None:
        """Raises InputError for a layer that has no such form (`suits`)."""
        super().__init__()
        if not suits(layer):
            raise InputError(f"kernels='int8' has no form for {layer.layer}; ask for the layers that suit")
        own, bits = layer.layer, layer.weight_bits
        whole = integers(own.weight, layer.weight_delta, layer.weight_zero, bits).to(torch.int32)
        zero = layer.weight_zero.to(torch.int32)
        taken = zero if bits < WIDEST else torch.full_like(zero, 2 ** (WIDEST - 1))
        shifted = (whole - taken).to(torch.int8)
        if isinstance(own, nn.Conv2d):
            shifted = shifted.permute(0, 2, 3, 1)  # channels last, as windows are
            self.kernel, self.stride = own.kernel_size, own.stride
            self.edges = [int(width) for width in own.padding]  # none that suits has a word there
        self.is_conv, self.input_bits, self._clock = isinstance(own, nn.Conv2d), layer.input_bits, [layer._clock[0]]
        self.register_buffer("weight", shifted.flatten(1).contiguous())  # (N, K)
        self.register_buffer("weight_rest", (taken - zero).flatten())  # (N,) int32
        self.rest = bool((self.weight_rest != 0).any())
        delta, zero_in = layer.input_delta.detach().abs().clamp_min(LEAST), layer.input_zero
        self.register_buffer("input_delta", delta.clone())  # (T,) of times
        self.register_buffer("input_zero", zero_in.clone())
        rest = 2 ** (self.input_bits - 1) - zero_in.double()[:, None]
        sums = (self.weight.sum(1, dtype=torch.int32) + self.weight.shape[1] * self.weight_rest).double()
        factor = delta.double()[:, None] * layer.weight_delta.detach().flatten().double()
        shift = factor * rest * sums + (0.0 if own.bias is None else own.bias.detach().double())
        self.register_buffer("factor", factor.float())  # (T, N)
        self.register_buffer("shift", shift.float())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """See QuantLayer.forward."""
        rows = self._clock[0].rows
        if rows is None:
            raise InputError("a quantised layer was asked outside its network, which tells it the time")
        at = rows.expand(len(x))
        delta, zero = self.input_delta[at], self.input_zero[at]
        half = 2 ** (self.input_bits - 1)
        shape = (-1, *[1] * (x.ndim - 1))
        scaled = (x / delta.reshape(shape).to(x.dtype)).round_().add_(zero.reshape(shape).to(x.dtype))
        whole = scaled.clamp_(0, 2 * half - 1).sub_(half).to(torch.int8)
        if not self.is_conv:
            return self._product(whole.flatten(0, -2), at).to(x.dtype).unflatten(0, x.shape[:-1])
        windows, size = self._windows(whole, zero - half)
        return self._product(windows, at).to(x.dtype).unflatten(0, (len(x), *size)).permute(0, 3, 1, 2)

    def _windows(self, whole: Tensor, nothing: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Windows (B h w, K) of the inputs (B, C, H, W), and (h, w); `nothing` (B,) is what stands for 0."""
        down, across = self.edges
        x = whole.permute(0, 2, 3, 1)
        if across or down:
            batch, height, width, channels = x.shape
            wide = nothing.to(torch.int8).reshape(-1, 1, 1, 1)
            wide = wide.expand(batch, height + 2 * down, width + 2 * across, channels).contiguous()
            wide[:, down : down + height, across : across + width] = x
            x = wide
        x = x.unfold(1, self.kernel[0], self.stride[0]).unfold(2, self.kernel[1], self.stride[1])
        size = (x.shape[1], x.shape[2])
        return x.permute(0, 1, 2, 4, 5, 3).reshape(-1, self.weight.shape[1]), size

    def _product(self, x: Tensor, at: Tensor) -> Tensor:
        """y (M, N) float32 of shifted inputs (M, K), M / B after each other for each of the times `at` (B,)."""
        found = int_mm(x, self.weight).unflatten(0, (len(at), -1))  # (B, M / B, N)
        if self.rest:
            found = found + x.sum(1, dtype=torch.int32).unflatten(0, (len(at), -1))[..., None] * self.weight_rest
        return torch.addcmul(self.shift[at, None], found.float(), self.factor[at, None]).flatten(0, 1)


def int_mm(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T (M, N) int32 of int8 (M, K) and (N, K)."""
    short = CUDA_ROWS - len(x) if x.is_cuda else 0
    if short > 0:
        return torch._int_mm(F.pad(x, (0, 0, 0, short)), weight.t())[: len(x)]
    return torch._int_mm(x, weight.t())


def suits(layer: QuantLayer) -> bool:
    """Whether a layer has an integer form: 8 bits at most, one group, no dilation, sides that the device takes."""
    own = layer.layer
    if layer.input_bits > WIDEST or layer.weight_bits > WIDEST:
        return False
    sides = (own.weight.shape[0], own.weight[0].numel())
    if own.weight.is_cuda and any(side % CUDA_MULTIPLE for side in sides):
        return False
    if isinstance(own, nn.Linear):
        return True
    plain = own.groups == 1 and tuple(own.dilation) == (1, 1) and own.padding_mode == "zeros"
    return plain and not isinstance(own.padding, str)


def able(device: torch.device) -> bool:
    """Whether torch multiplies 8-bit integers there, and rightly."""
    x = torch.arange(-16 * 24, 16 * 24, dtype=torch.int32).reshape(32, 24).remainder(251).sub(125).to(torch.int8)
    try:
        found = int_mm(x.to(device), x[:16].contiguous().to(device))
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found.cpu(), x.int() @ x[:16].int().t())


def with_kernels(prior: DiffusersPrior, kernels: Kernels) -> int:
    """Turns the layers of a quantised prior, in place, into those that compute with integers; how many there are.

    Raises InputError for a prior that is not quantised, and where torch has no such product on its device.
    """
    network, device = prior.network, prior.device
    layers = dict(quant_layers(network))
    if not layers:
        raise InputError(f"kernels={kernels!r} serve students of few bits (kind quantised), which {prior.name} is not")
    if not able(device):
        raise InputError(f"kernels={kernels!r}: torch multiplies no 8-bit integers on {device.type}; leave kernels out")
    chosen = {name: layer for name, layer in layers.items() if suits(layer)}
    for name, layer in chosen.items():
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, IntegerLayer(layer))
    return len(chosen)
