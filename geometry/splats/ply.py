"""Splats as PLY: the table of floats of 3DGS, exact, and the packed one of PlayCanvas; headers are checked first.

3DGS (Kerbl et al. 2023): f_rest is channel-major, opacity a logit, scales logs, rot a quaternion (w, x, y, z) of any
length; `comment SplatRenderMode: mip` or `2dgs` says how it is to be drawn, and a file without scale_2 is flat.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...utils.errors import InputError
from .cloud import MODES, GaussianCloud
from .packing import CHUNK, PACKED, RANGES, pack, unpack

Array = NDArray[Any]
HEADER_MAX = 1 << 16  # bytes
FLAT_LOG_SCALE = -16.0  # of the missing axis of flat Gaussians, about a tenth of a micrometre
KINDS = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A PLY file: its elements as structured arrays that share the file's memory."""

    elements: dict[str, Array]
    mode: str  # of SplatRenderMode


def names_of(rest: int, flat: bool = False) -> list[str]:
    """The properties of a 3DGS file with `rest` numbers of harmonics beyond the first, in order."""
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(rest)]
    return [*names, "opacity", "scale_0", "scale_1", *([] if flat else ["scale_2"]), *(f"rot_{i}" for i in range(4))]


def read_table(data: bytes, where: str) -> Table:
    """The elements of a binary PLY. Raises InputError when the header is damaged or promises more than there is."""
    end = data.find(b"end_header", 0, HEADER_MAX)
    if not data.startswith(b"ply") or end < 0:
        raise InputError(f"{where} is no PLY: it has no header of at most {HEADER_MAX} bytes")
    start = data.find(b"\n", end) + 1
    lines = data[:end].decode("ascii", "replace").splitlines()[1:]
    formats = [line.split()[1:2] for line in lines if line.startswith("format")]
    orders = {"binary_little_endian": "<", "binary_big_endian": ">"}
    if len(formats) != 1 or not formats[0] or formats[0][0] not in orders or not start:
        raise InputError(f"{where} is no binary PLY; save it as binary_little_endian")
    order, elements = orders[formats[0][0]], {}
    for name, count, fields in _declared(lines, order, where):
        try:
            kind = np.dtype(fields)
        except ValueError as error:
            raise InputError(f"{where}: element {name} names a property twice") from error
        size = count * kind.itemsize
        if start + size > len(data):
            raise InputError(f"{where} promises {count} of {name}, {size} bytes, but ends after {len(data) - start}")
        elements[name] = np.frombuffer(data, kind, count, start)
        start += size
    found = re.search(r"^comment\s+SplatRenderMode:\s*(\S+)", "\n".join(lines), re.M)
    mode = found[1].lower() if found else "default"
    return Table(elements, mode if mode in MODES else "default")


def _declared(lines: list[str], order: str, where: str) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """(name, count, fields) of the elements of a header."""
    found: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in lines:
        words = line.split()
        if words[:1] == ["element"]:
            if len(words) != 3 or not words[2].isdecimal() or len(words[2]) > 12:
                raise InputError(f"{where}: header line {line!r} is damaged")
            found.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in KINDS or not found:
                raise InputError(f"{where}: header line {line!r} cannot be read; splats have plain properties only")
            found[-1][2].append((words[2], order + KINDS[words[1]]))
    return [(name, count, fields) for name, count, fields in found if fields]


def is_splats(data: bytes) -> bool:
    """Whether a PLY file holds splats rather than a mesh or points."""
    head = data[: data.find(b"end_header", 0, HEADER_MAX)]
    return b" rot_0" in head or b" packed_rotation" in head


def read_ply(data: bytes, where: str) -> GaussianCloud:
    """Splats of either kind of PLY. Raises InputError for anything else."""
    table = read_table(data, where)
    vertices = table.elements.get("vertex")
    if vertices is None or vertices.dtype.names is None:
        raise InputError(f"{where} has no element vertex")
    if set(PACKED) <= set(vertices.dtype.names):
        return unpack(table.elements, where)
    flat = "scale_2" not in vertices.dtype.names
    rest = sum(name.startswith("f_rest_") for name in vertices.dtype.names)
    if rest not in (0, 9, 24, 45):
        raise InputError(f"{where} has {rest} properties f_rest; have 0, 9, 24 or 45 (degrees 0 to 3)")
    needed = [name for name in names_of(rest, flat) if name not in ("nx", "ny", "nz")]
    missing = [name for name in needed if name not in vertices.dtype.names]
    if missing:
        raise InputError(f"{where} holds no splats: property {missing[0]} is missing")

    def columns(*names: str) -> torch.Tensor:
        values = np.empty((len(vertices), len(names)), np.float32)
        for i, name in enumerate(names):
            values[:, i] = vertices[name]
        return torch.from_numpy(values)

    scales = columns("scale_0", "scale_1", "scale_1" if flat else "scale_2")
    if flat:
        scales[:, 2] = FLAT_LOG_SCALE
    first = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    more = columns(*(f"f_rest_{i}" for i in range(rest))).view(len(vertices), 3, rest // 3).mT
    return GaussianCloud(
        columns("x", "y", "z"),
        scales,
        columns("rot_0", "rot_1", "rot_2", "rot_3"),
        columns("opacity")[:, 0],
        torch.cat([first, more], dim=1),
        "2dgs" if flat else table.mode,
    )


def write_ply(cloud: GaussianCloud) -> bytes:
    """The table of 3DGS: float32 as they are, zero normals."""
    cloud = cloud.detached()
    flat, rest = cloud.mode == "2dgs", 3 * (cloud.sh.shape[1] - 1)
    parts = [
        cloud.means,
        torch.zeros_like(cloud.means),
        cloud.sh[:, 0],
        cloud.sh[:, 1:].mT.reshape(len(cloud), rest),
        cloud.logits[:, None],
        cloud.log_scales[:, : 2 if flat else 3],
        cloud.quaternions,
    ]
    table = torch.cat(parts, dim=1).numpy().astype("<f4")
    return _header(cloud, [("vertex", len(cloud), [("float", n) for n in names_of(rest, flat)])]) + table.tobytes()


def write_packed_ply(cloud: GaussianCloud) -> bytes:
    """The packed table of PlayCanvas: 16 bytes a Gaussian, ranges for each 256, harmonics in a byte each."""
    cloud = cloud.detached()
    ranges, packed, rest = pack(cloud)
    elements = [
        ("chunk", -(-len(cloud) // CHUNK), [("float", name) for name in RANGES]),
        ("vertex", len(cloud), [("uint", name) for name in PACKED]),
    ]
    if rest.shape[1]:
        elements.append(("sh", len(cloud), [("uchar", f"f_rest_{i}") for i in range(rest.shape[1])]))
    return _header(cloud, elements) + ranges.tobytes() + packed.tobytes() + rest.tobytes()


def _header(cloud: GaussianCloud, elements: list[tuple[str, int, list[tuple[str, str]]]]) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0"]
    if cloud.mode != "default":
        lines.append(f"comment SplatRenderMode: {cloud.mode}")
    for name, count, properties in elements:
        lines += [f"element {name} {count}", *(f"property {kind} {field}" for kind, field in properties)]
    return ("\n".join([*lines, "end_header"]) + "\n").encode()
