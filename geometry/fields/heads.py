"""From a field's geometry value to volume density: VolSDF's Laplace distribution, NeuS's logistic one, or a softplus.

Laplace (Yariv et al. 2021, "Volume Rendering of Neural Implicit Surfaces", eq. 2-3):
    density = Psi_beta(-sdf) / beta, Psi_beta the cumulative distribution of a Laplace variable of scale beta.
Logistic (Wang et al. 2021, "NeuS", eq. 10, for a ray that meets the surface head on, where |d sdf / d t| = 1):
    density = s (1 - Phi_s(sdf)), so that the transmittance from f1 to f2 is Phi_s(f2) / Phi_s(f1), Phi_s(f) = 1 / (1 +
    e^{-s f}).
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

    kind: Literal["sdf", "neus", "density"] = "sdf"
    radius: float = 0.5  # metres, of the sphere or blob at the start
    beta: tuple[float, ...] = (0, 0.1, 0.02, 1)  # metres; a number or [start, v0, v1, end]; scale of Laplace
    learn_beta: bool = False  # start at the first beta and let the optimiser choose, never below `beta_min`
    beta_min: float = 0.005  # metres
    inverse_std: tuple[float, ...] = (100.0,)  # 1/metre; a number or [start, v0, v1, end]; s of the logistic (neus)
    scale: float = 25.0  # 1/metre, density of logit ~ 1 (kind "density")
    blob: float = 4.0  # height of the logit of the start blob at its centre (kind "density")

    def __post_init__(self) -> None:
        sharp = Ramp.of(self.inverse_std)
        if min(self.radius, self.beta_min, self.scale, sharp.value0, sharp.value1) <= 0:
            raise InputError("head: radius, beta_min, scale and inverse_std must be positive")


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


class DistanceHead(Head):
    """Signed distance, negative inside; starts as a sphere."""

    outward, level = 1.0, 0.0

    def start_shape(self, points: Tensor) -> Tensor:
        """Distance to the sphere."""
        return points.norm(dim=-1) - self.config.radius


class LaplaceHead(DistanceHead):
    """VolSDF."""

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

    def on_step(self, now: Moment) -> None:
        """Sets the scheduled beta unless it is learnt."""
        if not self.config.learn_beta:
            with torch.no_grad():
                self.log_beta.fill_(math.log(max(self.ramp.at(now.share), self.config.beta_min)))


class LogisticHead(DistanceHead):
    """NeuS, with a sharpness that follows a schedule."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.ramp = Ramp.of(config.inverse_std)
        self.register_buffer("inverse_std", torch.tensor(self.ramp.at(0)))
        self.inverse_std: Tensor  # 1/metre

    def density(self, value: Tensor) -> Tensor:
        """s (1 - Phi_s(value))."""
        return self.inverse_std * torch.sigmoid(-self.inverse_std * value)

    def on_step(self, now: Moment) -> None:
        """Sets the scheduled sharpness."""
        self.inverse_std.fill_(self.ramp.at(now.share))


class SoftplusHead(Head):
    """Logit, positive inside; starts as the blob blob (1 - r / radius) of DreamFusion."""

    outward, level = -1.0, 0.0

    def density(self, value: Tensor) -> Tensor:
        """scale softplus(value)."""
        return self.config.scale * nn.functional.softplus(value)

    def start_shape(self, points: Tensor) -> Tensor:
        """blob (1 - r / radius), kept above -blob so that far space can still fill."""
        return (self.config.blob * (1 - points.norm(dim=-1) / self.config.radius)).clamp_min(-self.config.blob)


HEADS: dict[str, type[Head]] = {"sdf": LaplaceHead, "neus": LogisticHead, "density": SoftplusHead}


def make_head(config: HeadConfig) -> Head:
    """The head a config names."""
    return HEADS[config.kind](config)
