"""PlayCanvas' packed splats: 256 at a time share ranges, and each takes four words of 32 bits.

Positions and log-scales have 11, 10 and 11 bits, colours and opacities 8, rotations the index of the largest component
and 10 bits for each of the others; harmonics beyond the first a byte each, in steps of 1/32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...utils.errors import InputError
from ..formats.ply_data import Element
from .cloud import GaussianCloud
from .harmonics import C0

Array = NDArray[Any]
CHUNK = 256
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
SPANS = (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
RANGES = tuple(f"{end}_{name}" for span in SPANS for end in ("min", "max") for name in span)
BITS = (11, 10, 11)
STEP = 1 / 32  # of a harmonic


def unpack(elements: dict[str, Element], where: str) -> GaussianCloud:
    """The cloud of a packed PLY; files without ranges of colours have colours in [0, 1]."""
    vertices, chunks = elements["vertex"], elements.get("chunk")
    count = vertices.length
    if chunks is None or chunks.length < -(-count // CHUNK) or not set(RANGES[:12]) <= set(chunks.names):
        raise InputError(f"{where} is packed but does not have the ranges of {-(-count // CHUNK)} chunks")
    index = np.arange(count) // CHUNK

    def spread(unit: Array, names: tuple[str, ...]) -> Array:
        if not {f"{end}_{name}" for end in ("min", "max") for name in names} <= chunks.columns.keys():
            return unit
        low, high = (np.stack([chunks.columns[f"{end}_{n}"] for n in names], 1)[index] for end in ("min", "max"))
        return low * (1 - unit) + high * unit

    means, scales = (spread(_split(vertices.columns[PACKED[i]], BITS), SPANS[j]) for i, j in ((0, 0), (2, 1)))
    rgba = _split(vertices.columns["packed_color"], (8, 8, 8, 8))
    colors = spread(rgba[:, :3], SPANS[2])
    word = vertices.columns["packed_rotation"].astype(np.uint32)
    small = (_split(word, (10, 10, 10)) - 0.5) * math.sqrt(2)
    quaternions = _with_largest(small, (word >> 30).astype(np.int64))
    sh = np.zeros((count, 1, 3), np.float32)
    sh[:, 0] = (colors - 0.5) / C0
    rest = elements.get("sh")
    if rest is not None:
        sh = np.concatenate([sh, _rest(rest, count, where)], axis=1)
    alpha = torch.from_numpy(rgba[:, 3])
    place, size, turn, color = (
        torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (means, scales, quaternions, sh)
    )
    return GaussianCloud(place, size, turn, torch.logit(alpha.double().clamp(1e-6, 1 - 1e-6)).float(), color)


def pack(cloud: GaussianCloud) -> tuple[Array, Array, Array]:
    """(ranges (chunks, 18) <f4, words (N, 4) <u4, harmonics (N, 3 (K - 1)) u1), in an order that keeps chunks small."""
    cloud = cloud[torch.from_numpy(z_order(cloud.means.numpy()))]
    count = len(cloud)
    firsts = np.arange(0, count, CHUNK)
    values = (cloud.means, cloud.log_scales.clamp(-20, 20), cloud.colors)
    tables, units = [], []
    for value in values:
        array = value.numpy()
        low, high = (f.reduceat(array, firsts).astype("<f4") for f in (np.minimum, np.maximum))
        tables += [low, high]
        index = np.arange(count) // CHUNK
        units.append((array - low[index]) / np.maximum(high - low, 1e-12)[index])
    turn = torch.nn.functional.normalize(cloud.quaternions.double(), dim=1).numpy()
    rgba = np.concatenate([units[2], cloud.opacities[:, None].numpy()], axis=1)
    words = [_joined(units[0], BITS), _rotation_words(turn), _joined(units[1], BITS), _joined(rgba, (8,) * 4)]
    rest = cloud.sh[:, 1:].mT.reshape(count, 3 * (cloud.sh.shape[1] - 1)).numpy()
    steps = np.clip(np.floor(rest / STEP + 128), 0, 255).astype("u1")
    return np.concatenate(tables, axis=1), np.stack(words, 1).astype("<u4"), steps


def z_order(points: Array) -> Array:
    """An order of points (N, 3) in which neighbours are near each other (Morton's)."""
    low, high = points.min(0), points.max(0)
    cell = ((points - low) / np.maximum(high - low, 1e-12) * 1023).astype(np.uint64)
    code = np.zeros(len(points), np.uint64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cell[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return np.argsort(code, kind="stable")


def _split(words: Array, bits: tuple[int, ...]) -> Array:
    """Fields of words, highest first, as fractions in [0, 1] (N, len(bits))."""
    place, fields, words = sum(bits), [], words.astype(np.uint32)
    for size in bits:
        place -= size
        fields.append(((words >> np.uint32(place)) & np.uint32((1 << size) - 1)) / np.float32((1 << size) - 1))
    return np.stack(fields, 1).astype(np.float32)


def _joined(units: Array, bits: tuple[int, ...]) -> Array:
    """The inverse of `_split`."""
    words = np.zeros(len(units), np.uint32)
    for column, size in enumerate(bits):
        top = (1 << size) - 1
        step = np.clip(np.floor(units[:, column].astype(np.float64) * top + 0.5), 0, top).astype(np.uint32)
        words = (words << np.uint32(size)) | step
    return words


def _with_largest(small: Array, largest: Array) -> Array:
    """Unit quaternions (N, 4) from the three others in order and the place of the largest."""
    missing = np.sqrt(np.maximum(0, 1 - (small.astype(np.float64) ** 2).sum(1)))
    quaternions = np.empty((len(small), 4))
    for place in range(4):
        rows = largest == place
        quaternions[rows] = np.insert(small[rows], place, 0, axis=1)
        quaternions[rows, place] = missing[rows]
    return quaternions


def _rotation_words(turn: Array) -> Array:
    """The index of the largest component (w, x, y, z) in two bits and the others in ten each."""
    largest = np.abs(turn).argmax(1)
    turn = turn * np.sign(np.take_along_axis(turn, largest[:, None], 1))
    others = np.stack([np.delete(row, i) for row, i in zip(turn, largest)]) if len(turn) else np.zeros((0, 3))
    return _joined(others / math.sqrt(2) + 0.5, (10, 10, 10)) | (largest.astype(np.uint32) << np.uint32(30))


def _rest(table: Element, count: int, where: str) -> Array:
    """Harmonics (N, K - 1, 3) beyond the first."""
    names = table.names
    if (
        table.length != count
        or len(names) not in (9, 24, 45)
        or set(names) != {f"f_rest_{i}" for i in range(len(names))}
    ):
        raise InputError(f"{where}: element sh has {len(names)} properties for {table.length} splats")
    steps = np.stack([table.columns[f"f_rest_{i}"] for i in range(len(names))], 1).astype(np.float32) - 127.5
    steps += 0.5 * np.sign(steps) * (np.abs(steps) == 127.5)  # the first and the last byte are the ends of the range
    return (steps * STEP).reshape(count, 3, -1).transpose(0, 2, 1)
