"""The network and T5 in 8 or 4 bit; other parts are small.

float8: stored so and cast layer by layer as they are used (diffusers' layerwise casting). int8, int4: by torchao, int4
on the device, as its kernels pack for one kind of device and nothing moves to another.
bnb-int8 (LLM.int8, Dettmers et al. 2022), bnb-nf4 (QLoRA's normal floats, Dettmers et al. 2023): linear layers by
bitsandbytes, which packs them when they come to the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ...utils.errors import InputError, need_extra

if TYPE_CHECKING:
    from .diffusers import DiffusersPrior

Weights = Literal["full", "float8", "int8", "int4", "bnb-int8", "bnb-nf4"]


LIBRARIES = {"int": ("torchao", "quant"), "bnb": ("bitsandbytes", "bnb")}  # package, our extra


def check_weights(weights: str, device: torch.device | str) -> None:
    """What `shrink` needs, looked for before anything is downloaded.

    Raises MissingExtraError where the library that does it is absent, InputError for a device that cannot hold them.
    """
    if weights == "int4" and torch.device(device).type == "cpu":
        raise InputError("weights='int4' are packed for CUDA and not for the processor; give int8 or float8 there")
    if (found := LIBRARIES.get(weights[:3])) is not None:
        try:
            importlib.import_module(found[0])
        except ImportError:
            need_extra(*found)


def shrink(
    prior: DiffusersPrior, encoders: Iterator[tuple[str, nn.Module]], weights: str, device: torch.device | str
) -> None:
    """Stores the network and those of the text encoders that are T5 in fewer bits, for use on a device.

    Raises what `check_weights` does.
    """
    check_weights(weights, device)
    if weights == "full":
        return
    large = [prior.network, *(module for _, module in encoders if type(module).__name__ == "T5EncoderModel")]
    for module in large:
        if weights == "float8":
            _cast(module, prior.dtype)
        elif weights.startswith("bnb-"):
            _packed(module, weights, prior.dtype)
        else:
            _quantised(module, weights, device)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    from diffusers.hooks import apply_layerwise_casting  # heavy
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    keep = (*DEFAULT_SKIP_MODULES_PATTERN, "wo")  # T5 asks the dtype of these
    apply_layerwise_casting(module, torch.float8_e4m3fn, dtype, keep)


def _quantised(module: nn.Module, weights: str, device: torch.device | str) -> None:
    from torchao import quantization

    if weights == "int8":
        quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
        return
    tiles = quantization.Int4WeightOnlyConfig(int4_packing_format="tile_packed_to_4d")  # for cards since Ampere
    quantization.quantize_(module, tiles, device=device)


def _packed(module: nn.Module, weights: str, dtype: torch.dtype) -> None:
    """Every linear layer in bitsandbytes' form, but those that a model wants in float32 (T5's "wo")."""
    import bitsandbytes

    exact = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    layers = {name: part for name, part in module.named_modules() if type(part) is nn.Linear}
    for name, layer in layers.items():
        if exact & {*name.split(".")}:
            continue
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(owner), own, _bits(bitsandbytes.nn, layer, weights, dtype))


def _bits(library: Any, layer: nn.Linear, weights: str, dtype: torch.dtype) -> nn.Module:
    """A linear layer as bitsandbytes keeps it."""
    sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
    if weights == "bnb-nf4":
        made = library.Linear4bit(*sizes, bias=bias, compute_dtype=dtype, quant_type="nf4")
        made.weight = library.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    else:
        made = library.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
        made.weight = library.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    if bias:
        made.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    packed: nn.Module = made.eval()
    return packed
