"""Calibrated confidence beside the maps of a head that brings error models."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..tasks.confidence import ErrorModel, pixel_features
from ..tasks.outputs import GeometryOutput
from .geometry_maps import Made
from .picture_inputs import resized

ENSEMBLE = 3  # members that error models are fitted to; the spread of fewer is another measure


def add_confidence(
    result: GeometryOutput,
    made: Made,
    images: Tensor,
    models: dict[str, ErrorModel],
    longest: int,
    kind: str,
    members: int,
) -> None:
    """Fills `confidence` of each map there is a model for, and the tolerance that it speaks of.

    images: (N, 3, H, W). longest: px of the longer side that the network saw, 0 = the pictures' own. kind: "np" or
    "pt", as the maps. members: of the ensemble; where they are fewer than error models are fitted to, nothing is
    filled, and one UserWarning says so (of a single prediction, which has no spread, none).
    """
    told = {name: model for name, model in models.items() if name in result.maps and name in made.spread}
    if told and members < ENSEMBLE:
        warnings.warn(
            f"an ensemble of {members} has no confidence: error models are fitted to the spread of {ENSEMBLE}; "
            f"take ensemble_size={ENSEMBLE} (--ensemble {ENSEMBLE}) or more",
            stacklevel=3,
        )
        return
    for name, model in told.items():
        maps = made.maps[name]
        sure = torch.from_numpy(model.probability(seen_features(maps, made.spread[name], images, longest)))
        sure = F.interpolate(sure[:, None].float(), tuple(maps.shape[2:]), mode="bilinear")
        output: Any = result.maps[name]
        output.confidence = sure.to(maps) if kind == "pt" else sure.permute(0, 2, 3, 1).numpy()
        output.tolerance = model.tolerance


def seen_features(maps: Tensor, spread: Tensor, images: Tensor, longest: int) -> np.ndarray:
    """`pixel_features` (N, h, w, F) at the size that the network saw, whatever that of the pictures."""
    small = resized(images, longest)
    size = (small.shape[2], small.shape[3])
    thin, wide = (F.interpolate(one.float(), size, mode="bilinear") for one in (maps, spread))
    return pixel_features(thin, wide, small)
