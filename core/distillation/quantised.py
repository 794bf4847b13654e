"""Layers of few bits that still learn: affine quantisers with gradients, steps of each time, packed files.

    q = clamp(round(x / delta) + z, 0, 2^b - 1),   x' = (q - z) delta,
gradients pass the rounding, so that d x' / d delta is round(x / delta) - x / delta inside the range and the clipped
bound minus z outside (Esser et al. 2020, LSQ). Weights have a scale for each output channel, chosen among shrunk
ranges for the least |w - w'|^2.4; inputs have a scale for each of some model times, as activations of a diffusion
model change along the run, and the one of the nearest time is used. Products of attention stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import InputError

SHRINKS = 80  # ranges tried for a weight, from 1.00 to 0.21 of it
POWER = 2.4
QUANTILES = (0.999, 0.9999, 0.99999)  # two-sided ranges tried for an input
LEAST = 1e-8  # scale


def quantised(x: Tensor, delta: Tensor, zero: Tensor, bits: int) -> Tensor:
    """x', like x; delta and zero broadcast to it."""
    scaled = x / delta
    rounded = scaled + (scaled.round() - scaled).detach()
    return ((rounded + zero).clamp(0, 2**bits - 1) - zero) * delta


def integers(x: Tensor, delta: Tensor, zero: Tensor, bits: int) -> Tensor:
    """q of the same, uint8."""
    return ((x / delta).round() + zero).clamp(0, 2**bits - 1).to(torch.uint8)


def scales_of(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(delta, zero) of ranges that are made to hold 0."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    delta = ((high - low) / (2**bits - 1)).clamp_min(LEAST)
    return delta, (-low / delta).round()


def weight_scales(weight: Tensor, bits: int, shrinks: int = SHRINKS) -> tuple[Tensor, Tensor]:
    """(delta, zero), each (channels, 1, ...), of the shrunk ranges with the least error of each output channel."""
    flat = weight.detach().flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    best = torch.full_like(low, float("inf"))
    delta, zero = scales_of(low, high, bits)
    for k in range(shrinks):
        tried = scales_of((1 - k / 100) * low, (1 - k / 100) * high, bits)
        error = (quantised(flat, *tried, bits) - flat).abs().pow(POWER).sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        delta, zero = (torch.where(better, new, old) for new, old in zip(tried, (delta, zero), strict=True))
    shape = (-1, *[1] * (weight.ndim - 1))
    return delta.reshape(shape), zero.reshape(shape)


def input_scales(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(delta, zero), 0-d, of the two-sided quantiles with the least squared error; of a sample where there are many."""
    flat = values.detach().flatten().float()
    flat = flat[:: max(1, flat.numel() // 100_000)]
    ranges = [(flat.min(), flat.max())]
    ends = flat.quantile(flat.new_tensor([[1 - q, q] for q in QUANTILES]).flatten()).unflatten(0, (-1, 2))  # one sort
    ranges += [(low, high) for low, high in ends]
    tried = [scales_of(low, high, bits) for low, high in ranges]
    errors = [float((quantised(flat, *pair, bits) - flat).square().sum()) for pair in tried]
    return tried[errors.index(min(errors))]


class Clock(nn.Module):
    """Which of the calibrated times the rows of a network call are nearest to."""

    times: Tensor

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times.float())
        self.rows: Tensor | None = None

    def tell(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the network: the second argument is the time."""
        time = torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).float().reshape(-1, 1)
        self.rows = (time.to(self.times.device) - self.times).abs().argmin(1)


class QuantLayer(nn.Module):
    """A linear map or convolution whose weight and input have few bits."""

    weight_delta: Tensor
    weight_zero: Tensor
    input_zero: Tensor

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, weight_bits: int, input_bits: int, clock: Clock, shrinks: int = SHRINKS
    ) -> None:
        """`shrinks`: ranges tried for the weight; 1 where its scales are read from a file."""
        super().__init__()
        self.layer, self.weight_bits, self.input_bits = layer, weight_bits, input_bits
        delta, zero = weight_scales(layer.weight, weight_bits, shrinks)
        self.register_buffer("weight_delta", delta)
        self.register_buffer("weight_zero", zero)
        count = len(clock.times)
        self.input_delta = nn.Parameter(torch.ones(count, device=delta.device))
        self.register_buffer("input_zero", torch.zeros(count, device=delta.device))
        self.active, self._clock = True, [clock]  # in a list: no submodule

    def rounded_weight(self) -> Tensor:
        """The weight that is used, with gradients to the one that learns."""
        return quantised(self.layer.weight, self.weight_delta, self.weight_zero, self.weight_bits)

    def calibrate(self, number: int, values: Tensor) -> None:
        """Chooses the scale of inputs at one of the times."""
        delta, zero = input_scales(values, self.input_bits)
        with torch.no_grad():
            self.input_delta[number], self.input_zero[number] = delta, zero

    def forward(self, x: Tensor) -> Tensor:
        """See the layer."""
        if not self.active:
            return self.layer(x)
        rows = self._clock[0].rows
        if rows is None:
            raise InputError("a quantised layer was asked outside its network, which tells it the time")
        shape = (-1, *[1] * (x.ndim - 1))
        delta = self.input_delta.abs().clamp_min(LEAST)[rows].reshape(shape)
        zero = self.input_zero[rows].reshape(shape)
        x = quantised(x, delta.to(x.dtype), zero.to(x.dtype), self.input_bits)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, self.rounded_weight(), self.layer.bias)
        layer = self.layer
        return F.conv2d(x, self.rounded_weight(), layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def packed(values: Tensor, bits: int) -> Tensor:
    """uint8 values below 2^bits, flat; two to a byte where bits are at most 4."""
    flat = values.flatten()
    if bits > 4:
        return flat
    flat = F.pad(flat, (0, len(flat) % 2))
    return flat[::2] | (flat[1::2] << 4)


def unpacked(values: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """The inverse of `packed` for a shape."""
    if bits > 4:
        return values.reshape(shape)
    flat = torch.stack([values & 15, values >> 4], 1).flatten()
    return flat[: shape.numel()].reshape(shape)
