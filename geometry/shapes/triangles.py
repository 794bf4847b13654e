"""Triangles that move: trainable vertices and vertex colours, outlines with gradients, and triangles that follow.

With `remesh_every` the surface is remeshed while it moves (see remeshing), and the rows of the parameters, with the
optimiser's moments and averages, go along.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import trimesh
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.ramps import Moment
from ...utils.regrown import Regrown
from ..extract import EmptySurfaceError
from ..meshes import Mesh
from ..outputs import Rays, RenderOutput
from ..rasterisers import Renderer
from ..raycast import RayMesh, interpolate
from ..remeshing import remeshed
from ..representation import CHANNELS, MeshConfig, Representation
from ..silhouettes import draw_mesh
from ..smoothing import bend


@dataclass(frozen=True)
class TriangleConfig:
    """A sphere of triangles at the start; `from_mesh` starts anywhere else."""

    subdivisions: int = 4  # of an icosahedron: 20 4^n faces
    radius: float = 0.5  # metres, of the sphere
    bounds: float = 0.95  # metres; nothing outside this ball is looked at
    vertex_lr: float = 0.002  # metres a step
    color_lr: float = 0.05  # logits a step
    remesh_every: int = 0  # steps; 0: the connectivity stays
    edge: float = 0.03  # metres, that remeshed edges have within a factor of two
    renderer: Renderer = "auto"  # see rasterisers

    def __post_init__(self) -> None:
        if not 0 <= self.subdivisions <= 7 or min(self.radius, self.bounds, self.edge) <= 0 or self.remesh_every < 0:
            raise InputError(
                f"triangles: 0 <= subdivisions={self.subdivisions} <= 7, remesh_every={self.remesh_every} >= 0, "
                f"radius={self.radius}, bounds={self.bounds} and edge={self.edge} positive needed"
            )


class Triangles(Representation):
    """A mesh whose vertices and colours are optimised."""

    kind = "triangles"
    terms = ("smooth",)
    grows = True

    def __init__(self, config: TriangleConfig, generator: torch.Generator | None = None) -> None:
        """Nothing is random."""
        super().__init__()
        self.config = config
        ball = trimesh.creation.icosphere(config.subdivisions, config.radius)
        self._take(Mesh.from_trimesh(ball))

    @classmethod
    def from_mesh(cls, mesh: Mesh, config: TriangleConfig = TriangleConfig()) -> Triangles:
        """Begins at a mesh; without vertex colours it is grey."""
        made = cls(replace(config, subdivisions=0))
        made._take(mesh)
        return made

    def _take(self, mesh: Mesh) -> None:
        colors = mesh.vertex_colors if mesh.vertex_colors is not None else torch.full_like(mesh.vertices, 0.5)
        self.vertices = nn.Parameter(mesh.vertices.detach().clone())
        self.color_logits = nn.Parameter(torch.logit(colors.detach().clamp(1e-4, 1 - 1e-4)))
        self.register_buffer("faces", mesh.faces.clone())
        self.faces: Tensor

    @property
    def bounds(self) -> float:
        """See Representation."""
        return float(self.config.bounds)

    @property
    def mesh(self) -> Mesh:
        """The mesh as it is, differentiable, with smooth normals and colours."""
        return Mesh(self.vertices, self.faces, vertex_colors=torch.sigmoid(self.color_logits)).with_smooth_normals()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Vertices and colours at their own rates."""
        vertices = {"params": [self.vertices], "lr": lr * self.config.vertex_lr}
        return [vertices, {"params": [self.color_logits], "lr": lr * self.config.color_lr}]

    def render(
        self,
        cameras: Rays,
        channels: Sequence[str] = CHANNELS,
        background: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> RenderOutput:
        """See Representation; outlines have gradients in pictures of cameras. All channels come at no extra cost."""
        return draw_mesh(self.mesh, cameras, CHANNELS, background, self.config.renderer)

    def regularisers(
        self, seen: RenderOutput, wanted: Collection[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """smooth: squared distance of each vertex from the mean of its neighbours, over the mean squared edge."""
        if "smooth" not in wanted:
            return {}
        return {"smooth": bend(self.vertices, self.faces)}

    @torch.no_grad()
    def after_step(self, now: Moment) -> Regrown | None:
        """Remeshes when it is time."""
        if not self.config.remesh_every or now.step % self.config.remesh_every:
            return None
        places, faces = self.vertices.detach().cpu().double().numpy(), self.faces.cpu().numpy()
        made = remeshed(places, faces, np.full(len(places), self.config.edge))
        parents = torch.from_numpy(made.parents).to(self.device)
        mixed = parents[:, 0] != parents[:, 1]
        order = torch.argsort(mixed.long(), stable=True)  # unchanged rows first, as Regrown has them
        colors = self.color_logits.detach()[parents].mean(1)[order]
        self.vertices = nn.Parameter(torch.from_numpy(made.vertices).to(self.vertices)[order])
        self.color_logits = nn.Parameter(colors)
        self.faces = torch.argsort(order)[torch.from_numpy(made.faces).to(self.device)]
        return Regrown(parents[~mixed, 0], between=parents[mixed])

    def to_mesh(self, config: MeshConfig) -> Mesh:
        """The mesh as it is, with its colours."""
        if not bool(torch.isfinite(self.vertices).all()):
            raise InputError("the triangles hold positions that are not finite; lower lr and run again")
        if not len(self.faces):
            raise EmptySurfaceError("there are no triangles")
        mesh = self.mesh
        parts = {"vertices": mesh.vertices, "vertex_normals": mesh.vertex_normals, "vertex_colors": mesh.vertex_colors}
        plain: dict[str, Any] = {name: None if v is None else v.detach() for name, v in parts.items()}
        return replace(mesh, **plain)

    @torch.no_grad()
    def surface_color(self, points: Tensor, normals: Tensor, config: MeshConfig) -> Tensor:
        """The vertex colours at the nearest points of the surface."""
        scene = RayMesh(self.mesh)
        face, weights = scene.closest(points.to(self.device))
        return interpolate(torch.sigmoid(self.color_logits), self.faces[face], weights).clamp(0, 1)

    def restore(self, values: dict[str, Tensor], where: str) -> None:
        """Takes over a state with any number of vertices and faces."""
        if values.keys() == self.state_dict().keys() and len(values["vertices"]) == len(values["color_logits"]):
            for name in ("vertices", "color_logits"):
                own = getattr(self, name)
                own.data = own.data.new_zeros(values[name].shape)
            self.faces = self.faces.new_zeros(values["faces"].shape)
        super().restore(values, where)
