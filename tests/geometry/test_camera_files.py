"""transforms.json and COLMAP text: exact round trips, foreign files, and errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unproject.geometry.camera_files import load_colmap, load_nerfstudio, save_colmap, save_nerfstudio
from unproject.geometry.cameras import NERFSTUDIO_COLMAP_TRANSFORM, Camera, to_nerfstudio
from unproject.geometry.points import PointCloud
from unproject.utils.errors import InputError

NAMES = ["images/a.png", "images/b.png", "images/c.png"]


@pytest.fixture
def camera() -> Camera:
    return Camera.orbit([0.0, 100.0, 220.0], [10.0, -30.0, 60.0], 2.5, [40.0, 45.0, 50.0], 32, 24)


def test_nerfstudio_round_trip(camera: Camera, tmp_path: Path) -> None:
    back, names = load_nerfstudio(save_nerfstudio(tmp_path / "transforms.json", camera, NAMES, "points.ply"))
    assert names == NAMES and (back.width, back.height) == (32, 24)
    assert float((back.c2w - camera.c2w).abs().max()) < 1e-6 and float((back.K - camera.K).abs().max()) < 1e-5
    assert json.loads((tmp_path / "transforms.json").read_text())["ply_file_path"] == "points.ply"


def test_colmap_round_trip(camera: Camera, tmp_path: Path) -> None:
    cloud = PointCloud(torch.zeros(2, 3), torch.ones(2, 3))
    back, names = load_colmap(save_colmap(tmp_path / "sparse", camera, NAMES, cloud))
    assert names == NAMES
    assert float((back.c2w - camera.c2w).abs().max()) < 1e-6 and float((back.K - camera.K).abs().max()) < 1e-5
    assert (tmp_path / "sparse" / "points3D.txt").read_text().splitlines()[1] == "1 0 0 0 255 255 255 0"


def test_a_colmap_scene_through_nerfstudio_returns_to_its_own_world(camera: Camera, tmp_path: Path) -> None:
    applied = torch.tensor(NERFSTUDIO_COLMAP_TRANSFORM)
    poses = to_nerfstudio(camera.c2w, applied).tolist()
    document = {
        "camera_angle_x": 0.8,
        "w": 32,
        "h": 24,
        "applied_transform": [[*row, 0.0] for row in applied.tolist()],
        "frames": [{"file_path": n, "transform_matrix": p} for n, p in zip(NAMES, poses, strict=True)],
    }
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps(document))
    back, _ = load_nerfstudio(path)
    assert float((back.c2w - camera.c2w).abs().max()) < 1e-6
    assert float(back.K[0, 0, 2]) == 16.0 and float(back.K[0, 0, 0]) == pytest.approx(16 / 0.4227932, rel=1e-5)
    kept, _ = load_nerfstudio(path, undo_applied=False)
    turned = torch.stack([camera.centres[:, 0], camera.centres[:, 2], -camera.centres[:, 1]], dim=-1)
    torch.testing.assert_close(kept.centres, turned)


def test_colmap_reads_simple_models_and_observations(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text("# list\n1 SIMPLE_PINHOLE 8 6 10 4 3\n2 OPENCV 8 6 10 11 4 3 0 0 0 0\n")
    (tmp_path / "images.txt").write_text("7 1 0 0 0 0 0 2 2 b of two.png\n1.5 2.5 -1\n3 1 0 0 0 0 0 1 1 a.png\n\n")
    camera, names = load_colmap(tmp_path)
    assert names == ["a.png", "b of two.png"]  # by image id
    assert camera.centres.tolist() == [[0.0, 0.0, -1.0], [0.0, 0.0, -2.0]]
    assert camera.K[1, 0, 0] == 10 and camera.K[1, 1, 1] == 11 and camera.K[0, 1, 1] == 10


BAD_JSON = {
    "no frames": {"w": 8, "h": 8},
    "no size": {"fl_x": 8, "frames": [{"file_path": "a", "transform_matrix": torch.eye(4).tolist()}]},
    "matrix": {"fl_x": 8, "w": 8, "h": 8, "frames": [{"file_path": "a", "transform_matrix": [[1, 2], [3, 4]]}]},
    "distortion": {
        "fl_x": 8,
        "w": 8,
        "h": 8,
        "k1": 0.1,
        "frames": [{"file_path": "a", "transform_matrix": torch.eye(4).tolist()}],
    },
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_transforms_are_input_errors(name: str, tmp_path: Path) -> None:
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps(BAD_JSON[name]))
    with pytest.raises(InputError, match="undistort" if name == "distortion" else "transforms.json"):
        load_nerfstudio(path)


def test_bad_colmap_models_are_input_errors(camera: Camera, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_colmap(tmp_path)
    for lens, message in (("FOV 8 6 1 1 1 1 1", "image_undistorter"), ("OPENCV 8 6 1 1 4 3 0.1 0 0 0", "undistort")):
        (tmp_path / "cameras.txt").write_text(f"1 {lens}\n")
        (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 1 1 a.png\n\n")
        with pytest.raises(InputError, match=message):
            load_colmap(tmp_path)
    (tmp_path / "cameras.txt").write_text("1 PINHOLE eight 6 1 1 4 3\n")
    with pytest.raises(InputError, match="not a usable COLMAP"):
        load_colmap(tmp_path)
    with pytest.raises(InputError, match="without spaces"):
        save_colmap(tmp_path, camera, ["a b.png", "b.png", "c.png"])
    with pytest.raises(InputError, match="2 names for 3 cameras"):
        save_nerfstudio(tmp_path / "t.json", camera, NAMES[:2])
