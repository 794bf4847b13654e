"""Tetrahedra whose corners hold signed distances: an explicit surface that may still change how it hangs together.

After DMTet (Shen et al. 2021): distances, small movements of the corners and colours are optimised; the triangles that
march through the tetrahedra are drawn like any mesh.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from ..extract import EmptySurfaceError
from ..meshes import Mesh
from ..outputs import Rays, RenderOutput
from ..rasterisers import Renderer
from ..raycast import RayMesh, interpolate
from ..representation import CHANNELS, MeshConfig, Representation
from ..silhouettes import draw_mesh
from ..smoothing import bend
from ..tetrahedra import marching_tetrahedra, tetrahedron_lattice

REACH = 0.45  # lattice spacings that a corner may move along each axis: neighbours never pass each other


@dataclass(frozen=True)
class TetrahedraConfig:
    """A sphere in a lattice of tetrahedra at the start."""

    resolution: int = 32  # corners along an edge of the cube
    half: float = 1.0  # metres, half-width of the cube
    radius: float = 0.5  # metres, of the sphere
    distance_lr: float = 0.003  # metres a step
    move_lr: float = 0.01  # of the reach a step
    color_lr: float = 0.05  # logits a step
    renderer: Renderer = "auto"  # see rasterisers

    def __post_init__(self) -> None:
        if self.resolution < 4 or not 0 < self.radius < self.half or self.half <= 0:
            raise InputError(
                f"tetrahedra: resolution={self.resolution} >= 4 and 0 < radius={self.radius} < half={self.half} needed"
            )


class Tetrahedra(Representation):
    """Signed distances, negative inside, at the corners of tetrahedra."""

    kind = "tetrahedra"
    terms = ("sign", "smooth")

    def __init__(self, config: TetrahedraConfig, generator: torch.Generator | None = None) -> None:
        """Nothing is random."""
        super().__init__()
        self.config = config
        corners, cells = tetrahedron_lattice(config.resolution, config.half)
        self.register_buffer("corners", corners, persistent=False)
        self.register_buffer("cells", cells, persistent=False)
        rim = (corners.abs() > config.half * (1 - 1e-6)).any(dim=-1)
        self.register_buffer("rim", rim, persistent=False)  # outside: the surface is closed
        self.corners: Tensor
        self.cells: Tensor
        self.rim: Tensor
        self.distance = nn.Parameter(corners.norm(dim=-1) - config.radius)
        self.moves = nn.Parameter(torch.zeros_like(corners))
        self.color_logits = nn.Parameter(torch.zeros_like(corners))

    @property
    def bounds(self) -> float:
        """See Representation; the cube lies in this ball."""
        return float(self.config.half * 3**0.5)

    @property
    def spacing(self) -> float:
        """Metres between neighbouring corners."""
        return 2 * self.config.half / (self.config.resolution - 1)

    def outer(self) -> Tensor:
        """Distances (N,) with at least half a spacing on the rim of the cube."""
        return torch.where(self.rim, self.distance.clamp_min(0.5 * self.spacing), self.distance)

    @property
    def mesh(self) -> Mesh:
        """The surface, differentiable, with smooth normals and colours. Raises EmptySurfaceError without one."""
        corners = self.corners + REACH * self.spacing * torch.tanh(self.moves) * ~self.rim[:, None]
        colors = torch.sigmoid(self.color_logits)
        vertices, faces, colors = marching_tetrahedra(corners, self.outer(), self.cells, colors)
        if not len(faces):
            raise EmptySurfaceError("no tetrahedron is crossed: all distances have one sign; start from a larger shape")
        return Mesh(vertices, faces, vertex_colors=colors).with_smooth_normals()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Distances, movements and colours at their own rates."""
        rates = ("distance_lr", self.distance), ("move_lr", self.moves), ("color_lr", self.color_logits)
        return [{"params": [value], "lr": lr * getattr(self.config, name)} for name, value in rates]

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
        """smooth: see smoothing.bend. sign: cross entropy of the distances at the two ends of edges of differing signs,

        each with the sign of the other: surfaces that nobody sees close (Munkberg et al. 2022, eq. 2).
        """
        found: dict[str, Tensor] = {}
        if "smooth" in wanted:
            mesh = self.mesh
            found["smooth"] = bend(mesh.vertices, mesh.faces)
        if "sign" in wanted:
            ends = self.cells[:, [0, 1, 1, 2, 2, 3, 3, 0]].view(-1, 2)
            pair = self.outer()[ends] / self.spacing
            differ = pair[(pair[:, 0] < 0) != (pair[:, 1] < 0)]
            entropy = nn.functional.binary_cross_entropy_with_logits
            found["sign"] = entropy(differ, (differ.flip(1) > 0).to(differ)) if len(differ) else pair.sum() * 0
        return found

    def to_mesh(self, config: MeshConfig) -> Mesh:
        """The surface as it is, with its colours."""
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters()):
            raise InputError("the tetrahedra hold values that are not finite; lower lr and run again")
        mesh = self.mesh
        parts = {"vertices": mesh.vertices, "vertex_normals": mesh.vertex_normals, "vertex_colors": mesh.vertex_colors}
        plain: dict[str, Any] = {name: None if v is None else v.detach() for name, v in parts.items()}
        return replace(mesh, **plain)

    @torch.no_grad()
    def surface_color(self, points: Tensor, normals: Tensor, config: MeshConfig) -> Tensor:
        """The colours at the nearest points of the surface."""
        return colors_at(self.mesh, points)


def colors_at(mesh: Mesh, points: Tensor) -> Tensor:
    """Vertex colours (N, 3), sRGB in [0, 1], at the points of the surface nearest to points (N, 3)."""
    assert mesh.vertex_colors is not None
    face, weights = RayMesh(mesh).closest(points.to(mesh.vertices))
    return interpolate(mesh.vertex_colors, mesh.faces[face], weights).clamp(0, 1)
