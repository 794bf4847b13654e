"""Feature inheritance (A-SDM, 2024): chosen units of a network keep their last feature at chosen steps.

output: y(i) = y(i*), i* the last computed step. delta, for units y = in + R(in): y(i) = in(i) + [y(i*) - in(i*)], so
that the current input passes. DeepCache is the plan "everything behind a branch, in output mode".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ....utils.errors import InputError
from .base import COMPUTE, SHORT, Cache, Policy
from .deepcache import HoldEvery, refuse_few_steps
from .hooks import (
    Held,
    RootHook,
    UnitHook,
    attach,
    detach,
    find_unit,
    make_cache,
    module_path,
    network_of,
    unit_address,
)
from .refresh import Refresh

HoldMode = Literal["auto", "output", "delta"]
Depth = Literal["block", "layer", "unit"]
BRANCHES = ("attn", "attn1", "attn2", "ff", "ff_context")  # residual branches: the block around them adds the input


@dataclass(frozen=True)
class Inherit:
    """Units of one depth inherit on every step that `refresh` does not compute; see `units_at`."""

    depth: Depth = "layer"
    refresh: Refresh = field(default_factory=lambda: Refresh(interval=2))
    mode: HoldMode = "auto"

    def __post_init__(self) -> None:
        if self.depth not in get_args(Depth):
            raise InputError(f"depth={self.depth!r} is unknown; have {', '.join(get_args(Depth))}")
        if self.mode not in get_args(HoldMode):
            raise InputError(f"mode={self.mode!r} is unknown; have {', '.join(get_args(HoldMode))}")


class HoldPlan(Policy):
    """A free plan: the set of units held at each step. The empty plan is the plain network."""

    def __init__(self, held: Mapping[int, Iterable[str]]) -> None:
        """`held`: unit addresses by step; step 0 has nothing to inherit."""
        self.held = {step: frozenset(units) for step, units in held.items() if units}
        if any(step < 1 for step in self.held):
            raise InputError(f"a plan cannot hold at step {min(self.held)}: nothing is stored before step 1")

    @property
    def units(self) -> frozenset[str]:
        """Every unit held at some step."""
        return frozenset().union(*self.held.values()) if self.held else COMPUTE

    def begin(self, calls: int | None) -> None:
        """See Policy.begin."""
        if calls is not None and self.held:
            refuse_few_steps(calls)
            if max(self.held) >= calls:
                raise InputError(f"the plan holds at step {max(self.held)}, but the run has steps={calls}; plan anew")

    def decide(self, step: int, level: float, branch: str) -> frozenset[str]:
        """See Policy.decide."""
        return self.held.get(step, COMPUTE)

    def saving(self, macs: Mapping[str, int], calls: int) -> float:
        """Speed-up in multiply-accumulates, T sum c / (T sum c - held); `macs` has every unit of the network once."""
        whole = calls * sum(macs.values())
        return whole / (whole - sum(macs[unit] for units in self.held.values() for unit in units))


class InheritHook(UnitHook):
    """A unit in output or delta mode."""

    def __init__(self, cache: Cache, unit: str, mode: HoldMode) -> None:
        super().__init__(cache, unit)
        branch = unit.rpartition(".")[2] in BRANCHES
        if branch and mode == "delta":
            raise InputError(f"unit {unit!r} is a residual branch already: hold it in output mode")
        self.mode: HoldMode = "output" if branch else mode
        self._tuple = False

    def pack(self, output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Held:
        """See UnitHook.pack; differences where the mode asks for them and the shapes allow it."""
        if self.mode == "output":
            return super().pack(output, args, kwargs)
        inputs = _inputs(output, args, kwargs)
        if inputs is None:
            if self.mode == "delta":
                raise InputError(f"unit {self.unit!r} changes the shape of its input: hold it in output mode")
            return super().pack(output, args, kwargs)
        outputs = output if isinstance(output, tuple) else (output,)
        return Held(tuple(None if y is None else (y - x).detach() for y, x in zip(outputs, inputs)), delta=True)

    def unpack(self, held: Held, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """See UnitHook.unpack."""
        if not held.delta:
            return held.tensors
        first = _first_input(args, kwargs)
        pair = (kwargs.get("encoder_hidden_states"), first) if len(held.tensors) == 2 else (first,)
        outputs = tuple(None if d is None else x + d for x, d in zip(pair, held.tensors))
        return outputs if self._tuple else outputs[0]

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """See UnitHook.new_forward; remembers whether the unit answers with a tuple."""
        output = super().new_forward(module, *args, **kwargs)
        self._tuple = isinstance(output, tuple)
        return output


def _first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "input_tensor"]


def _inputs(output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The inputs that the outputs are residuals of, None where the shapes do not match.

    Transformer blocks with two streams answer (text, image); the other units (and 1-tuples) follow their first input.
    """
    outputs = output if isinstance(output, tuple) else (output,)
    first = _first_input(args, kwargs)
    inputs = (kwargs.get("encoder_hidden_states"), first) if len(outputs) == 2 else (first,)
    if len(outputs) > 2:
        return None
    fits = all(
        y is None or (isinstance(y, Tensor) and isinstance(x, Tensor) and y.shape == x.shape)
        for y, x in zip(outputs, inputs)
    )
    return inputs if fits else None


def units_at(network: nn.Module, depth: Depth, outermost: bool = False) -> list[str]:
    """Every unit of one depth, in the order of the modules.

    block: down, middle and up blocks (transformers: their blocks); layer: one resnet, one transformer, the middle
    block; unit: self-attention, cross-attention and feed-forward inside transformers. The blocks at the outermost
    resolution of a U-Net, and the first and last block of a transformer, are left out unless `outermost`.
    """
    names = [name for name, _ in network.named_modules() if name]
    if depth == "unit":
        found = [name for name in names if name.rpartition(".")[2] in BRANCHES]
    elif depth == "layer" and hasattr(network, "down_blocks"):
        parts = [name.split(".") for name in names]
        layers = [p for p in parts if len(p) == 4 and p[2] in ("resnets", "attentions") and p[0] != "mid_block"]
        found = [".".join(p) for p in layers] + (["mid_block"] if "mid_block" in names else [])
    else:
        blocks = ("down_blocks", "up_blocks", "transformer_blocks", "single_transformer_blocks")
        found = [n for n in names if n == "mid_block" or (n.count(".") == 1 and n.split(".")[0] in blocks)]
    if not found:
        raise InputError(f"{type(network).__name__} has no units at depth={depth!r}; try another depth or name units")
    return [unit_address(n) for n in found if outermost or not _outermost(network, n)]


def _outermost(network: nn.Module, path: str) -> bool:
    if hasattr(network, "down_blocks"):
        ends = ("down_blocks.0", f"up_blocks.{len(getattr(network, 'up_blocks', ())) - 1}")
    else:
        blocks = len(getattr(network, "transformer_blocks", ()))
        singles = len(getattr(network, "single_transformer_blocks", ()))
        end = f"single_transformer_blocks.{singles - 1}" if singles else f"transformer_blocks.{blocks - 1}"
        ends = ("transformer_blocks.0", end)
    return any(path == end or path.startswith(f"{end}.") for end in ends)


def apply_inheritance(
    target: Any,
    config: Inherit | HoldPlan | HoldEvery | None = None,
    mode: HoldMode = "auto",
    steps: int | None = None,
) -> Cache:
    """Puts feature inheritance on the network of a pipeline, a prior, or on a network; returns its cache.

    Args:
        target: a diffusers U-Net or transformer, a pipeline (which then tells the number of steps), or a prior.
        config: a preset (None: every layer off the outermost resolution, every second step), or a policy.
        mode: for policies: auto takes differences for residual units whose input has the shape of their output.
        steps: network calls of a run, where the target cannot tell.

    In runs of fewer than 8 calls a preset is off, with a warning. Raises InputError for unknown units, and for plans
    that do not fit the run.
    """
    network = network_of(target)
    policy, short = Inherit() if config is None else config, 0
    if isinstance(policy, Inherit):
        mode, short = policy.mode, SHORT if policy.refresh.interval > 1 else 0
        policy = HoldEvery(frozenset(units_at(network, policy.depth)), policy.refresh)
    for unit in sorted(policy.units):
        find_unit(network, unit)
    cache = make_cache(target, policy, steps, short)
    if steps is not None and steps >= short:
        policy.begin(steps)
    idle = isinstance(policy, HoldEvery) and policy.refresh.interval == 1
    units = [] if idle else sorted(policy.units)
    hooks: dict[str, ModelHook] = {module_path(unit): InheritHook(cache, unit, mode) for unit in units}
    attach(network, RootHook(cache), hooks)
    return cache


def remove_inheritance(target: Any) -> None:
    """Takes the cache off again; the network is as it was."""
    detach(network_of(target))
