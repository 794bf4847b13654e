"""One representation out of another, by way of the surface; what cannot be said in the other one is refused by name.

what it becomes     how
triangles           the source's mesh with the colours that are seen on it
volume              signed distances and colours at the nodes of a grid, or fitted by a hash grid or triplane
tetrahedra          signed distances and colours at the corners of the lattice
gaussians           flat Gaussians spread over the surface by area
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.ramps import Moment
from ...utils.seeds import generator as seeded
from ..cameras import quaternion_from_rotation
from ..extract import grid_points, mesh_arrays
from ..fields.grid import GridField
from ..meshes import Mesh
from ..metrics import sample_surface
from ..raycast import RayMesh
from ..representation import MeshConfig, Representation
from ..splats import GaussianCloud
from ..splats.harmonics import C0
from ..winding import Caster
from .build import ShapeConfig, make_shape
from .gaussians import Gaussians
from .tetrahedra import Tetrahedra, colors_at
from .triangles import Triangles
from .volume import Volume

FIT_STEPS, FIT_POINTS = 400, 8192  # of fields that hold no nodes
FLAT = 0.05  # thickness of Gaussians on a surface, of their width
OPAQUE = 0.98  # of Gaussians on a surface
SPREAD = 1.2  # deviation of Gaussians at random places, of their mean distance: holes in one of a thousand places


def convert(
    source: Representation | Mesh | GaussianCloud,
    target: ShapeConfig,
    mesh: MeshConfig | None = None,
    generator: torch.Generator | None = None,
) -> Representation:
    """A representation of the kind and config `target` with the surface and colours of `source`.

    mesh: how the surface of a source that is no mesh is taken; None: the defaults. generator: of the points that fits
    and Gaussians use; None: seed 0. Raises InputError where it makes no sense: inner space from an open mesh, densities
    from a surface, a surface that the target's bounds do not hold; EmptySurfaceError for a source without a surface.
    """
    draw = seeded(0) if generator is None else generator
    surface = _colored_surface(source, mesh or MeshConfig())
    made = _MAKERS[target.kind](surface, target, draw)
    reach = float(surface.vertices.detach().norm(dim=-1).max())
    if reach > made.bounds:
        raise InputError(
            f"the surface reaches {reach:.3g} m from the origin, but the {target.kind} end at {made.bounds:.3g} m; "
            "scale the mesh or enlarge the bounds of the config"
        )
    return made


def _colored_surface(source: Representation | Mesh | GaussianCloud, config: MeshConfig) -> Mesh:
    """The mesh of a source with vertex colours (mid-grey where it has none)."""
    if isinstance(source, GaussianCloud):
        reach = float((source.means.norm(dim=-1).max() + 3 * source.scales.max()).detach())
        source = Gaussians.from_cloud(source, replace(ShapeConfig().gaussians, bounds=reach))
    if isinstance(source, Representation):
        surface = source.to_mesh(config)
        assert surface.vertex_normals is not None
        colors = source.surface_color(surface.vertices, surface.vertex_normals, config).to(surface.vertices)
        return replace(surface, vertex_colors=colors)
    surface = source.with_vertex_colors() if source.textures else source
    if surface.vertex_colors is None:
        surface = replace(surface, vertex_colors=torch.full_like(surface.vertices, 0.5))
    return replace(surface.with_smooth_normals(), uv=None, uv_faces=None, textures={})


def _triangles(surface: Mesh, target: ShapeConfig, draw: torch.Generator) -> Representation:
    return Triangles.from_mesh(surface, target.triangles)


def _gaussians(surface: Mesh, target: ShapeConfig, draw: torch.Generator) -> Representation:
    count = target.gaussians.count
    points, normals, _ = sample_surface(surface, count, draw)
    width = SPREAD * math.sqrt(surface.check().area / count)
    axis = nn.functional.one_hot(normals.abs().argmin(dim=-1), 3).to(normals)
    first = nn.functional.normalize(torch.linalg.cross(normals, axis), dim=-1)
    turn = torch.stack([first, torch.linalg.cross(normals, first), normals], dim=-1)
    scales = points.new_tensor([width, width, FLAT * width]).expand(count, 3)
    sh = ((colors_at(surface, points) - 0.5) / C0)[:, None]
    opacities = points.new_full((count,), OPAQUE)
    cloud = GaussianCloud.from_values(points, scales, quaternion_from_rotation(turn), opacities, sh)
    return Gaussians.from_cloud(cloud, target.gaussians)


def _tetrahedra(surface: Mesh, target: ShapeConfig, draw: torch.Generator) -> Representation:
    made = Tetrahedra(target.tetrahedra)
    values = _signed_distance(surface, made.corners)
    if not bool((values[~made.rim] < 0).any()):
        raise InputError(
            f"the surface slips between the corners of {target.tetrahedra.resolution} a side; raise the resolution"
        )
    with torch.no_grad():
        made.distance.copy_(values)
        made.color_logits.copy_(_logits(colors_at(surface, made.corners)))
    return made


def _volume(surface: Mesh, target: ShapeConfig, draw: torch.Generator) -> Representation:
    head = target.volume.field.head
    if head.kind != "sdf":
        raise InputError(
            f"a surface says nothing of how dense its inside is: volume.field.head.kind={head.kind!r} cannot be made "
            'from it; use "sdf", or fit the density to renders'
        )
    made = make_shape(target, draw)
    assert isinstance(made, Volume)
    field = made.field
    made.on_step(Moment(1, 1), draw)  # all levels
    start: Callable[[Tensor], Tensor] = field.head.start_shape

    def wanted(points: Tensor) -> Tensor:
        """What the field should hold (N, 4) at points (N, 3)."""
        distance = _signed_distance(surface, points) - start(points)
        return torch.cat([distance[:, None], _logits(colors_at(surface, points))], dim=-1)

    if isinstance(field, GridField):
        _fill_grid(field, wanted)
    else:
        _fit_field(made, surface, wanted, draw)
    made.on_step(Moment(1, 1), draw)  # and the cells that are occupied now
    return made


@torch.no_grad()
def _fill_grid(field: GridField, wanted: Callable[[Tensor], Tensor]) -> None:
    """Each level of the pyramid holds what the coarser ones leave."""
    total: Tensor | None = None
    for geometry, colors in zip(field.geometry, field.colors, strict=True):
        side = geometry.shape[-1]
        nodes = grid_points(side, field.half_side).view(-1, 3).to(geometry)
        level = wanted(nodes).T.reshape(1, 4, side, side, side)
        coarse = (
            0.0
            if total is None
            else nn.functional.interpolate(total, size=(side,) * 3, mode="trilinear", align_corners=True)
        )
        geometry.copy_((level - coarse)[:, :1])
        colors.copy_((level - coarse)[:, 1:])
        total = level


def _fit_field(shape: Volume, surface: Mesh, wanted: Callable[[Tensor], Tensor], draw: torch.Generator) -> None:
    """Regression on points near the surface and all over the cube."""
    field, half = shape.field, shape.field.half_side
    near, _, _ = sample_surface(surface, FIT_POINTS, draw)
    bank_near = near + 0.05 * half * torch.randn(near.shape, generator=draw)
    bank_far = (2 * torch.rand(FIT_POINTS, 3, generator=draw) - 1) * half
    bank = torch.cat([bank_near.clamp(-half, half), bank_far]).to(shape.device)
    goal = wanted(bank)
    optimizer = torch.optim.Adam(field.param_groups(1.0), betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(FIT_STEPS):
        chosen = torch.randint(len(bank), (FIT_POINTS // 2,), generator=draw).to(bank.device)
        error = field.query()(bank[chosen]) - goal[chosen]
        loss = error[:, 0].abs().mean() / half + 0.1 * error[:, 1:].abs().mean()
        optimizer.zero_grad()
        loss.backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - 0.9 * step / FIT_STEPS)
        optimizer.step()
    optimizer.zero_grad()


def _signed_distance(surface: Mesh, points: Tensor) -> Tensor:
    """Metres (N,) from points (N, 3) to the surface, negative inside. Raises InputError for an open surface."""
    report = surface.check()
    if not (report.watertight and report.winding_consistent):
        raise InputError(
            f"the mesh is open ({report.boundary_edges} open edges): it has no inside; unproject inspect --repair first"
        )
    caster, places = Caster(*mesh_arrays(surface)), points.detach().cpu().double().numpy()
    face, weights = RayMesh(surface).closest(points)
    nearest = (surface.vertices[surface.faces[face]] * weights[..., None]).sum(dim=1)
    distance = (points - nearest.to(points)).norm(dim=-1)
    inside = torch.from_numpy(np.asarray(caster.winding(places) > 0)).to(distance.device)
    return torch.where(inside, -distance, distance)


def _logits(colors: Tensor) -> Tensor:
    return torch.logit(colors.clamp(0.005, 0.995))


_MAKERS: dict[str, Callable[[Mesh, ShapeConfig, torch.Generator], Representation]] = {
    Triangles.kind: _triangles,
    Gaussians.kind: _gaussians,
    Tetrahedra.kind: _tetrahedra,
    Volume.kind: _volume,
}
