"""Six planes of a generator as a shape: rendered as a volume, and as the mesh that marches through its distances.

The mesh is found where it is: a coarse lattice says which of its cells may hold the surface, these alone are asked
finely, and cells follow until no crossing leaves them, so that the surface is closed. The corners around it move by
what the deformation network says, and everything is differentiable in planes and networks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..extract import EmptySurfaceError
from ..fields.dual import DualField
from ..meshes import Mesh
from ..representation import MeshConfig
from ..tetrahedra import cube_tetrahedra, marching_tetrahedra
from .tetrahedra import REACH
from .volume import Volume, VolumeShapeConfig

COARSE = 4  # fine cells along an edge of a coarse one
STEEP = 2.0  # largest slope that the search reckons with; cells that it misses are found as neighbours
CHUNK = 65_536  # points asked at once without gradients


class Lattice(NamedTuple):
    """The corners around a surface."""

    points: Tensor  # (N, 3) metres
    cells: Tensor  # (T, 4) tetrahedra of them
    rim: Tensor  # (N,) bool: on the cube, where everything is outside
    spacing: float  # metres


class DualVolume(Volume):
    """The representation that a generator of planes fills."""

    kind = "dual"

    def __init__(self, config: VolumeShapeConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator)
        if not isinstance(self.field, DualField):
            raise InputError(f"dual: volume.field.kind={config.field.kind!r} has no six planes; use dual")

    @property
    def planes(self) -> DualField:
        """The field."""
        assert isinstance(self.field, DualField)
        return self.field

    def mesh(self, resolution: int, forced: bool = False) -> Mesh:
        """The surface at the present planes, differentiable, with smooth normals and colours in [0, 1].

        forced: where nothing is inside, the middle of the cube is, so that there is a surface to learn from.
        """
        field, device = self.planes, self.device
        lattice = surface_lattice(field, resolution, forced)
        distance = field.outside(lattice.points)
        distance = torch.where(lattice.rim, distance.clamp_min(0.5 * lattice.spacing), distance)
        if forced:
            middle = lattice.points.norm(dim=-1).argmin()
            inside = torch.arange(len(distance), device=device) == middle
            distance = torch.where(inside, distance.clamp_max(-0.5 * lattice.spacing), distance)
        moved = REACH * lattice.spacing * torch.tanh(field.deformation(lattice.points)) * ~lattice.rim[:, None]
        nothing = distance.new_zeros(len(distance), 0)
        vertices, faces, _ = marching_tetrahedra(lattice.points + moved, distance, lattice.cells, nothing)
        colors = field.snapshot().value_color(vertices)[1].clamp(0, 1)
        return Mesh(vertices, faces, vertex_colors=colors).with_smooth_normals()

    @torch.no_grad()
    def to_mesh(self, config: MeshConfig) -> Mesh:
        """See Representation. A distance has no hidden space: nothing is searched for it."""
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters()):
            raise InputError("the planes hold values that are not finite; lower lr and run again")
        return replace(self.mesh(config.resolution), vertex_colors=None)

    @torch.no_grad()
    def surface_color(self, points: Tensor, normals: Tensor, config: MeshConfig) -> Tensor:
        """The colours at the points: there is no fog to look through."""
        return self.planes.color(points.to(self.device)).clamp(0, 1)


@torch.no_grad()
def surface_lattice(field: DualField, resolution: int, forced: bool = False) -> Lattice:
    """The tetrahedra that a field's surface passes through, of a lattice of at least `resolution` corners an edge.

    Raises EmptySurfaceError when all distances have one sign (unless `forced`), InputError for numbers that are none.
    """
    cells = -(-(max(resolution, 2) - 1) // COARSE)  # coarse ones along an edge
    n, half, device = cells * COARSE + 1, field.half_side, next(field.parameters()).device
    axis = torch.linspace(-half, half, n, device=device)
    spacing = 2 * half / (n - 1)

    def place(index: Tensor) -> Tensor:
        """Coordinates (M, 3) of corners (M,)."""
        return axis[torch.stack([index // (n * n), index // n % n, index % n], dim=-1)]

    known = torch.full((n**3,), torch.nan, device=device)

    def ask(index: Tensor) -> None:
        index = index[known[index].isnan()]
        if not len(index):
            return
        points = place(index)
        found = torch.cat([field.outside(part) for part in points.split(CHUNK)])
        if not bool(torch.isfinite(found).all()):
            raise InputError("the field holds values that are not finite; lower lr and train again")
        rim = (points.abs() >= half * (1 - 1e-6)).any(dim=-1)
        known[index] = torch.where(rim, found.clamp_min(0.5 * spacing), found)

    coarse = _block(torch.arange(0, n, COARSE, device=device), n)
    ask(coarse)
    if forced and not bool((known < 0).any()):
        middle = torch.tensor([((n // 2) * n + n // 2) * n + n // 2], device=device)
        ask(middle)
        known[middle] = -0.5 * spacing
    near = -torch.nn.functional.max_pool3d(-_cube(known[coarse].abs(), cells + 1), 2, 1)  # least of 8
    active = near[0, 0] < STEEP * COARSE * spacing * 3**0.5 / 2
    done = torch.zeros_like(active)
    block = _block(torch.arange(COARSE + 1, device=device), n)
    while True:
        both = _mixed(_cube(known, n), COARSE + 1, COARSE)
        todo = (active | both) & ~done
        if not bool(todo.any()):
            break
        x, y, z = todo.nonzero().unbind(-1)
        first = ((x * n + y) * n + z) * COARSE
        ask(torch.unique(first[:, None] + block))
        done |= todo
    x, y, z = _mixed(_cube(known, n), 2, 1).nonzero().unbind(-1)
    if not len(x):
        sign = "outside" if bool((known[known == known] > 0).any()) else "inside"
        raise EmptySurfaceError(f"everything is {sign}: the distances of {n}^3 corners have one sign")
    tetrahedra = cube_tetrahedra((x * n + y) * n + z, n)
    used, local = torch.unique(tetrahedra, return_inverse=True)
    points = place(used)
    return Lattice(points, local, (points.abs() >= half * (1 - 1e-6)).any(dim=-1), spacing)


def _block(axis: Tensor, n: int) -> Tensor:
    """Corners (M^3,) whose places along every axis are these (M,)."""
    return ((axis[:, None] * n + axis)[..., None] * n + axis).reshape(-1)


def _cube(values: Tensor, n: int) -> Tensor:
    return values.view(1, 1, n, n, n)


def _mixed(known: Tensor, size: int, stride: int) -> Tensor:
    """Which blocks (M, M, M) of `size` corners hold known ones of both signs; known (1, 1, N, N, N), NaN: unknown."""
    inside, outside = (known < 0).float(), (known >= 0).float()
    return torch.minimum(*(torch.nn.functional.max_pool3d(m, size, stride) for m in (inside, outside)))[0, 0] > 0
