"""A field behind volume rendering, with the cells that may hold density as its state."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.ramps import Moment
from ..fields import FieldConfig, make_field
from ..meshes import Mesh
from ..outputs import Rays, RenderOutput
from ..representation import CHANNELS, MeshConfig, Representation
from ..volume import Occupancy, Room, VolumeConfig, ray_bytes, render
from .surface import isosurface, seen_color

EIKONAL_POINTS = 4096


@dataclass(frozen=True)
class VolumeShapeConfig:
    """A field and how it is seen."""

    field: FieldConfig = default(default_factory=FieldConfig)
    rays: VolumeConfig = default(default_factory=VolumeConfig)
    occupancy_every: int = 10  # steps
    occupancy_from: float = 0.06666666666666667  # share of the run; before it the whole ball is sampled

    def __post_init__(self) -> None:
        if self.occupancy_every < 1 or not 0 <= self.occupancy_from <= 1:
            raise InputError(
                f"volume: occupancy_every={self.occupancy_every} is in steps, at least 1, and "
                f"occupancy_from={self.occupancy_from} a share of the run, in [0, 1]"
            )


class Volume(Representation):
    """Density and colour at every point of a ball."""

    kind = "volume"
    terms = ("spread", "eikonal", "smooth")

    def __init__(self, config: VolumeShapeConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.field = make_field(config.field, generator)
        self.occupancy = Occupancy(config.rays, config.field.half)
        self._room = Room()

    @property
    def bounds(self) -> float:
        """See Representation."""
        return float(self.config.rays.radius)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Those of the field."""
        return self.field.param_groups(lr)

    def render(
        self,
        cameras: Rays,
        channels: Sequence[str] = CHANNELS,
        background: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> RenderOutput:
        """See Representation; without "normal" a third of the time is saved. Extras as of volume.render."""
        normals, rays = "normal" in channels, self.config.rays
        at_once = self.rays_at_once
        return render(self.field, cameras, background, rays, self.occupancy, generator, normals, at_once, self._room)

    def ray_bytes(self, channels: Sequence[str] = CHANNELS) -> int:
        """See Representation."""
        return ray_bytes(self.field, self.config.rays, "normal" in channels)

    def regularisers(
        self, seen: RenderOutput, wanted: Collection[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """spread: variance of the weights along rays, metres^2. eikonal: (|grad sdf| - 1)^2 at random points.

        smooth: the field's own roughness. A density has no eikonal term.
        """
        found: dict[str, Tensor] = {}
        if "spread" in wanted:
            found["spread"] = seen.extras["spread"].mean()
        if "eikonal" in wanted and self.config.field.head.kind != "density":
            reach = self.field.half_side - self.field.spacing
            draw = (torch.rand(EIKONAL_POINTS, 3, generator=generator) * 2 - 1) * reach
            gradient = seen.extras["snapshot"].gradient(draw.to(seen.rgb))
            found["eikonal"] = (gradient.norm(dim=-1) - 1).square().mean()
        if "smooth" in wanted:
            found["smooth"] = self.field.roughness(seen.extras["snapshot"].query)
        return found

    def on_step(self, now: Moment, generator: torch.Generator) -> None:
        """Moves the field's schedules; finds the occupied cells when it is time, and at the end."""
        self.field.on_step(now)
        due = now.reached(self.config.occupancy_from) and now.step % self.config.occupancy_every == 0
        if due or now.step == now.steps:
            self.occupancy.update(self.field, generator)

    def to_mesh(self, config: MeshConfig) -> Mesh:
        """Where the field crosses its level; hidden space is filled."""
        return isosurface(self, self.field, config)

    def surface_color(self, points: Tensor, normals: Tensor, config: MeshConfig) -> Tensor:
        """See Representation."""
        return seen_color(self.field, points, normals, config.depth_samples)
