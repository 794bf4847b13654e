"""Frozen backbones behind one interface: embedded, diffusers, multi-view and analytic.

Every name is loaded when it is first used: a condition needs no diffusion library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...utils.lazy import loader
from .base import Prior, Recommended
from .rows import Condition, Rows

if TYPE_CHECKING:
    from .analytic import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
    from .build import from_pipeline
    from .diffusers import FluxPrior, StableDiffusion3Prior, StableDiffusionPrior, StableDiffusionXLPrior
    from .embedded import EmbeddedFlowPrior, EmbeddedPrior, MultiViewPrior
    from .multiview import CameraEmbedding, MultiViewUNet, inflate
    from .registry import PriorEntry, available, load_prior, multi_view_sibling, weights_root

__all__ = [
    "FLOW_SCHEDULE",
    "SD_SCHEDULE",
    "CameraEmbedding",
    "Condition",
    "EmbeddedFlowPrior",
    "EmbeddedPrior",
    "FluxPrior",
    "GaussianMixturePrior",
    "MultiViewPrior",
    "MultiViewUNet",
    "Prior",
    "PriorEntry",
    "Recommended",
    "Rows",
    "StableDiffusion3Prior",
    "StableDiffusionPrior",
    "StableDiffusionXLPrior",
    "available",
    "from_pipeline",
    "inflate",
    "load_prior",
    "multi_view_sibling",
    "weights_root",
]
_HOMES = {
    **dict.fromkeys(("FLOW_SCHEDULE", "SD_SCHEDULE", "GaussianMixturePrior"), ".analytic"),
    **dict.fromkeys(
        ("FluxPrior", "StableDiffusion3Prior", "StableDiffusionPrior", "StableDiffusionXLPrior"), ".diffusers"
    ),
    "from_pipeline": ".build",
    **dict.fromkeys(("EmbeddedFlowPrior", "EmbeddedPrior", "MultiViewPrior"), ".embedded"),
    **dict.fromkeys(("CameraEmbedding", "MultiViewUNet", "inflate"), ".multiview"),
    **dict.fromkeys(("PriorEntry", "available", "load_prior", "multi_view_sibling", "weights_root"), ".registry"),
}

__getattr__ = loader(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
