"""Caches on any diffusers network, through diffusers' own hook registry; nothing is patched, removal leaves no trace.

A unit's address is its module path with a short first part: down.0.resnets.1, mid, up.3.attentions.2,
up.3.attentions.2.transformer_blocks.0.attn1; blocks.4 and single.4 for transformers.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn

from ....utils.errors import InputError
from .base import Cache, Policy, Signature, told_of_call

HOOK = "unproject_cache"
ROOTS = {
    "down": "down_blocks",
    "mid": "mid_block",
    "up": "up_blocks",
    "blocks": "transformer_blocks",
    "single": "single_transformer_blocks",
}
ONE_BRANCH = "all"
ADDED_FEATURES = (
    "down_intrablock_additional_residuals",
    "block_controlnet_hidden_states",
    "controlnet_block_samples",
    "controlnet_single_block_samples",
)  # what adapters add inside the network, call by call


def module_path(unit: str) -> str:
    """The module path of a unit address."""
    first, dot, rest = unit.partition(".")
    return ROOTS.get(first, first) + dot + rest


def unit_address(path: str) -> str:
    """The unit address of a module path."""
    first, dot, rest = path.partition(".")
    short = {long: name for name, long in ROOTS.items()}
    return short.get(first, first) + dot + rest


def find_unit(network: nn.Module, unit: str) -> nn.Module:
    """The submodule at a unit address. Raises InputError with the nearest addresses."""
    path = module_path(unit)
    try:
        found = network.get_submodule(path)
    except AttributeError:
        known = [unit_address(name) for name, _ in network.named_modules() if name]
        near = difflib.get_close_matches(unit, known, n=3, cutoff=0.3)
        raise InputError(f"{type(network).__name__} has no unit {unit!r}; near: {', '.join(near) or 'none'}") from None
    return found


def network_of(target: Any) -> nn.Module:
    """The denoising network of a diffusers pipeline, of one of our priors, or the module itself."""
    if isinstance(target, nn.Module):
        return target
    for name in ("network", "unet", "transformer"):
        part = getattr(target, name, None)
        if isinstance(part, nn.Module):
            return part
    raise InputError(f"{type(target).__name__} has no U-Net or transformer; pass a network, a pipeline or a prior")


def calls_of(target: Any, steps: int | None) -> int | Callable[[], int | None] | None:
    """Network calls of a run: the number given, or what the pipeline has set by the time it asks."""
    if steps is not None or isinstance(target, nn.Module):
        return steps
    return lambda: getattr(target, "num_timesteps", None)


def refuse_exact_inverse(solver: Any) -> None:
    """Raises InputError for a solver that inverts its own steps exactly (`exact_inverse = True`)."""
    if any(getattr(part, "exact_inverse", False) for part in (solver, getattr(solver, "solver", None))):
        raise InputError(
            f"{type(solver).__name__} inverts its steps exactly, which needs the same network on the way back: "
            "a cache answers differently there; sample without a cache"
        )


class BranchName(StateManager):
    """The name a pipeline gives to the call under way (`cache_context`); one name for all where it gives none."""

    def __init__(self) -> None:
        super().__init__(BaseState)
        self.name = ONE_BRANCH

    def set_context(self, context: Any) -> None:
        """Called by diffusers before and after a named call."""
        self.name = ONE_BRANCH if context is None else str(getattr(context, "name", context))


class RootHook(ModelHook):
    """Tells the cache when a network call begins and ends."""

    _is_stateful = True

    def __init__(self, cache: Cache, refused: tuple[str, ...] = ADDED_FEATURES) -> None:
        super().__init__()
        self.cache, self.branch, self.refused = cache, BranchName(), refused

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        """Notes the argument names of the network."""
        self._names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Begins a step."""
        if not self.cache.bypassed:
            given = {**dict(zip(self._names, args)), **kwargs}
            self._check(module, given)
            state = given["sample" if "sample" in given else "hidden_states"]
            text = given.get("encoder_hidden_states")
            told = told_of_call()
            level = _number(given["timestep"]) if told is None else told.level
            rows = None if told is None else told.rows
            signature = Signature(tuple(state.shape), state.dtype, state.device, text, rows)
            self.begin(state, self.cache.begin_step(self.branch.name, level, signature))
        return args, kwargs

    def begin(self, state: Tensor, reused: frozenset[str]) -> None:
        """What a kind of cache does with the state at the start of a step: nothing unless it overrides this."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Ends the step."""
        if not self.cache.bypassed:
            self.cache.end_step()
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        """diffusers' way to forget."""
        self.cache.begin_run()
        return module

    def _check(self, module: nn.Module, given: Mapping[str, Any]) -> None:
        for name in self.refused:
            if given.get(name) is not None:
                raise InputError(f"{name} adds features at every step that a cache would hold back; remove the cache")
        for block in getattr(module, "up_blocks", ()):
            if getattr(block, "s1", None) and getattr(block, "b1", None):
                raise InputError(
                    "FreeU writes into the features a cache holds; call disable_freeu() or remove the cache"
                )


def _number(time: Any) -> float:
    """The level of a call nobody told: the largest network time of the batch; a wait where that is on a device."""
    return float(time.detach().max()) if isinstance(time, Tensor) else float(time)


@dataclass(frozen=True)
class Held:
    """A stored output: the tensors, and whether they are differences to the unit's input."""

    tensors: Any
    delta: bool = False


class UnitHook(ModelHook):
    """Computes a unit and stores its output, or returns the stored one."""

    def __init__(self, cache: Cache, unit: str) -> None:
        super().__init__()
        self.cache, self.unit = cache, unit

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The unit's forward."""
        if self.cache.reuses(self.unit):
            return self.unpack(self.cache.load(self.unit), args, kwargs)
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.cache.active:
            self.cache.save(self.unit, self.pack(output, args, kwargs))
        return output

    def pack(self, output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Held:
        """What is stored of an output; it carries no gradient."""
        return Held(mapped(torch.Tensor.detach, output))

    def unpack(self, held: Held, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The output that a stored one stands for."""
        return held.tensors


class StandInHook(UnitHook):
    """For outputs that no computed unit reads: only their form is kept, filled with NaN so that a leak would show."""

    def pack(self, output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Held:
        """Tensors of the same form that take no memory."""
        return Held(mapped(lambda t: t.new_full((), torch.nan).expand(t.shape), output))


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with every tensor in its (nested) tuples changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(change, item) for item in value)
    return value


def attach(network: nn.Module, root: ModelHook, hooks: Mapping[str, ModelHook]) -> None:
    """Registers the root hook and those of the submodules (by module path). Raises InputError if a cache is there."""
    if cache_of(network) is not None:
        raise InputError(f"this {type(network).__name__} has a cache already; remove it first")
    for path, hook in hooks.items():
        HookRegistry.check_if_exists_or_initialize(network.get_submodule(path)).register_hook(hook, HOOK)
    HookRegistry.check_if_exists_or_initialize(network).register_hook(root, HOOK)
    _forget_children(network)


def detach(network: nn.Module) -> None:
    """Removes every cache hook; modules left without hooks are as they were before."""
    for module in network.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if registry is None or registry.get_hook(HOOK) is None:
            continue
        registry.remove_hook(HOOK, recurse=False)
        forward = module.__dict__.get("forward")
        if not registry.hooks and getattr(forward, "__func__", None) is type(module).forward:
            del module.__dict__["forward"], module.__dict__["_diffusers_hook"]
    _forget_children(network)


def cache_of(target: Any) -> Cache | None:
    """The cache on a network, pipeline or prior; None without one."""
    registry = getattr(network_of(target), "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook(HOOK)
    return getattr(hook, "cache", None)


def make_cache(target: Any, policy: Policy, steps: int | None, short: int = 0) -> Cache:
    """A cache that knows the run's length where `target` tells it and refuses exactly invertible schedulers.

    `short`: see Cache.
    """
    guard = lambda: refuse_exact_inverse(getattr(target, "scheduler", None))  # noqa: E731 (asked at every run)
    return Cache(policy, calls_of(target, steps), guard, short)


def _forget_children(network: nn.Module) -> None:
    """Lets diffusers look anew for the registries below `network`."""
    registry = getattr(network, "_diffusers_hook", None)
    if registry is not None and hasattr(registry, "invalidate_child_registries_cache"):
        registry.invalidate_child_registries_cache()
