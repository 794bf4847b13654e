"""Sets of pictures taken through bent lenses as sets of pinholes: what comes out is the scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.geometry.distortion import bend
from unproject.geometry.straight_files import bent_set, distinct_names
from unproject.utils.errors import InputError
from unproject.utils.pictures import save_image

WIDTH, HEIGHT, FX, FY, CX, CY = 60, 44, 50.0, 47.0, 31.0, 20.0
RADIAL = {"k1": -0.12, "k2": 0.02, "p1": 0.003, "p2": -0.004}
FISHEYE = {"k1": 0.02, "k2": -0.01, "k3": 0.004, "k4": -0.001}
POSE = [[1.0, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]]


def scene(x: np.ndarray, y: np.ndarray, view: int) -> np.ndarray:
    """Colours of directions (x, y, 1), another for each view, without symmetry."""
    return np.stack([0.5 + 0.4 * np.sin(5 * x + 2 * y + view), 0.5 + 0.3 * np.cos(4 * y - x), 0.4 + 0.3 * x], -1)


def plane() -> tuple[np.ndarray, np.ndarray]:
    v, u = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    return (u - CX) / FX, (v - CY) / FY


def bent_picture(k: dict[str, float], fisheye: bool, view: int) -> np.ndarray:
    """What the lens shows: its map inverted by fixed-point iteration."""
    wanted = torch.from_numpy(np.stack(plane(), axis=-1))
    xy = wanted.clone()
    for _ in range(100):
        xy = xy + wanted - bend(xy, k, fisheye)
    return scene(xy[..., 0].numpy(), xy[..., 1].numpy(), view).astype(np.float32)


def transforms(folder: Path, k: dict[str, float], fisheye: bool = False, **more: Any) -> Path:
    """Two views, pictures beside them."""
    lens = {"fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "w": WIDTH, "h": HEIGHT, **k, **more}
    frames = []
    for view in range(2):
        save_image(folder / "shots" / f"v{view}.png", bent_picture(k, fisheye, view))
        frames.append({"file_path": f"shots/v{view}", "transform_matrix": POSE})
    model = "OPENCV_FISHEYE" if fisheye else "OPENCV"
    (folder / "bent.json").write_text(json.dumps({"camera_model": model, **lens, "frames": frames}))
    return folder / "bent.json"


def colmap(folder: Path, row: str, names: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    folder.mkdir()
    (folder / "cameras.txt").write_text(f"1 {row}\n")
    (folder / "images.txt").write_text("".join(f"{i} 1 0 0 0 0 {i} 0 1 {name}\n\n" for i, name in enumerate(names, 1)))
    return folder


@pytest.mark.parametrize(("k", "fisheye"), [(RADIAL, False), (FISHEYE, True), ({}, True)])
def test_straight_pictures_show_the_scene(tmp_path: Path, k: dict[str, float], fisheye: bool) -> None:
    found = bent_set(transforms(tmp_path, k, fisheye))
    assert found.camera.model == "pinhole" and found.names == ["shots/v0.png", "shots/v1.png"]
    for view, made in enumerate(found.straight()):
        seen = made.pixels.any(axis=-1)
        seen[[0, 1, -2, -1]], seen[:, [0, 1, -2, -1]] = False, False
        np.testing.assert_allclose(made.pixels[seen], scene(*plane(), view)[seen], atol=0.03)
        assert seen.mean() > 0.5 and made.seen == pytest.approx(made.pixels.any(axis=-1).mean())


def test_transparency_is_straightened_along(tmp_path: Path) -> None:
    path = transforms(tmp_path, RADIAL)
    picture = bent_picture(RADIAL, False, 0)
    alpha = np.ones((HEIGHT, WIDTH, 1), np.float32)
    alpha[:, : WIDTH // 2] = 0
    save_image(tmp_path / "shots" / "v0.png", np.concatenate([picture, alpha], axis=-1))
    first, second = bent_set(path).straight()
    assert first.pixels.shape == (HEIGHT, WIDTH, 4) and second.pixels.shape == (HEIGHT, WIDTH, 3)
    assert not first.pixels[:, :25, 3].any() and first.pixels[10:30, 35:50, 3].all()


def test_all_of_opencvs_coefficients_are_read_from_colmap(tmp_path: Path) -> None:
    row = f"FULL_OPENCV {WIDTH} {HEIGHT} {FX} {FY} {CX} {CY} -0.12 0.02 0.003 -0.004 0.01 0.02 0 0"
    folder = colmap(tmp_path / "model", row)
    k = {**RADIAL, "k3": 0.01, "k4": 0.02}
    for view, name in enumerate(("a.png", "b.png")):
        save_image(tmp_path / "model" / "images" / name, bent_picture(k, False, view))
    made = list(bent_set(folder).straight())
    inner = (slice(6, -6), slice(6, -6))
    np.testing.assert_allclose(made[1].pixels[inner], scene(*plane(), 1)[inner], atol=0.03)


@pytest.mark.parametrize(
    ("k", "more", "told"),
    [
        ({}, {}, "has no lens distortion that --undistort could take out"),
        ({"k4": 0.1}, {}, "has the distortion k4 of a pinhole lens, which is not undone"),
        (RADIAL, {"w": 30, "cx": 16}, "v0.png has 60 x 44 px and its camera 30 x 44; resize one"),
    ],
)
def test_what_cannot_be_straightened_is_refused(
    tmp_path: Path, k: dict[str, float], more: dict[str, float], told: str
) -> None:
    path = transforms(tmp_path, {}, **k, **more)
    with pytest.raises(InputError, match=told):
        list(bent_set(path).straight())


def test_a_picture_that_is_missing_is_named(tmp_path: Path) -> None:
    path = transforms(tmp_path, RADIAL)
    (tmp_path / "shots" / "v1.png").unlink()
    with pytest.raises(InputError, match=r"shots/v1 is not there; --undistort needs all pictures"):
        bent_set(path)


def test_names_stay_in_their_folder_and_apart() -> None:
    found = distinct_names(["a.jpg", "a.png", "../a.png", "/etc/x.jpeg", "C:\\b\\c.png", "x/y.z.png", ".."])
    assert found == ["a.png", "a-1.png", "a-2.png", "etc/x.png", "b/c.png", "x/y.z.png", "picture.png"]
