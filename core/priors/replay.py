"""Calls of a network recorded once and replayed: CUDA graphs, which spare the host to launch every operation anew.

A form of call (shapes, dtypes, everything that is no tensor) is recorded when it comes for the second time, by
torch.cuda.make_graphed_callables; from then on its tensors are copied into the recorded ones and the answer out of
them. What a graph cannot hold is computed as ever: calls with gradients, with hooks or adapters inside the network
(caches, attention taps), and on other devices. Weights may change in place, but not move.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from ...utils.device_memory import release_device_memory

FORMS = 4  # that are recorded; each keeps the memory of a call
Recorded = Callable[..., Any]


def recorder(device: torch.device) -> Callable[[Callable[..., Any], tuple[Tensor, ...]], Recorded] | None:
    """What records a function of tensors on a device; None where nothing does."""
    if device.type != "cuda":
        return None

    def record(function: Callable[..., Any], samples: tuple[Tensor, ...]) -> Recorded:
        with torch.cuda.device(samples[0].device):
            graphed: Recorded = torch.cuda.make_graphed_callables(function, samples)
        return graphed

    return record


class Replayed:
    """The forward pass of a network, recorded where it can be."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.plain = network, network.forward
        self.recorded: dict[Hashable, Recorded] = {}
        self._met: set[Hashable] = set()
        self.off = False  # after a recording that failed

    def __deepcopy__(self, memo: dict[int, Any]) -> Replayed:
        return Replayed(copy.deepcopy(self.network, memo))

    def forget(self) -> None:
        """Drops what was recorded, whose memory is where the weights were."""
        self.recorded.clear()
        self._met.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        record = recorder(tensors[0].device) if tensors else None
        if record is None or self.off or torch.is_grad_enabled() or _changes(self.network):
            return self.plain(*args, **kwargs)
        form = (str(spec), tuple(_form(leaf) for leaf in leaves))
        if form not in self.recorded and not (self._again(form) and self._record(form, record, leaves, spec)):
            return self.plain(*args, **kwargs)
        return tree_map_only(Tensor, torch.clone, self.recorded[form](*tensors))

    def _again(self, form: Hashable) -> bool:
        """Whether a form is worth a recording: it comes back, and there is room."""
        met = form in self._met
        self._met.add(form)
        return met and len(self.recorded) < FORMS

    def _record(self, form: Hashable, record: Any, leaves: Sequence[Any], spec: Any) -> bool:
        """Records a form of call; False, with a warning, where the device refuses."""
        places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def function(*tensors: Tensor) -> Any:
            given = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = tensor
            args, kwargs = tree_unflatten(given, spec)
            return self.plain(*args, **kwargs)

        samples = tuple(leaves[place].clone() for place in places)
        failed = ""
        try:
            self.recorded[form] = record(function, samples)
        except RuntimeError as error:  # torch's own for what cannot be captured, and for too little memory
            failed = (str(error).splitlines() or [type(error).__name__])[0]
        if failed:
            self.off = True
            self.forget()
            release_device_memory()
            warnings.warn(f"calls of the network are not recorded but computed one by one: {failed}", stacklevel=4)
        return not failed


def replay(network: nn.Module) -> Replayed:
    """Has a network's calls recorded and replayed from now on."""
    made = Replayed(network)
    network.forward = made  # type: ignore[method-assign, assignment]
    return made


def forget(network: nn.Module) -> None:
    """Drops what was recorded of a network, where there is such."""
    inner = getattr(network, "_old_forward", network.forward)  # accelerate's hooks go around it
    if isinstance(inner, Replayed):
        inner.forget()


def _form(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return (tuple(leaf.shape), leaf.dtype, leaf.device)
    return leaf if isinstance(leaf, Hashable) else id(leaf)


def _changes(network: nn.Module) -> bool:
    """Whether something inside decides call by call what is computed, or looks on."""
    registry = getattr(network, "_diffusers_hook", None)
    if registry is not None and registry.hooks:
        return True
    return any(
        part._forward_pre_hooks or part._forward_hooks or type(part).__module__.startswith("peft.")
        for part in network.modules()
    )
