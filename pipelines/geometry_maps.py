"""Maps on their way to the picture's size: mirrored back, resized, put together from tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tasks.codecs import unit_length
from ..tasks.tiling import Box, blend, stitch_affine


@dataclass
class Made:
    """Maps (N, C, H, W) by name, with uncertainties of ensembles."""

    maps: dict[str, Tensor]
    spread: dict[str, Tensor]
    latent: Tensor | None


def mirrored(name: str, maps: Tensor) -> Tensor:
    """Maps of a mirrored image, mirrored back; normals change the sign of x."""
    flipped = maps.flip(3)
    return torch.cat([-flipped[:, :1], flipped[:, 1:]], 1) if name == "normals" else flipped


def resize_map(name: str, maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear; normals become unit vectors again."""
    if tuple(maps.shape[2:]) == tuple(size) and name != "normals":
        return maps
    scaled = F.interpolate(maps, tuple(size), mode="bilinear")
    return unit_length(scaled) if name == "normals" else scaled


def at_size(made: Made, size: tuple[int, int]) -> Made:
    """Maps and uncertainties at a size (H, W)."""
    maps = {name: resize_map(name, value, size) for name, value in made.maps.items()}
    spread = {name: F.interpolate(value, size, mode="bilinear") for name, value in made.spread.items()}
    return replace(made, maps=maps, spread=spread)


def merged(whole: Made, parts: Sequence[Made], boxes: Sequence[Box], height: int, width: int) -> Made:
    """Tiles at their boxes of an H x W picture, depth brought to the scale of the whole, as one."""
    maps, spread = {}, {}
    for name, coarse in whole.maps.items():
        tiles = [part.maps[name] for part in parts]
        spreads = [part.spread[name] for part in parts] if whole.spread else []
        if name == "depth":
            tiles, scales = _stitched(tiles, boxes, resize_map(name, coarse, (height, width)))
            spreads = [part * scale for part, scale in zip(spreads, scales)]
        joined = blend(tiles, boxes, height, width)
        maps[name] = joined.clamp(0, 1) if name == "depth" else unit_length(joined)
        if spreads:
            spread[name] = blend(spreads, boxes, height, width)
    return Made(maps, spread, None)


def _stitched(tiles: Sequence[Tensor], boxes: Sequence[Box], reference: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """(tiles (N, 1, h, w) on one scale, |s| of each (N, 1, 1, 1)) for a coarse map (N, 1, H, W) of the whole."""
    count = len(reference)
    rows = [stitch_affine([tile[i : i + 1] for tile in tiles], boxes, reference[i : i + 1]) for i in range(count)]
    moved = [torch.cat([row.tiles[k] for row in rows]) for k in range(len(boxes))]
    scales = reference.new_tensor([[abs(scale) for scale in row.scales] for row in rows])
    return moved, list(scales.T.reshape(len(boxes), count, 1, 1, 1))
