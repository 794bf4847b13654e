"""Progress with time left: a bar on a terminal, about ten plain lines elsewhere, silence under UNPROJECT_QUIET=1.

Everything goes to standard error, so that standard output carries results only. A display problem never stops the work.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Protocol, TypeVar

from .device_memory import peak_device_memory_mb
from .shares import share

T = TypeVar("T")
SILENCE_S = 30.0  # the longest that a run at work says nothing


class _Said:
    """When progress was last told, by anyone in this process."""

    def __init__(self) -> None:
        self._at, self.bars, self.inside = -SILENCE_S, 0, 0

    def now(self) -> None:
        self._at = time.monotonic()

    def lately(self, interval_s: float) -> bool:
        return self.bars > 0 or time.monotonic() - self._at < 0.9 * interval_s


_SAID = _Said()


class _Display(Protocol):
    def start(self, total: int | None, label: str, done: int = 0) -> None: ...
    def update(self, done: int, note: str) -> None: ...
    def stop(self, done: int, note: str) -> None: ...


class Progress:
    """A loop of known or unknown length.

    >>> with Progress(total=3, label="steps") as bar:
    ...     bar.advance(1, loss=0.5)
    """

    def __init__(self, total: int | None = None, label: str = "", done: int = 0, shown: bool = True) -> None:
        """`done`: steps of the whole that an earlier run made; `shown`: False shows nothing."""
        self.total, self.label, self.done, self.note = total, label, done, ""
        self._display: _Display | None = _choose_display() if shown else None
        self._call("start", total, label, done)

    def advance(self, steps: int = 1, **fields: Any) -> None:
        """Adds finished steps; fields (loss=..., x=...) are shown behind the bar, floats with four digits.

        So is the most memory that was in use on an accelerator.
        """
        self.done += steps
        peak = None if self._display is None else peak_device_memory_mb()
        if peak is not None:
            fields["memory"] = f"{peak / 1000:.1f}GB"
        if fields:
            self.note = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in fields.items())
        self._call("update", self.done, self.note)

    def close(self) -> None:
        """Ends the display; safe to call twice."""
        self._call("stop", self.done, self.note)
        self._display = None

    def _call(self, method: str, *args: Any) -> None:
        if self._display is None:
            return
        try:
            getattr(self._display, method)(*args)
        except Exception:
            self._display = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def progress(iterable: Iterable[T], total: int | None = None, label: str = "") -> Iterator[T]:
    """Yields the items of `iterable` and shows how far it is; `total` defaults to its length when it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(total, label) as bar:
        for item in iterable:
            yield item
            bar.advance()


@contextlib.contextmanager
def under_way(label: str, usual_s: float | None = None, interval_s: float = SILENCE_S) -> Iterator[None]:
    """Says after `interval_s` seconds without a word how long the work inside has taken, and of how many it usually
    takes; bars on a terminal and lines of other loops count as words, and of works in works the innermost speaks."""
    began, ended = time.monotonic(), threading.Event()
    _SAID.inside += 1
    level = _SAID.inside

    def tell() -> None:
        while not ended.wait(interval_s):
            if _SAID.inside > level or _SAID.lately(interval_s):
                continue
            _SAID.now()
            usual = "" if usual_s is None else f" of about {usual_s:.0f} s"
            print(f"{label}: under way for {time.monotonic() - began:.0f} s{usual}", file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    if not _silent():
        teller.start()
    try:
        yield
    finally:
        ended.set()
        _SAID.inside -= 1
        if teller.is_alive():
            teller.join()


def _silent() -> bool:
    """Whether nothing is said: where that is asked for, and by all but the first of several processes."""
    return os.environ.get("UNPROJECT_QUIET") == "1" or sys.stderr is None or not share().first


def _choose_display() -> _Display | None:
    if _silent():
        return None
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            return _RichBar()
    return PlainLines()


class _RichBar:
    """One rich bar: label, bar, count, elapsed and remaining time, fields."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self.bar = Bar(*columns, console=Console(stderr=True), transient=False)

    def start(self, total: int | None, label: str, done: int = 0) -> None:
        self.task = self.bar.add_task(label or "working", total=total, completed=done, note="")
        self.bar.start()
        _SAID.bars += 1

    def update(self, done: int, note: str) -> None:
        self.bar.update(self.task, completed=done, note=note)

    def stop(self, done: int, note: str) -> None:
        self.bar.stop()
        _SAID.bars -= 1


class PlainLines:
    """A line at every tenth of the way, at most one per `interval_s`; where that takes long, one every 30 s."""

    def __init__(self, interval_s: float = 2.0) -> None:
        self.interval_s = interval_s

    def start(self, total: int | None, label: str, done: int = 0) -> None:
        self.total, self.label, self.before = total, label or "working", done
        self.began = self.last_time = time.monotonic()
        self.last_tenth = 10 * done // total if total else 0
        if done:
            print(f"{self.label}: goes on at {done}" + (f"/{total}" if total else ""), file=sys.stderr, flush=True)

    def update(self, done: int, note: str) -> None:
        now = time.monotonic()
        if self.total:
            tenth = 10 * done // self.total
            due = tenth > self.last_tenth and done < self.total and now - self.last_time >= self.interval_s
        else:
            tenth, due = 0, False
        due = due or (now - self.last_time >= SILENCE_S and done != self.total)
        if due:
            self.last_tenth, self.last_time = tenth, now
            self._print(done, note, now)

    def stop(self, done: int, note: str) -> None:
        if done > self.before:
            self._print(done, note, time.monotonic())

    def _print(self, done: int, note: str, now: float) -> None:
        _SAID.now()
        took = now - self.began
        text = f"{self.label}: {done}" + (f"/{self.total}" if self.total else "") + f" in {took:.1f} s"
        if self.total and self.before < done < self.total:
            text += f", {took * (self.total - done) / (done - self.before):.0f} s left"
        print(text + (f", {note}" if note else ""), file=sys.stderr, flush=True)
