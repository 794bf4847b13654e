"""Pictures as input: what is never overwritten, names in folders, and the camera of a point cloud."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unproject.cli.folders import distinct_stems
from unproject.cli.maps import MAP_COMMANDS
from unproject.cli.points import Pointcloud
from unproject.geometry.points import PointCloud
from unproject.tasks.codecs import DepthOutput, NormalsOutput
from unproject.utils.pictures import load_image, save_image

Run = Callable[..., tuple[int, str, str]]
BLACK = np.zeros((4, 4, 3))


@pytest.fixture(autouse=True)
def flat_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that take every picture for a wall: depth 0, normals to the viewer."""

    def depth(picture: np.ndarray, **_: Any) -> DepthOutput:
        return DepthOutput(np.zeros((1, *picture.shape[:2], 1), np.float32), nfe=1)

    def normals(picture: np.ndarray, **_: Any) -> NormalsOutput:
        return NormalsOutput(np.broadcast_to(np.float32([0, 0, 1]), (1, *picture.shape)), nfe=1)

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", lambda self: depth)
    monkeypatch.setattr(MAP_COMMANDS["normals"], "load", lambda self: normals)
    monkeypatch.setattr(Pointcloud, "load", lambda self: depth)


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


EDIT = ("--source", "a cup", "--target", "a jug")


@pytest.mark.parametrize(
    "words",
    [
        ("depth", "photo.png", "-o", "photo.PNG"),
        ("depth", "a-16bit.png", "-o", "a.png"),
        ("depth", "photo.png", "-o", "link.png"),
        ("edit", "photo.png", *EDIT, "-o", "photo.PNG"),
        ("edit", "photo.png", *EDIT, "-o", "./folder/../photo.png"),
        ("restore", "photo.png", "--task", "inpaint", "--mask", "mask.png", "-o", "mask.PNG"),
    ],
)
def test_no_picture_is_overwritten_by_its_result(run: Run, words: tuple[str, ...]) -> None:
    Path("folder").mkdir()
    for name in ("photo.png", "a-16bit.png", "mask.png"):
        save_image(name, BLACK)
    Path("link.png").symlink_to("photo.png")
    code, _, err = run(*words)
    assert code == 2
    assert "would overwrite" in err and "choose another name" in err
    assert names(".") == ["a-16bit.png", "folder", "link.png", "mask.png", "photo.png"]


def test_a_picture_of_a_folder_is_not_overwritten_by_the_map_of_another(run: Run) -> None:
    save_image("photos/a.png", BLACK)
    save_image("photos/a-depth.png", BLACK)
    code, _, err = run("depth", "photos", "-o", "photos")
    assert (code, "would overwrite photos/a-depth.png" in err) == (2, True)
    assert names("photos") == ["a-depth.png", "a.png"]


def test_pictures_of_one_stem_keep_their_own_maps(run: Run) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        save_image(f"photos/{name}", BLACK)
    assert run("pointcloud", "photos", "-o", "out")[0] == 0
    clouds = [f"{stem}-pointcloud{end}" for stem in ("a-jpg", "a-png", "b") for end in ("-camera.json", ".ply")]
    assert names("out") == [*clouds, "pointcloud.run.json"]


@pytest.mark.parametrize("more", [(), ("--mesh",)])
def test_a_picture_without_shape_leaves_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """It is named, and the others are made."""

    def depth(picture: np.ndarray, **_: Any) -> DepthOutput:
        valid = np.full((1, *picture.shape[:2], 1), np.ptp(picture) > 0)
        return DepthOutput(np.random.default_rng(0).random(valid.shape, dtype=np.float32) / 100, nfe=1, valid=valid)

    monkeypatch.setattr(Pointcloud, "load", lambda self: depth)
    save_image("photos/grey.png", BLACK + 0.5)
    save_image("photos/rich.png", np.random.default_rng(0).random((4, 4, 3)))
    code, out, _ = run("pointcloud", "photos", "--fov", "50", "-o", "out", *more)
    assert code == 3 and "skipped: photos/grey.png: no pixel of the depth is valid" in out
    assert [name for name in names("out") if "grey" in name] == [] and any("rich" in name for name in names("out"))


@pytest.mark.parametrize(
    ("pictures", "stems"),
    [
        (("a.jpg", "b.jpg"), ["a", "b"]),
        (("a.jpg", "A.png", "b.jpg"), ["a-jpg", "A-png", "b"]),
        (("a.jpg", "a.png", "a-jpg.png"), ["a-jpg", "a-png", "a-jpg-png"]),
    ],
)
def test_stems_are_distinct(pictures: tuple[str, ...], stems: list[str]) -> None:
    assert distinct_stems([Path(name) for name in pictures]) == stems


def test_maps_of_an_earlier_run_are_no_pictures(run: Run) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        save_image(f"photos/{name}", BLACK)
    assert run("depth", "photos", "-o", "photos")[0] == 0
    once = names("photos")
    assert len(once) == 3 + 3 * 3 + 1
    code, out, _ = run("depth", "photos", "-o", "photos")
    assert (code, names("photos")) == (0, once)
    assert "skipped: 6 maps of an earlier run in photos" in out
    assert run("normals", "photos", "-o", "photos")[0] == 0
    assert [name for name in names("photos") if "depth-normals" in name] == []
    code, out, _ = run("depth", "photos", "-o", "photos", "--json", "--overwrite")
    assert json.loads(out)["skipped"] == ["12 maps of an earlier run in photos"]
    assert json.loads(out)["nfe"] == {"denoiser": 3}


def test_a_folder_of_one_picture_names_its_maps_after_the_picture(run: Run) -> None:
    save_image("photos/a.png", BLACK)
    for _ in range(2):
        assert run("depth", "photos", "-o", "photos")[0] == 0
    assert names("photos") == ["a-depth-16bit.png", "a-depth.npz", "a-depth.png", "a.png", "depth.run.json"]


def test_a_point_cloud_stands_upright(run: Run) -> None:
    """Red on top and green on the right of the picture: above (+z) and to +y of a viewer who looks along -x."""
    picture = np.zeros((4, 8, 3))
    picture[:2, :, 0] = 1
    picture[:, 4:, 1] = 1
    save_image("photo.png", picture)
    assert run("pointcloud", "photo.png", "--near", "2", "-o", "p.ply")[0] == 0
    cloud = PointCloud.load("p.ply")
    assert cloud.colors is not None
    assert np.allclose(cloud.points[:, 0], -2)
    assert bool(((cloud.points[:, 2] > 0) == (cloud.colors[:, 0] > 0.5)).all())
    assert bool(((cloud.points[:, 1] > 0) == (cloud.colors[:, 1] > 0.5)).all())


def half_width(path: str) -> float:
    """Of the outermost pixel centres, at distance 1."""
    return float(PointCloud.load(path).points[:, 1].max())


@pytest.mark.parametrize("size", [(8, 4), (4, 8)])
def test_the_angle_is_that_of_the_longer_side(run: Run, size: tuple[int, int]) -> None:
    width, height = size
    save_image("photo.png", np.zeros((height, width, 3)))
    assert run("pointcloud", "photo.png", "--fov", "60", "-o", "p.ply")[0] == 0
    focal = 4 / np.tan(np.radians(30))
    assert half_width("p.ply") == pytest.approx((width - 1) / 2 / focal, rel=1e-5)


def test_the_camera_comes_from_a_matrix_or_the_photo(run: Run) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50
    Image.new("RGB", (6, 4)).save("photo.jpg", exif=exif)
    assert run("pointcloud", "photo.jpg", "-o", "p.ply")[0] == 0
    assert half_width("p.ply") == pytest.approx(2.5 / (50 / 36 * 6), rel=1e-4)
    focal = json.loads(Path("p.run.json").read_text())["notes"]["focal"]["photo.jpg"]
    assert focal == {"px": pytest.approx(50 / 36 * 6, rel=1e-4), "from": "EXIF of the photo"}
    Path("K.json").write_text("[[10, 0, 3], [0, 10, 2], [0, 0, 1]]")
    assert run("pointcloud", "photo.jpg", "--K", "K.json", "-o", "p.ply", "--overwrite")[0] == 0
    assert half_width("p.ply") == pytest.approx(0.25, rel=1e-5)
    told = json.loads(Path("p.run.json").read_text())["notes"]["focal"]["photo.jpg"]
    assert told == {"px": 10, "from": "--K K.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--K", "K.json", "--fov", "60"), "give --fov 60 or --K K.json, not both"),
        (("--K", "none.json"), "--K none.json does not exist; give a JSON file"),
        (("--K", "K.json"), "3 x 3 matrix"),
    ],
)
def test_cameras_that_make_no_sense(run: Run, words: tuple[str, ...], message: str) -> None:
    save_image("photo.png", BLACK)
    Path("K.json").write_text("[[1, 2], [3, 4]]")
    code, _, err = run("pointcloud", "photo.png", *words)
    assert (code, message in err) == (2, True)
    assert load_image("photo.png").shape == (4, 4, 3)
