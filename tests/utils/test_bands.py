"""Images written in bands read back as what they were, by other people's readers."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unproject.utils import bands as module
from unproject.utils.bands import LEVELS, bands, read_exr, write_exr, write_npy, write_npz, write_png, write_tiff
from unproject.utils.errors import InputError, MissingExtraError

HEIGHT, WIDTH = 23, 17


def maps(*shape: int) -> np.ndarray:
    values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    values[1, 2] = np.nan
    return values


def parts(values: np.ndarray, pixels: int = 60) -> Iterator[np.ndarray]:
    return (values[rows] for rows in bands(*values.shape[:2], pixels))


def test_bands_cover_every_row_once() -> None:
    for height, width, pixels in ((23, 17, 60), (1, 5, 1), (7, 10**6, 10), (4, 3, 10**6)):
        rows = [row for part in bands(height, width, pixels) for row in range(height)[part]]
        assert rows == list(range(height))
    assert len(list(bands(23, 17, 60))) == 8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)])
@pytest.mark.parametrize("how", LEVELS)
def test_png_round_trip(tmp_path: Path, dtype: Any, shape: tuple[int, ...], how: Any) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    path = write_png(tmp_path / "a.png", parts(values), len(values), how)
    np.testing.assert_array_equal(png_pixels(path), values)
    seen = np.asarray(Image.open(path))
    same = values if dtype is np.uint8 or len(shape) == 2 else values >> 8  # Pillow has no 16-bit RGB
    np.testing.assert_array_equal(seen, same)


def png_pixels(path: Path) -> np.ndarray:
    """A PNG by the letter: checksums verified, the filter "up" undone row by row."""
    data, at, body = path.read_bytes(), 8, b""
    head: tuple[int, ...] = ()
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + chunk) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        head = struct.unpack(">IIBB", chunk[:10]) if kind == b"IHDR" else head
        body += chunk if kind == b"IDAT" else b""
        at += 12 + length
    width, height, bits, kind_of_color = head
    channels = {0: 1, 2: 3}[kind_of_color]
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, -1)
    assert set(rows[:, 0]) == {2}
    pixels = np.add.accumulate(rows[:, 1:], axis=0, dtype=np.uint8)
    values = np.ascontiguousarray(pixels).view(f">u{bits // 8}").reshape(height, width, channels)
    return values[..., 0] if channels == 1 else values


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)])
@pytest.mark.parametrize("how", LEVELS)
def test_number_formats_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], how: Any
) -> None:
    import tifffile

    monkeypatch.setattr(module, "BAND_PIXELS", 60)
    monkeypatch.setattr(module, "bands", lambda height, width: bands(height, width, 60))
    values, facts = maps(*shape), {"space": "log"}
    write_npz(tmp_path / "a.npz", {"map": values, "none": None, "space": np.array("log")}, how)
    stored = np.load(tmp_path / "a.npz")
    assert stored.files == ["map", "space"] and str(stored["space"]) == "log"
    np.testing.assert_array_equal(stored["map"], values)
    np.testing.assert_array_equal(np.load(write_npy(tmp_path / "a.npy", parts(values), shape)), values)
    path = write_tiff(tmp_path / "a.tiff", parts(values), shape, facts, how)
    np.testing.assert_array_equal(tifffile.imread(path), values)
    with tifffile.TiffFile(path) as file:
        assert json.loads(file.pages[0].description) == facts


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)])
@pytest.mark.parametrize("how", LEVELS)
def test_exr_round_trip(tmp_path: Path, shape: tuple[int, ...], how: Any) -> None:
    exr = pytest.importorskip("OpenEXR")
    values = maps(*shape)
    path = write_exr(tmp_path / "a.exr", parts(values), shape, {"space": "log"}, how)
    found = read_exr(path)
    assert list(found) == (["Y"] if len(shape) == 2 else ["RGB"])
    np.testing.assert_array_equal(next(iter(found.values())), values)
    assert exr.File(str(path)).header()["space"] == "log"
    (tmp_path / "bad.exr").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read as OpenEXR"):
        read_exr(tmp_path / "bad.exr")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(MissingExtraError, match=r"unproject\[exr\]"):
        write_exr(tmp_path / "a.exr", [], (2, 2), {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("write", [lambda p, b: write_png(p, b, 4), lambda p, b: write_npy(p, b, (4, 4))])
def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, write: Callable[[Path, Any], Path]) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((2, 4), np.uint8)
        raise RuntimeError("no more rows")

    with pytest.raises(RuntimeError, match="no more rows"):
        write(tmp_path / "a.png", broken())
    assert os.listdir(tmp_path) == []
