"""What readers and writers of all formats share: bytes in, damaged files told, tensors as a file's arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...utils.errors import InputError, damage
from ..far import world_positions
from ..stored import NO_ORIGIN, Origin


@contextlib.contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Parsers fail in many ways on damaged files; all become an InputError that names the file. Numbers that overflow
    are found when all are there."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (MemoryError, OSError):
        raise  # of the machine, not of the file
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    except Exception as error:
        raise InputError(f"{path} cannot be read as {path.suffix}: {damage(error)}") from error


def file_bytes(path: Path, suffixes: tuple[str, ...], what: str) -> bytes:
    """The bytes of an existing, non-empty file with a known suffix."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"cannot read a {what} from {path.suffix or path.name!r}; use one of {', '.join(suffixes)}")
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give a {what} file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    if not data:
        raise InputError(f"{path} is empty")
    return data


def picture_name(path: Path, texture: str) -> str:
    """The name of a texture's picture beside the file of a mesh."""
    return f"{path.stem}_{texture}.png"


def text_of(data: bytes) -> str:
    """Bytes as text: UTF-8 without the mark that some editors put first, other bytes as replacement characters; lines
    of any system end in a line feed."""
    return data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def floats(values: Tensor | None) -> NDArray[np.float32] | None:
    """As float32."""
    return None if values is None else values.detach().cpu().float().numpy()


def levels(colors: Tensor | None) -> NDArray[np.uint8] | None:
    """sRGB in [0, 1] as 0 to 255."""
    if colors is None:
        return None
    return np.rint(colors.detach().cpu().float().clamp(0, 1).numpy() * np.float32(255)).astype(np.uint8)


def positions_of(positions: Tensor, origin: Origin) -> NDArray[Any]:
    """float32, or float64 of the world where there is an origin."""
    if origin == NO_ORIGIN:
        return positions.detach().cpu().float().numpy()
    return world_positions(positions, origin)
