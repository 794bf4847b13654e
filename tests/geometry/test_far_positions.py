"""Map coordinates: a square of 10 cm, five thousand kilometres from the origin, is the same in every file."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.geometry.camera_files import load_colmap, load_nerfstudio, save_colmap, save_nerfstudio
from unproject.geometry.cameras import Camera
from unproject.geometry.far import near_origin, world_positions
from unproject.geometry.formats.ply_data import ply_bytes
from unproject.geometry.meshes import Mesh, join_meshes
from unproject.geometry.points import PointCloud

FAR = np.array([447018.0, 5411932.0, 113.0])
SQUARE = np.array([[0, 0, 0], [0.1, 0, 0.02], [0.1, 0.1, 0], [0, 0.1, 0.05]]) + FAR


@pytest.fixture
def square(tmp_path: Path) -> Mesh:
    rows = "".join(f"v {x:.3f} {y:.3f} {z:.3f}\n" for x, y, z in SQUARE)
    (tmp_path / "far.obj").write_text(rows + "f 1 2 3\nf 1 3 4\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Mesh.load(tmp_path / "far.obj")


def places(mesh: Mesh) -> np.ndarray:
    """World corners of the faces, sorted."""
    corners = world_positions(mesh.vertices, mesh.origin)[mesh.faces.numpy()].reshape(-1, 3)
    return corners[np.lexsort(corners.round(4).T)]


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_a_far_square_survives(square: Mesh, suffix: str, tmp_path: Path) -> None:
    assert len(square.vertices) == 4 and square.origin == tuple(FAR)
    back = Mesh.load(square.save(tmp_path / f"back{suffix}"))
    assert len(back.vertices) == 4 and len(back.faces) == 2
    np.testing.assert_allclose(places(back), places(square), atol=2e-8)
    np.testing.assert_allclose(back.world_bounds[0].numpy(), FAR, atol=1e-6)


def test_stl_says_that_it_loses_the_place(square: Mesh, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"relative to \(447018, 5411932, 113\)"):
        back = Mesh.load(square.save(tmp_path / "back.stl"))
    assert back.origin == (0.0, 0.0, 0.0)
    torch.testing.assert_close(back.bounds, square.bounds)


def test_matrices_and_other_meshes_know_the_origin(square: Mesh) -> None:
    turn = torch.tensor([[0.0, -1, 0, 7], [1, 0, 0, 8], [0, 0, 1, 9], [0, 0, 0, 1]], dtype=torch.float64)
    moved = square.transformed(turn)
    wanted = world_positions(square.vertices, square.origin) @ turn[:3, :3].numpy().T + [7, 8, 9]
    np.testing.assert_allclose(world_positions(moved.vertices, moved.origin), wanted, atol=1e-6)
    shifted = replace(square, vertices=square.vertices + 0.25, origin=(FAR[0] + 1, FAR[1], FAR[2]))
    both = join_meshes([square, shifted])
    wanted = world_positions(shifted.vertices, shifted.origin)
    np.testing.assert_allclose(world_positions(both.vertices, both.origin)[4:], wanted, atol=1e-6)


def test_near_positions_have_no_origin() -> None:
    rng = np.random.default_rng(0)
    for scale, middle in ((1.0, 0.0), (1e-3, 5e-3), (100.0, 300.0)):
        assert near_origin(rng.normal(size=(50, 3)) * scale + middle, "a.ply")[1] == (0.0, 0.0, 0.0)
    exact = (rng.normal(size=(50, 3)) + 5e6).astype(np.float32).astype(np.float64)
    assert near_origin(exact, "a.ply")[1] == (0.0, 0.0, 0.0)  # float32 holds what came as float32
    near, origin = near_origin(rng.normal(size=(50, 3)) * 1e-4 + 20.0, "a.ply")
    assert origin != (0.0, 0.0, 0.0) and float(near.abs().max()) < 1e-3


def test_far_clouds_keep_double_positions(tmp_path: Path) -> None:
    positions = np.random.default_rng(1).uniform(-3, 3, (40, 3)) + FAR
    rgb = np.random.default_rng(2).integers(0, 256, (40, 3), dtype=np.uint8)
    (tmp_path / "a.ply").write_bytes(ply_bytes(positions, None, rgb))
    cloud = PointCloud.load(tmp_path / "a.ply")
    np.testing.assert_allclose(world_positions(cloud.points, cloud.origin), positions, atol=3e-7)
    back = PointCloud.load(cloud.save(tmp_path / "b.ply"))
    found = world_positions(back.points, back.origin)
    assert np.abs(found[:, None] - positions).max(axis=-1).min(axis=1).max() < 1e-6


def test_far_cameras_stay_double(tmp_path: Path) -> None:
    near = Camera.orbit([0.0, 100.0], [10.0, -30.0], 2.5, 40.0, 32, 24)
    c2w = near.c2w.double()  # turned by what is a rotation to float32 only
    c2w[:, :3, 3] += torch.from_numpy(FAR)
    far = replace(near, c2w=c2w, K=near.K.double())
    for back, _ in (
        load_nerfstudio(save_nerfstudio(tmp_path / "t.json", far, ["a.png", "b.png"])),
        load_colmap(save_colmap(tmp_path / "sparse", far, ["a.png", "b.png"])),
    ):
        assert back.c2w.dtype == torch.float64
        torch.testing.assert_close(back.centres, far.centres, atol=1e-8, rtol=0)
    assert load_nerfstudio(save_nerfstudio(tmp_path / "n.json", near, ["a", "b"]))[0].c2w.dtype == torch.float32
