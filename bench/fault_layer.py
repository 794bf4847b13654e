"""Calls that change files, counted, so that a fault can strike before any one of them; for a process of its own."""

from __future__ import annotations

import builtins
import errno
import functools
import io
import mmap
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNT = struct.Struct("<q")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Strike = Callable[["Layer"], None]


class Counter:
    """A number that a process and those it starts count up."""

    def __init__(self) -> None:
        self._shared, self._lock = mmap.mmap(-1, COUNT.size), threading.Lock()

    @property
    def value(self) -> int:
        """How many calls there were."""
        return int(COUNT.unpack(self._shared[: COUNT.size])[0])

    def up(self) -> int:
        """Counts one more."""
        with self._lock:
            value = self.value + 1
            self._shared[: COUNT.size] = COUNT.pack(value)
        return value


class Layer:
    """Stands between a process and the files below `folder`: counts what changes them, strikes before call `at`."""

    def __init__(self, folder: Path, counter: Counter, at: int = 0, strike: Strike | None = None) -> None:
        self.folder, self.counter, self.at = os.path.realpath(folder), counter, at
        self._strike, self._refuses = strike, 0

    def refuse(self, number: int) -> None:
        """From now on the files cannot be changed: ENOSPC lets names be changed and removed, EROFS nothing."""
        self._refuses = number

    def install(self) -> None:
        """Takes the place of Python's own calls, in this process for good."""
        builtins.open = io.open = self._opening(io.open)  # type: ignore[assignment]
        os.open = self._low(os.open)
        for name in ("mkdir", "fsync"):
            setattr(os, name, self._around(getattr(os, name), needs_room=True))
        for name in ("replace", "rename", "unlink", "remove", "rmdir"):
            setattr(os, name, self._around(getattr(os, name), needs_room=False))

    def _meet(self, place: Any, needs_room: bool) -> None:
        """Counts a call, strikes, refuses."""
        where = self._where(place)
        if where is None or not (where == self.folder or where.startswith(self.folder + os.sep)):
            return
        if self.counter.up() == self.at and self._strike is not None:
            self._strike(self)
        if self._refuses == errno.EROFS or (self._refuses and needs_room):
            raise OSError(self._refuses, os.strerror(self._refuses), where)

    def _where(self, place: Any) -> str | None:
        try:
            if isinstance(place, int):
                return os.readlink(f"/proc/self/fd/{place}")
            return os.path.join(os.path.realpath(os.path.dirname(os.fsdecode(place)) or "."), os.path.basename(place))
        except (OSError, TypeError, ValueError):
            return None

    def _around(self, call: Callable[..., Any], needs_room: bool) -> Callable[..., Any]:
        @functools.wraps(call)
        def changed(place: Any, *more: Any, **named: Any) -> Any:
            self._meet(place, needs_room)
            return call(place, *more, **named)

        return changed

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def changed(place: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            if not isinstance(place, int) and set(mode) & set("wax+"):
                self._meet(place, needs_room=True)
            return call(place, mode, *more, **named)

        return changed

    def _low(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def changed(place: Any, flags: int, *more: Any, **named: Any) -> Any:
            if flags & WRITING:
                self._meet(place, needs_room=True)
            return call(place, flags, *more, **named)

        return changed
