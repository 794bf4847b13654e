"""COLMAP's models on disk: cameras and images, as text or binary."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import InputError, damage
from .lenses import Lens, lens_of_colmap

# number in cameras.bin: name, count of parameters
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
}


class Posed(NamedTuple):
    """An image of a model."""

    pose: list[float]  # world to camera: qw, qx, qy, qz, tx, ty, tz
    lens: Lens
    name: str


def read_model(folder: Path) -> list[Posed]:
    """The images of a model by their id; text where there is text, else binary.

    Raises InputError for missing, damaged and unsupported ones.
    """
    text = (folder / "cameras.txt").is_file() or not (folder / "cameras.bin").is_file()
    try:
        entries = _text(folder) if text else _binary(folder)
    except (KeyError, IndexError, ValueError, OverflowError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        kind = "text" if text else "binary"
        raise InputError(f"{folder} is not a usable COLMAP {kind} model: {damage(error)}") from error
    if not entries:
        raise InputError(f"{folder / ('images.txt' if text else 'images.bin')} lists no images")
    for entry in entries.values():
        turn = math.hypot(*entry.pose[:4])
        if len(entry.pose) != 7 or not all(map(math.isfinite, entry.pose)) or not 1e-6 < turn < 1e6:
            raise InputError(f"{folder}: the image {entry.name[:80]} has no usable pose: {entry.pose}")
    return [entry for _, entry in sorted(entries.items())]


def has_points(folder: Path) -> bool:
    """Whether the model holds 3D points, which cameras do not carry."""
    text, binary = folder / "points3D.txt", folder / "points3D.bin"
    if text.is_file():
        with open(text, encoding="utf-8", errors="replace") as file:
            return any(line.strip() and not line.startswith("#") for line in file)
    return binary.is_file() and binary.stat().st_size > 8  # its count


def read_points(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Positions (N, 3) and colours (N, 3) of the model's points, text or binary; N is 0 where there are none.

    Raises InputError for damaged ones.
    """
    text = (folder / "points3D.txt").is_file()
    if not has_points(folder):
        return np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
    try:
        rows = _text_points(folder) if text else _binary_points(folder)
    except (IndexError, ValueError, struct.error) as error:
        raise InputError(f"{folder} has no usable points3D.{'txt' if text else 'bin'}: {error!r}") from error
    table = np.array(rows, dtype=np.float64)
    return table[:, :3], table[:, 3:].astype(np.uint8)


def _text_points(folder: Path) -> list[list[float]]:
    return [[float(v) for v in row.split()[1:7]] for row in _lines(folder / "points3D.txt")]


def _binary_points(folder: Path) -> list[tuple[float, ...]]:
    """Number, position, colour, error, and how often each was seen, with pairs of numbers."""
    reader = _Reader(_bytes(folder / "points3D.bin"))
    rows = []
    for _ in range(reader.take("Q")):
        reader.skip(8)
        rows.append(tuple(reader.take(kind) for kind in "dddBBB"))
        reader.skip(8)
        reader.skip(8 * reader.take("Q"))
    return rows


def _text(folder: Path) -> dict[int, Posed]:
    lenses = {}
    for row in map(str.split, _lines(folder / "cameras.txt")):
        values = [float(v) for v in row[4:]]
        lenses[row[0]] = lens_of_colmap(row[1], int(row[2]), int(row[3]), values, folder)
    rows = [row.strip().split(maxsplit=9) for row in _lines(folder / "images.txt", keep_blank=True)[::2] if row.strip()]
    return {int(row[0]): Posed([float(v) for v in row[1:8]], lenses[row[8]], row[9]) for row in rows}


def _binary(folder: Path) -> dict[int, Posed]:
    """Little-endian records behind a count of eight bytes."""
    cameras = _Reader(_bytes(folder / "cameras.bin"))
    lenses = {}
    for _ in range(cameras.take("Q")):
        number, model = cameras.take("I"), cameras.take("i")
        width, height = cameras.take("Q"), cameras.take("Q")
        if model not in MODELS:
            raise InputError(f"{folder}: camera model number {model} is unknown; export the model as text")
        name, count = MODELS[model]
        lenses[number] = lens_of_colmap(name, width, height, [cameras.take("d") for _ in range(count)], folder)
    images, found = _Reader(_bytes(folder / "images.bin")), {}
    for _ in range(images.take("Q")):
        number, pose = images.take("I"), [images.take("d") for _ in range(7)]
        camera, name = images.take("I"), images.word()
        images.skip(24 * images.take("Q"))  # 2D points: x, y, id
        found[number] = Posed(pose, lenses[camera], name)
    return found


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, kind: str) -> Any:
        """The next number."""
        value = struct.unpack_from(f"<{kind}", self._data, self._at)[0]
        self._at += struct.calcsize(f"<{kind}")
        return value

    def word(self) -> str:
        """A name that ends with a zero."""
        end = self._data.index(b"\0", self._at)
        text = self._data[self._at : end].decode("utf-8", errors="replace")
        self._at = end + 1
        return text

    def skip(self, count: int) -> None:
        """Moves on. Raises ValueError beyond the end."""
        self._at += count
        if self._at > len(self._data):
            raise ValueError("the file ends too early")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read as a COLMAP model: {error.strerror}") from error


def _lines(path: Path, keep_blank: bool = False) -> list[str]:
    """Lines without comments. Raises InputError for a missing or binary file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        inner = next((p.parent for p in path.parent.glob("sparse/**/cameras.*")), None) or next(
            (p.parent for p in path.parent.glob("*/cameras.*")), None
        )
        hint = "" if inner is None else f"; the model lies in {inner}"
        raise InputError(f"{path} cannot be read as COLMAP text: {error}{hint}") from error
    return [line for line in text.splitlines() if not line.startswith("#") and (keep_blank or line.strip())]
