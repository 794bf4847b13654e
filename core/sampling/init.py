"""Where a run begins: at noise, after steps taken in closed form, at a calibrated noise, or at a noised image.

An `Init` turns (unit noise, levels) into a `Start`, the state and the levels that are left; inits chain by handing one
Start to the next (a calibrated noise can be teleported).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ...utils.errors import InputError
from .levels import Level
from .sampler import Denoise, Sampler
from .teleport import GaussianPrior


class Start(NamedTuple):
    """A state and what is left to do."""

    x: Tensor  # (B, C, h, w) at levels[0]
    levels: Sequence[Level]  # from noisy to clean; a single one when nothing is left


class Init(Protocol):
    """Anything that chooses the start of a run."""

    def __call__(self, noise: Tensor, levels: Sequence[Level]) -> Start:
        """The start for unit noise (B, C, h, w) on these levels."""


@dataclass(frozen=True)
class NoiseInit:
    """The plain start."""

    def __call__(self, noise: Tensor, levels: Sequence[Level]) -> Start:
        """See Init."""
        return Start(noise, levels)


@dataclass(frozen=True)
class TeleportInit:
    """Skips the first steps by the exact flow of a Gaussian (Wang & Vastola 2023); 15-30 % cost no quality there."""

    gaussian: GaussianPrior
    fraction: float = 0.25  # [0, 1) of the steps, rounded; the last step is never skipped

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise InputError(f"teleport fraction={self.fraction} must lie in [0, 1): the share of steps to skip")

    def skipped(self, steps: int) -> int:
        """Steps not taken of a run of `steps`."""
        return min(int(self.fraction * steps + 0.5), steps - 1)

    def __call__(self, noise: Tensor, levels: Sequence[Level]) -> Start:
        """See Init."""
        skip = self.skipped(len(levels) - 1)
        if skip == 0:
            return Start(noise, levels)
        return Start(self.gaussian.transport(noise, levels[0], levels[skip]), levels[skip:])


@dataclass(frozen=True)
class FixedNoiseInit:
    """One noise (C, h, w) for every image, tiled (wrapped) over larger latents."""

    noise: Tensor

    def __post_init__(self) -> None:
        if self.noise.ndim != 3:
            raise InputError(f"the fixed noise has shape {tuple(self.noise.shape)}, expected (C, h, w)")

    def __call__(self, noise: Tensor, levels: Sequence[Level]) -> Start:
        """See Init."""
        channels, height, width = self.noise.shape
        if noise.shape[1] != channels:
            raise InputError(f"the fixed noise has {channels} channels, the latents {noise.shape[1]}")
        copies = (1, -(-noise.shape[2] // height), -(-noise.shape[3] // width))
        tiled = self.noise.repeat(*copies)[:, : noise.shape[2], : noise.shape[3]]
        return Start(tiled.to(noise).expand_as(noise).clone(), levels)


@dataclass(frozen=True)
class ImageInit:
    """A noised image (SDEdit, Meng et al. 2021): only the last `strength` of the steps is taken."""

    latents: Tensor  # (B, C, h, w) or (1, C, h, w), scaled
    strength: float = 0.8  # [0, 1]; 0 gives the image back, 1 keeps only what the noisiest level lets through

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise InputError(f"strength={self.strength} must lie in [0, 1]")

    def __call__(self, noise: Tensor, levels: Sequence[Level]) -> Start:
        """See Init."""
        steps = len(levels) - 1
        skip = steps - min(int(steps * self.strength), steps)
        latents = self.latents.to(noise)
        if latents.shape[1:] != noise.shape[1:] or latents.shape[0] not in (1, noise.shape[0]):
            raise InputError(f"image latents have shape {tuple(latents.shape)}, expected {tuple(noise.shape)}")
        if skip == steps:
            return Start(latents.expand_as(noise).clone(), levels[steps:])
        alpha, sigma = levels[skip].coefficients(noise)
        return Start(alpha * latents + sigma * noise, levels[skip:])


def sample_from(
    init: Init, sampler: Sampler, denoiser: Denoise, noise: Tensor, levels: Sequence[Level], **options: Any
) -> Tensor:
    """The final state of a run that begins where `init` says; `options` go to `Sampler.run`."""
    start = init(noise, levels)
    return start.x if len(start.levels) < 2 else sampler.run(denoiser, start.x, start.levels, **options)
