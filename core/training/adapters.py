"""Low-rank adapters inside the weights of a network (Hu et al. 2021), and which of its weights are its own.

    W' = W + B A    B = 0 at first; A: rank x (in k k), B: out x rank

The sum is made when a layer is asked (torch's parametrisations), so that no layer computes twice. What stays as it was
is lent: it neither learns nor is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from ...utils.errors import InputError
from .objectives.base import fixed_init

LENT = "lent"  # attribute of a module: names of its parameters that are not its own


class LowRank(nn.Module):
    """The parametrisation of one weight."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight[0].numel()))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (out, in[, k, k]) with what was learnt."""
        return weight + (self.up @ self.down).view(weight.shape)


def adapted(
    network: nn.Module, rank: int, parts: Sequence[str] = ("",), whole: Sequence[str] = (), seed: int = 0
) -> None:
    """Lends all of a network but adapters and some parts of it; the answers are at first what they were.

    Args:
        network: it is changed.
        rank: of the adapters; 0: there are none.
        parts: names of modules whose linear maps and convolutions get adapters; "" is the network itself.
        whole: names of modules and parameters that learn as they are, and get none.
        seed: of the matrices A.

    Raises InputError for a rank below 0.
    """
    if rank < 0:
        raise InputError(f"rank={rank} must be at least 0")
    network.requires_grad_(False)
    layers = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and _within(name, parts) and not _within(name, whole)
    ]
    with fixed_init(seed):
        for name in layers if rank else ():
            layer = network.get_submodule(name)
            with torch.no_grad():
                register_parametrization(layer, "weight", LowRank(layer.weight, rank))  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(_within(name, whole) or name.endswith((".0.down", ".0.up")))
    setattr(network, LENT, frozenset(name for name, p in network.named_parameters() if not p.requires_grad))


def _within(name: str, parts: Sequence[str]) -> bool:
    return any(part in ("", name) or name.startswith(f"{part}.") for part in parts)


def own_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not lent, by name: all of them where nothing was."""
    lent: frozenset[str] = getattr(module, LENT, frozenset())
    return {name: parameter for name, parameter in module.named_parameters() if name not in lent}


def learning(module: nn.Module) -> None:
    """Its own weights require gradients, what is lent does not."""
    own = own_weights(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in own)


def packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in half precision, as files hold them."""
    return {name: value.detach().half().contiguous().cpu() for name, value in weights.items()}
