"""What is known of one picture: the confidence of its parts is kept with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.geometry.cameras import Camera
from unproject.geometry.metric import Metric
from unproject.pipelines.metric_depth import metres_map
from unproject.pipelines.picture_camera import PictureCamera
from unproject.pipelines.picture_geometry import PictureGeometry
from unproject.tasks.codecs import DepthOutput, NormalsOutput
from unproject.tasks.outputs import GeometryOutput

SIDE = (12, 16)


def geometry(sure: bool = True) -> PictureGeometry:
    rng = np.random.default_rng(0)
    depth = DepthOutput(rng.random((1, *SIDE, 1), np.float32))
    normals = NormalsOutput(np.tile(np.array([0.0, 0.6, 0.8], np.float32), (1, *SIDE, 1)))
    if sure:
        for part, tolerance in ((depth, 0.1), (normals, 11.25)):
            part.confidence, part.tolerance = rng.random((1, *SIDE, 1), np.float32), tolerance
    K = torch.tensor([[20.0, 0.0, 8.0], [0.0, 20.0, 6.0], [0.0, 0.0, 1.0]])
    camera = Camera(torch.eye(4)[None], K[None], SIDE[1], SIDE[0])
    made = GeometryOutput({"depth": depth, "normals": normals})
    metric = Metric(1.0, 4.0, "given", "given")
    return PictureGeometry(rng.random((*SIDE, 3), np.float32), made, PictureCamera(camera, "given", None), metric)


def test_confidence_and_tolerance_of_both_maps_are_kept(tmp_path: Path) -> None:
    whole = geometry()
    stored = np.load(whole.save_npz(tmp_path / "a.npz"))
    np.testing.assert_array_equal(stored["confidence"], whole.made.depth.confidence[0, ..., 0])
    np.testing.assert_array_equal(stored["normals_confidence"], whole.made.normals.confidence[0, ..., 0])
    assert (float(stored["tolerance"]), float(stored["normals_tolerance"])) == (0.1, 11.25)
    report = whole.report()
    assert report["depth_confidence"] == pytest.approx(whole.made.depth.confidence.mean(), abs=1e-6)
    assert report["normals_confidence"] == pytest.approx(whole.made.normals.confidence.mean(), abs=1e-6)
    assert (report["depth_tolerance"], report["normals_tolerance"]) == (0.1, 11.25)
    one = metres_map(whole.made, whole.metric)
    np.testing.assert_array_equal(one.confidence, stored["confidence"])
    assert one.tolerance == 0.1


def test_without_error_models_nothing_is_said(tmp_path: Path) -> None:
    whole = geometry(sure=False)
    assert not [name for name in np.load(whole.save_npz(tmp_path / "a.npz")) if "confidence" in name or "tol" in name]
    assert "depth_confidence" not in whole.report()
