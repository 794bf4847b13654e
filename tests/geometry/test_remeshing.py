"""Remeshing: edges of the wanted length, the same surface, values that follow, closed manifolds all the way."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from unproject.geometry.extract import mesh_from
from unproject.geometry.remeshing import remeshed
from unproject.geometry.report import edge_table


def sides(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[faces] - points[np.roll(faces, 1, axis=1)], axis=-1).reshape(-1)


def uneven(rings: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A ball whose triangles crowd at the poles, cut off its axes."""
    made = trimesh.creation.uv_sphere(radius=0.5, count=[rings, rings])
    made.merge_vertices()
    return np.asarray(made.vertices) @ np.diag([1.0, 1.3, 0.8]), np.asarray(made.faces)


@pytest.mark.parametrize("length", [0.05, 0.12])
def test_edges_get_the_wanted_length_and_the_surface_stays(length: float) -> None:
    points, faces = uneven()
    volume = mesh_from(points, faces).check().signed_volume
    for _ in range(5):
        made = remeshed(points, faces, np.full(len(points), length))
        points, faces = made.vertices, made.faces
        report = mesh_from(points, faces).check()
        assert report.sound and report.euler == 2 and report.degenerate_faces == 0
    found = sides(points, faces)
    assert np.mean((found > 0.5 * length) & (found < 1.5 * length)) > 0.98
    assert report.signed_volume == pytest.approx(volume, rel=0.04)
    valence = np.bincount(faces.reshape(-1))
    assert np.mean(np.abs(valence - 6) <= 1) > 0.9


def test_handles_and_pieces_stay() -> None:
    ring = trimesh.creation.torus(0.6, 0.2, major_sections=40, minor_sections=16)
    ball = trimesh.creation.icosphere(2, 0.15)
    points = np.concatenate([ring.vertices, ball.vertices])
    faces = np.concatenate([ring.faces, ball.faces + len(ring.vertices)])
    for length in (0.15, 0.3, 0.3, 0.05):
        made = remeshed(points, faces, np.full(len(points), length))
        points, faces = made.vertices, made.faces
        report = mesh_from(points, faces).check()
        assert report.sound and report.euler == 2 and report.components == 2


@pytest.mark.parametrize("length", [0.02, 0.3])
def test_values_follow_their_vertices(length: float) -> None:
    """Where edges only split, or only collapse, the mean of the parents is the place itself."""
    points, faces = np.asarray(trimesh.creation.icosphere(3).vertices), np.asarray(trimesh.creation.icosphere(3).faces)
    made = remeshed(points, faces, np.full(len(points), length))
    assert len(made.vertices) != len(points)
    np.testing.assert_allclose(made.carry(points), made.vertices, atol=1e-12)
    one = made.parents[:, 0] == made.parents[:, 1]
    assert 0 < one.sum() < len(one)
    np.testing.assert_array_equal(made.carry(np.ones((len(points), 2))), 1.0)


def test_lengths_may_differ_from_place_to_place() -> None:
    points, faces = uneven(16)
    for _ in range(6):
        wanted = np.where(points[:, 1] > 0, 0.04, 0.12)
        made = remeshed(points, faces, wanted)
        points, faces = made.vertices, made.faces
    middle = points[faces].mean(axis=1)[:, 1]
    found = sides(points, faces).reshape(-1, 3).mean(axis=1)
    assert found[middle > 0.2].mean() < 0.06 and found[middle < -0.2].mean() > 0.08


def test_nothing_to_do_changes_nothing() -> None:
    ball = trimesh.creation.icosphere(2, 0.5)
    length = float(sides(np.asarray(ball.vertices), np.asarray(ball.faces)).mean())
    made = remeshed(np.asarray(ball.vertices), np.asarray(ball.faces), np.full(162, length))
    assert len(made.vertices) == 162 and len(made.faces) == 320
    assert np.array_equal(made.parents[:, 0], np.arange(162)) and np.array_equal(made.vertices, ball.vertices)


def test_open_surfaces_are_refused() -> None:
    ball = trimesh.creation.icosphere(1)
    with pytest.raises(ValueError, match="each edge needs two faces"):
        remeshed(np.asarray(ball.vertices), np.asarray(ball.faces)[1:], np.ones(len(ball.vertices)))
    with pytest.raises(ValueError, match="tolerance=1"):
        remeshed(np.asarray(ball.vertices), np.asarray(ball.faces), np.ones(len(ball.vertices)), tolerance=1.0)
    assert (edge_table(np.asarray(ball.faces), 42)[2] == 2).all()
