"""Niantic's SPZ: versions 1 to 3 (one gzip stream) are read, version 4 (a zstd stream a column) is read and written.

Columns: positions as 24-bit fixed point, opacities, colours, log-scales in sixteenths, rotations, harmonics, a byte
each; axes are right, up, back, as in glTF. Sizes are checked against the header before anything is unpacked.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...utils.errors import InputError, need_extra
from .cloud import GaussianCloud

Array = NDArray[Any]
MAGIC = 0x5053474E
HEAD, HEAD4 = struct.Struct("<IIIBBBB"), struct.Struct("<IIIBBBBI12x")
DENSEST = 1032  # bytes that a compressed byte may stand for; deflate holds no more
COLOR = 0.15  # of a harmonic's range around grey
ANTIALIASED = 1  # flag
REST = {0: 0, 1: 3, 2: 8, 3: 15, 4: 24}
HALVES = 511 * math.sqrt(2)  # steps of a quaternion's component


def read_spz(data: bytes, where: str) -> GaussianCloud:
    """The cloud in the file's axes. Raises InputError for damaged files, MissingExtraError without zstandard."""
    if data[:2] == b"\x1f\x8b":
        return _read_gzip(data, where)
    if len(data) >= HEAD4.size and struct.unpack_from("<I", data)[0] == MAGIC:
        return _read_streams(data, where)
    raise InputError(f"{where} is no SPZ file")


def _read_gzip(data: bytes, where: str) -> GaussianCloud:
    inflate = zlib.decompressobj(31)
    try:
        head = inflate.decompress(data, HEAD.size)
        if len(head) < HEAD.size:
            raise InputError(f"{where} ends within its header")
        magic, version, count, degree, bits, flags, _ = HEAD.unpack(head)
        if magic != MAGIC or version not in (1, 2, 3):
            raise InputError(f"{where} is no SPZ file of version 1, 2 or 3")
        sizes = _sizes(count, degree, version, bits, where)
        _plausible(sum(sizes), data, where)
        body = inflate.decompress(inflate.unconsumed_tail, sum(sizes)) if sum(sizes) else b""
    except zlib.error as error:
        raise InputError(f"{where} is damaged: {error}") from error
    if len(body) < sum(sizes):
        raise InputError(f"{where} promises {count} splats, {sum(sizes)} bytes, but holds {len(body)}")
    edges = np.cumsum([0, *sizes])
    columns = [body[a:b] for a, b in zip(edges[:-1], edges[1:])]
    return _decoded(columns, version, bits, flags)


def _read_streams(data: bytes, where: str) -> GaussianCloud:
    _, version, count, degree, bits, flags, streams, table = HEAD4.unpack_from(data)
    if version != 4:
        raise InputError(f"{where} is SPZ of version {version}; versions 1 to 4 can be read")
    sizes = _sizes(count, degree, version, bits, where)
    held = [size for size in sizes if size]
    start = table + 16 * streams
    if streams != len(held) or table < HEAD4.size or start > len(data):
        raise InputError(f"{where} has {streams} streams, expected {len(held)} after a table of their sizes")
    _plausible(sum(sizes), data, where)
    columns = []
    for index, size in enumerate(held):
        packed, unpacked = struct.unpack_from("<QQ", data, table + 16 * index)
        if unpacked != size or start + packed > len(data):
            raise InputError(f"{where}: stream {index} of {packed} bytes for {unpacked} does not fit {count} splats")
        columns.append(_unpacked(data[start : start + packed], size, where))
        start += packed
    filled = iter(columns)
    return _decoded([next(filled) if size else b"" for size in sizes], version, bits, flags)


def _unpacked(stream: bytes, size: int, where: str) -> bytes:
    zstandard = _zstandard()
    try:
        with zstandard.ZstdDecompressor().stream_reader(stream) as reader:
            body: bytes = reader.read(size)
    except zstandard.ZstdError as error:
        raise InputError(f"{where} is damaged: {error}") from error
    if len(body) != size:
        raise InputError(f"{where}: a stream holds {len(body)} bytes instead of {size}")
    return body


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        need_extra("zstandard", "spz")
    return zstandard


def _sizes(count: int, degree: int, version: int, bits: int, where: str) -> list[int]:
    """Bytes of positions, opacities, colours, log-scales, rotations and harmonics."""
    if degree not in REST or not (0 <= bits <= 24):
        raise InputError(f"{where}: SH degree {degree} or {bits} fractional bits cannot be read")
    return [
        count * (6 if version == 1 else 9),
        count,
        3 * count,
        3 * count,
        count * (4 if version > 2 else 3),
        3 * count * REST[degree],
    ]


def _plausible(size: int, data: bytes, where: str) -> None:
    if size > DENSEST * len(data):
        raise InputError(f"{where} promises {size} bytes from {len(data)}, more than compression can hold")


def _decoded(columns: list[bytes], version: int, bits: int, flags: int) -> GaussianCloud:
    positions, alphas, colors, scales, turns, rest = (np.frombuffer(c, np.uint8) for c in columns)
    count = len(alphas)
    if version == 1:
        means = positions.view("<f2").astype(np.float32).reshape(count, 3)
    else:
        parts = positions.reshape(count, 3, 3).astype(np.int32)
        fixed = parts[..., 0] | (parts[..., 1] << 8) | (parts[..., 2] << 16)
        means = (fixed - ((fixed & 0x800000) << 1)).astype(np.float32) / np.float32(1 << bits)
    sh = np.zeros((count, 1 + min(rest.size // max(3 * count, 1), 15), 3), np.float32)
    sh[:, 0] = (colors.reshape(count, 3) / np.float32(255) - np.float32(0.5)) / np.float32(COLOR)
    if sh.shape[1] > 1:  # a fourth degree is left out
        sh[:, 1:] = (rest.reshape(count, -1, 3)[:, : sh.shape[1] - 1].astype(np.float32) - 128) / 128
    turn = _smallest_three(turns.view("<u4")) if version > 2 else _first_three(turns.reshape(count, 3))
    arrays = [
        means,
        scales.reshape(count, 3).astype(np.float32) / 16 - 10,
        turn,
    ]
    alpha = torch.from_numpy(alphas.astype(np.float64) / 255).clamp(1e-6, 1 - 1e-6)
    tensors = [torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays]
    mode = "mip" if flags & ANTIALIASED else "default"
    places, log_scales, quaternions = tensors
    return GaussianCloud(places, log_scales, quaternions, torch.logit(alpha).float(), torch.from_numpy(sh), mode)


def _first_three(steps: Array) -> Array:
    """Quaternions (w, x, y, z) from bytes of x, y and z; w is not negative."""
    xyz = steps.astype(np.float32) / np.float32(127.5) - 1
    w = np.sqrt(np.maximum(0, 1 - (xyz**2).sum(1, keepdims=True)))
    return np.concatenate([w, xyz], axis=1)


def _smallest_three(words: Array) -> Array:
    """Quaternions (w, x, y, z) from the index of the largest of (x, y, z, w) and nine bits and a sign of the others."""
    words = words.astype(np.uint32)
    largest, place = words >> 30, np.zeros(len(words), np.uint32)
    xyzw = np.zeros((len(words), 4))
    for axis in range(3, -1, -1):
        rows = largest != axis
        field = (words >> place) & 0x3FF
        value = (field & 0x1FF) / HALVES * np.where(field & 0x200, -1, 1)
        xyzw[:, axis] = np.where(rows, value, 0)
        place = np.where(rows, place + 10, place).astype(np.uint32)
    missing = np.sqrt(np.maximum(0, 1 - (xyzw**2).sum(1)))
    np.put_along_axis(xyzw, largest[:, None].astype(np.int64), missing[:, None], axis=1)
    return np.roll(xyzw, 1, axis=1)


def write_spz(cloud: GaussianCloud) -> bytes:
    """Version 4, in the axes of the cloud: glTF's. Raises MissingExtraError without zstandard."""
    zstandard = _zstandard()
    cloud = cloud.detached()
    reach = max(float(cloud.means.abs().max()), 1e-6)
    bits = int(max(0, min(20, math.floor(math.log2((2**23 - 1) / reach)))))
    if reach * 2**bits > 2**23 - 1:
        raise InputError(f"splats reach {reach:.4g} m from the origin, more than SPZ can hold; scale them down")
    columns = [c.tobytes() for c in _encoded(cloud, bits)]
    packer = zstandard.ZstdCompressor(level=12)
    streams = [(len(c), packer.compress(c)) for c in columns if c]
    flags = ANTIALIASED if cloud.mode == "mip" else 0
    head = HEAD4.pack(MAGIC, 4, len(cloud), cloud.degree, bits, flags, len(streams), HEAD4.size)
    table = b"".join(struct.pack("<QQ", len(packed), size) for size, packed in streams)
    return head + table + b"".join(packed for _, packed in streams)


def _encoded(cloud: GaussianCloud, bits: int) -> list[Array]:
    """The columns as bytes."""

    def steps(values: torch.Tensor) -> Array:
        return values.double().round().clamp(0, 255).to(torch.uint8).numpy()

    fixed = (cloud.means.double() * 2**bits).round().to(torch.int64).numpy() & 0xFFFFFF
    positions = np.stack([fixed & 255, (fixed >> 8) & 255, fixed >> 16], axis=-1).astype(np.uint8)
    turn = torch.nn.functional.normalize(cloud.quaternions.double(), dim=1).numpy()
    xyzw = np.roll(turn, -1, axis=1)
    largest = np.abs(xyzw).argmax(1)
    xyzw = xyzw * np.where(np.take_along_axis(xyzw, largest[:, None], 1) < 0, -1, 1)
    words = np.zeros(len(cloud), np.uint32)
    for axis in range(4):
        size = np.minimum(np.round(np.abs(xyzw[:, axis]) * HALVES), 511).astype(np.uint32)
        field = size | np.where(xyzw[:, axis] < 0, 0x200, 0).astype(np.uint32)
        words = np.where(largest == axis, words, (words << 10) | field).astype(np.uint32)
    words |= largest.astype(np.uint32) << 30
    return [
        positions,
        steps(cloud.opacities * 255),
        steps(cloud.sh[:, 0] * (COLOR * 255) + 127.5),
        steps((cloud.log_scales + 10) * 16),
        words.astype("<u4"),
        steps(cloud.sh[:, 1:] * 128 + 128),
    ]
