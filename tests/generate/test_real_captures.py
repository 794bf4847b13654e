"""Splats of real captures that lie beside the repository: a phone's photographs, and cameras of Mip-NeRF 360."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.generate.splat_fit import SplatFitConfig, fit_splats
from unproject.geometry.cameras import Camera, from_gsplat
from unproject.geometry.points import PointCloud
from unproject.geometry.posed import PosedImages
from unproject.geometry.posed_files import load_posed
from unproject.geometry.shapes import GaussianConfig
from unproject.geometry.splats import GaussianCloud
from unproject.geometry.splats.density import DensityConfig
from unproject.geometry.splats.drawing import draw

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "real" / "gaussians"
beside = pytest.mark.skipif(not BESIDE.is_dir(), reason="the captures are not beside the repository")
SPLATS = GaussianConfig(count=400, bounds=1e9, mean_lr_end=0.1, density=DensityConfig(every=0, reset_every=0))
CONFIG = SplatFitConfig(steps=25, sizes=((0, 1.0),), held_out=0, splats=SPLATS)


@beside
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_photographs_of_a_phone_are_straightened_and_fitted() -> None:
    pictures = load_posed(BESIDE / "fox", downscale=32)
    assert len(pictures) == 4 and pictures.images.shape[1:] == (60, 34, 3) and pictures.alpha is None
    assert pictures.valid is not None and float(pictures.valid.float().mean()) > 0.85
    begun, done = (fit_splats(pictures, replace(CONFIG, steps=steps)) for steps in (1, 25))
    assert done.measured(pictures)[2]["psnr"] > begun.measured(pictures)[2]["psnr"] + 2


@beside
def test_cameras_and_points_of_a_garden_are_fitted() -> None:
    """Its points, drawn as splats, are the photographs; a fit begins at every sixtieth of them."""
    with np.load(BESIDE / "garden" / "test_garden.npz") as file:
        parts = {name: torch.from_numpy(file[name]) for name in ("means3d", "colors", "viewmats", "Ks")}
        size = (int(file["width"]), int(file["height"]))
    cameras = Camera(from_gsplat(parts["viewmats"]), parts["Ks"], *size, far=1e4).resized(size[0] // 12, size[1] // 12)
    points, colors = parts["means3d"].float(), parts["colors"].float() / 255
    truth = GaussianCloud.from_points(points[::6], colors[::6], opacity=0.9, size=1.5)
    pictures = PosedImages.from_floats(cameras, draw(truth, cameras, ("rgb",), 0.0)[0].rgb)
    pictures = replace(pictures, points=PointCloud(points[::60], colors[::60]))
    begun, done = (fit_splats(pictures, replace(CONFIG, steps=steps)) for steps in (1, 25))
    assert done.measured(pictures)[1]["psnr"] > begun.measured(pictures)[1]["psnr"] + 1
