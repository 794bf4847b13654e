"""Large arrays written a band of rows at a time, so that writing needs little more memory than the array itself."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .errors import InputError, need_extra
from .files import atomic_path

Compression = Literal["none", "fast", "small"]
LEVELS: dict[Compression, int] = {"none": 0, "fast": 1, "small": 6}  # of zlib; small takes about five times as long
BAND_PIXELS = 1 << 16
UP = 2  # PNG's filter: bytes less those of the row above
Bands = Iterable[np.ndarray]


def bands(height: int, width: int, pixels: int = BAND_PIXELS) -> Iterator[slice]:
    """Rows of an image in bands of about so many pixels."""
    rows = max(1, pixels // max(width, 1))
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def write_png(path: str | Path, parts: Bands, height: int, compression: Compression = "small") -> Path:
    """A PNG of bands (h, W) or (h, W, 3) of uint8 or uint16, from the top, `height` rows in all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        packer, above = zlib.compressobj(LEVELS[compression]), None
        for part in parts:
            wide = part.dtype.itemsize
            raw = np.ascontiguousarray(part.astype(f">u{wide}", copy=False)).view(np.uint8).reshape(len(part), -1)
            if above is None:
                kind = 0 if part.ndim == 2 else 2
                file.write(b"\x89PNG\r\n\x1a\n")
                file.write(_chunk(b"IHDR", struct.pack(">IIBBBBB", part.shape[1], height, 8 * wide, kind, 0, 0, 0)))
                above = np.zeros_like(raw[0])
            rows = np.empty((len(raw), 1 + raw.shape[1]), np.uint8)
            rows[:, 0], rows[0, 1:] = UP, raw[0] - above
            rows[1:, 1:] = raw[1:] - raw[:-1]
            above = raw[-1].copy()
            file.write(_chunk(b"IDAT", packer.compress(rows.data)))
        file.write(_chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b""))
    return Path(path)


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray | None], compression: Compression = "fast") -> Path:
    """An NPZ of the arrays that are not None."""
    level = LEVELS[compression]
    kind = zipfile.ZIP_DEFLATED if level else zipfile.ZIP_STORED
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", kind, compresslevel=level) as archive:
        for name, values in arrays.items():
            if values is not None:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asanyarray(values), allow_pickle=False)
    return Path(path)


def write_npy(path: str | Path, parts: Bands, shape: tuple[int, ...]) -> Path:
    """An NPY of float32 bands that make up an array of a shape."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, "<f4").data)
    return Path(path)


def write_tiff(
    path: str | Path,
    parts: Bands,
    shape: tuple[int, ...],
    facts: Mapping[str, Any],
    compression: Compression = "fast",
) -> Path:
    """A float32 TIFF of bands of an array (H, W) or (H, W, 3); the facts stand in its description as JSON."""
    import tifffile

    level = LEVELS[compression]
    rows = next(bands(shape[0], shape[1])).stop
    with atomic_path(path) as temporary:
        strips = (np.ascontiguousarray(part, "<f4") for part in parts)
        tifffile.imwrite(
            temporary,
            (zlib.compress(strip.data, level) for strip in strips) if level else strips,
            shape=shape,
            dtype=np.float32,
            photometric="minisblack" if len(shape) == 2 else "rgb",
            rowsperstrip=rows,
            compression="zlib" if level else None,
            description=json.dumps(dict(facts)),
            metadata=None,
            maxworkers=1,
        )
    return Path(path)


def write_exr(
    path: str | Path,
    parts: Bands,
    shape: tuple[int, ...],
    facts: Mapping[str, Any],
    compression: Compression = "fast",
) -> Path:
    """A float32 OpenEXR of bands of an array (H, W), channel Y, or (H, W, 3), channels R, G, B; the facts are
    attributes. Raises MissingExtraError without the extra."""
    exr, imath = need_exr()
    names = ("Y",) if len(shape) == 2 else ("R", "G", "B")
    header = exr.Header(shape[1], shape[0])
    header["channels"] = {name: imath.Channel(imath.PixelType(imath.PixelType.FLOAT)) for name in names}
    packing = {"none": "NO_COMPRESSION", "fast": "ZIPS_COMPRESSION", "small": "ZIP_COMPRESSION"}[compression]
    header["compression"] = imath.Compression(getattr(imath.Compression, packing))
    header |= {name: str(value).encode() for name, value in facts.items()}
    with atomic_path(path) as temporary:
        file = exr.OutputFile(str(temporary), header)
        try:
            for part in parts:
                planes = part[..., None] if part.ndim == 2 else part
                pixels = {name: np.ascontiguousarray(planes[..., i], "<f4").tobytes() for i, name in enumerate(names)}
                file.writePixels(pixels, len(part))
        finally:
            file.close()
    return Path(path)


def read_exr(path: str | Path) -> dict[str, np.ndarray]:
    """The channels (H, W) of an OpenEXR file by name; R, G, B come as RGB (H, W, 3). Raises InputError for what is
    none, MissingExtraError without the extra."""
    exr, _ = need_exr()
    try:
        return {name: np.asarray(channel.pixels) for name, channel in exr.File(str(path)).channels().items()}
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as OpenEXR: {error}") from error


def need_exr() -> tuple[Any, Any]:
    """The packages OpenEXR and Imath. Raises MissingExtraError without them."""
    try:
        import Imath
        import OpenEXR
    except ImportError:
        need_extra("OpenEXR", "exr")
    return OpenEXR, Imath


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
