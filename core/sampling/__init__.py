"""Levels and schedules, parameterisations, guidance, solvers and the sampling loop."""

from __future__ import annotations

from .denoiser import Denoiser
from .guidance import Guidance
from .levels import Level, NoiseSchedule
from .prediction import KINDS, Kind, Prediction
from .sampler import Sampler
from .solvers import DDIM, SOLVERS, Done, Request, Solver, make_solver

__all__ = [
    "DDIM",
    "KINDS",
    "SOLVERS",
    "Denoiser",
    "Done",
    "Guidance",
    "Kind",
    "Level",
    "NoiseSchedule",
    "Prediction",
    "Request",
    "Sampler",
    "Solver",
    "make_solver",
]
