"""Triangles that follow a moving surface: short edges collapse, long ones split, edges flip towards six neighbours.

Continuous remeshing (Palfinger 2022): every vertex has a length that its edges should have. A closed manifold stays
one, with its pieces and handles; what belongs to vertices (an optimiser's moments, colours) follows by `parents`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..utils.compiled import compiled
from ..utils.errors import InputError
from .collapse import STAR, corner_lists, join, joins_as_manifold, measure, ring, turned
from .contacts import Floats, Ints
from .report import edge_table

LIMITS = (0.1, 0.5)  # least shape of a triangle (1: equilateral) and cosine of its turn in a collapse
CREASE = 0.7  # cosine between the normals of two triangles below which their edge stays


@dataclass(frozen=True)
class Remeshed:
    """A closed mesh with other triangles."""

    vertices: Floats  # (N, 3)
    faces: Ints  # (F, 3)
    parents: Ints  # (N, 2) rows of the old vertices: twice itself, or the two that it lies between

    def carry(self, values: NDArray) -> NDArray:
        """Values (N, ...) of the vertices from those of the old ones: the mean of the parents."""
        return 0.5 * (values[self.parents[:, 0]] + values[self.parents[:, 1]])


def remeshed(vertices: Floats, faces: Ints, lengths: Floats, tolerance: float = 0.5) -> Remeshed:
    """A closed mesh whose edges are as long as `lengths` (V,) in metres at their ends, within a factor 1 +- tolerance.

    Each vertex takes part in one collapse at most. Raises InputError for open or non-manifold meshes.
    """
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance={tolerance}; a share of the length, between 0 and 1")
    counts = edge_table(faces, len(vertices))[2]
    if len(faces) and not bool((counts == 2).all()):
        raise InputError("only closed surfaces can be remeshed: each edge needs two faces; repair the mesh first")
    points = np.concatenate([vertices.astype(np.float64), np.zeros((1, 3))])
    index, wanted = faces.astype(np.int64), lengths.astype(np.float64).copy()
    parents = np.stack([np.arange(len(vertices))] * 2, axis=1)
    ends = _edges(index)
    longest = (1 - tolerance) * _wanted(ends, wanted)
    share = np.linalg.norm(points[ends[:, 0]] - points[ends[:, 1]], axis=1) / np.maximum(longest, 1e-30)
    order = np.argsort(share, kind="stable")
    _collapse_short(points, index, ends[order[share[order] < 1]], wanted, parents, 1 - tolerance, np.array(LIMITS))
    points, index, parents, wanted = _compact(points[:-1], index, parents, wanted)
    points, index, parents = _split_long(points, index, parents, wanted, 1 + tolerance)
    _flip(points, index, _twins(index, len(points)), np.bincount(index.reshape(-1), minlength=len(points)), CREASE)
    return Remeshed(points, index, parents)


def _edges(faces: Ints) -> Ints:
    """(E, 2) of a closed mesh, the lower vertex first."""
    half = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    return half[half[:, 0] < half[:, 1]]


def _wanted(ends: Ints, lengths: Floats) -> Floats:
    return 0.5 * (lengths[ends[:, 0]] + lengths[ends[:, 1]])


@compiled
def _collapse_short(
    P: Floats, faces: Ints, edges: Ints, lengths: Floats, parents: Ints, factor: float, limits: Floats
) -> None:
    """Joins the ends of edges (E, 2) half-way, in this order, where the surface stays a manifold and keeps its shape.

    P: (V + 1, 3), the last one scratch. Dead faces start with -1.
    """
    heads, links, valence = corner_lists(faces, len(P))
    marks, done = np.full(len(P), -1, np.int64), np.zeros(len(P), np.bool_)
    ring_u, ring_v, new = np.empty(STAR, np.int64), np.empty(STAR, np.int64), np.empty((2 * STAR, 3), np.int64)
    x = len(P) - 1
    for e in range(len(edges)):
        u, v = edges[e]
        if done[u] or done[v]:
            continue
        side = 0.0
        for i in range(3):
            side += (P[u, i] - P[v, i]) ** 2
            P[x, i] = 0.5 * (P[u, i] + P[v, i])
        if side >= (factor * 0.5 * (lengths[u] + lengths[v])) ** 2:
            continue
        count_u, count_v = ring(u, faces, heads, links, ring_u), ring(v, faces, heads, links, ring_v)
        if count_u < 0 or count_v < 0:
            continue
        around_u, around_v = ring_u[:count_u], ring_v[:count_v]
        if not joins_as_manifold(u, v, faces, around_u, around_v, valence, marks):
            continue
        if turned(P, faces, around_u, u, v, x, new, limits) < 0 or turned(P, faces, around_v, v, u, x, new, limits) < 0:
            continue
        P[u] = P[x]
        lengths[u] = 0.5 * (lengths[u] + lengths[v])
        parents[u, 1] = v
        join(faces, u, v, around_v, valence, heads, links)
        done[u] = done[v] = True


def _compact(points: Floats, faces: Ints, parents: Ints, lengths: Floats) -> tuple[Floats, Ints, Ints, Floats]:
    """Without dead faces and the vertices that none uses."""
    alive = faces[faces[:, 0] >= 0]
    used, index = np.unique(alive, return_inverse=True)
    return points[used], np.ascontiguousarray(index.reshape(-1, 3)), parents[used], lengths[used]


def _split_long(
    points: Floats, faces: Ints, parents: Ints, lengths: Floats, factor: float
) -> tuple[Floats, Ints, Ints]:
    """Middles on edges longer than `factor` times the wanted length; each face becomes one to four."""
    edge_ids, _, counts = edge_table(faces, len(points))
    ends = np.empty((len(counts), 2), dtype=np.int64)
    half = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    ends[edge_ids] = np.sort(half, axis=1)
    long = np.linalg.norm(points[ends[:, 0]] - points[ends[:, 1]], axis=1) > factor * _wanted(ends, lengths)
    if not long.any():
        return points, faces, parents
    middle = np.full(len(counts), -1, dtype=np.int64)
    middle[long] = len(points) + np.arange(int(long.sum()))
    cut = ends[long]
    points = np.concatenate([points, 0.5 * (points[cut[:, 0]] + points[cut[:, 1]])])
    parents = np.concatenate([parents, np.stack([parents[cut[:, 0], 0], parents[cut[:, 1], 0]], axis=1)])
    return points, _subdivided(points, faces, middle[edge_ids].reshape(-1, 3)), parents


def _subdivided(points: Floats, faces: Ints, middles: Ints) -> Ints:
    """Faces (F, 3) cut at the middles (F, 3) of their sides 01, 12, 20 (-1: none)."""
    count = (middles >= 0).sum(axis=1)
    made = [faces[count == 0]]
    for wanted in (1, 2):  # turned so that the cut side comes first, or the uncut one last
        chosen = np.flatnonzero(count == wanted)
        cut = middles[chosen] >= 0
        first = cut.argmax(axis=1) if wanted == 1 else (np.argmin(cut, axis=1) + 1) % 3
        turn = (first[:, None] + np.arange(3)) % 3
        a, b, c = np.take_along_axis(faces[chosen], turn, axis=1).T
        m, n, _ = np.take_along_axis(middles[chosen], turn, axis=1).T
        if wanted == 1:
            made += [np.stack(t, axis=1) for t in ((a, m, c), (m, b, c))]
            continue
        across = np.linalg.norm(points[a] - points[n], axis=1) < np.linalg.norm(points[m] - points[c], axis=1)
        made.append(np.stack([m, b, n], axis=1))  # what is left is the quadrilateral a, m, n, c
        made.append(np.where(across[:, None], np.stack([a, m, n], axis=1), np.stack([a, m, c], axis=1)))
        made.append(np.where(across[:, None], np.stack([a, n, c], axis=1), np.stack([m, n, c], axis=1)))
    (a, b, c), (m, n, o) = faces[count == 3].T, middles[count == 3].T
    made += [np.stack(t, axis=1) for t in ((a, m, o), (m, b, n), (o, n, c), (m, n, o))]
    return np.concatenate(made)


def _twins(faces: Ints, vertices: int) -> Ints:
    """(3F,) the opposite half-edge of each half-edge of a closed mesh."""
    order = np.argsort(edge_table(faces, vertices)[0], kind="stable").reshape(-1, 2)
    twins = np.empty(3 * len(faces), dtype=np.int64)
    twins[order[:, 0]], twins[order[:, 1]] = order[:, 1], order[:, 0]
    return twins


@compiled
def _are_joined(start: int, wanted: int, faces: Ints, twins: Ints) -> bool:
    """Whether an edge goes from the first vertex of the half-edge `start` to the vertex `wanted`."""
    h = start
    for _ in range(3 * len(faces)):
        f, i = h // 3, h % 3
        if faces[f, (i + 1) % 3] == wanted:
            return True
        h = twins[3 * f + (i + 2) % 3]
        if h == start:
            return False
    return False


@compiled
def _flip(P: Floats, faces: Ints, twins: Ints, valence: Ints, crease: float) -> None:
    """Turns edges of nearly flat pairs of triangles that bring their four corners nearer to six neighbours."""
    n, m, p, q = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    for h in range(3 * len(faces)):
        k = twins[h]
        if k < h:
            continue
        f, i, g, j = h // 3, h % 3, k // 3, k % 3
        a, b, c, d = faces[f, i], faces[f, (i + 1) % 3], faces[f, (i + 2) % 3], faces[g, (j + 2) % 3]
        if valence[a] <= 3 or valence[b] <= 3 or valence[c] + valence[d] + 2 > valence[a] + valence[b] - 1:
            continue  # the sum of squared distances from six falls by 2 (va + vb - vc - vd - 2)
        worst = min(measure(P, a, b, c, n), measure(P, b, a, d, m))
        better = min(measure(P, a, d, c, p), measure(P, b, c, d, q))
        bend, turn = 0.0, 0.0
        for axis in range(3):
            bend += n[axis] * m[axis]
            turn += p[axis] * q[axis]
        same = 0.0
        for axis in range(3):
            same += (n[axis] + m[axis]) * (p[axis] + q[axis])
        if bend < crease or turn < crease or same <= 0.0 or better < 0.5 * worst:
            continue
        if _are_joined(3 * f + (i + 2) % 3, d, faces, twins):
            continue
        ad, db = twins[3 * g + (j + 1) % 3], twins[3 * g + (j + 2) % 3]
        bc, ca = twins[3 * f + (i + 1) % 3], twins[3 * f + (i + 2) % 3]
        faces[f, 0], faces[f, 1], faces[f, 2] = a, d, c
        faces[g, 0], faces[g, 1], faces[g, 2] = b, c, d
        twins[3 * f], twins[3 * f + 1], twins[3 * f + 2] = ad, 3 * g + 1, ca
        twins[3 * g], twins[3 * g + 1], twins[3 * g + 2] = bc, 3 * f + 1, db
        twins[ad], twins[ca], twins[bc], twins[db] = 3 * f, 3 * f + 2, 3 * g, 3 * g + 2
        valence[a] -= 1
        valence[b] -= 1
        valence[c] += 1
        valence[d] += 1
