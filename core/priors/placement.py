"""Where a prior's networks live and in which form: off the device when they are not in use, in 8 or 4 bit, compiled.

offload "text": text encoders come to the device for a prompt and leave it when the network or the VAE is asked.
    "model": one network at a time is on the device. "sequential": one layer at a time; slow, and the least memory.
weights: see `quantised`.
graphs: calls of the network are recorded and replayed, see `replay`.
vae "slices": one image at a time. "tiles": one part of an image at a time, which may show seams.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from ...utils.errors import InputError
from .quantised import Weights, shrink
from .replay import replay

if TYPE_CHECKING:
    from .diffusers import DiffusersPrior

Offload = Literal["none", "text", "model", "sequential"]
VaeParts = Literal["whole", "slices", "tiles"]
REPEATED = ("BasicTransformerBlock", "JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock")


@dataclass(frozen=True)
class Placement:
    """How a prior is put on a device."""

    offload: Offload | str = "none"
    weights: Weights | str = "full"
    vae: VaeParts | str = "whole"
    compile: bool = False  # the repeated blocks of the network, each on its first call
    graphs: bool = False  # on CUDA the calls of the network are recorded and replayed

    def __post_init__(self) -> None:
        for name, known in (("offload", Offload), ("weights", Weights), ("vae", VaeParts)):
            if getattr(self, name) not in get_args(known):
                raise InputError(f"{name}={getattr(self, name)!r} is unknown; have {', '.join(get_args(known))}")
        if self.graphs and (self.offload in ("model", "sequential") or self.weights == "float8"):
            raise InputError(
                f"graphs=True needs weights that stay where they are, not offload={self.offload!r} and "
                f"weights={self.weights!r}; give offload none or text and other weights than float8"
            )


WHOLE = Placement()  # everything on the device, as it is stored


def place(prior: DiffusersPrior, device: torch.device | str, how: Placement) -> None:
    """Puts the networks of a prior that is on the CPU where they belong.

    Raises MissingExtraError where torchao or bitsandbytes is needed and absent.
    """
    device = torch.device(device)
    shrink(prior, text_encoders(prior), how.weights, device)
    if how.graphs:
        replay(prior.network)
    if how.vae != "whole":
        prior.vae.enable_slicing()
    if how.vae == "tiles":
        prior.vae.enable_tiling()
    if how.offload in ("none", "text"):
        _keep(prior, device, how.offload == "text")
    else:
        _offload(prior, device, by_layer=how.offload == "sequential")
    if device.type == "cuda":
        channels_last(prior)
    if how.compile:
        compile_blocks(prior.network)
    prior.placement = how


def _keep(prior: DiffusersPrior, device: torch.device, text_leaves: bool) -> None:
    """Every network on the device; text encoders, where they leave, come in turn and go when another one is asked."""
    parts = prior.modules()
    coming = [module for _, module in text_encoders(prior)] if text_leaves else []
    called = [*coming, prior.network, prior.vae] if coming else []  # they come when they are called
    for module in parts.values():
        if not any(module is one for one in called):
            module.to(device)
    hook: Any = None
    for module in called:
        from accelerate import cpu_offload_with_hook  # heavy

        _, own = cpu_offload_with_hook(module, device, prev_module_hook=hook)
        hook = own if module in coming else hook  # the network and the VAE stay


def _offload(prior: DiffusersPrior, device: torch.device, by_layer: bool) -> None:
    """A pipeline's networks, or their layers, come to the device when they are called."""
    from accelerate import cpu_offload  # heavy

    pipe = prior.pipe
    if not by_layer:
        pipe.enable_model_cpu_offload(device=device)
    for name, module in prior.modules().items():
        if name not in pipe.components:  # a part of ours: small, and always there
            module.to(device)
        elif by_layer:
            cpu_offload(module, device, offload_buffers=len(module._parameters) > 0)


def text_encoders(prior: DiffusersPrior) -> Iterator[tuple[str, nn.Module]]:
    """The text encoders of a pipeline by name, in the order in which they are asked."""
    for name, module in prior.modules().items():
        if re.fullmatch(r"text_encoder(_\d)?", name):
            yield name, module


def channels_last(prior: DiffusersPrior) -> None:
    """Convolutions read their channels together, which tensor cores want; values and shapes stay."""
    for module in (prior.network, prior.vae):
        if any(isinstance(part, nn.Conv2d) for part in module.modules()):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_blocks(network: nn.Module) -> int:
    """Compiles each of the repeated blocks, which all use one piece of code; how many there are.

    Raises InputError for a network without them.
    """
    blocks = [module for module in network.modules() if type(module).__name__ in REPEATED]
    if not blocks:
        raise InputError(f"compile: {type(network).__name__} has none of the blocks {', '.join(REPEATED)}")
    for block in blocks:
        block.compile(fullgraph=True)
    return len(blocks)


def execution_device(module: nn.Module) -> torch.device:
    """Where a network computes: what its offloading says, else where its parameters are."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        where = getattr(hook, "execution_device", None)
        if where is not None:
            return torch.device(where)
    return next(module.parameters()).device
