"""Temporary siblings of files and folders that are being written: their writer holds a lock on them, however it ends.

One that nobody holds was left by a process that was killed; `sweep` removes it when the same file is written again.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

_LEFT: dict[Path, list[str]] = {}  # by folder: names that were there when this process first wrote into it
_TEMPORARY = re.compile(r"(\..+)-[0-9a-f]{8}\.tmp(\..*)?")


def sibling(path: Path) -> Path:
    """A name beside a file that nobody has, short enough wherever the file's own name is."""
    return path.with_name(f"{_stem(path)}-{secrets.token_hex(4)}.tmp{path.suffix}")


def held_file(path: Path) -> tuple[Path, int]:
    """(a new temporary file beside `path`, its open handle with the lock on it). Raises OSError where none can be."""
    while True:
        temporary = sibling(path)
        try:
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except OSError as error:
            error.filename = str(path)  # which nobody asked for under the other name
            raise
        if lock(handle) and _is_still(handle, temporary):
            return temporary, handle
        os.close(handle)  # somebody swept it before it was locked


def held_folder(path: Path) -> tuple[Path, int]:
    """The same of a folder."""
    temporary = sibling(path)
    temporary.mkdir(parents=True)
    handle = os.open(temporary, os.O_RDONLY)
    lock(handle)
    return temporary, handle


def sweep(path: Path) -> None:
    """Removes the temporary siblings of `path` that nobody holds; a folder is looked through once a process."""
    folder = path.parent.absolute()
    if folder not in _LEFT:
        try:
            _LEFT[folder] = [name for name in os.listdir(folder) if _TEMPORARY.fullmatch(name)]
        except OSError:
            return
    _LEFT[folder] = [name for name in _LEFT[folder] if not (_belongs(name, path) and _removed(folder / name))]


def lock(handle: int) -> bool:
    """Whether this process now has the lock of an open file; true where there are no locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def _stem(path: Path) -> str:
    return "." + os.fsdecode(os.fsencode(path.stem)[:180])


def _belongs(name: str, path: Path) -> bool:
    found = _TEMPORARY.fullmatch(name)
    return found is not None and found[1] == _stem(path) and (found[2] or "") == path.suffix


def _removed(left: Path) -> bool:
    """Removes a file or folder unless a process holds it, and says so; without locks nobody can know, and it stays."""
    try:
        import fcntl

        handle = os.open(left, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    except OSError:  # held, or not ours to remove
        return False
    finally:
        os.close(handle)
    return True


def _is_still(handle: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False
