"""The experiment on cameras: the published solver as published, rows at toy sizes, photographs that are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unproject.bench import calibrate
from unproject.bench.calibrate import (
    CalibrateBench,
    _calibration_error,
    confidence_row,
    metric_rows,
    published_ransac,
    solver_rows,
)
from unproject.bench.real_cameras import real_cameras
from unproject.pipelines.calibrated import Scenes
from unproject.pipelines.picture_inputs import DEFAULT_FOV_DEG
from unproject.tasks.confidence import fit_error_model
from unproject.utils.errors import InputError


def test_the_published_solver_is_right_without_outliers_and_wrong_with_them() -> None:
    rng = np.random.default_rng(0)
    u = np.tile(np.arange(40) + 0.5, 30)
    x = (u - 17.0) / 52.0
    assert published_ransac(x, u, 30, rng) == pytest.approx((52.0, 17.0), rel=1e-9)
    wrong = rng.random(len(x)) < 0.3
    spoiled = np.where(wrong, rng.uniform(-1.4, 1.4, len(x)), x)
    assert abs(published_ransac(spoiled, u, 30, rng)[0] / 52 - 1) > 0.05


def test_rows_of_the_solver() -> None:
    rows = solver_rows(CalibrateBench(solver_seeds=2, solver_px=24, outliers=(0.0, 0.3), trials=20))
    assert [row["method"] for row in rows] == [
        f"{name}, {share} % outliers" for share in (0, 30) for name in ("this solver", "published RANSAC")
    ]
    assert rows[2]["focal_worst"] < 1e-3 < 0.05 < rows[3]["focal"]["mean"]


def test_rows_of_confidence_tell_whether_it_holds() -> None:
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((80, 1)) for _ in range(120)]
    errors = [np.abs(rng.standard_normal(80)) * np.exp(f[:, 0] - 2) for f in features]
    row = confidence_row("toy", fit_error_model(features, errors, "relative", 0.1), Scenes(features, errors))
    assert row["coverage_90"] == pytest.approx(0.9, abs=0.05) and row["scenes"] == 120
    assert row["rank_correlation"]["mean"] == pytest.approx(row["rank_correlation_of_spread"]["mean"])
    assert row["said_right"] == pytest.approx(row["right"], abs=0.03) and row["calibration_error"] < 0.05
    assert _calibration_error(np.full(10, 0.95), np.array([1.0] * 5 + [0.0] * 5)) == pytest.approx(0.45)


def test_photographs_whose_cameras_are_known(tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    for name in ("chessboard", "iphone4s_berlin", "exif"):
        (folder / name).mkdir(parents=True)
    matrix = "M1: !!opencv-matrix\n   data: [ 5.0e+01, 0., 30., 0., 5.0e+01, 20., 0., 0., 1. ]\n"
    (folder / "chessboard" / "intrinsics.yml").write_text(matrix)
    Image.new("RGB", (60, 40)).save(folder / "chessboard" / "left01.jpg")
    camera = {"width": 80, "height": 60, "focal": 0.75}
    (folder / "iphone4s_berlin" / "reconstruction.json").write_text(json.dumps([{"cameras": {"one": camera}}]))
    Image.new("RGB", (80, 60)).save(folder / "iphone4s_berlin" / "01.jpg")
    Image.new("RGB", (80, 60)).save(folder / "exif" / "none.jpg")
    found = {photo.name: photo for photo in real_cameras(tmp_path)}
    assert set(found) == {"chessboard/left01", "iphone4s_berlin"}
    assert found["chessboard/left01"].fov_y_deg == pytest.approx(np.rad2deg(2 * np.arctan(20 / 50)))
    assert found["iphone4s_berlin"].focal_px == 60 and found["iphone4s_berlin"].exif_fov_deg is None
    assert list(real_cameras(tmp_path / "nowhere")) == []


class Wall:
    """Two pictures of a wall 2 m away, whose colour is their number, through a focal length of 40 px."""

    def __len__(self) -> int:
        return 2

    def images(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([np.full((32, 32, 3), i, np.uint8) for i in indices])

    def column(self, name: str, indices: np.ndarray) -> np.ndarray:
        one = {"K": np.array([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]], np.float32), "depth_m": np.full((32, 32), 2.0)}
        return np.stack([one[name] for _ in indices])


def test_metres_are_seen_through_the_true_a_longer_no_and_the_predicted_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    def camera(image: np.ndarray) -> Any:
        if image[0, 0, 0] == 1:
            raise InputError("no camera fits")
        return SimpleNamespace(K=np.array([[[44.0, 0, 16], [0, 44, 16], [0, 0, 1]]]))

    def metres(near_m: float, far_m: float, index: int) -> np.ndarray:
        return np.full((32, 32), 2.0 * near_m)

    monkeypatch.setattr(calibrate, "ImageToGeometry", lambda head: lambda image: SimpleNamespace(
        depth=SimpleNamespace(one_metres=metres)))  # fmt: skip
    monkeypatch.setattr(calibrate, "ImageToCamera", lambda head: camera)
    monkeypatch.setattr(calibrate, "metric_of", lambda made, camera, known: SimpleNamespace(
        near_m=float(camera.K[0, 1, 1]) / 40, far_m=0.0))  # fmt: skip
    found = {row["method"]: row["abs_rel_metric"]["mean"] for row in metric_rows(None, [Wall()], None)}  # type: ignore[arg-type, list-item]
    usual = abs(16 / np.tan(np.deg2rad(DEFAULT_FOV_DEG / 2)) / 40 - 1)
    assert list(found.values()) == pytest.approx([0, 0.25, usual], abs=1e-5)
    more = metric_rows(None, [Wall()], object())  # type: ignore[arg-type, list-item]
    assert more[3]["method"] == "metres, predicted camera"
    assert more[3]["abs_rel_metric"]["mean"] == pytest.approx((0.1 + usual) / 2, abs=1e-5)
