"""How much a texture changes across the borders of its charts: what people see as seams."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .colors import sample_texture
from .extract import mesh_arrays
from .meshes import Mesh
from .report import edge_table, merge_positions

PLACES = (0.1, 0.3, 0.5, 0.7, 0.9)  # along an edge


def seam_jumps(mesh: Mesh, name: str = "base_color") -> Tensor:
    """(S, 3) in [0, 1]: differences of a texture's colours on both sides of edges at which charts meet.

    Five places of each edge of two faces whose coordinates differ there; empty without a texture or charts that meet.
    """
    if mesh.uv is None or mesh.uv_faces is None or name not in mesh.textures:
        return torch.zeros(0, 3)
    positions, faces = merge_positions(*mesh_arrays(mesh))
    edges, forward, counts = edge_table(faces, len(positions))
    order = np.argsort(edges, kind="stable")
    first = order[np.searchsorted(edges[order], np.flatnonzero(counts == 2))]
    second = order[np.searchsorted(edges[order], np.flatnonzero(counts == 2)) + 1]
    ends = np.stack([_ends(half, forward) for half in (first, second)])  # (2, S, 2) corners from low to high vertex
    corners = mesh.uv.detach().cpu().double()[mesh.uv_faces.cpu().reshape(-1)]  # (3F, 2)
    sides = corners[torch.from_numpy(ends)]  # (2, S, 2, 2)
    sides = sides[:, (sides[0] - sides[1]).abs().flatten(1).amax(1) > 1e-6]
    along = torch.tensor(PLACES, dtype=torch.float64)[:, None, None, None]
    places = torch.lerp(sides[:, :, 0], sides[:, :, 1], along)  # (P, 2, S, 2)
    image = torch.from_numpy(mesh.textures[name][..., :3].astype(np.float32) / 255)
    colors = sample_texture(image, places.reshape(-1, 2).float()).view(len(PLACES), 2, -1, 3)
    return (colors[:, 0] - colors[:, 1]).abs().reshape(-1, 3)


def _ends(half: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Corners (S, 2) of half-edges (S,), face-major, at the low and the high vertex."""
    start, end = half, 3 * (half // 3) + (half + 1) % 3
    return np.where(forward[half][:, None], np.stack([start, end], 1), np.stack([end, start], 1))
