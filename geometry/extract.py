"""From a grid of field values to a closed, oriented, light mesh: marching cubes, cleaning, decimation."""

from __future__ import annotations

from dataclasses import replace

import fast_simplification
import numpy as np
import open3d
import torch
import trimesh
from numpy.typing import NDArray
from skimage.measure import marching_cubes
from torch import Tensor

from ..utils.errors import InputError
from .meshes import Mesh
from .report import collapsed_mask, edge_table, face_components, fans, merge_positions, mesh_report, signed_volume
from .unwrap import unwrap
from .winding import Caster

__all__ = ["decimate", "extract_surface", "grid_points", "keep_largest", "remesh", "repair", "unwrap"]
Grid = NDArray[np.float32]


class EmptySurfaceError(InputError):
    """The field nowhere crosses the level."""


def grid_points(resolution: int, bounds: float | Tensor) -> Tensor:
    """Sample positions (N, N, N, 3) of `extract_surface`: axis 0 is x, corners included."""
    low, high = _corners(bounds)
    axes = [torch.linspace(float(low[i]), float(high[i]), resolution) for i in range(3)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def extract_surface(
    values: Tensor | Grid, level: float, bounds: float | Tensor = 1.0, sign: int = 1, keep: str = "largest"
) -> Mesh:
    """The surface of a grid (Nx, Ny, Nz), x first, whose corner samples lie on `bounds`.

    bounds: half-width of a centred cube, or (2, 3) corners, in metres.
    sign: +1 when the inside is above the level (density), -1 when below (signed distance).
    keep: "largest" piece by area, "parts" above 1 % of the area, or "all".
    The surface is closed where it leaves the bounds, faces outward and has smooth vertex normals. Raises
    EmptySurfaceError (an InputError) when the grid is all inside or all outside.
    """
    grid = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float32)
    if grid.ndim != 3 or min(grid.shape) < 2:
        raise InputError(f"values has shape {grid.shape}, expected (Nx, Ny, Nz) with at least 2 samples an axis")
    if sign not in (1, -1):
        raise InputError(f"sign={sign}; use 1 for densities (inside above the level) or -1 for signed distances")
    _check_level(grid, level, sign)
    field = sign * (grid - np.float32(level))
    vertices, faces = _march(field)
    low, high = (np.asarray(corner, dtype=np.float64) for corner in _corners(bounds))
    spacing = (high - low) / (np.array(grid.shape) - 1)
    positions = torch.from_numpy((low + vertices * spacing).astype(np.float32))
    mesh = repair(Mesh(positions, torch.from_numpy(faces.astype(np.int64))))
    if keep != "all":
        mesh = keep_largest(mesh, share=0.01 if keep == "parts" else None)
    return mesh.with_smooth_normals()


def keep_largest(mesh: Mesh, share: float | None = None) -> Mesh:
    """The piece of largest area, or with `share` all pieces above that fraction of the total area."""
    positions, faces = mesh_arrays(mesh)
    _, welded = merge_positions(positions, faces)
    labels = face_components(edge_table(welded, len(positions))[0], len(faces))
    areas = np.bincount(labels, weights=_areas(positions[faces]))
    kept = np.flatnonzero(areas > share * areas.sum()) if share is not None else np.array([areas.argmax()])
    return select_faces(mesh, torch.from_numpy(np.isin(labels, kept)))


def select_faces(mesh: Mesh, mask: Tensor) -> Mesh:
    """The faces where mask (F,) is true, with the vertices they use."""
    used, compact = torch.unique(mesh.faces[mask], return_inverse=True)
    return replace(
        mesh,
        vertices=mesh.vertices[used],
        faces=compact,
        vertex_normals=None if mesh.vertex_normals is None else mesh.vertex_normals[used],
        vertex_colors=None if mesh.vertex_colors is None else mesh.vertex_colors[used],
        uv_faces=None if mesh.uv_faces is None else mesh.uv_faces[mask],
    )


def repair(mesh: Mesh) -> Mesh:
    """Welds equal positions, drops collapsed faces, closes holes, makes the winding consistent and outward.

    Geometry only: normals, colours and textures are dropped, since vertices may merge.
    """
    positions, faces = merge_positions(*mesh_arrays(mesh))
    faces = faces[~collapsed_mask(positions[faces])]
    welded = mesh_from(positions, faces)
    report = welded.check()
    if not (report.watertight and report.winding_consistent):
        positions, faces = _close(positions, faces)
    if signed_volume(positions[faces]) < 0:
        faces = faces[:, ::-1]
    return mesh_from(positions, faces)


def decimate(mesh: Mesh, faces: int = 40_000) -> Mesh:
    """At most `faces` triangles by quadric edge collapse; normals are recomputed, geometry only.

    A closed, oriented surface stays one, with all its pieces and handles and without new self-intersections; where that
    takes more triangles, it is taken anew on a coarser lattice. Raises InputError when that does not do either.
    """
    if len(mesh.faces) <= faces:
        return mesh
    if faces < 4:
        raise InputError(f"faces={faces}; a closed mesh has at least 4")
    report = mesh.check()
    if not (report.watertight and report.winding_consistent):
        return decimate_loosely(mesh, faces).with_smooth_normals()
    candidate = _collapsed(mesh, faces)
    resolution = _resolution_for(mesh, faces)
    while len(candidate.faces) > faces and resolution >= 4:
        candidate = _collapsed(remesh(mesh, resolution), faces)
        resolution = int(0.7 * resolution)
    if len(candidate.faces) > faces:
        raise InputError(f"faces={faces}; this shape takes at least {len(candidate.faces)} triangles")
    return candidate.with_smooth_normals()


def _collapsed(mesh: Mesh, faces: int) -> Mesh:
    """Edge collapse of a closed, oriented surface; what touches in a point goes on doing so."""
    from .collapse import collapse
    from .contacts import meeting_faces

    positions, index = merge_positions(*mesh_arrays(mesh))
    index = index[~collapsed_mask(positions[index])]
    labels = fans(index, edge_table(index, len(positions))[0])
    first, split = np.unique(labels, return_index=True)[1], np.unique(labels, return_inverse=True)[1]
    parted = positions[index.reshape(-1)[first]]
    return mesh_from(*collapse(parted, split.reshape(-1, 3), faces, not meeting_faces(positions, index).any()))


def decimate_loosely(mesh: Mesh, faces: int) -> Mesh:
    """Edge collapse of a surface that is no closed manifold, which may change how it hangs together."""
    positions, index = mesh_arrays(mesh)
    for patience in (7.0, 3.0, 1.0):
        reduced = fast_simplification.simplify(
            positions.astype(np.float32), index.astype(np.int32), target_count=faces, agg=patience
        )
        if 0 < len(reduced[1]) <= faces:
            return mesh_from(np.asarray(reduced[0]), np.asarray(reduced[1]))
        positions, index = np.asarray(reduced[0]), np.asarray(reduced[1])
    raise InputError(f"faces={faces}; this open surface cannot go below {len(index)} triangles")


def remesh(mesh: Mesh, resolution: int = 128) -> Mesh:
    """A closed surface around all space with a positive winding number: distances on a grid, then marching cubes.

    Where the mesh is open, what lies between a wall and the end of a column of samples counts as inside. Geometry only.
    """
    low, high = mesh.bounds.double().cpu()
    margin = 2.0 * float((high - low).max()) / resolution
    bounds = torch.stack([low - margin, high + margin])
    positions, faces = mesh_arrays(mesh)
    caster = Caster(positions, faces)
    points = grid_points(resolution, bounds).numpy()
    inside = caster.columns(points) > 0
    near = np.zeros_like(inside)  # only distances beside the surface matter
    for axis in range(3):
        change = np.diff(inside, axis=axis)
        for side in ((0, 1), (1, 0)):
            near |= np.pad(change, [side if i == axis else (0, 0) for i in range(3)])
    distance = np.full(inside.shape, margin, dtype=np.float32)
    distance[near] = caster.scene.compute_distance(open3d.core.Tensor(points[near].astype(np.float32))).numpy()
    return extract_surface(np.where(inside, -distance, distance), 0.0, bounds, sign=-1, keep="parts")


def _corners(bounds: float | Tensor) -> Tensor:
    """(2, 3) float64 corners."""
    if isinstance(bounds, Tensor) and bounds.shape == (2, 3):
        corners = bounds.double().cpu()
    else:
        half = float(bounds)
        corners = torch.tensor([[-half] * 3, [half] * 3], dtype=torch.float64)
    if not bool((corners[1] > corners[0]).all()):
        raise InputError(f"bounds {corners.tolist()} are not lower corner, upper corner")
    return corners


def _check_level(grid: Grid, level: float, sign: int) -> None:
    """Raises InputError when the level is outside the range of the values."""
    if not np.isfinite(grid).all():
        raise InputError("the field has NaN or infinite values; it did not converge, lower the learning rate")
    low, high = float(grid.min()), float(grid.max())
    inside = grid > level if sign > 0 else grid < level
    state = "empty" if not inside.any() else ("full" if inside.all() else None)
    if state is not None:
        middle = 0.5 * (low + high)
        raise EmptySurfaceError(
            f"the field is {state} at level={level:g}: its values are in [{low:g}, {high:g}]; "
            f"use a level inside, such as {middle:g}, or optimise for longer"
        )


def _march(field: Grid) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Marching cubes of field > 0 padded with one empty layer; vertices in sample units of the unpadded grid.

    No crossing comes closer to a sample than 1e-3 of an edge, so no triangle collapses in float32.
    """
    steepest = np.zeros_like(field)
    for axis in range(3):
        step = np.abs(np.diff(field, axis=axis))
        for side in (0, -1):
            widths = [(0, 0)] * 3
            widths[axis] = (1, 0) if side == 0 else (0, 1)
            np.maximum(steepest, np.pad(step, widths), out=steepest)
    least = np.maximum(1e-3 * steepest, 1e-9 * float(np.abs(field).max()))
    apart = np.where(np.abs(field) < least, np.where(field > 0, least, -least), field)
    padded = -1e3 * np.abs(np.pad(apart, 1, mode="edge"))
    padded[1:-1, 1:-1, 1:-1] = apart
    vertices, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="descent", allow_degenerate=True)
    return vertices.astype(np.float64) - 1.0, faces.astype(np.int64)


def _close(positions: NDArray[np.float64], faces: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Drops faces on edges with more than two faces, makes the winding consistent and closes the holes."""
    edge_ids, _, counts = edge_table(faces, len(positions))
    faces = faces[~(counts[edge_ids] > 2).reshape(-1, 3).any(axis=1)]
    if not mesh_report(positions, faces).winding_consistent:
        mesh = trimesh.Trimesh(positions, faces, process=False)
        trimesh.repair.fix_winding(mesh)
        faces = np.asarray(mesh.faces, dtype=np.int64)
    edge_ids, _, counts = edge_table(faces, len(positions))
    half_edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)[counts[edge_ids] == 1]
    added, caps = [positions], [faces]
    count = len(positions)
    for loop in _loops(half_edges):
        ahead = np.roll(loop, -1)
        if len(loop) == 3:
            caps.append(loop[None, ::-1])
        else:  # a fan around the mean of the rim
            added.append(positions[loop].mean(axis=0, keepdims=True))
            caps.append(np.stack([ahead, loop, np.full(len(loop), count)], axis=1))
            count += 1
    return np.concatenate(added), np.concatenate(caps)


def _loops(half_edges: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Simple closed loops of vertices that use each directed edge (E, 2) at most once."""
    following: dict[int, list[int]] = {}
    for start, end in half_edges.tolist():
        following.setdefault(start, []).append(end)
    loops = []
    for start in list(following):
        while following[start]:
            walk, place = [start], {start: 0}
            while following.get(walk[-1]):
                ahead = following[walk[-1]].pop()
                if ahead in place:  # came back: cut the loop off and walk on from there
                    first = place[ahead]
                    loops.append(np.array(walk[first:], dtype=np.int64))
                    for vertex in walk[first + 1 :]:
                        del place[vertex]
                    walk = walk[: first + 1]
                else:
                    place[ahead] = len(walk)
                    walk.append(ahead)
    return [loop for loop in loops if len(loop) > 2]


def _resolution_for(mesh: Mesh, faces: int) -> int:
    """Samples along the longest side that give about `faces` triangles: marching cubes leaves 2.5 a crossed cell."""
    low, high = mesh.bounds
    cell = (2.5 * mesh.check().area / faces) ** 0.5
    return min(max(int(float((high - low).max()) / cell), 16), 192)


def mesh_arrays(mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices (V, 3) and faces (F, 3)."""
    return mesh.vertices.detach().cpu().double().numpy(), mesh.faces.cpu().numpy()


def mesh_from(positions: NDArray, faces: NDArray) -> Mesh:
    """The plain mesh of vertices (V, 3) and faces (F, 3)."""
    return Mesh(
        torch.from_numpy(np.array(positions, dtype=np.float32, order="C")),
        torch.from_numpy(np.array(faces, dtype=np.int64, order="C")),
    )


def _areas(triangles: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
