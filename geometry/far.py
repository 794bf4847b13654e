"""Positions far from the origin of the world, such as map coordinates: float32 near an origin kept in float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..utils.errors import InputError
from .stored import NO_ORIGIN, Origin

LARGEST_LOSS = 1e-6  # of the diagonal: what float32 may round away before an origin is kept


def near_origin(positions: NDArray[np.float64], where: str) -> tuple[Tensor, Origin]:
    """(float32 positions (N, 3), origin): their sum is what was given.

    The origin is zero unless float32 alone would round more than 1e-6 of the bounding box's diagonal away; then it is
    the middle of the box in whole units (of the box's size where that is below one). Raises InputError, which begins
    with `where`, for positions that are too large for float32.
    """
    if not len(positions):
        return torch.zeros(0, 3), NO_ORIGIN
    low, high = positions.min(axis=0), positions.max(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        diagonal = float(np.linalg.norm(high - low))
        loss = float(np.abs(positions - positions.astype(np.float32)).max())
    if (math.isfinite(loss) and loss <= LARGEST_LOSS * diagonal) or (loss == 0 and diagonal == 0):
        return torch.from_numpy(positions.astype(np.float32)), NO_ORIGIN
    middle = low / 2 + high / 2
    unit = 1.0 if np.abs(middle).max() > 1000 or diagonal == 0 else min(1.0, 10.0 ** math.floor(math.log10(diagonal)))
    x, y, z = (np.round(middle / unit) * unit).tolist()
    moved = positions - np.array([x, y, z])
    if not np.isfinite(moved).all() or np.abs(moved).max() > np.finfo(np.float32).max:
        raise InputError(
            f"{where}: positions reach up to {np.abs(positions).max():.3g}, which is too large; scale them down"
        )
    return torch.from_numpy(moved.astype(np.float32)), (float(x), float(y), float(z))


def world_positions(positions: Tensor, origin: Origin) -> NDArray[np.float64]:
    """Positions (N, 3) of the world in double precision."""
    return np.asarray(positions.detach().cpu().double().numpy() + np.array(origin, dtype=np.float64))
