"""Jumps of a texture at the borders of charts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unproject.geometry.bake import bake
from unproject.geometry.extract import extract_surface, grid_points
from unproject.geometry.inspection import inspect_mesh
from unproject.geometry.meshes import Mesh
from unproject.geometry.seams import seam_jumps
from unproject.geometry.unwrap import unwrap


def halves(left: int, right: int) -> Mesh:
    """Two triangles that share an edge, in the halves of a texture of two colours."""
    vertices = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    uv = torch.tensor([[0.1, 0.1], [0.4, 0.1], [0.4, 0.9], [0.6, 0.9], [0.9, 0.1], [0.6, 0.1]])
    texture = np.full((16, 16, 3), left, np.uint8)
    texture[:, 8:] = right
    return Mesh(vertices, faces, uv=uv, uv_faces=torch.arange(6).view(2, 3), textures={"base_color": texture})


def test_a_jump_is_the_difference_of_both_sides() -> None:
    jumps = seam_jumps(halves(51, 153))
    assert jumps.shape == (5, 3) and jumps.numpy() == pytest.approx(0.4, abs=1e-6)
    assert inspect_mesh(halves(51, 153))["texture"]["seam_jump"] == {
        "mean": pytest.approx(0.4),
        "percentile_95": pytest.approx(0.4),
    }
    assert float(seam_jumps(halves(51, 51)).max()) < 1e-6
    joined = replace(halves(51, 153), uv=halves(0, 0).vertices[:, 1:], uv_faces=halves(0, 0).faces)
    assert not len(seam_jumps(joined)) and inspect_mesh(joined)["texture"]["seam_jump"] is None
    assert not len(seam_jumps(Mesh(joined.vertices, joined.faces)))


def test_both_sides_are_looked_at_in_the_same_place() -> None:
    """A ramp along the shared edge, the same in both charts: one runs along it, the other against it."""
    mesh = halves(0, 0)
    ramp = np.linspace(0, 255, 16).astype(np.uint8)[::-1, None, None]
    mesh = replace(mesh, uv=torch.tensor([[0.2, 0.1], [0.4, 0.1], [0.2, 0.9], [0.7, 0.1], [0.7, 0.9], [0.9, 0.9]]),
                   textures={"base_color": np.broadcast_to(ramp, (16, 16, 3)).copy()})  # fmt: skip
    assert float(seam_jumps(mesh).max()) < 1e-3
    turned = replace(mesh, uv_faces=torch.tensor([[0, 1, 2], [4, 3, 5]]))
    assert float(seam_jumps(turned).mean()) > 0.3


@pytest.mark.parametrize("size", [256, 512])
def test_a_margin_keeps_seams_below_what_the_colours_change_in_a_texel(size: int) -> None:
    sphere = extract_surface(grid_points(20, 1.0).norm(dim=-1), 0.7, sign=-1)
    charted = unwrap(sphere, size)

    def color(points: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
        return 0.5 + 0.5 * torch.sin(5 * points + torch.tensor([0.0, 1.0, 2.0]))

    texel = inspect_mesh(bake(charted, color, size))["texture"]["texel_metres"]["mean"]
    slope = 2.5 * texel  # of the colours, a texel
    assert 0 < float(seam_jumps(bake(charted, color, size)).mean()) < slope + 1 / 255
    bare = seam_jumps(bake(charted, color, size, dilate=0))
    assert float(bare.mean()) > 3 * float(seam_jumps(bake(charted, color, size)).mean())
