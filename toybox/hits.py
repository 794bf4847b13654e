"""Where rays met a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hits:
    """Where rays met the scene; N hits out of all rays."""

    where: np.ndarray  # (N,) index of the ray
    depth: np.ndarray  # (N,) camera z-depth
    face: np.ndarray  # (N,)
    normal: np.ndarray  # (N, 3) unit, world, interpolated
    canonical: np.ndarray  # (N, 3)
    point: np.ndarray  # (N, 3) world
    view: np.ndarray  # (N, 3) unit, towards the camera
