"""DeepCache (Ma et al., CVPR 2024): on most steps only a shallow branch of the U-Net runs.

The feature that enters branch b of the up path is kept from the last full step; down layers behind the branch, the
middle block and the deeper up layers rest. Branch b uses skip connection b (0: that of conv_in, the cheapest).
Cost of a run with interval N: (C_full + (N - 1) C_b) / N.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusers.hooks import ModelHook
from torch import nn

from ....utils.errors import InputError
from .base import COMPUTE, SHORT, Cache, Policy
from .hooks import RootHook, StandInHook, UnitHook, attach, detach, make_cache, module_path, network_of
from .refresh import Refresh

FEWEST_STEPS = 5


@dataclass(frozen=True)
class DeepCache:
    """Branch and refresh schedule; interval 1 is the plain network."""

    branch: int = 0
    refresh: Refresh = field(default_factory=Refresh)

    def __post_init__(self) -> None:
        if self.branch < 0:
            raise InputError(f"branch={self.branch} must be 0 or more")


class HoldEvery(Policy):
    """Reuses the same units on every step that a refresh schedule does not compute in full."""

    def __init__(self, units: frozenset[str], refresh: Refresh) -> None:
        self.units, self.refresh = units, refresh
        self._full: frozenset[int] | None = None

    def begin(self, calls: int | None) -> None:
        """See Policy.begin."""
        self._full = self.refresh.full_steps(calls)

    def decide(self, step: int, level: float, branch: str) -> frozenset[str]:
        """See Policy.decide."""
        return COMPUTE if self.refresh.is_full(step, self._full) else self.units


def refuse_few_steps(steps: int, fewest: int = FEWEST_STEPS) -> None:
    """Raises InputError when a run is too short for features to be alike from one step to the next."""
    if steps < fewest:
        raise InputError(
            f"a cache of features at steps={steps} would reuse features across a large part of the noise range, "
            f"where they are not alike; take at least {fewest} steps or no cache"
        )


def branch_units(unet: nn.Module, branch: int) -> tuple[list[str], str]:
    """(units at rest on reuse steps, the one of them whose output enters the branch).

    Skips are numbered from conv_in; those of down block i start at the number of up layers of the shallower blocks.
    """
    down, up = _paths(unet)
    last = len(up) - 1
    skips = [len(block.resnets) for block in reversed(up)]  # per resolution, shallowest first
    if branch >= sum(skips):
        raise InputError(f"branch={branch} does not exist: this U-Net has {sum(skips)} skips (0 to {sum(skips) - 1})")
    units: list[str] = []
    first = 0  # number of the first skip that this resolution consumes
    for i, block in enumerate(down):
        units += [f"down.{i}"] if first >= branch else _down_layers(block, i, branch - first)
        first += skips[i]
    units.append("mid")
    first, feeding = 0, ""
    for i, block in enumerate(reversed(up)):
        name = f"up.{last - i}"
        if first > branch:
            units.append(name)
        else:
            resting = [k for k in range(skips[i]) if first + skips[i] - 1 - k > branch]
            units += [unit for k in resting for unit in _layer(block, name, k)]
            deeper = f"up.{last - i - 1}" if i < last else "mid"
            feeding = _layer(block, name, resting[-1])[-1] if resting else deeper
        first += skips[i]
    return units, feeding


def _paths(unet: nn.Module) -> tuple[list[Any], list[Any]]:
    down, up = getattr(unet, "down_blocks", None), getattr(unet, "up_blocks", None)
    if down is None or up is None or getattr(unet, "mid_block", None) is None:
        raise InputError(
            f"DeepCache needs a U-Net with down, middle and up blocks, not a {type(unet).__name__}; "
            "for a diffusion transformer use regions:0.5"
        )
    return list(down), list(up)


def _down_layers(block: Any, index: int, running: int) -> list[str]:
    """The layers of a down block from number `running` on; the downsampler counts as the last."""
    name, count = f"down.{index}", len(block.resnets)
    units = [unit for k in range(running, count) for unit in _layer(block, name, k)]
    return units + ([f"{name}.downsamplers.0"] if block.downsamplers and running <= count else [])


def _layer(block: Any, name: str, k: int) -> list[str]:
    """The resnet of layer k and its attention, if any, in the order they run."""
    attention = [f"{name}.attentions.{k}"] if getattr(block, "attentions", None) else []
    return [f"{name}.resnets.{k}", *attention]


def apply_deep_cache(target: Any, config: DeepCache | int = 3, steps: int | None = None) -> Cache:
    """Puts DeepCache on the U-Net of a pipeline, a prior, or on a U-Net; returns its cache.

    Args:
        target: a diffusers U-Net, a pipeline that has one (which then tells the number of steps), or a prior.
        config: branch and schedule, or just the interval of full steps.
        steps: network calls of a run, where the target cannot tell; needed for schedules that are not uniform.

    In runs of fewer than 8 calls it is off, with a warning. Raises InputError for networks without down and up blocks
    and branches that do not exist.
    """
    if isinstance(config, int):
        config = DeepCache(refresh=Refresh(interval=config))
    network = network_of(target)
    units, feeding = branch_units(network, config.branch)
    policy = HoldEvery(frozenset(units), config.refresh)
    cache = make_cache(target, policy, steps, SHORT if config.refresh.interval > 1 else 0)
    if steps is not None and steps >= SHORT:
        policy.begin(steps)
    resting = units if config.refresh.interval > 1 else []
    hooks: dict[str, ModelHook] = {
        module_path(unit): (UnitHook if unit == feeding else StandInHook)(cache, unit) for unit in resting
    }
    attach(network, RootHook(cache), hooks)
    return cache


def remove_deep_cache(target: Any) -> None:
    """Takes the cache off again; the network is as it was."""
    detach(network_of(target))
