"""Frozen backbones behind one interface: embedded, diffusers, multi-view and analytic."""

from __future__ import annotations

from .analytic import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from .base import Condition, Prior, Recommended
from .diffusers import FluxPrior, StableDiffusion3Prior, StableDiffusionPrior, StableDiffusionXLPrior
from .embedded import EmbeddedFlowPrior, EmbeddedPrior, MultiViewPrior
from .multiview import CameraEmbedding, MultiViewUNet, inflate
from .registry import PriorEntry, available, load_prior, registry, weights_root

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
    "StableDiffusion3Prior",
    "StableDiffusionPrior",
    "StableDiffusionXLPrior",
    "available",
    "inflate",
    "load_prior",
    "registry",
    "weights_root",
]
