"""Large maps out of overlapping tiles: where the tiles lie, how their scales are brought together, how they blend.

Tiles of an affine-invariant map each have their own scale and shift; they are found by one linear least-squares
problem over all overlaps, held by a coarse map of the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError


class Stitched(NamedTuple):
    """Tiles on one scale."""

    tiles: list[Tensor]  # s_i d_i + t_i
    scales: list[float]  # s_i


class Box(NamedTuple):
    """A window in pixels: rows top .. bottom - 1, columns left .. right - 1."""

    top: int
    left: int
    bottom: int
    right: int

    def of(self, image: Tensor) -> Tensor:
        """The window of (..., H, W)."""
        return image[..., self.top : self.bottom, self.left : self.right]

    def overlap(self, other: Box) -> Box | None:
        """The common window, None when there is none."""
        box = Box(*(max(a, b) for a, b in zip(self[:2], other[:2])), *(min(a, b) for a, b in zip(self[2:], other[2:])))
        return box if box.bottom > box.top and box.right > box.left else None

    def within(self, outer: Box) -> Box:
        """This window in the coordinates of a window that contains it."""
        return Box(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)


def tile_boxes(height: int, width: int, tile: int, overlap: int) -> list[Box]:
    """Windows of at most tile x tile px that cover the image, neighbours sharing at least `overlap` px."""
    if not 0 <= overlap < tile:
        raise InputError(f"overlap={overlap} must lie in [0, tile={tile})")
    rows, columns = _starts(height, tile, overlap), _starts(width, tile, overlap)
    return [Box(y, x, min(y + tile, height), min(x + tile, width)) for y in rows for x in columns]


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    if side <= tile:
        return [0]
    count = -(-(side - overlap) // (tile - overlap))
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def blend(tiles: Sequence[Tensor], boxes: Sequence[Box], height: int, width: int) -> Tensor:
    """Weighted mean (B, C, H, W) of tiles (B, C, h, w); weights fall linearly to the tiles' edges, so no seam shows."""
    first = tiles[0]
    total = first.new_zeros((*first.shape[:2], height, width))
    weight = first.new_zeros((1, 1, height, width))
    for tile, box in zip(tiles, boxes, strict=True):
        window = _tent(tile.shape[-2], tile)[:, None] * _tent(tile.shape[-1], tile)[None]
        box.of(total).add_(tile * window)
        box.of(weight).add_(window)
    return total / weight


def _tent(length: int, like: Tensor) -> Tensor:
    """Positive weights (length,) that are largest in the middle."""
    position = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(position, length - position) / (0.5 * length)


def stitch_affine(
    tiles: Sequence[Tensor], boxes: Sequence[Box], reference: Tensor, anchor: float = 0.1, samples: int = 1024
) -> Stitched:
    """Tiles s_i d_i + t_i that agree on their overlaps and with a coarse map of the whole.

    Minimises sum over overlapping pairs of mean((s_i d_i + t_i - s_j d_j - t_j)^2) + anchor sum_i
    mean((s_i d_i + t_i - reference)^2), a linear problem, on at most `samples` pixels a window.

    Args:
        tiles: (1, 1, h, w) each.
        boxes: where they lie.
        reference: (1, 1, H, W), e.g. the prediction for the whole image scaled up.
        anchor: weight of the reference, > 0: it fixes the common scale.
        samples: pixels used per window.
    """
    if anchor <= 0:
        raise InputError(f"anchor={anchor} must be positive: overlaps alone leave the common scale open")
    count = len(tiles)
    rows: list[np.ndarray] = []
    values: list[np.ndarray] = []

    def add(parts: Sequence[tuple[int, Tensor, float]], right: Tensor, weight: float) -> None:
        pick = np.linspace(0, right.numel() - 1, min(samples, right.numel())).astype(int)
        block = np.zeros((len(pick), 2 * count))
        for index, window, sign in parts:
            block[:, 2 * index] = sign * window.flatten().cpu().double().numpy()[pick]
            block[:, 2 * index + 1] = sign
        scale = np.sqrt(weight / len(pick))
        rows.append(scale * block)
        values.append(scale * right.flatten().cpu().double().numpy()[pick])

    for i, (tile, box) in enumerate(zip(tiles, boxes, strict=True)):
        add([(i, tile, 1.0)], box.of(reference), anchor)
        for j in range(i):
            common = box.overlap(boxes[j])
            if common is not None:
                own, other = common.within(box).of(tile), common.within(boxes[j]).of(tiles[j])
                add([(i, own, 1.0), (j, other, -1.0)], torch.zeros_like(own), 1.0)
    solution = np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=None)[0]
    scales, shifts = solution[::2].tolist(), solution[1::2].tolist()
    return Stitched([tile * scale + shift for tile, scale, shift in zip(tiles, scales, shifts)], scales)


def stitch_images(
    tiles: Sequence[Tensor], boxes: Sequence[Box], reference: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """`stitch_affine` for N images: (tiles (N, 1, h, w) on one scale, |s| of each (N, 1, 1, 1))."""
    count = len(reference)
    rows = [stitch_affine([tile[i : i + 1] for tile in tiles], boxes, reference[i : i + 1]) for i in range(count)]
    moved = [torch.cat([row.tiles[k] for row in rows]) for k in range(len(boxes))]
    scales = reference.new_tensor([[abs(scale) for scale in row.scales] for row in rows])
    return moved, list(scales.T.reshape(len(boxes), count, 1, 1, 1))
