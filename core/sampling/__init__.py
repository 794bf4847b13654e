"""Levels and schedules, parameterisations, guidance, solvers, starts and the sampling loop; what is built on them."""

from __future__ import annotations

from .control import AttentionCost, VelocityControl
from .denoiser import Denoiser
from .gaussian_prior import GaussianPrior
from .guidance import Guidance
from .init import FixedNoiseInit, ImageInit, NoiseInit, TeleportInit, sample_from
from .inversion import edit, invert, regenerate
from .levels import Level, NoiseSchedule
from .prediction import KINDS, Kind, Prediction
from .restore import RestoreConfig, restore
from .sampler import Sampler
from .solvers import DDIM, SOLVERS, Done, Request, Solver, make_solver
from .solvers.edict import EDICT
from .time_remap import TimeRemap, apply_time_remap, remove_time_remap

__all__ = [
    "DDIM",
    "EDICT",
    "KINDS",
    "SOLVERS",
    "AttentionCost",
    "Denoiser",
    "Done",
    "FixedNoiseInit",
    "GaussianPrior",
    "Guidance",
    "ImageInit",
    "Kind",
    "Level",
    "NoiseInit",
    "NoiseSchedule",
    "Prediction",
    "Request",
    "RestoreConfig",
    "Sampler",
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
