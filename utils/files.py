"""Files that are whole or absent: write to a temporary sibling, flush to disk, rename."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError, UnprojectError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (same suffix); on success it replaces `path`, on any failure it is removed.

    Raises InputError when the folder cannot be made or written, UnprojectError when the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        usual_mode(temporary)
        os.replace(temporary, path)
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error
    except OSError as error:
        if isinstance(error, UnprojectError):
            raise
        raise UnprojectError(f"writing {path} failed: {error.strerror or error}; nothing was left behind") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def usual_mode(path: Path) -> None:
    """Gives a file the permissions of any new file beside it, where the file system has such: some libraries write
    files that only their owner can read.

    They are those of a file made there: the process's mask can only be read by setting it for everybody.
    """
    probe = path.with_name(f".{secrets.token_hex(8)}.mode")
    with contextlib.suppress(OSError):
        made = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            mode = stat.S_IMODE(os.fstat(made).st_mode)
        finally:
            os.close(made)
            probe.unlink()
        path.chmod(mode)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Writes bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Writes text (UTF-8) atomically."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> Path:
    """Writes JSON (indent 2, trailing newline) atomically."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads JSON. Raises InputError for a missing or malformed file."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def weights_root() -> Path:
    """Folder of the embedded weights: UNPROJECT_WEIGHTS or the package's weights/."""
    return Path(os.environ.get("UNPROJECT_WEIGHTS") or Path(__file__).resolve().parents[1] / "weights")


def cache_root() -> Path:
    """Folder of what can be made again: UNPROJECT_CACHE, or `unproject` in the user's cache folder."""
    given, home = os.environ.get("UNPROJECT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else Path(home or Path.home() / ".cache") / "unproject"


def split_scale(text: str | Path, argument: str) -> tuple[Path, float]:
    """File and scale of "FILE.safetensors" or "FILE.safetensors:SCALE", scale 1 unless it is said.

    Raises InputError for a file that is not there or of another kind, and for a scale that is no finite number.
    """
    name, colon, scale = str(text).rpartition(":")
    if not colon or Path(text).is_file():
        name, scale = str(text), "1"
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{argument} {text}: the scale {scale!r} is no number; write FILE or FILE:SCALE")
    if not Path(name).is_file():
        raise InputError(f"{argument} {text}: {name} does not exist")
    if Path(name).suffix != ".safetensors":
        raise InputError(f"{argument} {text}: {name} is not a safetensors file; convert it first")
    return Path(name), value
