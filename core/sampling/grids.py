"""Where a sampler puts its levels: spacings over train indices (as diffusers rounds them) and over lambda."""

from __future__ import annotations

import math

import numpy as np

from ...utils.errors import InputError
from ..priors.base import Spacing

SPACINGS: tuple[Spacing, ...] = ("trailing", "leading", "linspace", "logsnr", "karras")
KARRAS_RHO = 7.0


def time_spaced(n: int, steps: int, spacing: str, offset: int = 0) -> list[float]:
    """n train indices, decreasing. "leading" and "linspace" need no trailing end, "trailing" starts at steps - 1."""
    if spacing == "trailing":
        indices = np.round(np.arange(steps, 0, -steps / n))[:n] - 1
    elif spacing == "leading":
        indices = (np.arange(n) * (steps // n))[::-1] + offset
    elif spacing == "linspace":
        indices = np.round(np.linspace(0, steps - 1, n))[::-1]
    else:
        raise InputError(f"spacing={spacing!r} is unknown; have {', '.join(SPACINGS)}")
    return [float(i) for i in np.minimum(indices, steps - 1)]


def lambda_spaced(n: int, low: float, high: float, spacing: str) -> list[float]:
    """n lambdas rising from low to high: evenly ("logsnr") or evenly in e^{-lambda/7} ("karras")."""
    if spacing == "logsnr":
        return [float(lam) for lam in np.linspace(low, high, n)]
    start, end = math.exp(-low / KARRAS_RHO), math.exp(-high / KARRAS_RHO)
    return [-KARRAS_RHO * math.log(root) for root in np.linspace(start, end, n)]
