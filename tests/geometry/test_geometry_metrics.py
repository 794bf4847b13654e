"""Chamfer, F-score and surface sampling on shapes whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trimesh

from unproject.geometry.meshes import Mesh
from unproject.geometry.metrics import chamfer, compare_meshes, f_score, nearest_distances, sample_surface
from unproject.utils.errors import InputError


@pytest.fixture
def grid() -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0), torch.arange(5.0))


def test_chamfer_of_a_shifted_lattice(grid: torch.Tensor) -> None:
    moved = grid + torch.tensor([0.1, 0.0, 0.0])
    assert chamfer(grid, grid) == 0.0
    assert chamfer(grid, moved) == pytest.approx(0.2, abs=1e-6)
    assert chamfer(grid, moved, squared=True) == pytest.approx(0.02, abs=1e-6)
    assert chamfer(grid[:10], grid) == pytest.approx(chamfer(grid, grid[:10]))


def test_f_score_counts_both_ways(grid: torch.Tensor) -> None:
    half = grid[:25]  # precision 1, recall 1/5
    assert f_score(half, grid, tau=0.01) == pytest.approx(2 * 0.2 / 1.2)
    assert f_score(grid, grid) == 1.0
    assert f_score(grid + 100, grid) == 0.0
    diagonal = 4 * 3**0.5
    assert f_score(grid + torch.tensor([0.009 * diagonal, 0, 0]), grid) == 1.0  # default tau: 1 % of the diagonal
    assert f_score(grid + torch.tensor([0.011 * diagonal, 0, 0]), grid) == 0.0


def test_samples_lie_on_the_surface_in_proportion_to_area() -> None:
    box = Mesh.from_trimesh(trimesh.creation.box((1.0, 2.0, 4.0)))
    points, normals, faces = sample_surface(box, 20_000, torch.Generator().manual_seed(0))
    scaled = (points / torch.tensor([0.5, 1.0, 2.0])).abs()
    torch.testing.assert_close(scaled.amax(dim=1), torch.ones(len(points)), atol=1e-5, rtol=0)
    on_x = (normals[:, 0].abs() > 0.9).float().mean()
    assert float(on_x) == pytest.approx(16 / 28, abs=0.02)
    assert torch.equal(normals, box.face_normals()[faces])
    again, _, _ = sample_surface(box, 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(points, again)


def test_compare_meshes_sees_a_shift_and_a_flip() -> None:
    ball = Mesh.from_trimesh(trimesh.creation.icosphere(3))
    same = compare_meshes(ball, ball, 16_000, torch.Generator().manual_seed(0))
    assert same["f_score"] > 0.97 and same["normal_consistency"] > 0.98
    moved = compare_meshes(replace(ball, vertices=ball.vertices + 0.3), ball, 16_000, torch.Generator().manual_seed(0))
    assert moved["chamfer"] > 3 * same["chamfer"] and moved["f_score"] < 0.6
    flipped = compare_meshes(replace(ball, faces=ball.faces.flip(1)), ball, 16_000, torch.Generator().manual_seed(0))
    assert flipped["normal_consistency"] < -0.98


def test_compare_meshes_agrees_with_its_parts() -> None:
    box, ball = (Mesh.from_trimesh(m) for m in (trimesh.creation.box((1.0, 2.0, 0.5)), trimesh.creation.icosphere(2)))
    found = compare_meshes(box, ball, 3000, torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(1)
    a, b = (sample_surface(mesh, 3000, rng)[0] for mesh in (box, ball))
    assert found["chamfer"] == pytest.approx(chamfer(a, b)) and found["f_score"] == pytest.approx(f_score(a, b))


def test_bad_inputs_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match="N > 0"):
        nearest_distances(torch.zeros(0, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="no area"):
        sample_surface(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), 10)
