"""From a field's geometry value to volume density: VolSDF's Laplace distribution, or a softplus of a logit.

Laplace (Yariv et al. 2021, "Volume Rendering of Neural Implicit Surfaces", eq. 2-3):
    density = Psi_beta(-sdf) / beta, Psi_beta the cumulative distribution of a Laplace variable of scale beta.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.ramps import Moment, Ramp


@dataclass(frozen=True)
class HeadConfig:
    """How geometry becomes density, and from which shape it starts."""

    kind: Literal["sdf", "density"] = "sdf"
    radius: float = 0.5  # metres, of the sphere or blob at the start
    beta: tuple[float, ...] = (0, 0.1, 0.02, 1)  # metres; a number or [start, v0, v1, end]; scale of Laplace
    learn_beta: bool = False  # start at the first beta and let the optimiser choose, never below `beta_min`
    beta_min: float = 0.005  # metres
    scale: float = 25.0  # 1/metre, density of logit ~ 1 (kind "density")
    blob: float = 4.0  # height of the logit of the start blob at its centre (kind "density")

    def __post_init__(self) -> None:
        if min(self.radius, self.beta_min, self.scale) <= 0:
            raise InputError("head: radius, beta_min and scale must be positive")


class Head(nn.Module, ABC):
    """Base: `outward` is the sign that turns the value's gradient into the outward direction."""

    outward: float
    level: float  # the surface lies where value == level

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def density(self, value: Tensor) -> Tensor:
        """Density in 1/metre of geometry values, any shape."""

    @abstractmethod
    def start_shape(self, points: Tensor) -> Tensor:
        """Geometry value (N,) of the start shape at points (N, 3)."""

    def on_step(self, now: Moment) -> None:
        """Moves schedules."""


class LaplaceHead(Head):
    """Signed distance, negative inside; starts as a sphere."""

    outward, level = 1.0, 0.0

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.ramp = Ramp.of(config.beta)
        start = max(self.ramp.at(0), config.beta_min)
        self.log_beta = nn.Parameter(torch.tensor(math.log(start)), requires_grad=config.learn_beta)

    @property
    def beta(self) -> Tensor:
        """Scale of the Laplace distribution in metres."""
        return self.log_beta.exp().clamp_min(self.config.beta_min)

    def density(self, value: Tensor) -> Tensor:
        """Psi_beta(-value) / beta."""
        beta = self.beta
        half = 0.5 * torch.exp(-value.abs() / beta)
        return torch.where(value > 0, half, 1 - half) / beta

    def start_shape(self, points: Tensor) -> Tensor:
        """Distance to the sphere."""
        return points.norm(dim=-1) - self.config.radius

    def on_step(self, now: Moment) -> None:
        """Sets the scheduled beta unless it is learnt."""
        if not self.config.learn_beta:
            with torch.no_grad():
                self.log_beta.fill_(math.log(max(self.ramp.at(now.share), self.config.beta_min)))


class SoftplusHead(Head):
    """Logit, positive inside; starts as the blob blob (1 - r / radius) of DreamFusion."""

    outward, level = -1.0, 0.0

    def density(self, value: Tensor) -> Tensor:
        """scale softplus(value)."""
        return self.config.scale * nn.functional.softplus(value)

    def start_shape(self, points: Tensor) -> Tensor:
        """blob (1 - r / radius), kept above -blob so that far space can still fill."""
        return (self.config.blob * (1 - points.norm(dim=-1) / self.config.radius)).clamp_min(-self.config.blob)


HEADS: dict[str, type[Head]] = {"sdf": LaplaceHead, "density": SoftplusHead}


def make_head(config: HeadConfig) -> Head:
    """The head a config names."""
    return HEADS[config.kind](config)
