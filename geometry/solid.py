"""Surfaces that enclose a solid: nothing open, nothing crossing, nothing hidden, and repair of those that do not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import manifold3d
import numpy as np
import torch
from numpy.typing import NDArray

from ..utils.errors import InputError
from .contacts import meeting_faces
from .extract import EmptySurfaceError, decimate, keep_largest, mesh_arrays, mesh_from, remesh, repair, select_faces
from .meshes import Mesh
from .report import MeshReport, collapsed_mask, edge_table, fans, merge_positions
from .winding import misplaced_share, shells_of

RESOLUTIONS = (128, 96, 64, 48, 32)  # of the attempts after the first
STEP_ASIDE = 1e-3  # of the way to the neighbours
FINE = 160  # samples of a repair that starts anew


@dataclass(frozen=True)
class Verdict:
    """What speaks for and against a mesh being a solid."""

    report: MeshReport
    meeting: int  # faces that cut, touch or fold onto others
    misplaced: float | None  # share of faces with a wrong winding number beside them; None: not closed, not asked

    @property
    def faults(self) -> list[str]:
        """Why it is no solid, in words; empty for a solid."""
        report = self.report
        counts = (
            (report.boundary_edges, "open edges"),
            (report.nonmanifold_edges, "edges with more than two faces"),
            (report.nonmanifold_vertices, "vertices where surfaces touch in a point"),
            (self.meeting, "faces that cut or touch others"),
        )
        found = [f"{text}: {count}" for count, text in counts if count]
        if report.faces == 0:
            found.append("no faces")
        if not report.winding_consistent:
            found.append("neighbouring faces that look to different sides")
        if self.misplaced:
            found.append(
                f"winding numbers other than 0 outside and 1 inside at {100 * self.misplaced:.2g} % of the faces"
            )
        return found


def examine(mesh: Mesh) -> Verdict:
    """Measures of a mesh as a solid; 0.5 s for 12 000 faces."""
    report = mesh.check()
    positions, faces = merge_positions(*mesh_arrays(mesh))
    closed = report.watertight and report.winding_consistent
    return Verdict(
        report, int(meeting_faces(positions, faces).sum()), misplaced_share(positions, faces) if closed else None
    )


def faults(mesh: Mesh) -> list[str]:
    """What keeps a mesh from being a solid, in words; empty for a solid."""
    return examine(mesh).faults


def without_hidden(mesh: Mesh) -> Mesh:
    """The mesh without shells that lie inside others: cavities are filled, what floats in them goes."""
    labels, shells = shells_of(*mesh_arrays(mesh))
    hidden = [i for i, shell in enumerate(shells) if shell.inside is not None]
    return select_faces(mesh, torch.from_numpy(~np.isin(labels, hidden))) if hidden else mesh


def solid_surface(mesh: Mesh, keep: float, faces: int) -> Mesh:
    """At most `faces` triangles around the same space: a solid of outer shells, each above `keep` of the area.

    Geometry only, with smooth normals. Crumbs and hidden shells go first, so that triangles are spent on what is seen;
    where the result is no solid, the surface is taken anew on coarser and coarser lattices, and what is left is told.
    """
    mesh = keep_largest(without_hidden(mesh), keep)
    light, found = mesh, [""]
    for resolution in (0, *RESOLUTIONS):
        source = mesh if resolution == 0 else keep_largest(without_hidden(remesh(mesh, resolution)), keep)
        light = keep_largest(decimate(source, faces), keep)
        found = faults(light)
        if not found:
            break
    if found:
        warnings.warn(f"the mesh is not a solid: {'; '.join(found)}", UserWarning, stacklevel=2)
    return light.with_smooth_normals()


def make_solid(mesh: Mesh) -> tuple[Mesh, list[str]]:
    """A solid of the same shape, and what was done to it in words (nothing for a solid). Geometry only.

    Tried in turn: welding, closing and orienting; taking apart what touches in a point; the union of overlapping
    pieces; a new surface around all space with a positive winding number. Raises InputError that says what is left.
    """
    found = faults(mesh)
    if not found:
        return mesh, []
    parted = _apart(mesh)
    if not faults(parted):
        return parted, ["parted what touched along edges or in points"]
    apart, steps = _apart(repair(parted)), ["welded, closed and oriented"]
    if not faults(apart):
        return apart, steps
    joined = _union(apart)
    if joined is not None and not faults(joined):
        return joined, [*steps, "joined overlapping pieces"]
    report = apart.check()
    if 2 * abs(report.signed_volume) < report.area * mesh.diagonal / FINE:  # walls of less than a cell on the whole
        raise InputError("it cannot be made a solid: it encloses next to no space; give it a thickness first")
    try:
        anew = without_hidden(remesh(apart, FINE))
        anew = decimate(anew, min(max(len(mesh.faces), 4000), len(anew.faces)))
        found = faults(anew)
    except EmptySurfaceError as error:
        raise InputError("it cannot be made a solid: it encloses no space; give it a thickness first") from error
    if found:
        raise InputError(f"it cannot be made a solid: {'; '.join(found)}")
    return anew, [*steps, f"taken anew on a lattice of {FINE} samples"]


def _union(mesh: Mesh) -> Mesh | None:
    """The union of the shells, None where they are no manifolds or cavities are among them."""
    positions, faces = mesh_arrays(mesh)
    if any(shell.volume <= 0 for shell in shells_of(positions, faces)[1]):
        return None
    whole = manifold3d.Manifold(manifold3d.Mesh(positions.astype(np.float32), faces.astype(np.uint32)))
    if whole.status() != manifold3d.Error.NoError:
        return None
    joined = manifold3d.Manifold.batch_boolean(whole.decompose(), manifold3d.OpType.Add).to_mesh()
    return repair(mesh_from(np.asarray(joined.vert_properties)[:, :3], np.asarray(joined.tri_verts)))


def _apart(mesh: Mesh) -> Mesh:
    """Solids that touch along an edge or in a point get corners of their own there, a little towards their faces."""
    positions, faces = merge_positions(*mesh_arrays(mesh))
    faces = faces[~collapsed_mask(positions[faces])]
    labels = fans(faces, _paired_edges(positions, faces)).reshape(-1, 3)
    first, split = np.unique(labels, return_index=True)[1], np.unique(labels, return_inverse=True)[1].reshape(-1, 3)
    owner = faces.reshape(-1)[first]
    moved = positions[owner]
    crowded = np.bincount(owner, minlength=len(positions))[owner] > 1
    moved[crowded] += STEP_ASIDE * (_means(positions, faces, split, len(first)) - moved)[crowded]
    return mesh_from(moved, split)


def _paired_edges(positions: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Edge index (3F,) as in `edge_table`, where edges of more than two faces become one for each wedge of matter.

    Around an edge from its low to its high vertex, matter lies before a face that runs along it and after one that
    runs against it; where those do not alternate, the edge stays what it was.
    """
    edge_ids, forward, counts = edge_table(faces, len(positions))
    edge_ids, following = edge_ids.copy(), len(counts)
    for edge in np.flatnonzero((counts > 2) & (counts % 2 == 0)):
        halves = np.flatnonzero(edge_ids == edge)
        corners = faces.reshape(-1)
        start, end = corners[halves], corners[3 * (halves // 3) + (halves + 1) % 3]
        low, high = positions[min(start[0], end[0])], positions[max(start[0], end[0])]
        axis = (high - low) / np.linalg.norm(high - low)
        spokes = positions[corners[3 * (halves // 3) + (halves + 2) % 3]] - low
        spokes -= (spokes @ axis)[:, None] * axis
        side = np.cross(axis, spokes[0])
        angles = np.arctan2(spokes @ side, spokes @ spokes[0] * np.linalg.norm(side) / np.linalg.norm(spokes[0]))
        order = halves[np.argsort(angles, kind="stable")]
        order = np.roll(order, -1) if forward[order[0]] else order
        if forward[order[1::2]].all() and not forward[order[0::2]].any():
            edge_ids[order] = following + np.arange(len(order)) // 2
            following += len(order) // 2
    return edge_ids


def _means(
    positions: NDArray[np.float64], faces: NDArray[np.int64], split: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Mean (count, 3) of the centres of the faces (F, 3) that use each of the vertices `split` (F, 3)."""
    centres = np.repeat(positions[faces].mean(axis=1), 3, axis=0)
    total = np.zeros((count, 3))
    np.add.at(total, split.reshape(-1), centres)
    return total / np.bincount(split.reshape(-1), minlength=count)[:, None]
