"""Focal lengths with which no camera sees a picture are refused wherever one comes in, and said to be so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.geometry.intrinsics import check_intrinsics, read_lens
from unproject.geometry.lenses import Lens, check_field, check_lens, intrinsics
from unproject.geometry.pinhole_fit import Known, fit_pinhole
from unproject.pipelines.camera_output import given_camera
from unproject.pipelines.photo_exif import LensFacts
from unproject.utils.errors import InputError

SIZE = (64, 48)
FAR, NEAR = 1e9, 1e-3  # px: neither a telescope nor a fisheye


def matrix(focal_px: float) -> np.ndarray:
    return np.asarray(intrinsics(focal_px, focal_px, 32.0, 24.0).numpy())


def fitted(focal_px: float) -> object:
    rays = torch.zeros(1, 2, 8, 8)
    return fit_pinhole(rays, torch.ones(1, 1, 8, 8, dtype=torch.bool), SIZE, Known((focal_px, focal_px), square=True))


ENTRANCES: list[Callable[[float], object]] = [
    lambda focal: check_field((40.0, focal), SIZE, "a camera"),
    lambda focal: check_field((focal,), SIZE, "a camera", fisheye=True),
    lambda focal: check_lens(Lens("pinhole", *SIZE, intrinsics(focal, focal, 32.0, 24.0)), "view 1"),
    lambda focal: read_lens(matrix(focal), SIZE),
    lambda focal: given_camera(matrix(focal), *SIZE, "--focal"),
    fitted,
]


@pytest.mark.parametrize("focal_px", [FAR, NEAR])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_field_of_view_of_no_camera_is_refused(entrance: Callable[[float], object], focal_px: float) -> None:
    with pytest.raises(InputError, match=r"a field of view of .* degrees, which is no camera's"):
        entrance(focal_px)


@pytest.mark.parametrize("focal_px", [0.1, 1.0, 60.0, 1e5])
def test_extreme_lenses_that_exist_pass(focal_px: float) -> None:
    check_field((focal_px, focal_px), SIZE, "a camera")


def test_a_fisheye_may_see_all_around_and_an_orthographic_view_has_no_angle() -> None:
    check_field((64 / (2 * np.pi - 1e-6),), SIZE, "a camera", fisheye=True)
    check_lens(Lens("ortho", *SIZE, intrinsics(FAR, FAR, 32.0, 24.0)), "view 1")


def test_a_matrix_without_a_picture_has_a_longest_focal_length(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    path.write_text(json.dumps({"K": matrix(1e30).tolist()}))
    with pytest.raises(InputError, match=r"positive focal lengths below 1e\+12"):
        check_intrinsics(path)


def test_an_impossible_exif_tells_nothing() -> None:
    def said(px_per_mm: float) -> LensFacts:
        return LensFacts(focal_mm=50.0, px_per_mm=px_per_mm, size=SIZE)

    assert said(1e20).focal_px(*SIZE) is None and said(1.0).focal_px(*SIZE) == 50.0
