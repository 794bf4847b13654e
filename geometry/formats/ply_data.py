"""The PLY container both ways: header, elements with scalar and list properties, text and binary of either end."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import InputError

TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("int64", "long"), "i8"),
    **dict.fromkeys(("uint64", "ulong"), "u8"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
    "float16": "f2",
}
KINDS = {"f4": "float", "f8": "double", "u1": "uchar"}
LONGEST_HEADER = 1 << 24  # bytes
COUNT = re.compile(r"[0-9]{1,18}")


@dataclass
class Property:
    """A column; `count` is the type of a list's length."""

    name: str
    dtype: str
    count: str | None = None


@dataclass
class Element:
    """Rows of one kind."""

    name: str
    length: int
    properties: list[Property] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)  # (N,) arrays; lists: list of (k,) arrays, or (N, k)

    @property
    def names(self) -> list[str]:
        """Its columns."""
        return [one.name for one in self.properties]


@dataclass
class Header:
    """What stands before the data."""

    order: str  # "<", ">", or "" for text
    elements: list[Element]
    texture: str | None  # file name in a comment TextureFile
    size: int  # bytes up to the data


def read_header(path: Path) -> Header:
    """The header of a file, however long. Raises InputError when there is none."""
    with open(path, "rb") as file:
        data = b""
        while b"end_header" not in data and len(data) < LONGEST_HEADER:
            part = file.read(65_536)
            if not part:
                break
            data += part
    return parse_header(data)


def parse_header(data: bytes) -> Header:
    """The header at the beginning of a file's bytes. Raises InputError when it is damaged."""
    end = data.find(b"end_header")
    if not data.startswith(b"ply") or end < 0:
        raise InputError("it has no PLY header")
    line_end = b"\n" if b"\n" in data[:end] else b"\r"  # the old Macintosh's, which numbers may follow as any byte
    size = data.find(line_end, end) + 1 or len(data)
    order, textures = None, []
    elements: list[Element] = []
    for line in data[:end].decode("latin-1").splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "format" and len(words) > 1:
            order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}.get(words[1])
        elif words[0] == "element" and len(words) == 3 and COUNT.fullmatch(words[2]):
            elements.append(Element(words[1], int(words[2])))
        elif words[0] == "property":
            if not elements:
                raise InputError("its header names a property before any element")
            elements[-1].properties.append(_property(words))
        elif words[0] == "comment" and len(words) > 2 and words[1].lower() == "texturefile":
            textures.append(line.split(None, 2)[2].strip())
        elif words[0] not in ("ply", "comment", "obj_info", "element") or words[0] == "element":
            raise InputError(f"its header holds the line {line[:60]!r}")
    if order is None:
        raise InputError("its header names no known format (ascii, binary_little_endian, binary_big_endian)")
    return Header(order, elements, textures[0] if len(textures) == 1 else None, size)


def _property(words: list[str]) -> Property:
    try:
        if words[1] == "list":
            return Property(words[4], TYPES[words[3]], TYPES[words[2]])
        return Property(words[2], TYPES[words[1]])
    except (IndexError, KeyError) as error:
        raise InputError(f"its header holds the line {' '.join(words)[:60]!r}") from error


def read_elements(data: bytes) -> tuple[Header, dict[str, Element]]:
    """All elements with their columns. Raises InputError for a file shorter than its header says."""
    header = parse_header(data)
    source: Any = _Text(data[header.size :]) if not header.order else _Binary(data[header.size :], header.order)
    for element in header.elements:
        if element.length and element.properties:
            element.columns = source.take(element)
    return header, {element.name: element for element in header.elements}


class _Binary:
    def __init__(self, data: bytes, order: str) -> None:
        self._data, self._order, self._at = data, order, 0

    def take(self, element: Element) -> dict[str, Any]:
        """The next element's columns."""
        lengths = self._first_lengths(element)
        dtype = np.dtype(
            [
                field
                for one in element.properties
                for field in (
                    [(one.name, self._order + one.dtype)]
                    if one.count is None
                    else [
                        (f"{one.name} count", self._order + one.count),
                        (one.name, self._order + one.dtype, (lengths[one.name],)),
                    ]
                )
            ]
        )
        if self._at + dtype.itemsize * element.length <= len(self._data):
            table = np.frombuffer(self._data, dtype, element.length, self._at)
            if all((table[f"{name} count"] == length).all() for name, length in lengths.items()):
                self._at += dtype.itemsize * element.length
                return {one.name: table[one.name] for one in element.properties}
        if not lengths:
            raise InputError(f"it ends before its {element.length} rows of {element.name}; the file is incomplete")
        return self._row_by_row(element)

    def _first_lengths(self, element: Element) -> dict[str, int]:
        """The lists' lengths in the first row."""
        found, at = {}, self._at
        for one in element.properties:
            size = np.dtype(one.dtype).itemsize
            if one.count is not None:
                found[one.name], at = self._length(one, at)
                size *= found[one.name]
            at += size
        return found

    def _length(self, one: Property, at: int) -> tuple[int, int]:
        kind = np.dtype(self._order + str(one.count))
        if at + kind.itemsize > len(self._data):
            raise InputError(f"it ends within a list {one.name}; the file is incomplete")
        value = int(np.frombuffer(self._data, kind, 1, at)[0])
        if value < 0 or at + value > len(self._data):
            raise InputError(f"a list {one.name} of {value} values is longer than the file")
        return value, at + kind.itemsize

    def _row_by_row(self, element: Element) -> dict[str, Any]:
        columns: dict[str, list[Any]] = {one.name: [] for one in element.properties}
        for _ in range(element.length):
            for one in element.properties:
                kind, count = np.dtype(self._order + one.dtype), 1
                if one.count is not None:
                    count, self._at = self._length(one, self._at)
                if self._at + count * kind.itemsize > len(self._data):
                    raise InputError(f"it ends before its {element.length} rows of {element.name}")
                values = np.frombuffer(self._data, kind, count, self._at)
                columns[one.name].append(values if one.count is not None else values[0])
                self._at += count * kind.itemsize
        return {one.name: columns[one.name] if one.count else np.array(columns[one.name]) for one in element.properties}


class _Text:
    def __init__(self, data: bytes) -> None:
        words = data.split()
        try:
            self._values = np.array(words).astype(np.float64)
        except ValueError as error:
            odd = next((word for word in words if not _is_number(word)), b"")
            raise InputError(f"its text holds {odd[:40].decode('latin-1')!r} where a number belongs") from error
        self._at = 0

    def take(self, element: Element) -> dict[str, Any]:
        """The next element's columns."""
        if all(one.count is None for one in element.properties):
            width = len(element.properties)
            table = self._next(element.length * width, element).reshape(element.length, width)
            return {one.name: _cast(table[:, i], one) for i, one in enumerate(element.properties)}
        columns: dict[str, list[Any]] = {one.name: [] for one in element.properties}
        for _ in range(element.length):
            for one in element.properties:
                count = 1 if one.count is None else int(_cast(self._next(1, element), Property(one.name, one.count))[0])
                values = _cast(self._next(count, element), one)
                columns[one.name].append(values if one.count is not None else values[0])
        return {one.name: columns[one.name] if one.count else np.array(columns[one.name]) for one in element.properties}

    def _next(self, count: int, element: Element) -> NDArray[np.float64]:
        if count < 0 or self._at + count > len(self._values):
            raise InputError(f"it ends before its {element.length} rows of {element.name}; the file is incomplete")
        self._at += count
        return self._values[self._at - count : self._at]


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _cast(values: NDArray[np.float64], one: Property) -> NDArray[Any]:
    """Numbers of a text as their column's type. Raises InputError for what such a column cannot hold."""
    kind = np.dtype(one.dtype)
    if kind.kind in "ui":
        limits = np.iinfo(kind)
        odd = values[~((values >= limits.min) & (values <= limits.max))]
        if len(odd):
            raise InputError(f"property {one.name} holds {odd[0]:g}, which is no {kind.name}")
    with np.errstate(over="ignore"):
        return values.astype(kind)


Columns = list[tuple[tuple[str, ...], NDArray[Any], str]]


def columns_of(positions: NDArray[Any], normals: NDArray[Any] | None, rgb: NDArray[Any] | None) -> Columns:
    """(names, values (N, 3), type) of what a vertex holds: positions in their own precision, float normals, uchar
    colours."""
    columns: Columns = [(("x", "y", "z"), positions, "f8" if positions.dtype == np.float64 else "f4")]
    if normals is not None:
        columns.append((("nx", "ny", "nz"), normals, "f4"))
    if rgb is not None:
        columns.append((("red", "green", "blue"), rgb, "u1"))
    return columns


def ply_header(columns: Columns, vertices: int, faces: int | None = None) -> bytes:
    """The header of a binary little-endian file."""
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {vertices}"]
    lines += [f"property {KINDS[kind]} {name}" for names, _, kind in columns for name in names]
    if faces is not None:
        lines += [f"element face {faces}", "property list uchar int vertex_indices"]
    return ("\n".join([*lines, "end_header"]) + "\n").encode()


def vertex_rows(columns: Columns) -> NDArray[Any]:
    """The rows of the vertices as the file holds them."""
    table = np.empty(len(columns[0][1]), dtype=[(name, f"<{kind}") for names, _, kind in columns for name in names])
    for names, values, _ in columns:
        for i, name in enumerate(names):
            table[name] = values[:, i]
    return table


def ply_bytes(
    positions: NDArray[Any], normals: NDArray[Any] | None, rgb: NDArray[Any] | None, faces: NDArray[Any] | None = None
) -> bytes:
    """A binary little-endian file: vertices as `columns_of` says, int faces."""
    columns = columns_of(positions, normals, rgb)
    body = vertex_rows(columns).tobytes()
    if faces is not None:
        rows = np.zeros(len(faces), dtype=[("count", "u1"), ("corners", "<i4", (3,))])
        rows["count"], rows["corners"] = 3, faces
        body += rows.tobytes()
    return ply_header(columns, len(positions), None if faces is None else len(faces)) + body
