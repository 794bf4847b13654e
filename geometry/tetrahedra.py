"""Marching tetrahedra: a closed triangle mesh out of signed distances at the corners of a lattice of tetrahedra.

Each cube of the lattice is cut into six tetrahedra around its diagonal (Kuhn's subdivision, the same in every cube, so
that neighbours agree on their common faces). An edge from a corner inside (negative) to one outside gives the vertex
(s_out p_in - s_in p_out) / (s_out - s_in), which is differentiable in distances and corners (Shen et al. 2021, eq. 2).
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from .extract import grid_points

EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def tetrahedron_lattice(resolution: int, half: float) -> tuple[Tensor, Tensor]:
    """Corners (N^3, 3) of a cube of half-width `half` in metres and its tetrahedra (6 (N - 1)^3, 4).

    All tetrahedra abcd are oriented alike: (b - a) . ((c - a) x (d - a)) > 0.
    """
    n = resolution
    base = torch.arange(n - 1)
    x, y, z = torch.meshgrid(base, base, base, indexing="ij")
    tetrahedra = cube_tetrahedra(((x * n + y) * n + z).reshape(-1), n)
    return grid_points(n, half).view(-1, 3).float(), tetrahedra


def cube_tetrahedra(first: Tensor, resolution: int) -> Tensor:
    """The six tetrahedra (6 M, 4) of each cube of a lattice whose lowest corners are `first` (M,)."""
    n = resolution
    strides = (n * n, n, 1)
    cells = []
    for order in permutations(range(3)):
        corners = [torch.zeros((), dtype=torch.int64)]
        for axis in order:
            corners.append(corners[-1] + strides[axis])
        odd = order in ((0, 2, 1), (1, 0, 2), (2, 1, 0))
        a, b, c, d = corners
        cells.append(torch.stack([a, b, d, c] if odd else [a, b, c, d]))
    tetrahedra: Tensor = first[:, None, None] + torch.stack(cells).to(first.device)
    return tetrahedra.reshape(-1, 4)


def triangle_table() -> list[list[tuple[int, int, int]]]:
    """For each of the 16 sets of inner corners (bit i: corner i is inside) the triangles, as indices into EDGES.

    Seen from outside the triangles run counter-clockwise.
    """
    edge = {pair: index for index, pair in enumerate(EDGES)}

    def between(i: int, j: int) -> int:
        return edge[min(i, j), max(i, j)]

    table: list[list[tuple[int, int, int]]] = []
    for case in range(16):
        inside = [i for i in range(4) if case >> i & 1]
        outside = [i for i in range(4) if i not in inside]
        found: list[tuple[int, int, int]] = []
        if len(inside) in (1, 3):  # a corner is cut off
            lone, rest = (inside, outside) if len(inside) == 1 else (outside, inside)
            a, (b, c, d) = lone[0], rest
            b, c = (b, c) if _even((a, b, c, d)) == (len(inside) == 1) else (c, b)
            found = [(between(a, b), between(a, c), between(a, d))]
        elif len(inside) == 2:
            (a, b), (c, d) = inside, outside
            c, d = (c, d) if _even((a, b, c, d)) else (d, c)
            corners = between(a, c), between(a, d), between(b, d), between(b, c)
            found = [(corners[0], corners[1], corners[2]), (corners[0], corners[2], corners[3])]
        table.append(found)
    return table


def _even(order: tuple[int, int, int, int]) -> bool:
    """Whether a permutation of 0..3 is even."""
    return sum(order[i] > order[j] for i in range(4) for j in range(i + 1, 4)) % 2 == 0


TABLE = triangle_table()


def marching_tetrahedra(corners: Tensor, distance: Tensor, tetrahedra: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """(vertices (V, 3), faces (F, 3), values (V, C)) of the surface where `distance` (N,) is 0; negative is inside.

    corners (N, 3), tetrahedra (T, 4), values (N, C), which are interpolated as the corners are. Differentiable in all
    but the tetrahedra; empty when there is no surface.
    """
    inside = distance.detach() < 0
    bits = _case(inside, tetrahedra)
    crossed = ((bits > 0) & (bits < 15)).nonzero()[:, 0]
    cells, bits = tetrahedra[crossed], bits[crossed]
    pairs = cells[:, torch.tensor(EDGES, device=cells.device)].sort(dim=-1).values  # (T, 6, 2)
    key = pairs[..., 0] * len(corners) + pairs[..., 1]  # (T, 6)
    triangles = []
    for case in range(1, 15):
        chosen = key[bits == case]
        triangles += [chosen[:, list(edges)] for edges in TABLE[case]]
    used, faces = torch.unique(torch.cat(triangles) if triangles else key.new_zeros(0, 3), return_inverse=True)
    start, end = used // len(corners), used % len(corners)
    share = (distance[start] / (distance[start] - distance[end]))[:, None]
    vertices = corners[start] + share * (corners[end] - corners[start])
    return vertices, faces.view(-1, 3), values[start] + share * (values[end] - values[start])


def _case(inside: Tensor, tetrahedra: Tensor) -> Tensor:
    """Which corners (T,) lie inside, as bits."""
    found = inside[tetrahedra].long()
    return found[:, 0] + 2 * found[:, 1] + 4 * found[:, 2] + 8 * found[:, 3]
