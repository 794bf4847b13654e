"""Triangles that move: trainable vertices and vertex colours on a fixed connectivity, seen by casting rays.

Gradients reach colours, depths and normals through the ray-triangle intersection; what is seen, and with it the
silhouette, has none (see raycast). So it refines a surface that is nearly there, and does not carve one from a ball.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import trimesh
from torch import Tensor, nn

from ...utils.errors import InputError
from ..extract import EmptySurfaceError
from ..meshes import Mesh
from ..outputs import Rays, RenderOutput, over_background
from ..raycast import RayMesh, interpolate
from ..representation import CHANNELS, MeshConfig, Representation


@dataclass(frozen=True)
class TriangleConfig:
    """A sphere of triangles at the start; `from_mesh` starts anywhere else."""

    subdivisions: int = 4  # of an icosahedron: 20 4^n faces
    radius: float = 0.5  # metres, of the sphere
    bounds: float = 0.95  # metres; nothing outside this ball is looked at
    vertex_lr: float = 0.002  # metres a step
    color_lr: float = 0.05  # logits a step

    def __post_init__(self) -> None:
        if not 0 <= self.subdivisions <= 7 or min(self.radius, self.bounds) <= 0:
            raise InputError(
                f"triangles: 0 <= subdivisions={self.subdivisions} <= 7, radius={self.radius} and "
                f"bounds={self.bounds} positive needed"
            )


class Triangles(Representation):
    """A mesh whose vertices and colours are optimised."""

    kind = "triangles"
    terms = ("smooth",)

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
        """See Representation; alpha is 0 or 1 and has no gradient. All channels come at no extra cost."""
        scene = RayMesh(self.mesh)
        faces = scene.first_faces(*cameras.rays())
        maps = scene.shade(cameras, faces, CHANNELS)
        alpha = (faces >= 0)[..., None].to(self.vertices.dtype)
        return RenderOutput(over_background(maps["rgb"], alpha, background), alpha, maps["depth"], maps["normal"])

    def regularisers(
        self, seen: RenderOutput, wanted: Collection[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """smooth: squared distance of each vertex from the mean of its neighbours, over the mean squared edge."""
        if "smooth" not in wanted:
            return {}
        start, end = self.faces.reshape(-1), self.faces.roll(-1, dims=1).reshape(-1)  # each edge of a closed mesh twice
        around = torch.zeros_like(self.vertices).index_add(0, start, self.vertices[end])
        count = torch.zeros_like(self.vertices[:, :1]).index_add(0, start, torch.ones_like(self.vertices[start, :1]))
        bend = (around / count.clamp_min(1) - self.vertices).square().sum(-1)
        edge = (self.vertices[end] - self.vertices[start]).square().sum(-1).mean().detach()
        return {"smooth": bend.mean() / edge}

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
