"""Which point belongs to which: nearest and mutual neighbours of descriptors, places between cells, cycles.

Grids of cells are row-major; places are (x, y) in cells of a grid whose first cell's centre is (0.5, 0.5).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import InputError


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (N, M) of descriptors (N, C) and (M, C)."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT


def mutual_nearest(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (i (K,), j (K,)) that are each other's nearest in a matrix (N, M); -inf marks what may not be matched.

    Of equal neighbours the first is taken.
    """
    forward, backward = similarity.argmax(1), similarity.argmax(0)  # (N,), (M,)
    rows = torch.arange(len(similarity), device=similarity.device)
    keep = (backward[forward] == rows) & torch.isfinite(similarity[rows, forward])
    return rows[keep], forward[keep]


def cell_centres(cells: Tensor, width: int) -> Tensor:
    """Places (..., 2) of the centres of cells (...) of a grid of that width."""
    return torch.stack([cells % width, cells // width], -1).double() + 0.5


def cells_at(places: Tensor, width: int, height: int) -> Tensor:
    """The cells (...) that hold places (..., 2), the nearest one for places outside."""
    column, row = places.floor().long().unbind(-1)
    return row.clamp(0, height - 1) * width + column.clamp(0, width - 1)


def soft_argmax(similarity: Tensor, width: int, window: int = 2, temperature: float = 0.05) -> tuple[Tensor, Tensor]:
    """Places (N, 2) of the maximum between cells, and the spread (N,) in cells about it, of rows (N, M) over a grid.

    The mean of cell centres under softmax(similarity / temperature) within `window` cells of the largest one, cut off
    at the grid's edges; a temperature of 0 or a window of 0 gives the largest cell's centre. -inf has no weight.

    Raises InputError for a negative window or temperature.
    """
    if window < 0 or temperature < 0:
        raise InputError(f"window={window} and temperature={temperature:g} must be 0 or more")
    best = similarity.argmax(1)
    peak = cell_centres(best, width).to(similarity.device)
    if window == 0 or temperature == 0:
        return peak, peak.new_zeros(len(peak))
    step = torch.arange(-window, window + 1, device=similarity.device)
    row, column = best[:, None] // width + step, best[:, None] % width + step  # (N, K) each
    inside = ((row >= 0) & (row < similarity.shape[1] // width))[:, :, None] & ((column >= 0) & (column < width))[
        :, None
    ]
    cells = (row[:, :, None] * width + column[:, None]).flatten(1).clamp(0, similarity.shape[1] - 1)  # (N, K K)
    near = similarity.gather(1, cells).double().masked_fill(~inside.flatten(1), -torch.inf)
    weight, centres = (near / temperature).softmax(1), cell_centres(cells, width).to(similarity.device)
    place = (weight[..., None] * centres).sum(1)
    spread = (weight * (centres - place[:, None]).square().sum(-1)).sum(1).sqrt()
    return place, spread


def margins(similarity: Tensor, width: int, window: int = 2) -> Tensor:
    """How far the largest of each row (N, M) over a grid stands above all beyond `window` cells of it, (N,).

    What is everywhere alike, such as a plain background, has none; infinite where there is nothing beyond.
    """
    cells = torch.arange(similarity.shape[1], device=similarity.device)
    best = similarity.argmax(1, keepdim=True)
    apart = torch.maximum((cells // width - best // width).abs(), (cells % width - best % width).abs())  # (N, M)
    return similarity.amax(1) - similarity.masked_fill(apart <= window, -torch.inf).amax(1)


def sampled(features: Tensor, places: Tensor) -> Tensor:
    """Descriptors (N, C) of a grid (C, h, w) at places (N, 2), bilinear between cell centres, held at the edges."""
    height, width = features.shape[1:]
    grid = places.to(features) / features.new_tensor([width, height]) * 2 - 1
    found = F.grid_sample(
        features[None], grid[None, :, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, :, 0].mT


def carried(points: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Where points (N, 2) go when each moves as the nearest of matches (K, 2) -> (K, 2) does; NaN without matches."""
    if len(a) == 0:
        return torch.full_like(points, torch.nan)
    nearest = torch.cdist(points, a).argmin(1)
    return points + (b - a)[nearest]
