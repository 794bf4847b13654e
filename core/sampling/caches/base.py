"""What a cache is: a policy that says which units of a network are reused at a step, and a store that holds them.

A unit is a named piece of a network ("down.0.resnets.1", "mid", "up.3.attentions.2"). Everything is kept per branch:
the two halves of a guidance batch are one branch, calls that a pipeline names (`cache_context`) are one each.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

COMPUTE: frozenset[str] = frozenset()  # the decision to reuse nothing
SHORT = 8  # calls of a run below which ready-made schedules of reuse are off: features of its steps are not alike


@dataclass(frozen=True)
class Told:
    """What whoever asks a network knows of the call, and a cache would have to read off the device."""

    level: float  # the largest network time of the batch
    rows: object  # that hold the text: calls of the same ones have the same text


_call = threading.local()  # what a compiler can trace, unlike a ContextVar


@contextlib.contextmanager
def telling(told: Told) -> Iterator[None]:
    """Network calls inside are of this level and these rows, so that no cache has to wait for the device."""
    before, _call.told = told_of_call(), told
    try:
        yield
    finally:
        _call.told = before


def told_of_call() -> Told | None:
    """What is known of the network call under way; None when nobody told."""
    return getattr(_call, "told", None)


class Policy(ABC):
    """Says, step by step, which units are reused; steps are network calls of one branch, counted from 0."""

    def begin(self, calls: int | None) -> None:  # noqa: B027 (policies without a horizon have nothing to prepare)
        """Prepares a run of `calls` network calls; None: unknown. Raises InputError where that cannot work."""

    @abstractmethod
    def decide(self, step: int, level: float, branch: str) -> frozenset[str]:
        """The units to reuse at this step (`COMPUTE`: none); `level` is the network's time."""


@dataclass(frozen=True)
class Signature:
    """What must stay the same for stored features to fit: the state's form and the text."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    text: Tensor | None = None
    rows: object = None  # that hold the text, where whoever asks told them

    def matches(self, other: Signature) -> bool:
        """Whether features stored under `other` may be used under this one."""
        if (self.shape, self.dtype, self.device) != (other.shape, other.dtype, other.device):
            return False
        if (self.rows is None) != (other.rows is None):  # levels are told in another unit than they are read
            return False
        a, b = self.text, other.text
        if a is b or (self.rows is not None and self.rows is other.rows):
            return True
        return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


@dataclass
class _Branch:
    signature: Signature
    level: float
    step: int = 0
    reused: frozenset[str] = COMPUTE
    store: dict[str, Any] = field(default_factory=dict)


class Cache:
    """The state of one cached network; `bytes` is what it holds now, `peak_bytes` the most it has held.

    A new run is recognised when the level goes up, when the announced number of calls is over, or when the
    signature changes; it starts from an empty store.
    """

    def __init__(
        self,
        policy: Policy,
        calls: int | Callable[[], int | None] | None = None,
        guard: Callable[[], None] | None = None,
        short: int = 0,
    ) -> None:
        """`calls`: network calls of a run and branch where known; `guard` runs before every run and may refuse it.

        In runs of fewer than `short` calls nothing is reused, and a warning says so.
        """
        self.policy = policy
        self._calls, self._guard, self._short = calls, guard, short
        self.off = False  # whether the run under way is too short
        self._branches: dict[str, _Branch] = {}
        self._now: _Branch | None = None
        self._bypassed = False
        self.peak_bytes = 0
        self.full_steps = self.reused_steps = 0

    @property
    def calls(self) -> int | None:
        """Network calls of a run, None when unknown."""
        return self._calls() if callable(self._calls) else self._calls

    def begin_run(self) -> None:
        """Forgets everything; the next call is step 0 of every branch."""
        self._branches.clear()
        self._now = None

    def begin_step(self, branch: str, level: float, signature: Signature) -> frozenset[str]:
        """Announces a network call; returns the units reused in it (those the policy wants and the store has)."""
        state = self._branches.get(branch)
        calls = self.calls
        if state is not None and self._continues(state, level, signature, calls):
            state.step += 1
            state.level = level
        else:
            if self._guard is not None:
                self._guard()
            self.off = calls is not None and calls < self._short
            if self.off:
                warn_short(calls or 0)
            else:
                self.policy.begin(calls)
            state = self._branches[branch] = _Branch(signature, level)
        wanted = COMPUTE if self.off else self.policy.decide(state.step, level, branch)
        state.reused = frozenset(unit for unit in wanted if unit in state.store)
        self._now = state
        if state.reused:
            self.reused_steps += 1
        else:
            self.full_steps += 1
        return state.reused

    @staticmethod
    def _continues(state: _Branch, level: float, signature: Signature, calls: int | None) -> bool:
        over = calls is not None and state.step + 1 >= calls
        return level <= state.level and not over and signature.matches(state.signature)

    @property
    def step(self) -> int:
        """Step of the current call."""
        return 0 if self._now is None else self._now.step

    @property
    def active(self) -> bool:
        """Whether a call is under way that may store and reuse."""
        return self._now is not None and not self._bypassed

    def reuses(self, unit: str) -> bool:
        """Whether the current call takes this unit from the store."""
        return self.active and self._now is not None and unit in self._now.reused

    def load(self, unit: str) -> Any:
        """What the current branch stored for this unit; None when nothing."""
        return None if self._now is None else self._now.store.get(unit)

    def save(self, unit: str, value: Any) -> None:
        """Stores a unit for the current branch."""
        if self.active and self._now is not None:
            self._now.store[unit] = value

    @property
    def bytes(self) -> int:
        """Memory of the tensors held, each storage once."""
        seen: dict[int, int] = {}
        for state in self._branches.values():
            for tensor in _tensors(list(state.store.values())):
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
        total = sum(seen.values())
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def end_step(self) -> None:
        """Closes a network call and notes the memory held."""
        _ = self.bytes
        self._now = None

    @property
    def bypassed(self) -> bool:
        """Whether calls run in full, without being counted or stored."""
        return self._bypassed

    @contextlib.contextmanager
    def bypass(self) -> Iterator[None]:
        """Calls inside run in full and leave the store alone, e.g. for heads that read features."""
        before, self._bypassed = self._bypassed, True
        try:
            yield
        finally:
            self._bypassed = before


def warn_short(calls: int) -> None:
    """Says that a cache is off."""
    warnings.warn(
        f"the cache is off: in a run of {calls} calls features change too much from one to the next; it works from "
        f"{SHORT} calls on",
        stacklevel=3,
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "tensors"):
        yield from _tensors(value.tensors)
