"""Small parts of the training loop: means for the log, clean stops, and what a resumed run may change."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...utils.errors import InputError
from ...utils.files import write_text

MAY_CHANGE = {"steps", "max_minutes", "max_skips", "log_every", "save_every", "validate_every", "preview_every", "keep"}


class FloatAttention(TorchFunctionMode):
    """Attention in float32 inside an autocast: with narrow heads the CPU's half kernels are several times slower."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See TorchFunctionMode."""
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs or {})
        with torch.autocast("cpu", enabled=False):
            return func(*map(_in_float32, args), **{name: _in_float32(v) for name, v in (kwargs or {}).items()})


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class Window:
    """Means of the logged values since the last line of the log, and the speed."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._latest: dict[str, float] = {}
        self._steps, self._since = 0, time.monotonic()

    def add(self, logs: dict[str, float]) -> None:
        self._steps += 1
        for name, value in logs.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._latest.update(logs)

    def last(self, name: str) -> float:
        return self._latest.get(name, math.nan)

    def drain(self, batch: int) -> dict[str, float]:
        now = time.monotonic()
        speed = batch * self._steps / max(now - self._since, 1e-9)
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts, self._steps, self._since = {}, {}, 0, now
        return {**means, "samples_per_second": round(speed, 2)}


@contextlib.contextmanager
def stop_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a clean stop inside: `stop(number)`; a second one interrupts at once.

    The previous handlers return afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def handle(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        with contextlib.suppress(OSError):  # no print: it may be what was interrupted
            os.write(2, b"stopping after this step; once more stops at once\n")
        stop(number)

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, handle) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def check_recipe(saved: Any, now: Any, step: int, checkpoint: Path, goes_on: bool = True) -> None:
    """Raises InputError when the two recipes would train different weights; unless it goes on, only networks count."""
    if goes_on and saved.get("order") != now["order"]:
        raise InputError(
            f"{checkpoint} was written by a version that drew its samples in another order (order="
            f"{saved.get('order')}, now {now['order']}), so it cannot go on to the bit; begin another --out with its "
            "weights (start_from), or write them with --export"
        )
    odd = [k for k in _different(saved, now, "") if k.removeprefix("trainer.") not in MAY_CHANGE]
    if not goes_on:
        odd = [k for k in odd if k.split(".")[0] not in ("trainer", "players", "order")]
    if odd:
        raise InputError(f"{checkpoint} was written with other settings ({', '.join(odd)}); use them or another --out")
    if now["trainer"]["steps"] < step:
        raise InputError(f"steps={now['trainer']['steps']} is less than the {step} already trained in {checkpoint}")


def _different(a: Any, b: Any, prefix: str) -> list[str]:
    """Dotted names of the leaves in which two nested dicts differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(k for k in b if k not in a)]
        return [d for k in keys for d in _different(a.get(k), b.get(k), f"{prefix}.{k}" if prefix else k)]
    return [] if a == b else [prefix]


def drop_newer(metrics: Path, step: int) -> None:
    """Removes the lines of a metrics.jsonl that belong to later steps (or were torn), so that they are not repeated."""
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    write_text(metrics, "".join(f"{line}\n" for line in lines if _logged_step(line) <= step))


def _logged_step(line: str) -> float:
    """The step of a line of metrics.jsonl; a torn line counts as newer than everything."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
