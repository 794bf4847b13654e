"""One rule for masks, whatever drew them; and the matrix of a camera."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.geometry.intrinsics import check_intrinsics
from unproject.pipelines.picture_inputs import hidden_pixels, photo_camera
from unproject.utils.errors import InputError

SHAPE = (7, 9)
MARKED = np.zeros(SHAPE, bool)
MARKED[2:5, 1:4] = True
PICTURE = torch.rand(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0))


def painted(on: tuple[int, ...], off: tuple[int, ...]) -> np.ndarray:
    return np.where(MARKED[..., None], np.array(on, np.uint8), np.array(off, np.uint8)).astype(np.uint8)


def erased() -> np.ndarray:
    rgb = (PICTURE[0].permute(1, 2, 0) * 255).round().byte().numpy()
    return np.dstack([rgb, np.where(MARKED, 0, 255).astype(np.uint8)])


def softened() -> np.ndarray:
    grey = MARKED * np.uint8(255)
    grey[1, 1:4], grey[5, 1:4] = 100, 20
    return grey


MASKS = {
    "white on black": MARKED * np.uint8(255),
    "soft edges": softened(),
    "zero and one": MARKED.astype(np.uint8),
    "zero and one in 16 bits": MARKED.astype(np.uint16),
    "booleans": MARKED,
    "red on black": painted((255, 0, 0), (0, 0, 0)),
    "red on transparency": painted((255, 0, 0, 255), (0, 0, 0, 0)),
    "black on transparency": painted((0, 0, 0, 255), (255, 255, 255, 0)),
    "white on black, all covered": painted((255, 255, 255, 255), (0, 0, 0, 255)),
    "parts erased": erased(),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_kind_of_mask_marks_the_same_pixels(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(MASKS[name])
    image.save(tmp_path / "mask.png")
    for mask in (tmp_path / "mask.png", image):
        assert np.array_equal(hidden_pixels(mask, PICTURE)[0, 0].bool().numpy(), MARKED)


def test_a_stroke_in_the_colours_of_the_picture_is_a_stroke() -> None:
    """Only a mask that is covered for the most part can be a copy of the picture."""
    white = torch.ones_like(PICTURE)
    image = Image.fromarray(MASKS["red on transparency"])
    image.paste((255, 255, 255, 255), (1, 2, 4, 5))
    assert np.array_equal(hidden_pixels(image, white)[0, 0].bool().numpy(), MARKED)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", SHAPE[::-1], 0), "marks nothing"),
        (Image.new("L", SHAPE[::-1], 255), "covers the whole picture"),
        (Image.new("RGBA", SHAPE[::-1], (255, 255, 255, 0)), "marks nothing"),
        (Image.fromarray(np.random.default_rng(0).integers(0, 4, SHAPE, dtype=np.uint8)), "marks nothing"),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 120)), "the mask has 4 x 4 px, the picture 9 x 7"),
    ],
)
def test_empty_full_and_other_masks_are_refused(mask: Image.Image, message: str) -> None:
    with pytest.raises(InputError, match=message):
        hidden_pixels(mask, PICTURE)


K = [[50.0, 0, 10], [0, 60, 20], [0, 0, 1]]


@pytest.mark.parametrize(
    ("document", "centre"),
    [
        (K, (10, 20)),
        ({"K": K, "width": 200, "height": 100}, (10, 20)),
        ({"camera_matrix": K, "distortion_coefficients": [0, 0, 0, 0, 0]}, (10.5, 20.5)),
        ({"camera_matrix": {"rows": 3, "cols": 3, "dt": "d", "data": np.ravel(K).tolist()}}, (10.5, 20.5)),
    ],
)
def test_pixel_centres_go_by_the_name_of_the_matrix(tmp_path: Path, document: Any, centre: tuple[float, float]) -> None:
    (tmp_path / "K.json").write_text(json.dumps(document))
    check_intrinsics(tmp_path / "K.json")
    camera = photo_camera(200, 100, K=tmp_path / "K.json")
    assert camera.K[0, :2, 2].tolist() == list(centre) and camera.K[0, 0, 0] == 50


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([[50, 0, 10], [0, 60, 20], [0, 0, 2]], "must be 0 fy cy and 0 0 1"),
        ([[50, 0, 10], [1, 60, 20], [0, 0, 1]], "must be 0 fy cy and 0 0 1"),
        ([[50, 0, 300], [0, 60, 20], [0, 0, 1]], r"principal point at \(300, 20\), outside the picture of 200 x 100"),
        ({"K": K, "width": 400, "height": 200}, "K is for 400 x 200 px, the picture has 200 x 100"),
        ({"camera_matrix": K, "dist_coeffs": [0.1, 0, 0, 0]}, "lens distortion; --undistort"),
        ({"matrix": K}, 'has no "K"'),
    ],
)
def test_matrices_that_do_not_fit_are_refused(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "K.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        photo_camera(200, 100, K=tmp_path / "K.json")
