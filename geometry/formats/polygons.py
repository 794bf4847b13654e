"""Polygons as triangles: fans from a corner that sees all of the polygon, where it has one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .piece import Floats, Ints, Notes

FLAT = 1e-9  # of the polygon's squared area: what a triangle may be turned over by rounding


def fan_starts(polygons: Sequence[Sequence[int]], positions: Floats, notes: Notes) -> Ints:
    """(P,) the corner of each polygon from which its fan begins: the first from which no triangle turns over.

    A polygon without one (a star of many points) begins at its first corner, overlaps itself, and is named.

    Args:
        polygons: indices into `positions` (V, 3), three or more each; others begin at 0.
    """
    starts, groups = np.zeros(len(polygons), np.int64), defaultdict[int, list[int]](list)
    for i, polygon in enumerate(polygons):
        if len(polygon) > 3 and min(polygon) >= 0 and max(polygon) < len(positions):
            groups[len(polygon)].append(i)
    odd = 0
    for count, members in groups.items():
        corners = positions[np.array([polygons[i] for i in members], np.int64)]  # (M, count, 3)
        whole = _areas(corners).sum(axis=1)  # (M, 3) twice the area, along the normal
        least, seen = -FLAT * (whole**2).sum(axis=1), np.zeros(len(members), bool)
        for start in range(count):
            fan = _areas(np.roll(corners[~seen], -start, axis=1))
            good = np.flatnonzero(~seen)[((fan * whole[~seen, None]).sum(axis=2) >= least[~seen, None]).all(axis=1)]
            starts[np.array(members)[good]], seen[good] = start, True
            if seen.all():
                break
        odd += int((~seen).sum())
    if odd:
        notes.add(f"the outline of {odd} polygons, which no fan of triangles fills; export triangles")
    return starts


def _areas(corners: Floats) -> Floats:
    """(M, n - 2, 3) cross products of the triangles of the fan from the first corner of polygons (M, n, 3)."""
    arms = corners[:, 1:] - corners[:, :1]
    return np.asarray(np.cross(arms[:, :-1], arms[:, 1:]))
