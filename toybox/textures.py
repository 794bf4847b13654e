"""Solid textures of lived-in places: what grain, weave, tiles and print do to an albedo.

Each is a function of a point, in metres on walls and furniture, so it needs no UV map. Noise is value noise on a
hashed lattice (Ebert et al. 2003, ch. 2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Texture = Callable[[np.ndarray, int], np.ndarray]


def lattice(cells: np.ndarray, seed: int) -> np.ndarray:
    """A value in [0, 1) (N,) for each integer cell (N, 3)."""
    x, y, z = (cells[:, i].astype(np.int64).astype(np.uint64) for i in range(3))
    with np.errstate(over="ignore"):
        h = x * np.uint64(0x9E3779B97F4A7C15) ^ y * np.uint64(0xC2B2AE3D27D4EB4F) ^ z * np.uint64(0x165667B19E3779F9)
        h = (h ^ np.uint64(seed & 0x7FFFFFFF)) * np.uint64(0xFF51AFD7ED558CCD)
        h = (h ^ (h >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return (h >> np.uint64(40)).astype(np.float64) / 2.0**24


def noise(p: np.ndarray, seed: int) -> np.ndarray:
    """Smooth noise (N,) in [-1, 1] with one cell a unit."""
    base = np.floor(p)
    t = p - base
    t = t * t * (3 - 2 * t)
    total = np.zeros(len(p))
    for i, j, k in np.ndindex(2, 2, 2):
        weight = (t[:, 0] if i else 1 - t[:, 0]) * (t[:, 1] if j else 1 - t[:, 1]) * (t[:, 2] if k else 1 - t[:, 2])
        total += weight * lattice(base + [i, j, k], seed)
    return 2 * total - 1


def fractal(p: np.ndarray, seed: int, octaves: int = 3) -> np.ndarray:
    """Sum of octaves (N,), each twice as fine and half as strong; about [-1, 1]."""
    return sum((0.5**k * noise(p * 2.0**k + 17.3 * k, seed + k) for k in range(octaves)), np.zeros(len(p))) / 1.5


def _grey(tone: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.exp(tone)[:, None], (len(tone), 3))


def _plaster(p: np.ndarray, seed: int) -> np.ndarray:
    return _grey(0.07 * fractal(0.9 * p, seed) + 0.05 * fractal(14 * p, seed + 9, 2))


def _cloth(p: np.ndarray, seed: int) -> np.ndarray:
    return _grey(0.22 * fractal(35 * p, seed) + 0.12 * fractal(3 * p, seed + 9))


def _carpet(p: np.ndarray, seed: int) -> np.ndarray:
    motif = np.where(noise(2.5 * p, seed + 3) > 0.25, 0.5, 0.0) * (seed % 3 == 0)
    return _grey(0.35 * fractal(30 * p, seed, 2) + 0.15 * fractal(1.5 * p, seed + 9) - motif)


def _marble(p: np.ndarray, seed: int) -> np.ndarray:
    return _grey(-0.5 * np.abs(np.sin(3 * p @ [1.0, 0.7, 0.4] + 4 * fractal(2.5 * p, seed, 4))) ** 8)


def _tiles(p: np.ndarray, seed: int) -> np.ndarray:
    scaled = p * (2.0 + 5.0 * (seed % 7) / 6) + 0.313
    cells, inside = np.floor(scaled), scaled % 1.0
    grout = ((inside < 0.04) | (inside > 0.96)).any(1)
    return _grey(0.25 * (lattice(cells, seed) - 0.5) + 0.06 * fractal(6 * p, seed) - 0.5 * grout * (1 - 2 * (seed % 2)))


def _planks(p: np.ndarray, seed: int) -> np.ndarray:
    along, across = (0, 1) if seed % 2 else (1, 0)
    row = np.floor(p[:, across] * 7.0 + p[:, 2] * 7.0)
    run = np.floor(p[:, along] * 0.8 + lattice(np.stack([row, row, row], 1), seed) * 7)
    board = lattice(np.stack([row, run, 0 * row], 1), seed + 1)
    stretched = p * np.where(np.arange(3) == along, 2.0, 45.0)
    seam = ((p[:, across] * 7.0 + p[:, 2] * 7.0) % 1.0) < 0.06
    return _grey(0.6 * (board - 0.5) + 0.22 * fractal(stretched, seed + 2) - 0.45 * seam)


def _wood(p: np.ndarray, seed: int) -> np.ndarray:
    along = seed % 3
    stretched = p * np.where(np.arange(3) == along, 1.5, 22.0)
    return _grey(0.3 * fractal(stretched, seed) + 0.12 * fractal(1.5 * p, seed + 5))


def _print(p: np.ndarray, seed: int) -> np.ndarray:
    """Blocks and blots of colour and lines of text: covers, posters, screens, labels."""
    fine = 2.0 ** np.floor(4 * lattice(np.floor(2.0 * p + 0.37), seed))
    cells = np.floor(p * fine[:, None] * 2.3 + 0.31)
    block = np.stack([lattice(cells, seed + k) for k in range(3)], 1)
    blot = np.stack([fractal(2.5 * p, seed + 11 + k) for k in range(3)], 1)
    grey, shared = block.mean(1, keepdims=True), blot.mean(1, keepdims=True)
    lines = 0.6 * ((p[:, 2] * 55) % 1.0 < 0.4) * (lattice(cells, seed + 5) > 0.7)
    return np.exp(1.5 * (grey - 0.6) + 0.8 * (block - grey) + 0.9 * shared + 0.5 * (blot - shared) - lines[:, None])


def _paper(p: np.ndarray, seed: int) -> np.ndarray:
    """A wallpaper: one motif again and again."""
    period = 0.12 + 0.4 * (seed % 11) / 10
    folded = np.abs((p / period) % 2.0 - 1.0)
    return _grey(0.35 * np.tanh(3 * fractal(3 * folded + seed % 101, seed)))


TEXTURES: dict[str, Texture] = {
    "plaster": _plaster,
    "cloth": _cloth,
    "carpet": _carpet,
    "marble": _marble,
    "tiles": _tiles,
    "planks": _planks,
    "wood": _wood,
    "print": _print,
    "paper": _paper,
}
