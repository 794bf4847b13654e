"""Splats as PLY: the table of floats of 3DGS, exact, and the packed one of PlayCanvas; headers are checked first.

3DGS (Kerbl et al. 2023): f_rest is channel-major, opacity a logit, scales logs, rot a quaternion (w, x, y, z) of any
length; `comment SplatRenderMode: mip` or `2dgs` says how it is to be drawn, and a file without scale_2 is flat.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...utils.errors import InputError
from ..formats.piece import Notes
from ..formats.ply_data import Element, read_elements
from .cloud import MODES, GaussianCloud
from .packing import CHUNK, PACKED, RANGES, pack, unpack

FLAT_LOG_SCALE = -16.0  # of the missing axis of flat Gaussians, about a tenth of a micrometre


def names_of(rest: int, flat: bool = False) -> list[str]:
    """The properties of a 3DGS file with `rest` numbers of harmonics beyond the first, in order."""
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(rest)]
    return [*names, "opacity", "scale_0", "scale_1", *([] if flat else ["scale_2"]), *(f"rot_{i}" for i in range(4))]


def read_ply(data: bytes, where: str) -> GaussianCloud:
    """Splats of either kind of PLY. Raises InputError for anything else, and for headers that promise too much."""
    try:
        header, elements = read_elements(data)
    except (InputError, ValueError) as error:
        raise InputError(f"{where} cannot be read: {error}") from error
    vertices = elements.get("vertex")
    if vertices is None or not vertices.length or any(one.count for one in vertices.properties):
        raise InputError(f"{where} holds no splats: there are no plain rows of vertex")
    if set(PACKED) <= set(vertices.names):
        _name_losses(elements, {"vertex": PACKED, "chunk": RANGES, "sh": None}, where)
        return replace(unpack(elements, where), mode=_mode(data[: header.size]))
    flat = "scale_2" not in vertices.names
    rest = sum(name.startswith("f_rest_") for name in vertices.names)
    if rest not in (0, 9, 24, 45):
        raise InputError(f"{where} has {rest} properties f_rest; have 0, 9, 24 or 45 (degrees 0 to 3)")
    missing = [name for name in names_of(rest, flat) if name not in (*vertices.names, "nx", "ny", "nz")]
    if missing:
        raise InputError(f"{where} holds no splats: property {missing[0]} is missing")
    _name_losses(elements, {"vertex": names_of(rest, flat)}, where)

    def columns(*names: str) -> torch.Tensor:
        values = np.empty((vertices.length, len(names)), np.float32)
        for i, name in enumerate(names):
            values[:, i] = vertices.columns[name]
        return torch.from_numpy(values)

    scales = columns("scale_0", "scale_1", "scale_1" if flat else "scale_2")
    if flat:
        scales[:, 2] = FLAT_LOG_SCALE
    first = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    more = columns(*(f"f_rest_{i}" for i in range(rest))).view(vertices.length, 3, rest // 3).mT
    return GaussianCloud(
        columns("x", "y", "z"),
        scales,
        columns("rot_0", "rot_1", "rot_2", "rot_3"),
        columns("opacity")[:, 0],
        torch.cat([first, more], dim=1),
        "2dgs" if flat else _mode(data[: header.size]),
    )


def _name_losses(elements: dict[str, Element], known: Mapping[str, Collection[str] | None], where: str) -> None:
    """One warning that names the columns and elements which are not read; None: the reader checks the columns."""
    notes = Notes(Path(where))
    for name, element in elements.items():
        if name not in known and element.length:
            notes.add(f"{element.length} rows of element {name}")
        names = known.get(name)
        left = [] if names is None else [column for column in element.names if column not in names]
        if left:
            notes.add(f"columns of {name}: {', '.join(left)}")
    notes.say()


def _mode(header: bytes) -> str:
    """Of the comment SplatRenderMode."""
    found = re.search(rb"^comment\s+SplatRenderMode:\s*(\w+)", header, re.M)
    mode = found[1].decode().lower() if found else "default"
    return mode if mode in MODES else "default"


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
