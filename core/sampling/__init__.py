"""Levels and schedules, parameterisations, guidance, solvers, starts and the sampling loop; what is built on them."""

from __future__ import annotations

from .denoiser import Denoiser
from .flair import RestoreConfig, restore
from .focus import AttentionCost, VelocityControl
from .guidance import ClassifierFree, Conditional, Guidance
from .init import FixedNoiseInit, ImageInit, NoiseInit, TeleportInit, sample_from
from .inversion import edit, invert, regenerate
from .levels import Level, NoiseSchedule
from .noiseshift import TimeRemap, apply_time_remap, remove_time_remap
from .plan import SamplingPlan
from .prediction import KINDS, Kind, Prediction
from .sampler import Sampler
from .solvers import DDIM, SOLVERS, Solver, make_solver
from .solvers.edict import EDICT
from .teleport import GaussianPrior

__all__ = [
    "DDIM",
    "EDICT",
    "KINDS",
    "SOLVERS",
    "AttentionCost",
    "ClassifierFree",
    "Conditional",
    "Denoiser",
    "FixedNoiseInit",
    "GaussianPrior",
    "Guidance",
    "ImageInit",
    "Kind",
    "Level",
    "NoiseInit",
    "NoiseSchedule",
    "Prediction",
    "RestoreConfig",
    "Sampler",
    "SamplingPlan",
    "Solver",
    "TeleportInit",
    "TimeRemap",
    "VelocityControl",
    "apply_time_remap",
    "edit",
    "invert",
    "make_solver",
    "regenerate",
    "remove_time_remap",
    "restore",
    "sample_from",
]
