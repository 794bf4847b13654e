"""The containers of glTF 2.0 and the arrays in them: GLB chunks, buffers by file or data address, accessors."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import InputError, damage
from ...utils.files import is_there

MAGIC, VERSION, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
MOST_VALUES = 1 << 24  # of an accessor without data, which is filled with zeros


def split_chunks(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(JSON document, binary chunk) of GLB bytes. Raises InputError when the container is damaged."""
    if len(data) < 20:
        raise InputError(f"a GLB file has at least 20 bytes, this one has {len(data)}")
    magic, version, total = struct.unpack_from("<III", data)
    length, kind = struct.unpack_from("<II", data, 12)
    if magic == MAGIC and version == 1:
        raise InputError("this is a glTF 1.0 binary, which is another format; export it as glTF 2.0")
    if magic != MAGIC or version != VERSION or kind != JSON_CHUNK or total > len(data) or 20 + length > len(data):
        raise InputError("this is not a complete glTF 2.0 binary; export it again")
    document = parse_document(data[20 : 20 + length])
    start = 20 + length
    while start + 8 <= len(data):  # chunks of unknown kinds are to be skipped
        size, kind = struct.unpack_from("<II", data, start)
        if kind == BIN_CHUNK:
            return document, data[start + 8 : start + 8 + size]
        start += 8 + size
    return document, b""


def parse_document(text: bytes) -> dict[str, Any]:
    """The JSON of a glTF file. Raises InputError when it is damaged."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the JSON of the glTF is damaged: {damage(error)}") from error
    if not isinstance(document, dict):
        raise InputError("the JSON of the glTF is not an object")
    about = document.get("asset", {})
    if not isinstance(about, dict):
        raise InputError("the glTF's entry asset is not an object")
    version = str(about.get("version", "2.0"))
    if not version.startswith("2."):
        raise InputError(f"this is glTF {version}; export it as glTF 2.0")
    least = str(about.get("minVersion", "2.0"))
    if least != "2.0":
        raise InputError(f"this needs a reader of glTF {least[:20]}; export it as glTF 2.0")
    return document


class Accessors:
    """Arrays and bytes of a document, read when they are asked for."""

    def __init__(self, document: dict[str, Any], blob: bytes, folder: Path) -> None:
        self.document, self._blob, self._folder = document, blob, folder
        self._buffers: dict[int, bytes] = {}
        self._given: dict[int, NDArray[Any]] = {}

    def array(self, index: int, colors: bool = False) -> NDArray[Any]:
        """(N, C) of an accessor: stored type, or float64 where it is normalised (colours always are)."""
        entry = self.document["accessors"][index]
        dtype, width, count = np.dtype(COMPONENTS[entry["componentType"]]), WIDTHS[entry["type"]], entry["count"]
        if index in self._given:
            values = self._given[index]
        elif "bufferView" in entry:
            values = self._strided(entry["bufferView"], entry.get("byteOffset", 0), dtype, width, count)
        elif "sparse" in entry and 0 <= count * width < MOST_VALUES:
            values = np.zeros((count, width), dtype)
        else:
            raise InputError(f"accessor {index} has no data; the file is incomplete or compressed")
        if "sparse" in entry:
            values = self._patched(values.copy(), entry["sparse"])
        if dtype.kind != "f" and (colors or entry.get("normalized")):
            return np.asarray(np.maximum(values.astype(np.float64) / np.iinfo(dtype).max, -1.0))
        return values

    def give(self, index: int, values: NDArray[Any]) -> None:
        """What an accessor without data holds, (N, C) decompressed. Raises InputError where it does not fit."""
        entry = self.document["accessors"][index]
        shape = (entry["count"], WIDTHS[entry["type"]])
        if values.shape != shape:
            raise InputError(f"accessor {index} has {shape} values and {values.shape} were decompressed")
        self._given[index] = values.astype(COMPONENTS[entry["componentType"]])

    def view(self, index: int) -> bytes:
        """The bytes of a buffer view."""
        view = self.document["bufferViews"][index]
        start, size = view.get("byteOffset", 0), view["byteLength"]
        data = self._buffer(view["buffer"])
        if start < 0 or size < 0 or start + size > len(data):
            raise InputError(f"buffer view {index} reaches beyond its buffer; the file is incomplete")
        return data[start : start + size]

    def resolve(self, uri: str) -> bytes:
        """The bytes of a data address or of a file beside the glTF. Raises InputError for anything else."""
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            try:
                return base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote(body).encode()
            except binascii.Error as error:
                raise InputError(f"a data address of the glTF is damaged: {error}") from error
        if "://" in uri:
            raise InputError(f"{uri} is an address; nothing is fetched: save the file beside the glTF")
        path = self._folder / unquote(uri)
        if not is_there(path):
            raise InputError(f"{str(path)[:200]} is missing; it belongs beside the glTF")
        return path.read_bytes()

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            uri = self.document["buffers"][index].get("uri")
            self._buffers[index] = self._blob if uri is None else self.resolve(uri)
        return self._buffers[index]

    def _strided(self, view: int, offset: int, dtype: np.dtype[Any], width: int, count: int) -> NDArray[Any]:
        packed = width * dtype.itemsize
        stride = self.document["bufferViews"][view].get("byteStride", packed)
        data = self.view(view)
        if stride < packed:  # rows that lie on each other would be any number of them
            raise InputError(f"buffer view {view} has rows of {stride} bytes for values of {packed}")
        return np.ndarray((count, width), dtype, data, offset=offset, strides=(stride, dtype.itemsize))

    def _patched(self, values: NDArray[Any], sparse: dict[str, Any]) -> NDArray[Any]:
        """An accessor with some rows replaced."""
        where, what, count = sparse["indices"], sparse["values"], sparse["count"]
        kind = np.dtype(COMPONENTS[where["componentType"]])
        rows = self._strided(where["bufferView"], where.get("byteOffset", 0), kind, 1, count)[:, 0]
        values[rows] = self._strided(
            what["bufferView"], what.get("byteOffset", 0), values.dtype, values.shape[1], count
        )
        return values
