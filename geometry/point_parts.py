"""The bytes of files of points, some points at a time, so that writing takes little memory whatever their number."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .cameras import to_gltf_points
from .colors import linear_from_srgb
from .formats.border import floats, levels, positions_of
from .formats.ply_data import columns_of, ply_header, vertex_rows
from .glb import ARRAY_BUFFER, FLOAT, container_head
from .stored import NO_ORIGIN, StoredPoints

PART = 1 << 16  # points at a time
LINES = 1 << 12  # of text
PIECE = 1 << 20  # bytes that are read back at a time
POINTS = 0  # glTF's mode
Columns = tuple[NDArray[Any], NDArray[np.float32] | None, NDArray[np.uint8] | None]


def write_parts(parts: Iterable[bytes | memoryview], path: Path) -> bool:
    """Writes the parts one after another; whether the file then holds what was written, by length and checksum."""
    size, wanted = 0, 0
    with open(path, "wb") as file:
        for part in parts:
            size, wanted = size + file.write(part), zlib.crc32(part, wanted)
    found = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            size, found = size - len(piece), zlib.crc32(piece, found)
    return size == 0 and found == wanted


def ply(cloud: StoredPoints) -> Iterator[bytes | memoryview]:
    """Binary little-endian rows."""
    for number, part in enumerate(_columns(cloud, PART)):
        columns = columns_of(*part)
        if number == 0:
            yield ply_header(columns, len(cloud.points))
        yield vertex_rows(columns).data.cast("B")


def glb(cloud: StoredPoints) -> Iterator[bytes | memoryview]:
    """Points of a glTF mesh; colours linear floats, an origin as the node's translation."""
    columns: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {"POSITION": (cloud.points, to_gltf_points)}
    if cloud.normals is not None:
        columns["NORMAL"] = (cloud.normals, to_gltf_points)
    if cloud.colors is not None:
        columns["COLOR_0"] = (cloud.colors, lambda part: linear_from_srgb(part.float().clamp(0, 1)))

    def parts(name: str) -> Iterator[NDArray[np.float32]]:
        values, change = columns[name]
        return (np.ascontiguousarray(floats(change(values[rows])), "<f4") for rows in _rows(cloud, PART))

    bounds = [(part.min(axis=0), part.max(axis=0)) for part in parts("POSITION")]
    low, high = (how(np.stack(side), axis=0).tolist() for how, side in zip((np.min, np.max), zip(*bounds)))
    count, size = len(cloud.points), 12 * len(cloud.points)  # bytes of a column
    x, y, z = cloud.origin
    moved = {} if cloud.origin == NO_ORIGIN else {"translation": [y, z, x]}
    entries: list[dict[str, Any]] = [
        {"bufferView": i, "componentType": FLOAT, "count": count, "type": "VEC3"} for i in range(len(columns))
    ]
    entries[0] |= {"min": low, "max": high}
    yield container_head(
        {
            "asset": {"version": "2.0", "generator": "unproject"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0, "name": "points", **moved}],
            "meshes": [
                {
                    "primitives": [{"attributes": {name: i for i, name in enumerate(columns)}, "mode": POINTS}],
                    "name": "points",
                }
            ],
            "accessors": entries,
            "bufferViews": [
                {"buffer": 0, "byteOffset": i * size, "byteLength": size, "target": ARRAY_BUFFER}
                for i in range(len(columns))
            ],
        },
        len(columns) * size,
    )
    for name in columns:
        for part in parts(name):
            yield part.data.cast("B")


def obj(cloud: StoredPoints) -> Iterator[bytes]:
    """`v x y z [r g b]` in [0, 1] and `vn`, as many as points."""
    digits = 9 if cloud.origin == NO_ORIGIN else 15
    for positions, _, rgb in _columns(cloud, LINES):
        table = positions if rgb is None else np.concatenate([positions, rgb / 255], axis=1)
        yield _lines("v ", table, [f"%.{digits}g"] * 3 + ["%.6g"] * (table.shape[1] - 3))
    for _, normals, _ in _columns(cloud, LINES):
        if normals is not None:
            yield _lines("vn ", normals, ["%.6g"] * 3)


def xyz(cloud: StoredPoints) -> Iterator[bytes]:
    """A line of text for each point: x y z, then r g b from 0 to 255, then nx ny nz, as far as there are such."""
    digits = 9 if cloud.origin == NO_ORIGIN else 15
    for positions, normals, rgb in _columns(cloud, LINES):
        table = [part for part in (positions, rgb, normals) if part is not None]
        form = [f"%.{digits}g"] * 3 + ["%d"] * 3 * (rgb is not None) + ["%.6g"] * 3 * (normals is not None)
        yield _lines("", np.concatenate(table, axis=1), form)


WRITERS: dict[str, Callable[[StoredPoints], Iterator[bytes | memoryview]]] = {
    ".ply": ply,
    ".glb": glb,
    ".obj": obj,
    ".xyz": xyz,
}


def _rows(cloud: StoredPoints, count: int) -> Iterator[slice]:
    return (slice(start, start + count) for start in range(0, len(cloud.points), count))


def _columns(cloud: StoredPoints, count: int) -> Iterator[Columns]:
    """(positions, normals, colours of 8 bits) of so many points at a time."""
    for rows in _rows(cloud, count):
        normals = None if cloud.normals is None else cloud.normals[rows]
        colors = None if cloud.colors is None else cloud.colors[rows]
        yield positions_of(cloud.points[rows], cloud.origin), floats(normals), levels(colors)


def _lines(key: str, table: NDArray[Any], form: list[str]) -> bytes:
    line = key + " ".join(form) + "\n"
    return "".join([line % tuple(row) for row in table.tolist()]).encode("ascii")
