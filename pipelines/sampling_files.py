"""Calibration files as arguments of `TextToImage`, each compared with the prior, latent shape and guidance in force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.priors import Prior
from ..core.sampling import GaussianPrior, Level, TeleportInit, TimeRemap
from ..core.sampling.grids import Spacing
from ..core.sampling.init import Init, Start
from ..core.sampling.model_schedule import switched
from ..core.sampling.optimal_boundary import BoundaryNoise
from .sampling_parts import latent_shape, mark
from .text_to_image import TextToImage


@dataclass(frozen=True)
class ChosenNoise:
    """The start at a calibrated noise; refuses a solver or levels the noise was not chosen for."""

    chosen: BoundaryNoise
    solver: str

    def __call__(self, noise: Tensor, levels: Sequence[Level]) -> Start:
        """See Init."""
        return self.chosen.init(self.solver, levels)(noise, levels)


@dataclass(frozen=True)
class InTurn:
    """Several starts, each going on from the state and the levels the one before has left."""

    inits: tuple[Init, ...]

    def __call__(self, noise: Tensor, levels: Sequence[Level]) -> Start:
        """See Init."""
        start = Start(noise, levels)
        for init in self.inits:
            start = init(start.x, start.levels)
        return start


def calibrated(
    pipe: TextToImage,
    *,
    guidance: float | None = None,
    size: int | None = None,
    solver: str | None = None,
    boundary: str | Path | None = None,
    gaussian: str | Path | None = None,
    teleport: float = 0.25,
    time_remap: str | Path | None = None,
    negative: str | None = None,
) -> dict[str, Any]:
    """The arguments `init` and `time_remap` of a call, read from files.

    Args:
        pipe: what will draw.
        guidance: scale of the call; None: what suits the prior.
        size: px of a side; None: the prior's own.
        solver: of the call; None: what suits the prior.
        boundary: a starting noise (`BoundaryNoise`).
        gaussian: a Gaussian to start from (`GaussianPrior`).
        teleport: share of the steps it replaces, [0, 1).
        time_remap: a time table (`TimeRemap`).
        negative: negative prompt of the call.

    Raises InputError for a missing or foreign file.
    """
    if boundary is None and gaussian is None and time_remap is None:
        return {}
    settings = pipe.settings
    scale = settings.guidance if guidance is None else guidance
    expected = mark(pipe.prior, latent_shape(pipe.prior, size, size), scale, negative=negative)
    inits: list[Init] = []
    if boundary is not None:
        inits.append(ChosenNoise(BoundaryNoise.load(boundary, expected), solver or settings.solver))
    if gaussian is not None:
        inits.append(TeleportInit(GaussianPrior.load(gaussian, expected), teleport))
    found: dict[str, Any] = {"init": InTurn(tuple(inits))} if inits else {}
    if time_remap is not None:
        found["time_remap"] = TimeRemap.load(time_remap, expected)
    return found


def with_first_model(
    pipe: TextToImage,
    first: Prior,
    share: float,
    *,
    steps: int | None = None,
    solver: str | None = None,
    spacing: Spacing | None = None,
    size: int | None = None,
) -> TextToImage:
    """A pipeline in which `first` answers in the noisy `share` of the steps, the pipe's own prior in the rest.

    Steps, solver, spacing and size are those of the call. What suits the pipe's own prior goes on to be the default.
    """
    levels = pipe.levels(pipe.method(solver), latent_shape(pipe.prior, size, size), steps, spacing)
    both = switched(first, pipe.prior, levels, share)
    both.recommended = pipe.prior.recommended
    return TextToImage(both, pipe.quality)
