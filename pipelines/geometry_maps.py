"""Maps on their way to the picture's size: mirrored back, resized, put together from tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from ..tasks.codecs import TargetCodec
from ..tasks.tiling import Box, blend


@dataclass
class Made:
    """Maps (N, C, H, W) by name, with uncertainties of ensembles."""

    maps: dict[str, Tensor]
    spread: dict[str, Tensor]
    latent: Tensor | None


def at_size(made: Made, size: tuple[int, int], codecs: Mapping[str, TargetCodec]) -> Made:
    """Maps and uncertainties at a size (H, W)."""
    maps = {name: codecs[name].resized(value, size) for name, value in made.maps.items()}
    spread = {name: F.interpolate(value, size, mode="bilinear") for name, value in made.spread.items()}
    return replace(made, maps=maps, spread=spread)


def merged(
    whole: Made, parts: Sequence[Made], boxes: Sequence[Box], size: tuple[int, int], codecs: Mapping[str, TargetCodec]
) -> Made:
    """Tiles at their boxes of a picture of a size (H, W), brought to agree with the whole and each other, as one."""
    maps, spread = {}, {}
    for name, coarse in whole.maps.items():
        codec = codecs[name]
        tiles, factors = codec.stitched([part.maps[name] for part in parts], boxes, codec.resized(coarse, size))
        maps[name] = codec.settled(blend(tiles, boxes, *size))
        if whole.spread:
            spreads = [part.spread[name] * factor for part, factor in zip(parts, factors, strict=True)]
            spread[name] = blend(spreads, boxes, *size)
    return Made(maps, spread, None)
