"""How much each unit of a network changes from step to step, and plans of inheritance made from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ....utils.errors import InputError
from .base import COMPUTE, Cache, Policy
from .cost import unit_macs
from .hooks import RootHook, attach, detach, find_unit, module_path
from .inherit import HoldPlan


@dataclass(frozen=True)
class Profile:
    """Per unit: relative change |y(i) - y(i-1)| / |y(i)| of each step (0 for step 0), cosine, and MACs of a step."""

    change: dict[str, list[float]]
    cosine: dict[str, list[float]]
    macs: dict[str, int]

    @property
    def calls(self) -> int:
        """Steps of the run profiled."""
        return len(next(iter(self.change.values())))


class _Full(Policy):
    def decide(self, step: int, level: float, branch: str) -> frozenset[str]:
        """See Policy.decide."""
        return COMPUTE


class _Watch(ModelHook):
    """Compares the output of a unit with that of the step before."""

    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.cache, self.before = cache, torch.empty(0)
        self.change: list[float] = []
        self.cosine: list[float] = []

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Notes change and cosine."""
        now = _main(output).detach().double().flatten()
        first = self.cache.step == 0
        before = now if first else self.before
        size = float(now.norm())
        self.change.append(float((now - before).norm()) / max(size, 1e-12))
        self.cosine.append(float(now @ before) / max(size * float(before.norm()), 1e-12))
        self.before = now
        return output


def _main(output: Any) -> Tensor:
    """The main tensor of an output: blocks with two streams answer (text, image), down blocks (image, skips)."""
    if isinstance(output, Tensor):
        return output
    return output[-1] if isinstance(output[-1], Tensor) else output[0]


def profile_units(network: nn.Module, units: Sequence[str], run: Callable[[], object]) -> Profile:
    """Changes and costs of `units` during `run`, one full sampling run that calls `network` once a step."""
    if not units:
        raise InputError("units is empty: name the units to profile (see units_at)")
    for unit in units:
        find_unit(network, unit)
    cache = Cache(_Full())
    watches = {unit: _Watch(cache) for unit in units}
    attach(network, RootHook(cache), {module_path(unit): watch for unit, watch in watches.items()})
    try:
        macs = unit_macs(network, units, run)
    finally:
        detach(network)
    calls = cache.full_steps
    if any(len(watch.change) != calls for watch in watches.values()):
        raise InputError("run must call the network once a step, every unit once a call")
    return Profile(
        {unit: watch.change for unit, watch in watches.items()},
        {unit: watch.cosine for unit, watch in watches.items()},
        {unit: total // max(calls, 1) for unit, total in macs.items()},
    )


def greedy_plan(profile: Profile, target: float, total_macs: int, longest: int = 3, keep_last: bool = True) -> HoldPlan:
    """Holds the (step, unit) pairs of least change per MAC until the run is `target` times cheaper.

    Args:
        profile: of units none of which contains another.
        target: wanted speed-up in MACs, > 1.
        total_macs: MACs of one full step of the network.
        longest: most steps in a row that a unit may be held.
        keep_last: the last step is computed in full.

    Raises InputError when these units cannot save that much.
    """
    calls = profile.calls
    if target <= 1:
        raise InputError(f"target={target} must exceed 1: it is a speed-up")
    wanted = calls * total_macs * (1 - 1 / target)
    pairs = [
        (changes[step] / profile.macs[unit], step, unit)
        for unit, changes in profile.change.items()
        for step in range(1, calls - keep_last)
        if profile.macs[unit] > 0
    ]
    held: dict[int, set[str]] = {}
    saved = 0
    for _, step, unit in sorted(pairs):
        if saved >= wanted:
            break
        if _streak(held, step, unit) <= longest:
            held.setdefault(step, set()).add(unit)
            saved += profile.macs[unit]
    if saved < wanted:
        raise InputError(
            f"target={target} is out of reach: these units save at most a factor "
            f"{calls * total_macs / (calls * total_macs - saved):.2f}; name more units or raise longest={longest}"
        )
    return HoldPlan(held)


def _streak(held: dict[int, set[str]], step: int, unit: str) -> int:
    """Length of the run of held steps that `unit` would have with `step` added."""
    low = high = step
    while unit in held.get(low - 1, ()):
        low -= 1
    while unit in held.get(high + 1, ()):
        high += 1
    return high - low + 1
