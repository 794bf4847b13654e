"""Places where a U-Net does less: units passed by, convolutions of several kernels, attention by regions.

Every cut keeps what it stands for and can be switched back (`on`), so that one alone can be tried in the whole network.
Details of A-SDM that its authors do not give (routing, how regions and the whole are joined) are reconstructions.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ...utils.errors import InputError

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")  # of an attention
RARE = -6.0  # log-weight of a further kernel at first
UNIT = re.compile(r"(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:resnets|attentions)\.\d+")


def units_of(network: nn.Module) -> list[str]:
    """Residual units and transformers that can be left out."""
    return [name for name, _ in network.named_modules() if UNIT.fullmatch(name)]


def check_units(network: nn.Module, names: Sequence[str]) -> None:
    """Raises InputError for a name of no unit."""
    known = units_of(network)
    if odd := [name for name in names if name not in known]:
        raise InputError(f"removed={odd[0]!r} is no unit of this network; have {', '.join(known)}")


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of a unit."""
    parent, _, own = name.rpartition(".")
    network.get_submodule(parent)[int(own)] = module  # type: ignore[operator, index]


class Cut(nn.Module):
    """A part that stands in for another one, which it keeps and is when `on` is False."""

    on: bool = True


def passed_by(unit: nn.Module, args: tuple[Any, ...]) -> Any:
    """What a residual unit without its branch gives: its input, through its shortcut where it has one; what a
    transformer gives, its input in a tuple."""
    hidden = args[0]
    if hasattr(unit, "transformer_blocks"):
        return (hidden,)
    shortcut = getattr(unit, "conv_shortcut", None)
    return hidden if shortcut is None else shortcut(hidden)


class Bypass(Cut):
    """A residual unit or transformer that is left out."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `passed_by`."""
        return passed_by(self.unit, args) if self.on else self.unit(*args, **kwargs)


class LeftOut(nn.Module):
    """What stays of a residual unit or transformer that is left out for good: its shortcut, where it has one."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.conv_shortcut = getattr(unit, "conv_shortcut", None)
        if hasattr(unit, "transformer_blocks"):
            self.transformer_blocks = nn.ModuleList()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `passed_by`."""
        return passed_by(self, args)


def leave_out(network: nn.Module, names: Sequence[str]) -> None:
    """Takes units out of a network, with their weights. Raises InputError for a name of no unit."""
    check_units(network, names)
    for name in names:
        put(network, name, LeftOut(network.get_submodule(name)))


@contextlib.contextmanager
def without(network: nn.Module, name: str) -> Iterator[None]:
    """Inside, the unit of this name is passed by."""

    def skip(unit: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return passed_by(unit, args)

    hook = network.get_submodule(name).register_forward_hook(skip)
    try:
        yield
    finally:
        hook.remove()


class CondConv2d(Cut):
    """A convolution whose kernel is mixed for each sample: sum_e r_e W_e, r = softmax(R GAP(h)) (Yang et al. 2019)."""

    def __init__(self, convolutions: Sequence[nn.Conv2d]) -> None:
        """The kernels to begin with, alike in shape; the first one stands for all at first, nearly."""
        super().__init__()
        first = convolutions[0]
        if any(one.weight.shape != first.weight.shape for one in convolutions):
            raise InputError("convolutions of different shapes cannot be mixed")
        self.kept = first
        self.weight = nn.Parameter(torch.stack([one.weight.detach() for one in convolutions]))
        biases = [
            torch.zeros_like(first.weight[:, 0, 0, 0]) if c.bias is None else c.bias.detach() for c in convolutions
        ]
        self.bias = nn.Parameter(torch.stack(biases))
        self.routing = nn.Linear(first.in_channels, len(convolutions)).to(first.weight)
        with torch.no_grad():
            self.routing.weight.zero_()
            self.routing.bias.fill_(RARE)[0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """One grouped convolution for the whole batch, a group for each sample."""
        if not self.on:
            return self.kept(x)
        shares = self.routing(x.mean((2, 3))).softmax(-1)
        kernel = torch.einsum("be,eoihw->boihw", shares, self.weight)
        bias = shares @ self.bias
        made = F.conv2d(
            x.reshape(1, -1, *x.shape[2:]),
            kernel.flatten(0, 1),
            bias.flatten(),
            self.kept.stride,
            self.kept.padding,  # type: ignore[arg-type]
            self.kept.dilation,
            groups=len(x),
        )
        return made.unflatten(1, (len(x), -1))[0]


class RegionalAttention(Cut):
    """A processor of self-attention on square maps: every token sees its window and pooled tokens of the whole, in one
    softmax. N (w^2 + N / p^2) products in the place of N^2."""

    def __init__(self, attention: Attention, window: int = 8, pool: int = 8) -> None:
        """`window` and `pool` in tokens a side; 0 leaves out the one or the other. The projections begin as the
        attention's, which stay as they are."""
        super().__init__()
        self.parts = nn.ModuleDict({name: copy.deepcopy(getattr(attention, name)) for name in PROJECTIONS})
        if window < 0 or pool < 0 or window + pool == 0:
            raise InputError(f"window={window} and pool={pool} must not be negative, nor both 0")
        self.window, self.pool = window, pool

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(B, N, channels). Raises InputError for maps that are not square or do not divide."""
        batch, count, _ = hidden_states.shape
        side = math.isqrt(count)
        window = (self.window or side) if self.on else side
        pool = self.pool if self.on else 0
        if side * side != count or side % window or (pool and side % pool):
            raise InputError(
                f"regional attention needs square maps whose side window={self.window} and pool={self.pool} divide, "
                f"got {count} tokens"
            )
        parts: Any = self.parts if self.on else {name: getattr(attn, name) for name in PROJECTIONS}
        query = _heads(parts["to_q"](hidden_states), attn.heads)
        regional = not self.on or self.window > 0
        if not regional:
            window = side
        keys = [_windows(parts[name](hidden_states), side, window) for name in ("to_k", "to_v")]
        if not regional:
            keys = [one[:, :, :0] for one in keys]
        if pool:
            pooled = _pooled(hidden_states, side, pool)
            whole = [parts[name](pooled) for name in ("to_k", "to_v")]
            keys = [
                torch.cat([own, other[:, None].expand(-1, own.shape[1], -1, -1)], 2)
                for own, other in zip(keys, whole, strict=True)
            ]
        asked = _windows(query.transpose(1, 2).flatten(2), side, window)
        key, value, asked = (_heads(one.flatten(0, 1), attn.heads) for one in (*keys, asked))
        found = F.scaled_dot_product_attention(asked, key, value).transpose(1, 2).flatten(2)
        joined = _joined(found.unflatten(0, (batch, -1)), side, window)
        return parts["to_out"][1](parts["to_out"][0](joined))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads d) as (B, heads, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _windows(x: Tensor, side: int, window: int) -> Tensor:
    """(B, N, C) as (B, windows, w^2, C)."""
    count = side // window
    grid = x.reshape(len(x), count, window, count, window, -1).transpose(2, 3)
    return grid.reshape(len(x), count * count, window * window, -1)


def _joined(x: Tensor, side: int, window: int) -> Tensor:
    """The inverse of `_windows`."""
    count = side // window
    grid = x.reshape(len(x), count, count, window, window, -1).transpose(2, 3)
    return grid.reshape(len(x), side * side, -1)


def _pooled(x: Tensor, side: int, pool: int) -> Tensor:
    """The mean of cells of pool x pool tokens, (B, N / p^2, C)."""
    cells = _windows(x, side, pool)
    return cells.mean(2)


def cuts_of(network: nn.Module) -> dict[str, list[Cut]]:
    """The cuts of a network by the stage that they are in."""
    found: dict[str, list[Cut]] = {}
    for name, module in network.named_modules():
        if isinstance(module, Cut):
            parts = name.split(".")
            stage = parts[0] if parts[0] == "mid_block" else ".".join(parts[:2])
            found.setdefault(stage, []).append(module)
    return found


@contextlib.contextmanager
def only(network: nn.Module, stage: str) -> Iterator[None]:
    """Inside, the cuts of one stage stand in the otherwise whole network."""
    known = cuts_of(network)
    try:
        for name, cuts in known.items():
            for cut in cuts:
                cut.on = name == stage
        yield
    finally:
        for cuts in known.values():
            for cut in cuts:
                cut.on = True


def kept_names(network: nn.Module) -> set[str]:
    """Parameters of what cuts stand for, which never learn and are asked only where a cut is switched back."""
    found: set[str] = set()
    for name, module in network.named_modules():
        kept: list[str] = []
        if isinstance(module, Bypass):
            kept = [f"unit.{key}" for key, _ in module.unit.named_parameters() if not key.startswith("conv_shortcut")]
        elif isinstance(module, CondConv2d):
            kept = [f"kept.{key}" for key, _ in module.kept.named_parameters()]
        elif isinstance(module, Attention) and isinstance(module.processor, RegionalAttention):
            kept = [key for key, _ in module.named_parameters() if not key.startswith("processor.")]
        found |= {f"{name}.{key}" for key in kept}
    return found


def own_names(network: nn.Module) -> set[str]:
    """Parameters that cuts have of their own."""
    inside = {
        f"{name}.{key}"
        for name, module in network.named_modules()
        if isinstance(module, Cut)
        for key, _ in module.named_parameters()
    }
    return inside - kept_names(network)
