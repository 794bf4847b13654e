"""Finished work is never lost: what cannot be written where it was asked for goes elsewhere, and that is told."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .errors import NotWrittenError

W = TypeVar("W")


def rescued(write: Callable[[Path], W], path: Path) -> tuple[W, bool]:
    """(what write(path) gives, False), or where that fails (write of the same name in another folder, True).

    A warning names the other place: a new folder in the working folder, the home folder or the system's temporary one,
    the first that can be written. Raises the first error when none can.
    """
    try:
        return write(path), False
    except (NotWrittenError, OSError) as error:
        first = error
    for folder in _places():
        try:
            made = write(folder / path.name)
        except (NotWrittenError, OSError):
            _forget(folder)
            continue
        warnings.warn(f"{str(first).partition(';')[0]}; the result is in {folder / path.name} instead", stacklevel=2)
        return made, True
    raise first


def _places() -> Iterator[Path]:
    for find in (Path.cwd, Path.home, lambda: Path(tempfile.gettempdir())):
        try:
            yield Path(tempfile.mkdtemp(prefix="unproject-rescued-", dir=find()))
        except (OSError, RuntimeError):  # a deleted working folder, no home, nothing that can be written
            continue


def _forget(folder: Path) -> None:
    for left in folder.iterdir():
        left.unlink(missing_ok=True)
    folder.rmdir()
