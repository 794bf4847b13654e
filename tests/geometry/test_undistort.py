"""Lenses with distortion: OpenCV's formulas by hand, their inverse, pictures that become straight."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.geometry.distortion import bend
from unproject.geometry.intrinsics import (
    DistortedLens,
    check_intrinsics,
    opencv_coefficients,
    read_intrinsics,
    read_lens,
    undistorted,
)
from unproject.utils.errors import InputError

K = np.array([[80.0, 0, 52.0], [0, 76.0, 34.0], [0, 0, 1]])
RADIAL = {"k1": -0.21, "k2": 0.06, "p1": 0.004, "p2": -0.006, "k3": 0.01}
FISHEYE = {"k1": 0.03, "k2": -0.01, "k3": 0.004, "k4": -0.001}
WIDTH, HEIGHT = 104, 66


def by_hand(x: float, y: float, k: dict[str, float], fisheye: bool) -> tuple[float, float]:
    r = math.hypot(x, y)
    if fisheye:
        t = math.atan(r)
        bent = t * (1 + k["k1"] * t**2 + k["k2"] * t**4 + k["k3"] * t**6 + k["k4"] * t**8)
        return bent * x / r, bent * y / r
    radial = (1 + k["k1"] * r**2 + k["k2"] * r**4 + k["k3"] * r**6) / (1 + k.get("k4", 0.0) * r**2)
    return (
        x * radial + 2 * k["p1"] * x * y + k["p2"] * (r**2 + 2 * x**2),
        y * radial + k["p1"] * (r**2 + 2 * y**2) + 2 * k["p2"] * x * y,
    )


@pytest.mark.parametrize(("k", "fisheye"), [(RADIAL, False), ({**RADIAL, "k4": 0.02}, False), (FISHEYE, True)])
def test_directions_are_bent_as_opencv_says(k: dict[str, float], fisheye: bool) -> None:
    for x, y in ((0.3, -0.2), (-0.55, 0.4), (0.01, 0.5)):
        found = bend(torch.tensor([x, y], dtype=torch.float64), k, fisheye)
        np.testing.assert_allclose(found, by_hand(x, y, k, fisheye), rtol=1e-12)


def smooth(u: Any, v: Any) -> Any:
    """A picture as a function of pinhole pixels, without symmetry."""
    return np.stack([0.5 + 0.4 * np.sin(0.11 * u + 0.05 * v), 0.5 + 0.3 * np.cos(0.07 * v - 0.03 * u), u / WIDTH], -1)


@pytest.mark.parametrize(("k", "fisheye"), [(RADIAL, False), (FISHEYE, True)])
def test_a_bent_picture_becomes_straight(k: dict[str, float], fisheye: bool) -> None:
    """The lens's own picture is made by inverting its map by fixed-point iteration."""
    v, u = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    wanted = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]])
    lens, xy = DistortedLens(K, k, fisheye), torch.from_numpy(wanted)
    for _ in range(100):
        xy = xy + torch.from_numpy(wanted) - bend(xy.movedim(0, -1), k, fisheye).movedim(-1, 0)
    bent = smooth(xy[0].numpy() * K[0, 0] + K[0, 2], xy[1].numpy() * K[1, 1] + K[1, 2]).astype(np.float32)
    straight, inside = undistorted(bent, lens)
    away = np.zeros_like(inside)
    away[2:-2, 2:-2] = True
    assert inside[away].mean() > 0.95
    np.testing.assert_allclose(straight[inside & away], smooth(u, v)[inside & away], atol=0.01)
    assert np.abs(bent - smooth(u, v)).max() > 0.1
    assert (straight[~inside] == 0).all()


def test_no_distortion_is_the_picture_itself() -> None:
    picture = np.random.default_rng(0).random((HEIGHT, WIDTH, 3)).astype(np.float32)
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[3, 5] = False
    same, inside = undistorted(picture, DistortedLens(K), valid)
    np.testing.assert_allclose(same[inside], picture[inside], atol=1e-4)
    np.testing.assert_array_equal(inside, valid)


def test_what_a_lens_does_not_show_is_not_valid() -> None:
    picture = np.ones((HEIGHT, WIDTH, 3), np.float32)
    _, inside = undistorted(picture, DistortedLens(K, {"k1": 0.3}))  # pincushion: the corners come from outside
    assert not inside[0, 0] and inside[HEIGHT // 2, WIDTH // 2] and 0.3 < inside.mean() < 0.95
    barrel = DistortedLens(K, {"k1": -1.5})  # folds back at r = 0.47: what lies farther out is seen nowhere
    _, inside = undistorted(picture, barrel)
    v, u = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    r = np.hypot((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1])
    assert not inside[r > 0.48].any() and inside[r < 0.46].all()


def test_opencv_lists_by_name() -> None:
    assert opencv_coefficients([0.1, 0.2, 0.3, 0.4, 0.5], False) == dict(
        zip(("k1", "k2", "p1", "p2", "k3"), (0.1, 0.2, 0.3, 0.4, 0.5))
    )
    assert opencv_coefficients([[0.1], [0], [0], [0.4]], True) == {"k1": 0.1, "k4": 0.4}
    assert opencv_coefficients([0.0] * 14, False) == {}
    with pytest.raises(InputError, match="thin prism"):
        opencv_coefficients([0.0] * 8 + [0.1], False)
    with pytest.raises(InputError, match="known are finite k1, k2, k3, k4"):
        DistortedLens(K, {"p1": 1.0}, True)


def document(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_lenses_of_files(tmp_path: Path) -> None:
    matrix = {"camera_matrix": K.tolist(), "dist_coeffs": [-0.2, 0.1, 0, 0], "width": WIDTH, "height": HEIGHT}
    lens = read_lens(document(tmp_path / "a.json", matrix), (WIDTH, HEIGHT))
    assert lens.bent == {"k1": -0.2, "k2": 0.1} and lens.K[0, 2] == 52.5 and not lens.fisheye
    with pytest.raises(InputError, match="lens distortion; --undistort takes it out"):
        check_intrinsics(tmp_path / "a.json")
    check_intrinsics(tmp_path / "a.json", undistort=True)
    np.testing.assert_array_equal(read_intrinsics(tmp_path / "a.json", undistort=True), lens.K)
    with pytest.raises(InputError, match="no lens distortion that --undistort"):
        check_intrinsics(document(tmp_path / "b.json", K.tolist()), undistort=True)
    fish = {"K": K.tolist(), "distortion_model": "fisheye", "distortion_coefficients": {"data": [0.1, 0, 0, 0]}}
    assert read_lens(document(tmp_path / "c.json", fish)).fisheye


def test_a_transforms_json_gives_the_lens_of_its_picture(tmp_path: Path) -> None:
    def frame(name: str, focal: float) -> dict[str, Any]:
        return {"file_path": f"images/{name}", "fl_x": focal, "transform_matrix": np.eye(4).tolist()}

    common = {"w": WIDTH, "h": HEIGHT, "camera_model": "OPENCV", "k1": 0.05, "frames": []}
    path = document(tmp_path / "t.json", {**common, "frames": [frame("a.png", 50), frame("b.png", 60)]})
    assert read_lens(path, (WIDTH, HEIGHT), "elsewhere/b.png").K[0, 0] == 60
    assert read_lens(path, picture="a.png").bent == {"k1": 0.05}
    with pytest.raises(InputError, match=r"several lenses and no frame named c\.png"):
        read_lens(path, picture="c.png")
    with pytest.raises(InputError, match="K is for 104 x 66 px, the picture has 66 x 104"):
        read_lens(path, (HEIGHT, WIDTH), "a.png")
    one = document(tmp_path / "o.json", {**common, "k1": 0, "frames": [frame("a.png", 50)] * 2})
    assert read_intrinsics(one).tolist() == [[50, 0, 52], [0, 50, 33], [0, 0, 1]]
    for changes, message in (({"frames": []}, "has no frames"), ({"frames": [{}]}, r"damaged|neither fl_x")):
        with pytest.raises(InputError, match=message):
            read_lens(document(tmp_path / "d.json", {**common, **changes}))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"K": [[True, 0, 5], [0, 9, 5], [0, 0, 1]]}, "has true in K, where a number belongs"),
        ({"camera_matrix": {"data": [9, 0, 5, 0, 9, 5, 0, 0, True]}}, "has true in camera_matrix"),
        ({"K": [[9, 0, 5], [0, 9, 5], [0, 0, 1]], "dist_coeffs": [False, 0, 0, 0]}, "has false in dist_coeffs"),
        ({"K": [[9, 0, 5], [0, 9, 5], [0, 0, 1]], "image_width": True}, "has true in image_width"),
        ([[9, 0, 5], [0, 9, 5], [0, 0, True]], "has true in its matrix"),
        (
            {"frames": [{"file_path": "a"}], "w": 10**400, "h": 3, "fl_x": 3},
            "a frame is damaged",
        ),
    ],
)
def test_truth_is_no_number_of_a_lens(tmp_path: Path, entries: Any, message: str) -> None:
    (tmp_path / "K.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=message):
        read_lens(tmp_path / "K.json")
