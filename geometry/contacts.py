"""Which triangles of a mesh cut, touch or fold onto each other: exact pairs from a grid of cells.

Positions are float32 values in float64, so that the signs of the determinants below are those of the real numbers up
to distances far below the clearance. Two triangles meet where an edge of one goes through the other; those that
share a corner are asked only for what lies beyond it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..utils.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LARGEST_SIDE = 160  # cells
ROUNDING = 1e-9  # of the diagonal: far above the rounding of the determinants, far below that of float32 positions


@compiled
def distance_to_plane(P: Floats, q: int, i: int, j: int, k: int) -> float:
    """Signed distance in metres of point q from the plane of triangle ijk; 0 for a triangle without area."""
    ux, uy, uz = P[j, 0] - P[i, 0], P[j, 1] - P[i, 1], P[j, 2] - P[i, 2]
    vx, vy, vz = P[k, 0] - P[i, 0], P[k, 1] - P[i, 1], P[k, 2] - P[i, 2]
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    length = math.sqrt(nx * nx + ny * ny + nz * nz)
    if length == 0.0:
        return 0.0
    return (nx * (P[q, 0] - P[i, 0]) + ny * (P[q, 1] - P[i, 1]) + nz * (P[q, 2] - P[i, 2])) / length


@compiled
def _volume(P: Floats, a: int, b: int, c: int, d: int) -> float:
    """Six times the signed volume of the tetrahedron abcd."""
    ax, ay, az = P[a, 0] - P[d, 0], P[a, 1] - P[d, 1], P[a, 2] - P[d, 2]
    bx, by, bz = P[b, 0] - P[d, 0], P[b, 1] - P[d, 1], P[b, 2] - P[d, 2]
    cx, cy, cz = P[c, 0] - P[d, 0], P[c, 1] - P[d, 1], P[c, 2] - P[d, 2]
    return ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)


@compiled
def _turn(P: Floats, a: int, b: int, c: int, x: int, y: int) -> float:
    """Twice the signed area of abc seen along the axis that is neither x nor y."""
    return (P[b, x] - P[a, x]) * (P[c, y] - P[a, y]) - (P[b, y] - P[a, y]) * (P[c, x] - P[a, x])


@compiled
def _cross_flat(P: Floats, a: int, b: int, c: int, d: int, x: int, y: int, clear: float) -> bool:
    """Whether segments ab and cd of one plane cross or touch; not for parallel ones that only share their line."""
    s, t = _turn(P, a, b, c, x, y), _turn(P, a, b, d, x, y)
    u, v = _turn(P, c, d, a, x, y), _turn(P, c, d, b, x, y)
    width = clear * math.hypot(P[b, x] - P[a, x], P[b, y] - P[a, y])
    if abs(s) <= width and abs(t) <= width:
        return False
    return s * t <= 0.0 and u * v <= 0.0


@compiled
def _inside_flat(P: Floats, a: int, i: int, j: int, k: int, x: int, y: int) -> bool:
    """Whether a lies strictly inside ijk, all in one plane."""
    s, t, u = _turn(P, i, j, a, x, y), _turn(P, j, k, a, x, y), _turn(P, k, i, a, x, y)
    return (s > 0.0 and t > 0.0 and u > 0.0) or (s < 0.0 and t < 0.0 and u < 0.0)


@compiled
def pierces(P: Floats, a: int, b: int, i: int, j: int, k: int, clear: float) -> bool:
    """Whether the segment ab meets the triangle ijk; ends within `clear` metres of its plane count as on it."""
    s, t = distance_to_plane(P, a, i, j, k), distance_to_plane(P, b, i, j, k)
    if abs(s) <= clear and abs(t) <= clear:
        nx = abs((P[j, 1] - P[i, 1]) * (P[k, 2] - P[i, 2]) - (P[j, 2] - P[i, 2]) * (P[k, 1] - P[i, 1]))
        ny = abs((P[j, 2] - P[i, 2]) * (P[k, 0] - P[i, 0]) - (P[j, 0] - P[i, 0]) * (P[k, 2] - P[i, 2]))
        nz = abs((P[j, 0] - P[i, 0]) * (P[k, 1] - P[i, 1]) - (P[j, 1] - P[i, 1]) * (P[k, 0] - P[i, 0]))
        x, y = (1, 2) if nx >= ny and nx >= nz else ((0, 2) if ny >= nz else (0, 1))
        if _inside_flat(P, a, i, j, k, x, y) or _inside_flat(P, b, i, j, k, x, y):
            return True
        return (
            _cross_flat(P, a, b, i, j, x, y, clear)
            or _cross_flat(P, a, b, j, k, x, y, clear)
            or _cross_flat(P, a, b, k, i, x, y, clear)
        )
    if (s > clear and t > clear) or (s < -clear and t < -clear):
        return False
    u, v, w = _volume(P, a, b, i, j), _volume(P, a, b, j, k), _volume(P, a, b, k, i)
    return (u >= 0.0 and v >= 0.0 and w >= 0.0) or (u <= 0.0 and v <= 0.0 and w <= 0.0)


@compiled
def _folded(P: Floats, s: int, t: int, p: int, q: int, clear: float) -> bool:
    """Whether the triangles stp and stq, which share the edge st, lie on each other."""
    if abs(distance_to_plane(P, q, s, t, p)) > clear and abs(distance_to_plane(P, p, s, t, q)) > clear:
        return False
    ex, ey, ez = P[t, 0] - P[s, 0], P[t, 1] - P[s, 1], P[t, 2] - P[s, 2]
    px, py, pz = P[p, 0] - P[s, 0], P[p, 1] - P[s, 1], P[p, 2] - P[s, 2]
    qx, qy, qz = P[q, 0] - P[s, 0], P[q, 1] - P[s, 1], P[q, 2] - P[s, 2]
    ee = ex * ex + ey * ey + ez * ez
    pe, qe = px * ex + py * ey + pz * ez, qx * ex + qy * ey + qz * ez
    return px * qx + py * qy + pz * qz - pe * qe / max(ee, 1e-300) > 0.0


@compiled
def meet(P: Floats, a: int, b: int, c: int, i: int, j: int, k: int, clear: float) -> bool:
    """Whether the triangles abc and ijk meet beyond the corners that they share; both have three different corners."""
    sa, sb, sc = a in (i, j, k), b in (i, j, k), c in (i, j, k)
    shared = int(sa) + int(sb) + int(sc)
    if shared == 3:
        return True
    if shared == 0:
        return (
            pierces(P, a, b, i, j, k, clear)
            or pierces(P, b, c, i, j, k, clear)
            or pierces(P, c, a, i, j, k, clear)
            or pierces(P, i, j, a, b, c, clear)
            or pierces(P, j, k, a, b, c, clear)
            or pierces(P, k, i, a, b, c, clear)
        )
    if shared == 1:  # the sides opposite the common corner
        s = a if sa else (b if sb else c)
        t, u = (b, c) if sa else ((c, a) if sb else (a, b))
        v, w = (j, k) if s == i else ((k, i) if s == j else (i, j))
        return pierces(P, t, u, i, j, k, clear) or pierces(P, v, w, a, b, c, clear)
    p = c if not sc else (b if not sb else a)
    s, t = (a, b) if not sc else ((c, a) if not sb else (b, c))
    q = k if k not in (s, t) else (j if j not in (s, t) else i)
    return _folded(P, s, t, p, q, clear)


@compiled
def cells_of(P: Floats, a: int, b: int, c: int, low: Floats, cell: float, sides: Ints, out: Ints) -> None:
    """out[:6] = first and last cell along x, y, z of the box around triangle abc."""
    for axis in range(3):
        least = min(P[a, axis], P[b, axis], P[c, axis])
        most = max(P[a, axis], P[b, axis], P[c, axis])
        out[2 * axis] = min(max(int((least - low[axis]) / cell - 1e-6), 0), sides[axis] - 1)
        out[2 * axis + 1] = min(max(int((most - low[axis]) / cell + 1e-6), 0), sides[axis] - 1)


@compiled
def insert(P: Floats, faces: Ints, face: int, low: Floats, cell: float, sides: Ints, heads: Ints, links: Ints) -> bool:
    """Enters a face into the lists of the cells that its box and its plane cross. False when there is no room left.

    heads: (cells,) first entry or -1. links: (capacity + 1, 2) of face and next entry; the last row counts entries.
    """
    box = np.empty(6, np.int64)
    a, b, c = faces[face]
    cells_of(P, a, b, c, low, cell, sides, box)
    reach = 0.8660254037844387 * cell * 1.001  # half the diagonal of a cell
    ux, uy, uz = P[b, 0] - P[a, 0], P[b, 1] - P[a, 1], P[b, 2] - P[a, 2]
    vx, vy, vz = P[c, 0] - P[a, 0], P[c, 1] - P[a, 1], P[c, 2] - P[a, 2]
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    length = math.sqrt(nx * nx + ny * ny + nz * nz)
    room = len(links) - 1
    for x in range(box[0], box[1] + 1):
        for y in range(box[2], box[3] + 1):
            for z in range(box[4], box[5] + 1):
                px, py, pz = low[0] + (x + 0.5) * cell, low[1] + (y + 0.5) * cell, low[2] + (z + 0.5) * cell
                away = abs(nx * (px - P[a, 0]) + ny * (py - P[a, 1]) + nz * (pz - P[a, 2]))
                if away > reach * length:
                    continue
                used = links[room, 0]
                if used == room:
                    return False
                where = (x * sides[1] + y) * sides[2] + z
                links[used, 0], links[used, 1] = face, heads[where]
                heads[where] = used
                links[room, 0] = used + 1
    return True


@compiled
def _meeting(
    P: Floats, faces: Ints, low: Floats, cell: float, sides: Ints, heads: Ints, links: Ints, clear: float
) -> NDArray[np.bool_]:
    """(F,) of faces that meet another one. Empty when `links` is too short."""
    found = np.zeros(len(faces), np.bool_)
    seen = np.full(len(faces), -1, np.int64)
    box = np.empty(6, np.int64)
    for f in range(len(faces)):
        a, b, c = faces[f]
        cells_of(P, a, b, c, low, cell, sides, box)
        for x in range(box[0], box[1] + 1):
            for y in range(box[2], box[3] + 1):
                for z in range(box[4], box[5] + 1):
                    entry = heads[(x * sides[1] + y) * sides[2] + z]
                    while entry >= 0:
                        g, entry = links[entry]
                        if seen[g] == f:
                            continue
                        seen[g] = f
                        i, j, k = faces[g]
                        if not apart(P, a, b, c, i, j, k, clear) and meet(P, a, b, c, i, j, k, clear):
                            found[f] = found[g] = True
        if not insert(P, faces, f, low, cell, sides, heads, links):
            return np.zeros(0, np.bool_)
    return found


@compiled
def apart(P: Floats, a: int, b: int, c: int, i: int, j: int, k: int, clear: float) -> bool:
    """Whether the boxes of two triangles are more than `clear` metres apart."""
    for x in range(3):
        if min(P[a, x], P[b, x], P[c, x]) > max(P[i, x], P[j, x], P[k, x]) + clear:
            return True
        if max(P[a, x], P[b, x], P[c, x]) < min(P[i, x], P[j, x], P[k, x]) - clear:
            return True
    return False


def cell_grid(P: Floats, wanted: float) -> tuple[Floats, float, Ints]:
    """(corner, cell size in metres, cells along each axis) of a grid around the points with cells of about `wanted`."""
    low, high = P.min(axis=0), P.max(axis=0)
    extent = float((high - low).max())
    cell = max(wanted, extent / (LARGEST_SIDE - 1), 1e-30)
    return low, cell, ((high - low) / cell).astype(np.int64) + 1


def mean_side(P: Floats, faces: Ints) -> float:
    """Mean length of the sides in metres."""
    return float(np.linalg.norm(P[faces] - P[np.roll(faces, 1, axis=1)], axis=-1).mean()) if len(faces) else 0.0


def meeting_faces(vertices: Floats, faces: Ints) -> NDArray[np.bool_]:
    """(F,) of the faces (F, 3) over vertices (V, 3) that cut, touch or fold onto another one.

    Faces with the same corner twice meet nothing.
    """
    found = np.zeros(len(faces), dtype=np.bool_)
    proper = np.flatnonzero((faces != np.roll(faces, 1, axis=1)).all(axis=1))
    if not len(proper):
        return found
    used, index = np.unique(faces[proper], return_inverse=True)
    P, index = vertices[used] - vertices[used].mean(axis=0), np.ascontiguousarray(index.reshape(-1, 3), dtype=np.int64)
    low, cell, sides = cell_grid(P, 1.5 * mean_side(P, index))
    clear = ROUNDING * float(np.linalg.norm(np.ptp(P, axis=0)))
    room = 8 * len(index) + 1024
    while True:
        links = np.zeros((room + 1, 2), dtype=np.int64)
        heads = np.full(int(np.prod(sides)), -1, dtype=np.int64)
        met = _meeting(P, index, low, cell, sides, heads, links, clear)
        if len(met):
            break
        room *= 4
    found[proper] = met
    return found
