"""A field gives every point of a cube a geometry value and a colour; a head turns the value into volume density.

Value: signed distance in metres, negative inside (head "sdf"), or a logit, positive inside (head "density").
Density is in 1/metre, colour sRGB in [0, 1]. The world is the cube [-half, half]^3, z up, object front +x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.ramps import Moment
from .heads import Head

Query = Callable[[Tensor], Tensor]  # points (N, 3) -> raw (N, 4): geometry value without its start shape, colour logits


class Field(nn.Module, ABC):
    """Base of all fields. Subclasses define `query`; everything else follows from it."""

    kind: str

    def __init__(self, head: Head, half: float = 1.0) -> None:
        super().__init__()
        self.head, self.half_side = head, half

    @abstractmethod
    def query(self) -> Query:
        """A function of points (N, 3) for the present parameters; call once a step, use for many point sets."""

    @abstractmethod
    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameters with learning rates for an optimiser; `lr` scales all of them."""

    @abstractmethod
    def roughness(self, query: Query | None = None) -> Tensor:
        """Smoothness penalty of the parametrisation (total variation of grids and planes), a scalar.

        `query`: this field's own for the present parameters, whose work is then shared.
        """

    @property
    @abstractmethod
    def spacing(self) -> float:
        """Smallest structure in metres; the step of finite differences."""

    @property
    @abstractmethod
    def kept_numbers(self) -> int:
        """Numbers of 4 bytes that autograd keeps of a point that was asked for, the head's aside."""

    def snapshot(self) -> Snapshot:
        """The field at the present parameters."""
        return Snapshot(self.query(), self.head, self.spacing)

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) in 1/metre at points (N, 3)."""
        return self.snapshot().density(points)

    def color(self, points: Tensor) -> Tensor:
        """sRGB (N, 3) in [0, 1] at points (N, 3)."""
        return self.snapshot().density_color(points)[1]

    def on_step(self, now: Moment) -> None:
        """Called before each step of a run and at its end; moves the head's sharpness and coarse-to-fine schedules."""
        self.head.on_step(now)


class Snapshot:
    """Values of a field for one set of parameters; valid for one backward pass."""

    def __init__(self, query: Query, head: Head, spacing: float) -> None:
        self.query, self.head, self.spacing = query, head, spacing

    def value_color(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Geometry value (N,) and sRGB (N, 3)."""
        raw = self.query(points)
        return raw[:, 0] + self.head.start_shape(points), torch.sigmoid(raw[:, 1:])

    def density_color(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,) in 1/metre and sRGB (N, 3)."""
        value, color = self.value_color(points)
        return self.head.density(value), color

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) in 1/metre, nothing else being asked where a field can tell it alone."""
        return self.density_color(points)[0]

    def gradient(self, points: Tensor) -> Tensor:
        """d value / d point (N, 3) by central differences over one spacing; differentiable in the parameters."""
        steps = self.spacing * torch.eye(3, device=points.device, dtype=points.dtype)
        stencil = torch.cat([points[:, None] + steps, points[:, None] - steps], dim=1)  # (N, 6, 3)
        value = self.value_color(stencil.reshape(-1, 3))[0].view(-1, 2, 3)
        return (value[:, 0] - value[:, 1]) / (2 * self.spacing)

    def normal(self, points: Tensor) -> Tensor:
        """Outward unit normals (N, 3)."""
        return nn.functional.normalize(self.head.outward * self.gradient(points), dim=-1, eps=1e-8)
