"""Two runs do not share a folder of work: the lock goes with the process, however it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


@contextlib.contextmanager
def alone_in(folder: Path, way_out: str = "wait for it, or choose another --out") -> Iterator[None]:
    """Makes a folder and holds it inside; one that it made goes again where what is inside fails and leaves it empty.

    Raises InputError when another process holds it.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder, wait=False)
    if handle is None:
        raise InputError(f"another run is at work in {folder}; {way_out}")
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()
        raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def gone_if_failed(folder: Path | None) -> Iterator[None]:
    """Removes a folder where what is inside fails or is interrupted; None: there is none to remove."""
    try:
        yield
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Makes a folder; processes that are inside at the same time take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder, wait=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path, wait: bool) -> int | None:
    """An open handle of the folder with the lock on it, None when another process has it."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return os.open(os.devnull, os.O_RDONLY)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:  # a file system without locks
        pass
    return handle
