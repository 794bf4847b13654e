"""Splats field by field, in units of the last bit that a file keeps of each: what `splat_oracles` compares with."""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..geometry.formats.ply_data import read_elements
from ..geometry.splats import GaussianCloud
from ..geometry.splats.cloud import quaternion_product
from ..geometry.splats.files import suffix_of
from ..geometry.splats.gltf import gltf_axes
from ..geometry.splats.harmonics import C0
from ..geometry.splats.packing import BITS, CHUNK, SPANS, STEP
from ..geometry.splats.spz import COLOR, HALVES, HEAD
from ..utils.errors import UnprojectError

Fields = dict[str, Tensor]
FIELDS = ("positions", "sizes", "rotations", "opacities", "colours", "harmonics")
LIGHT = 1e-6  # of opacities in bytes and GLB, which readers keep from their infinite logits


def in_its_axes(cloud: GaussianCloud, path: Path) -> GaussianCloud:
    """A cloud that `load_splats` read, in float64 and the axes of the numbers in the file."""
    cloud = cloud.to(torch.float64)
    return gltf_axes(cloud) if suffix_of(path) in (".spz", ".glb") else cloud


def held(cloud: GaussianCloud, path: Path) -> Fields:
    """What a format keeps of a cloud, float64: sizes as logarithms and opacities as logits only where it does, all
    within its range; rotations are unit quaternions."""
    kind = suffix_of(path)
    plain = kind == ".ply"
    sizes, base, rest = cloud.log_scales, cloud.sh[:, 0], cloud.sh[:, 1:]
    if kind == ".compressed.ply":
        sizes, rest = sizes.clamp(-20, 20), rest.clamp(-128 * STEP, 128 * STEP)
    if kind == ".spz":
        grey = 0.5 / COLOR
        sizes, base, rest = sizes.clamp(-10, 255 / 16 - 10), base.clamp(-grey, grey), rest.clamp(-1, 127 / 128)
    if kind == ".splat":
        base, rest = base.clamp(-0.5 / C0, 0.5 / C0), rest[:, :0]
    return {
        "positions": cloud.means,
        "sizes": sizes,
        "rotations": torch.nn.functional.normalize(cloud.quaternions, dim=1),
        "opacities": cloud.logits if plain else torch.sigmoid(cloud.logits).clamp(LIGHT, 1 - LIGHT),
        "colours": base,
        "harmonics": rest,
    }


def last_bits(path: Path, read: GaussianCloud) -> Fields:
    """The least difference that a file can express of each field, at each splat of what was read from it in order.

    Of floats that is the distance to the next float32: for rotations at 1, and in GLB, where splats are turned, for
    harmonics at the largest of a splat; where numbers are kept as others (sizes as lengths, opacities as shares), what
    the last bit of those is worth.
    """
    kind, fields = suffix_of(path), held(read, path)
    steps = {name: _spacing(values) for name, values in fields.items()} | _even(fields, rotations=2.0**-23)
    if kind == ".splat":
        steps |= _even(fields, rotations=1 / 128, opacities=1 / 255, colours=1 / (255 * C0))
    if kind == ".spz":
        steps |= _even(
            fields,
            positions=2.0 ** -_fraction_bits(path),
            sizes=1 / 16,
            rotations=1 / HALVES,
            opacities=1 / 255,
            colours=1 / (255 * COLOR),
            harmonics=1 / 128,
        )
    if kind == ".compressed.ply":
        steps |= _even(fields, rotations=math.sqrt(2) / 1023, opacities=1 / 255, harmonics=STEP)
        steps |= _of_chunks(path, len(read))
    if kind in (".splat", ".glb"):
        steps["sizes"] = steps["sizes"].clamp_min(2.0**-23)
    if kind == ".glb":
        light = fields["opacities"]
        steps["opacities"] += light * (1 - light) * _spacing(read.logits)
        steps["harmonics"] += steps["harmonics"].flatten(1).amax(1)[:, None, None] if read.degree else 0
    return steps


def _even(fields: Fields, **steps: float) -> Fields:
    """The same step for all numbers of a field."""
    return {name: torch.full_like(fields[name], step) for name, step in steps.items()}


def _spacing(values: Tensor) -> Tensor:
    return torch.from_numpy(np.spacing(np.abs(values.float().numpy())).astype(np.float64))


def _fraction_bits(path: Path) -> int:
    """Of the positions of an SPZ file; its header begins alike with and without compression."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = zlib.decompressobj(31).decompress(data, HEAD.size)
    return int(struct.unpack_from("<IIIBB", data)[4])


def _of_chunks(path: Path, count: int) -> Fields:
    """Steps of what shares ranges with its neighbours in a packed PLY; a range of nothing has any step."""
    chunks = read_elements(path.read_bytes())[1]["chunk"].columns
    index, steps = np.arange(count) // CHUNK, {}
    for name, axes, tops in (
        ("positions", SPANS[0], [(1 << bits) - 1 for bits in BITS]),
        ("sizes", SPANS[1], [(1 << bits) - 1 for bits in BITS]),
        ("colours", SPANS[2], [255 * C0] * 3),
    ):
        spans = np.stack([chunks[f"max_{a}"].astype(np.float64) - chunks[f"min_{a}"] for a in axes], axis=1)
        steps[name] = torch.from_numpy(np.maximum(spans / np.array(tops), 1e-6)[index])
    return steps


def apart(found: Fields, wanted: Fields, steps: Fields) -> dict[str, float]:
    """The largest difference of each field in its steps.

    Rotations are those of ellipsoids: a quaternion has no sign, and half a turn around an axis of a splat changes
    nothing (mirroring x, y or z of a quaternion, as SPZ's own tools turn splats, is such half turns).
    """
    far = {}
    for name in FIELDS:
        here, there = found[name], wanted[name]
        if here.shape != there.shape:
            raise UnprojectError(f"{name} have the shapes {tuple(here.shape)} and {tuple(there.shape)}")
        if name == "rotations":
            here = _same_ellipsoids(here, there)
        off = torch.where(here == there, 0.0, (here - there).abs() / steps[name])  # also of two infinities
        far[name] = float(off.nan_to_num(nan=math.inf).max()) if off.numel() else 0.0
    return far


def _same_ellipsoids(found: Tensor, wanted: Tensor) -> Tensor:
    """Of the eight quaternions (N, 4) that turn an ellipsoid like those found, the nearest to those wanted."""
    halves = torch.eye(4, dtype=found.dtype)  # no turn, and half a turn around x, y and z
    alike = torch.stack([quaternion_product(found, half.expand_as(found)) for half in halves], dim=1)
    match = (alike * wanted[:, None]).sum(2)
    best = match.abs().argmax(1)
    rows = torch.arange(len(found))
    return alike[rows, best] * torch.where(match[rows, best] < 0, -1.0, 1.0)[:, None]


def in_order_of(found: Fields, other: Fields) -> Fields:
    """Splats in the order of others, whose nearest they are in place and colour.

    Raises UnprojectError when they are not one to one.
    """
    counts = len(found["positions"]), len(other["positions"])
    if counts[0] != counts[1]:
        raise UnprojectError(f"{counts[0]} splats instead of {counts[1]}")
    places = [torch.cat([one["positions"], one["colours"]], dim=1).numpy() for one in (found, other)]
    _, nearest = cKDTree(places[0]).query(places[1])
    if len(np.unique(nearest)) != counts[1]:
        raise UnprojectError("splats are missing, or far from where they were")
    return {name: values[torch.from_numpy(nearest)] for name, values in found.items()}


def turns() -> list[Tensor]:
    """The 24 rotations (4, 4) that map axes to axes."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = torch.zeros(4, 4, dtype=torch.float64)
            matrix[3, 3] = 1
            matrix[torch.arange(3), torch.tensor(order)] = torch.tensor(signs, dtype=torch.float64)
            if torch.linalg.det(matrix) > 0:
                found.append(matrix)
    return found


def turned_to(cloud: GaussianCloud, other: GaussianCloud) -> tuple[GaussianCloud, str]:
    """A cloud in the axes of another in which its centres are nearest, and these in words: "x, -y, -z"."""
    tree = cKDTree(other.means.numpy())

    def distance(matrix: Tensor) -> float:
        return float(tree.query((cloud.means @ matrix[:3, :3].mT).numpy())[0].mean())

    best = min(turns(), key=distance)
    same = torch.equal(best, torch.eye(4, dtype=best.dtype))  # then nothing is computed, and floats stay as they are
    return cloud if same else cloud.transformed(best), axes_of(best)


def axes_of(matrix: Tensor) -> str:
    """Which axes the first three rows of a map of axes to axes take, with their signs."""
    rows = matrix[:3, :3]
    names = ("x", "y", "z")
    return ", ".join(("-" if row.sum() < 0 else "") + names[int(row.abs().argmax())] for row in rows)
