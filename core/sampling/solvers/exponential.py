"""Numbers that exponential integrators share: phi functions and finite-difference weights, in float64.

phi_1(z) = (e^z - 1) / z, phi_{k+1}(z) = (phi_k(z) - 1/k!) / z, so phi_k(0) = 1/k! and
integral_0^h e^{h - r} r^k / k! dr = h^{k+1} phi_{k+1}(h).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_SERIES_TERMS = 24


def phi(k: int, z: float) -> float:
    """phi_k(z), k >= 1; a series near 0, where the recurrence loses its digits."""
    if abs(z) <= 1:
        return math.fsum(z**n / math.factorial(n + k) for n in range(_SERIES_TERMS))
    value = math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def derivative_weights(offsets: Sequence[float], k: int) -> list[float]:
    """Weights a of the k-th derivative at 0 from values at `offsets` (non-zero, distinct) and at 0.

    f^(k)(0) ~ sum_j a_j (f(offset_j) - f(0)), with sum_j a_j offset_j^i / i! = [i = k] for i = 1..len(offsets).
    """
    scale = max(abs(offset) for offset in offsets)
    nodes = np.asarray(offsets, float) / scale
    powers = np.arange(1, len(offsets) + 1)
    matrix = nodes[None, :] ** powers[:, None] / [[math.factorial(i)] for i in powers]
    wanted = (powers == k).astype(float)
    return [float(a) / scale**k for a in np.linalg.solve(matrix, wanted)]


def taylor_weights(offsets: Sequence[float], low: bool = False) -> list[list[float]]:
    """Weights (as `derivative_weights`) of derivatives 1..len(offsets), each padded to all offsets.

    With `low`, derivative k takes the first k offsets only (k! times a divided difference).
    """
    count = len(offsets)
    rows = []
    for k in range(1, count + 1):
        used = k if low else count
        rows.append(derivative_weights(offsets[:used], k) + [0.0] * (count - used))
    return rows
