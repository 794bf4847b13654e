"""Fake quantisation: weights (and, if asked, activations) rounded to few bits but kept in floating point.

Symmetric, round to nearest: w -> s round(w / s), s = max |w| / (2^(bits-1) - 1), one scale per output channel of a
weight and one per sample of an activation, so that a batch equals its samples one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from ...utils.errors import InputError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HOOK = "unproject_quantised_input"


def rounded(values: Tensor, bits: int) -> Tensor:
    """`values` on 2^bits - 1 symmetric levels, one scale per index of the first axis; zeros stay zero."""
    if not 2 <= bits <= 16:
        raise InputError(f"bits={bits} must lie between 2 and 16")
    top = 2 ** (bits - 1) - 1
    axes = tuple(range(1, values.ndim))
    scale = (values.abs().amax(axes, keepdim=True) if axes else values.abs()) / top
    return torch.where(scale > 0, (values / scale).round().clamp(-top, top) * scale, torch.zeros_like(values))


class _RoundInput(ModelHook):
    """Rounds the input of a layer, per sample."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.changes = f"input rounded to {bits} bits"

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's arguments, the first one rounded."""
        return (rounded(args[0], self.bits), *args[1:]), kwargs


@contextlib.contextmanager
def fake_quantized(
    module: nn.Module, weight_bits: int = 8, activation_bits: int | None = None, keep: Sequence[str] = ()
) -> Iterator[dict[str, float]]:
    """Inside the `with` block the linear and convolution layers of `module` are rounded; afterwards they are as before.

    Args:
        module: a network; its weights are swapped, not copied, so no run may be under way elsewhere.
        weight_bits: bits of a weight, 2 to 16, per output channel.
        activation_bits: bits of every layer's input, scaled anew for each sample; None: not rounded.
        keep: layers whose path starts with one of these stay as they are, e.g. ("conv_in", "conv_out").

    Yields the relative error |w' - w| / |w| of every layer. Raises InputError when no layer is left to round.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, LAYERS) and not name.startswith(tuple(keep))
    }
    if not layers:
        raise InputError(f"{type(module).__name__} has no layer to quantise outside keep={tuple(keep)}")
    before = {name: layer.weight.data for name, layer in layers.items()}
    after = {name: rounded(weight, weight_bits) for name, weight in before.items()}
    errors = {name: float((after[name] - w).norm() / w.norm().clamp(min=1e-12)) for name, w in before.items()}
    try:
        for name, layer in layers.items():
            layer.weight.data = after[name]
            if activation_bits is not None:
                HookRegistry.check_if_exists_or_initialize(layer).register_hook(_RoundInput(activation_bits), HOOK)
        yield errors
    finally:
        for name, layer in layers.items():
            layer.weight.data = before[name]
            if activation_bits is not None:
                HookRegistry.check_if_exists_or_initialize(layer).remove_hook(HOOK, recurse=False)
