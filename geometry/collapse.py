"""Fewer triangles of a closed surface that stays what it was: same pieces, same handles, nothing touches.

Garland and Heckbert 1997 (quadric error metrics), where an edge is collapsed only if the surface remains a manifold
(the link condition of Dey et al. 1999), no triangle turns over or becomes a sliver, and no new triangle comes near
another one. A surface free of self-intersections therefore ends as one.
"""

from __future__ import annotations

import heapq
import math

import numpy as np

from ..utils.compiled import compiled
from .contacts import Floats, Ints, apart, cell_grid, cells_of, insert, mean_side, meet

STAR = 512  # triangles around a vertex at most; edges of busier ones stay
PULL = 1e-3  # weight of the old place of a vertex against its planes: keeps flat parts evenly meshed
CLEARANCE = 2e-6  # of the diagonal of the bounding box
Grid = tuple[Floats, float, Ints, Ints, Ints]  # corner, cell size, cells an axis, their first entries, entries
PASSES = ((0.05, 0.2), (0.01, 0.0))  # least shape of a triangle (1: equilateral) and cosine of its turn


@compiled
def _quadrics(P: Floats, faces: Ints) -> Floats:
    """(V, 10) area-weighted squared distance from the planes around each vertex: xx xy xz yy yz zz x y z 1."""
    Q = np.zeros((len(P), 10))
    for f in range(len(faces)):
        a, b, c = faces[f]
        ux, uy, uz = P[b, 0] - P[a, 0], P[b, 1] - P[a, 1], P[b, 2] - P[a, 2]
        vx, vy, vz = P[c, 0] - P[a, 0], P[c, 1] - P[a, 1], P[c, 2] - P[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        if length == 0.0:
            continue
        nx, ny, nz, area = nx / length, ny / length, nz / length, 0.5 * length
        d = -(nx * P[a, 0] + ny * P[a, 1] + nz * P[a, 2])
        for corner in range(3):
            q = Q[faces[f, corner]]
            x, y, z = P[faces[f, corner]]
            pull = PULL * area
            q[0] += area * nx * nx + pull
            q[1] += area * nx * ny
            q[2] += area * nx * nz
            q[3] += area * ny * ny + pull
            q[4] += area * ny * nz
            q[5] += area * nz * nz + pull
            q[6] += area * nx * d - pull * x
            q[7] += area * ny * d - pull * y
            q[8] += area * nz * d - pull * z
            q[9] += area * d * d + pull * (x * x + y * y + z * z)
    return Q


@compiled
def _best(Q: Floats, P: Floats, u: int, v: int, centre: Floats, out: Floats) -> float:
    """The cost in metres^4 of joining u and v at `out`, the best place whose sum with `centre` is a float32 number."""
    q = Q[u] + Q[v]
    a, b, c, d, e, f = q[0], q[1], q[2], q[3], q[4], q[5]
    A, B, C = d * f - e * e, c * e - b * f, b * e - c * d
    determinant = a * A + b * B + c * C
    scale = (a + d + f) / 3
    middle = 0.5 * (P[u] + P[v])
    if determinant > 1e-13 * scale * scale * scale:
        x, y, z = -q[6], -q[7], -q[8]
        out[0] = (A * x + B * y + C * z) / determinant
        out[1] = (B * x + (a * f - c * c) * y + (b * c - a * e) * z) / determinant
        out[2] = (C * x + (b * c - a * e) * y + (a * d - b * b) * z) / determinant
    else:
        out[:] = middle
    side, away = 0.0, 0.0
    for i in range(3):
        side += (P[u, i] - P[v, i]) ** 2
        away += (out[i] - middle[i]) ** 2
    if not away <= 4 * side:
        out[:] = middle
    for i in range(3):
        out[i] = np.float64(np.float32(out[i] + centre[i])) - centre[i]
    x, y, z = out
    cost = x * (a * x + 2 * (b * y + c * z + q[6])) + y * (d * y + 2 * (e * z + q[7])) + z * (f * z + 2 * q[8]) + q[9]
    return max(cost, 0.0)


@compiled
def corner_lists(faces: Ints, count: int) -> tuple[Ints, Ints, Ints]:
    """(first corner 3 f + i of each of `count` vertices or -1, following corner of each corner, faces a vertex)."""
    heads, links = np.full(count, -1, np.int64), np.full(3 * len(faces), -1, np.int64)
    valence = np.zeros(count, np.int64)
    for f in range(len(faces)):
        for i in range(3):
            w = faces[f, i]
            links[3 * f + i], heads[w] = heads[w], 3 * f + i
            valence[w] += 1
    return heads, links, valence


@compiled
def ring(v: int, faces: Ints, heads: Ints, links: Ints, out: Ints) -> int:
    """Living faces around v into out; their number, or -1 when there are more than fit. Forgets dead ones."""
    count, before, corner = 0, -1, heads[v]
    while corner >= 0:
        after = links[corner]
        if faces[corner // 3, 0] < 0:
            if before < 0:
                heads[v] = after
            else:
                links[before] = after
        else:
            if count == len(out):
                return -1
            out[count] = corner // 3
            count += 1
            before = corner
        corner = after
    return count


@compiled
def joins_as_manifold(u: int, v: int, faces: Ints, ring_u: Ints, ring_v: Ints, valence: Ints, marks: Ints) -> bool:
    """The link condition: u and v have exactly the two neighbours in common that face their edge, none left bare.

    marks: (V,) scratch, all -1 before and after.
    """
    for f in ring_u:
        for i in range(3):
            marks[faces[f, i]] = 1
    common, edge_faces, bare = 0, 0, False
    for f in ring_v:
        has_u = False
        for i in range(3):
            w = faces[f, i]
            has_u = has_u or w == u
            if marks[w] == 1 and w not in (u, v):
                marks[w] = 2
                common += 1
        if has_u:
            edge_faces += 1
            for i in range(3):
                w = faces[f, i]
                bare = bare or (w not in (u, v) and valence[w] <= 3)
    for f in ring_u:
        for i in range(3):
            marks[faces[f, i]] = -1
    return common == 2 and edge_faces == 2 and not bare


@compiled
def measure(P: Floats, a: int, b: int, c: int, out: Floats) -> float:
    """Shape of a triangle, 1 for equilateral and 0 for flat; out = its unit normal."""
    ux, uy, uz = P[b, 0] - P[a, 0], P[b, 1] - P[a, 1], P[b, 2] - P[a, 2]
    vx, vy, vz = P[c, 0] - P[a, 0], P[c, 1] - P[a, 1], P[c, 2] - P[a, 2]
    out[0], out[1], out[2] = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    length = math.sqrt(out[0] ** 2 + out[1] ** 2 + out[2] ** 2)
    sides = ux * ux + uy * uy + uz * uz + vx * vx + vy * vy + vz * vz
    sides += (ux - vx) ** 2 + (uy - vy) ** 2 + (uz - vz) ** 2
    if length == 0.0:
        return 0.0
    out[0], out[1], out[2] = out[0] / length, out[1] / length, out[2] / length
    return 3.4641016151377544 * length / sides


@compiled
def turned(P: Floats, faces: Ints, around: Ints, u: int, v: int, x: int, new: Ints, limits: Floats) -> int:
    """The faces `around` u without those of v, with u replaced by x, into new (N, 3); -1 if one gets bad.

    limits: least shape (or that of the worst of them, when it is worse already) and least cosine of its turn.
    """
    count, worst = 0, limits[0]
    before, after = np.empty(3), np.empty(3)
    for f in around:
        worst = min(worst, measure(P, faces[f, 0], faces[f, 1], faces[f, 2], before))
    for f in around:
        a, b, c = faces[f]
        if v in (a, b, c):
            continue
        measure(P, a, b, c, before)
        a, b, c = (x if a == u else a), (x if b == u else b), (x if c == u else c)
        shape = measure(P, a, b, c, after)
        turn = before[0] * after[0] + before[1] * after[1] + before[2] * after[2]
        if shape < worst or shape == 0.0 or turn <= limits[1]:
            return -1
        new[count, 0], new[count, 1], new[count, 2] = a, b, c
        count += 1
    return count


@compiled
def _is_free(P: Floats, faces: Ints, new: Ints, gone: Ints, grid: Grid, seen: Ints, clear: float) -> bool:
    """Whether the triangles `new` (N, 3) meet neither each other nor a living face outside `gone`.

    seen: (F + 1,) last search that met a face; the last one counts searches.
    """
    low, cell, sides, cells, entries = grid
    box = np.empty(6, np.int64)
    for n in range(len(new)):
        a, b, c = new[n]
        for m in range(n):
            i, j, k = new[m]
            if meet(P, a, b, c, i, j, k, clear):
                return False
        seen[-1] += 1
        tick = seen[-1]
        for f in gone:
            seen[f] = tick
        cells_of(P, a, b, c, low, cell, sides, box)
        for x in range(box[0], box[1] + 1):
            for y in range(box[2], box[3] + 1):
                for z in range(box[4], box[5] + 1):
                    entry = cells[(x * sides[1] + y) * sides[2] + z]
                    while entry >= 0:
                        f, entry = entries[entry]
                        if seen[f] == tick or faces[f, 0] < 0:
                            continue
                        seen[f] = tick
                        i, j, k = faces[f]
                        if not apart(P, a, b, c, i, j, k, clear) and meet(P, a, b, c, i, j, k, clear):
                            return False
    return True


@compiled
def join(faces: Ints, u: int, v: int, ring_v: Ints, valence: Ints, heads: Ints, links: Ints) -> int:
    """Hands the faces of v over to u; the number of faces that died."""
    died = 0
    for f in ring_v:
        if u in (faces[f, 0], faces[f, 1], faces[f, 2]):
            for i in range(3):
                valence[faces[f, i]] -= 1
            faces[f, 0] = -1
            died += 1
        else:
            for i in range(3):
                if faces[f, i] == v:
                    faces[f, i] = u
            valence[u] += 1
    corner = heads[v]
    while links[corner] >= 0:
        corner = links[corner]
    links[corner] = heads[u]
    heads[u], heads[v] = heads[v], -1
    return died


@compiled
def _collapse(
    P: Floats,
    Q: Floats,
    faces: Ints,
    edges: Ints,
    target: int,
    centre: Floats,
    limits: Floats,
    grid: Grid,
    clear: float,
) -> tuple[int, bool]:
    """Collapses edges, cheapest first; (living faces, whether the grid ran out of room). Dead faces start with -1.

    P: (V + 1, 3), the last one scratch. clear: metres; negative: triangles may meet.
    """
    low, cell, sides, cells, entries = grid
    heads, links, valence = corner_lists(faces, len(P))
    marks, stamps = np.full(len(P), -1, np.int64), np.zeros(len(P), np.int64)
    if clear >= 0.0:
        for f in range(len(faces)):
            if not insert(P, faces, f, low, cell, sides, cells, entries):
                return len(faces), True
    ring_u, ring_v, new = np.empty(STAR, np.int64), np.empty(STAR, np.int64), np.empty((2 * STAR, 3), np.int64)
    seen, place, x, alive = np.zeros(len(faces) + 1, np.int64), np.empty(3), len(P) - 1, len(faces)
    heap = [
        (_best(Q, P, edges[e, 0], edges[e, 1], centre, place), edges[e, 0], edges[e, 1], 0, 0)
        for e in range(len(edges))
    ]
    heapq.heapify(heap)
    while len(heap) and alive > target:
        _, u, v, stamp_u, stamp_v = heapq.heappop(heap)
        if stamps[u] != stamp_u or stamps[v] != stamp_v:
            continue
        count_u, count_v = ring(u, faces, heads, links, ring_u), ring(v, faces, heads, links, ring_v)
        if count_u < 0 or count_v < 0:
            continue
        around_u, around_v = ring_u[:count_u], ring_v[:count_v]
        if not joins_as_manifold(u, v, faces, around_u, around_v, valence, marks):
            continue
        _best(Q, P, u, v, centre, place)
        P[x] = place
        kept = turned(P, faces, around_u, u, v, x, new, limits)
        if kept < 0:
            continue
        others = turned(P, faces, around_v, v, u, x, new[kept:], limits)
        if others < 0:
            continue
        if clear >= 0.0 and not _is_free(
            P, faces, new[: kept + others], np.concatenate((around_u, around_v)), grid, seen, clear
        ):
            continue
        P[u] = place
        Q[u] += Q[v]
        alive -= join(faces, u, v, around_v, valence, heads, links)
        stamps[u] += 1
        stamps[v] = -1
        count_u = ring(u, faces, heads, links, ring_u)
        for f in ring_u[:count_u]:
            if clear >= 0.0 and not insert(P, faces, f, low, cell, sides, cells, entries):
                return alive, True
            for i in range(3):
                w = faces[f, i]
                if faces[f, (i + 2) % 3] == u:  # once an edge
                    cost = _best(Q, P, u, w, centre, place)
                    heapq.heappush(heap, (cost, u, w, stamps[u], stamps[w]))
    return alive, False


def collapse(vertices: Floats, faces: Ints, target: int, keep_apart: bool = True) -> tuple[Floats, Ints]:
    """Vertices (V, 3) and faces (F, 3) of a closed, oriented manifold with about `target` triangles, more if it must.

    vertices: float32 values; so are those of the result. keep_apart: no new triangle meets another one.
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    centre = (0.5 * (low + high)).astype(np.float32).astype(np.float64)
    clear = CLEARANCE * float(np.linalg.norm(high - low)) if keep_apart else -1.0
    points, faces = vertices - centre, faces.astype(np.int64)
    Q = _quadrics(points, faces)
    room = 12 * len(faces) + 1024
    for limits in PASSES:
        full = True
        while full and len(faces) > target:
            used, faces = np.unique(faces, return_inverse=True)
            faces, Q = np.ascontiguousarray(faces.reshape(-1, 3)), Q[used]
            P = np.concatenate([points[used], np.zeros((1, 3))])
            edges = np.unique(np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
            low, cell, sides = cell_grid(P[:-1], 2 * mean_side(P, faces))
            cells = np.full(int(np.prod(sides)) if keep_apart else 1, -1, dtype=np.int64)
            entries = np.zeros((room + 1 if keep_apart else 2, 2), dtype=np.int64)
            before = len(faces)
            grid = (low, cell, sides, cells, entries)
            alive, full = _collapse(P, Q, faces, edges, target, centre, np.array(limits), grid, clear)
            room = 2 * room if alive == before else room
            points, faces = P[:-1], faces[faces[:, 0] >= 0]
    used, index = np.unique(faces, return_inverse=True)
    return points[used] + centre, index.reshape(-1, 3).astype(np.int64)
