"""Gaussians on a lattice: how opaque space is, summed up by compiled loops."""

from __future__ import annotations

import math

import numpy as np

from ...utils.compiled import compiled
from .kernels_project import Array

REACH = 3.0  # deviations


@compiled
def add_gaussians(
    means: Array, precisions: Array, reaches: Array, opacities: Array, low: Array, spacing: float, lattice: Array
) -> None:  # fmt: skip
    """Adds o exp(-d^T P d / 2) of N Gaussians to a lattice (X, Y, Z) whose first point is `low`.

    means (N, 3), precisions (N, 3, 3), reaches (N, 3) half sides of the box that counts.
    """
    sides = lattice.shape
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    for n in range(len(means)):
        for axis in range(3):
            place = (means[n, axis] - low[axis]) / spacing
            span = reaches[n, axis] / spacing
            first[axis] = max(0, math.ceil(place - span))
            last[axis] = min(sides[axis] - 1, math.floor(place + span))
        P = precisions[n]
        for i in range(first[0], last[0] + 1):
            x = low[0] + i * spacing - means[n, 0]
            for j in range(first[1], last[1] + 1):
                y = low[1] + j * spacing - means[n, 1]
                for k in range(first[2], last[2] + 1):
                    z = low[2] + k * spacing - means[n, 2]
                    far = P[0, 0] * x * x + P[1, 1] * y * y + P[2, 2] * z * z
                    far += 2 * (P[0, 1] * x * y + P[0, 2] * x * z + P[1, 2] * y * z)
                    if far > REACH * REACH:
                        continue
                    lattice[i, j, k] += opacities[n] * math.exp(-0.5 * far)
