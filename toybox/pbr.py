"""Surfaces by formula: bricks, tiles, planks and their like as tileable maps, exact at any size.

A family is a function of (u, v) in [0, 1)^2, of period 1 in both, that gives a height, which of two finishes is there,
and a tone. From these follow all maps: albedo, roughness and metallic are mixed from the finishes, and the normal is
that of the height, n ~ (-dh/dx, -dh/dy, 1) with x right and y up (the convention of OpenGL and glTF). u runs right and
v down the rows of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..utils.errors import InputError
from .materials import COLOURS_SRGB, colour_linear, srgb_from_linear
from .programs import stable_hash
from .textures import lattice

STEP = 1e-4  # of the differences that make normals, in sides of the tile
EDGE = 0.02  # width of the ramps at edges


class Surface(NamedTuple):
    """What a family says at points (N,)."""

    height: np.ndarray  # [0, 1]
    first: np.ndarray  # [0, 1], share of the first finish
    tone: np.ndarray  # log of a factor on the albedo


class PbrMaps(NamedTuple):
    """A material, float32, rows downwards."""

    albedo_srgb: np.ndarray  # (H, W, 3) in [0, 1]
    normal: np.ndarray  # (H, W, 3) unit, x right, y up, z out of the surface
    height: np.ndarray  # (H, W) in [0, 1]
    roughness: np.ndarray  # (H, W) in [0, 1]
    metallic: np.ndarray  # (H, W) in [0, 1]


@dataclass(frozen=True)
class PbrProgram:
    """One material."""

    family: str
    colours: tuple[str, str]
    roughness: tuple[float, float]
    metallic: tuple[float, float]
    cells: int
    """repeats along a side"""
    relief: float
    """height of the surface, in sides of the tile"""
    seed: int

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError(f"family={self.family!r} is unknown; have {', '.join(FAMILIES)}")
        if self.cells < 1:
            raise InputError(f"cells={self.cells} must be at least 1")


def periodic_noise(u: np.ndarray, v: np.ndarray, cells: int, seed: int) -> np.ndarray:
    """Smooth noise (N,) in [-1, 1] with `cells` cells a side, of period 1."""
    x, y = u * cells, v * cells
    i, j = np.floor(x), np.floor(y)
    s, t = (f * f * (3 - 2 * f) for f in (x - i, y - j))
    total = np.zeros_like(x)
    for a, b in np.ndindex(2, 2):
        corner = np.stack([(i + a) % cells, (j + b) % cells, 0 * i], 1)
        total += (s if a else 1 - s) * (t if b else 1 - t) * lattice(corner, seed)
    return 2 * total - 1


def _ramp(x: np.ndarray, edge: float = EDGE) -> np.ndarray:
    """0 below 0, 1 above `edge`, smooth between."""
    x = np.clip(x / edge, 0, 1)
    return x * x * (3 - 2 * x)


def _blocks(u: np.ndarray, v: np.ndarray, p: PbrProgram, across: int, shift: float, gap: float) -> Surface:
    """Blocks `across` a row and p.cells rows (one more where that is odd and rows are shifted, every other one), with
    joints of `gap` cells."""
    p = replace(p, cells=p.cells + p.cells % 2) if shift else p
    row = np.floor(v * p.cells)
    x = u * across + shift * (row % 2)
    i = np.floor(x)
    inside = np.minimum(
        np.minimum(x - i, 1 - (x - i)) / across, np.minimum(v * p.cells - row, 1 - v * p.cells + row) / p.cells
    )
    top = _ramp(inside - gap / (2 * p.cells))
    value = lattice(np.stack([i % across, row % p.cells, 0 * i], 1), p.seed)
    rough = periodic_noise(u, v, 8 * p.cells, p.seed + 1)
    return Surface(top * (0.8 + 0.15 * value) + 0.03 * (1 + rough) * top, top, 0.5 * (value - 0.5) * top + 0.06 * rough)


def _bricks(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    return _blocks(u, v, p, (p.cells + 1) // 2, 0.5, 0.14)


def _tiles(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    return _blocks(u, v, p, p.cells, 0.0, 0.08)


def _planks(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    found = _blocks(u, v, p, 1, 0.37, 0.06)
    grain = periodic_noise(u, (v * 12) % 1.0, 6 * p.cells, p.seed + 2) * 0.5 + 0.5
    return Surface(found.height * (0.93 + 0.07 * grain), found.first, found.tone - 0.4 * grain * found.first)


def _checks(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    wave = np.sin(2 * np.pi * p.cells * u) * np.sin(2 * np.pi * p.cells * v)
    first = _ramp(wave + 0.05, 0.1)
    return Surface(0.5 + 0.0 * u, first, 0.05 * periodic_noise(u, v, 16, p.seed))


def _studs(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    x, y = (u * p.cells) % 1 - 0.5, (v * p.cells) % 1 - 0.5
    near = np.clip(1 - (x * x + y * y) / 0.33**2, 0, 1)
    return Surface(np.sqrt(near + 1e-4) - 0.01, _ramp(near, 0.2), 0.04 * periodic_noise(u, v, 24, p.seed))


def _weave(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    x, y = u * 2 * p.cells, v * 2 * p.cells
    over = (np.floor(x) + np.floor(y)) % 2
    along = np.where(over > 0, x, y) % 1
    beside = np.where(over > 0, y, x) % 1
    height = np.sin(np.pi * along) * np.sin(np.pi * beside)
    return Surface(height, over, 0.1 * periodic_noise(u, v, 32, p.seed))


def _stones(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    """Cells around scattered points (Worley 1996), the distance to the nearest border as height."""
    x, y = u * p.cells, v * p.cells
    i, j = np.floor(x), np.floor(y)
    places = []
    for a, b in np.ndindex(3, 3):
        cx, cy = i + a - 1, j + b - 1
        corner = np.stack([cx % p.cells, cy % p.cells, 0 * cx], 1)
        px, py = cx + 0.15 + 0.7 * lattice(corner, p.seed), cy + 0.15 + 0.7 * lattice(corner, p.seed + 1)
        places.append(((px - x) ** 2 + (py - y) ** 2, lattice(corner, p.seed + 2)))
    distances = np.sqrt(np.stack([d for d, _ in places]))
    order = np.argsort(distances, 0)
    first, second = (np.take_along_axis(distances, order[k : k + 1], 0)[0] for k in (0, 1))
    value = np.take_along_axis(np.stack([w for _, w in places]), order[:1], 0)[0]
    top = _ramp(second - first - 0.06, 0.25)
    return Surface(top * (0.7 + 0.3 * value), top, 0.7 * (value - 0.5) * top)


def _stripes(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    first = _ramp(np.sin(2 * np.pi * p.cells * u) + 0.1, 0.2)
    return Surface(0.4 + 0.2 * first, first, 0.05 * periodic_noise(u, v, 16, p.seed))


def _waves(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    bend = 0.6 * periodic_noise(u, v, 3, p.seed)
    height = 0.5 + 0.5 * np.sin(2 * np.pi * p.cells * v + 2 * bend)
    return Surface(height, height, 0.2 * bend)


def _clouds(u: np.ndarray, v: np.ndarray, p: PbrProgram) -> Surface:
    noise = sum(0.5**k * periodic_noise(u, v, p.cells * 2**k, p.seed + k) for k in range(4)) / 1.9
    height = 0.5 + 0.5 * np.asarray(noise)
    return Surface(height, _ramp(height - 0.35, 0.3), 0.3 * np.asarray(noise))


Family = Callable[[np.ndarray, np.ndarray, PbrProgram], Surface]
LABELLED: dict[str, Family] = {
    "bricks": _bricks, "tiles": _tiles, "planks": _planks, "checks": _checks, "studs": _studs, "weave": _weave,
}  # fmt: skip
PICTURED: dict[str, Family] = {"stones": _stones, "stripes": _stripes, "waves": _waves, "clouds": _clouds}
"""families that training sees as pictures alone, without maps"""
FAMILIES = LABELLED | PICTURED
RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], bool]] = {
    "bricks": ((0.75, 0.95), (0.85, 1.0), False),
    "tiles": ((0.08, 0.35), (0.7, 0.9), False),
    "planks": ((0.45, 0.75), (0.8, 0.95), False),
    "checks": ((0.1, 0.9), (0.1, 0.9), False),
    "studs": ((0.15, 0.45), (0.3, 0.6), True),
    "weave": ((0.6, 0.95), (0.6, 0.95), False),
    "stones": ((0.6, 0.95), (0.85, 1.0), False),
    "stripes": ((0.1, 0.9), (0.1, 0.9), True),
    "waves": ((0.05, 0.3), (0.2, 0.5), False),
    "clouds": ((0.5, 0.9), (0.7, 1.0), False),
}  # roughness of the first and of the second finish, and whether it may be of metal


def draw_pbr(split: str, index: int, families: tuple[str, ...] = tuple(LABELLED)) -> PbrProgram:
    """Material `index` of a split; the same on every machine."""
    seed = stable_hash("pbr", split, *families, index)
    rng = np.random.default_rng(seed)
    family = families[int(rng.integers(len(families)))]
    first, second, metal = RANGES[family]
    names = list(COLOURS_SRGB)
    a, b = rng.permutation(len(names))[:2]
    return PbrProgram(
        family,
        (names[a], names[b]),
        (float(rng.uniform(*first)), float(rng.uniform(*second))),
        (float(metal and rng.random() < 0.6), 0.0),
        int(rng.integers(2, 6)),
        float(rng.uniform(0.03, 0.1)),
        seed % 2**31,
    )


def pbr_caption(program: PbrProgram) -> str:
    """What one would call it."""
    metal = "metal " if program.metallic[0] > 0.5 else ""
    return f"{program.colours[0]} {metal}{program.family} with {program.colours[1]}"


def pbr_maps(program: PbrProgram, size: int, samples: int = 2) -> PbrMaps:
    """The maps at size x size px, each pixel the mean of samples x samples points."""
    places = (np.arange(size * samples) + 0.5) / (size * samples)
    v, u = (part.ravel() for part in np.meshgrid(places, places, indexing="ij"))
    at = FAMILIES[program.family]
    here = at(u, v, program)
    slopes = [
        (at((u + du) % 1, (v + dv) % 1, program).height - at((u - du) % 1, (v - dv) % 1, program).height) / (2 * STEP)
        for du, dv in ((STEP, 0.0), (0.0, STEP))
    ]
    normal = np.stack([-program.relief * slopes[0], program.relief * slopes[1], np.ones_like(u)], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    one, other = (colour_linear(name) for name in program.colours)
    share = here.first[:, None]
    albedo = np.clip((share * one + (1 - share) * other) * np.exp(here.tone)[:, None], 0, 1)

    def pooled(values: np.ndarray) -> np.ndarray:
        return values.reshape(size, samples, size, samples, -1).mean((1, 3)).astype(np.float32)

    def mixed(pair: tuple[float, float]) -> np.ndarray:
        return np.clip(pooled(here.first * pair[0] + (1 - here.first) * pair[1])[..., 0], 0, 1)

    mean = pooled(normal)
    return PbrMaps(
        srgb_from_linear(pooled(albedo)).astype(np.float32),
        mean / np.linalg.norm(mean, axis=-1, keepdims=True),
        np.clip(pooled(here.height)[..., 0], 0, 1),
        mixed(program.roughness),
        mixed(program.metallic),
    )
