"""Camera files of others: lenses by name, sizes from images, COLMAP's binary, entries that are left out."""

from __future__ import annotations

import json
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.geometry.camera_files import load_colmap, load_nerfstudio, save_colmap, save_nerfstudio
from unproject.geometry.cameras import Camera
from unproject.geometry.posed_files import warn_of_sizes
from unproject.utils.errors import InputError

POSE = [[0, 0, 1, 2], [1, 0, 0, 3], [0, 1, 0, 4], [0, 0, 0, 1]]
LENS = {"fl_x": 30, "fl_y": 31, "cx": 15, "cy": 13, "w": 32, "h": 24}


def transforms(folder: Path, frames: int = 2, **entries: Any) -> Path:
    path = folder / "transforms.json"
    listed = [{"file_path": f"train/r_{i}", "transform_matrix": POSE} for i in range(frames)]
    path.write_text(json.dumps({"frames": listed, **entries}))
    return path


def edited(path: Path, index: int, **entries: Any) -> Path:
    document = json.loads(path.read_text())
    document["frames"][index].update(entries)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("entries", "model"),
    [
        ({}, "pinhole"),
        ({"camera_model": "SIMPLE_PINHOLE"}, "pinhole"),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0}, "fisheye"),
        ({"is_fisheye": True}, "fisheye"),
        ({"camera_model": "ORTHOPHOTO"}, "ortho"),
    ],
)
def test_lenses_that_are_ours_keep_their_model(tmp_path: Path, entries: dict[str, Any], model: str) -> None:
    camera, names = load_nerfstudio(transforms(tmp_path, **LENS, **entries))
    assert camera.model == model and names == ["train/r_0", "train/r_1"]
    assert camera.K[0].tolist() == [[30, 0, 15], [0, 31, 13], [0, 0, 1]]
    back, _ = load_nerfstudio(save_nerfstudio(tmp_path / "back.json", camera, names))
    assert back.model == model and torch.equal(back.K, camera.K)
    if model == "ortho":
        with pytest.raises(InputError, match="COLMAP knows no ortho cameras"):
            save_colmap(tmp_path / "sparse", camera, names)
    else:
        back, _ = load_colmap(save_colmap(tmp_path / "sparse", camera, names))
        assert back.model == model and torch.equal(back.K, camera.K)


@pytest.mark.parametrize("where", ["file", "frame"])
@pytest.mark.parametrize("model", ["EQUIRECTANGULAR", "OMNIDIRECTIONALSTEREO_L", "FISHEYE624", "strange"])
def test_other_lenses_are_refused_by_name(tmp_path: Path, where: str, model: str) -> None:
    path = transforms(tmp_path, **LENS, **({"camera_model": model} if where == "file" else {}))
    if where == "frame":
        edited(path, 1, camera_model=model)
    with pytest.raises(InputError, match=f"camera_model {model}, which is not read"):
        load_nerfstudio(path)


def test_mixed_lenses_and_distorted_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mixes the camera models fisheye, pinhole"):
        load_nerfstudio(edited(transforms(tmp_path, **LENS), 1, camera_model="OPENCV_FISHEYE"))
    with pytest.raises(InputError, match=r"lens distortion \{'p2': 0.1\}; unproject convert --undistort"):
        load_nerfstudio(edited(transforms(tmp_path, **LENS), 1, p2=0.1))
    with pytest.raises(InputError, match="lens distortion"):
        load_nerfstudio(transforms(tmp_path, **LENS, k1=float("nan")))
    with pytest.raises(InputError, match="focal lengths -30"):
        load_nerfstudio(transforms(tmp_path, **{**LENS, "fl_x": -30}))
    with pytest.warns(UserWarning, match=r"view 0: the principal point \(99, 13\) lies outside"):
        load_nerfstudio(transforms(tmp_path, **{**LENS, "cx": 99}))


def test_sizes_come_from_the_first_images(tmp_path: Path) -> None:
    path = transforms(tmp_path, camera_angle_x=0.8, camera_angle_y=0.5)
    with pytest.raises(InputError, match=r'no w and h, and .*r_0 is not there to tell; add "w" and "h"'):
        load_nerfstudio(path)
    (tmp_path / "train").mkdir()
    image = Image.new("RGB", (40, 20))
    image.save(tmp_path / "train" / "r_0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (20, 40)).save(tmp_path / "train" / "r_1.jpg", exif=exif)
    camera, _ = load_nerfstudio(path)
    assert (camera.width, camera.height) == (40, 20)
    np.testing.assert_allclose(camera.K[1].numpy(), [[47.3045, 0, 20], [0, 39.1631, 10], [0, 0, 1]], rtol=1e-5)
    with pytest.raises(InputError, match="neither fl_x nor camera_angle_x"):
        load_nerfstudio(transforms(tmp_path, w=40, h=20))


def test_applied_scale_is_taken_back_and_other_entries_are_named(tmp_path: Path) -> None:
    camera, _ = load_nerfstudio(transforms(tmp_path, **LENS, applied_scale=0.5))
    assert camera.centres[0].tolist() == [4, 6, 8]
    path = edited(transforms(tmp_path, **LENS, ply_file_path="a.ply"), 1, mask_path="m.png")
    with pytest.warns(UserWarning, match=r"transforms\.json: not kept: mask_path, ply_file_path"):
        load_nerfstudio(path)


def binary_model(folder: Path, model: int, values: list[float]) -> Path:
    folder.mkdir()
    camera = struct.pack("<QIiQQ", 1, 7, model, 32, 24) + struct.pack(f"<{len(values)}d", *values)
    (folder / "cameras.bin").write_bytes(camera)
    images = struct.pack("<Q", 2)
    for number, name, points in ((5, "b c.png", 2), (3, "a.png", 0)):
        pose = (1.0, 0, 0, 0, number, 0, 0)
        images += struct.pack("<I7dI", number, *pose, 7) + name.encode() + b"\0" + struct.pack("<Q", points)
        images += struct.pack("<ddq", 1.5, 2.5, -1) * points
    (folder / "images.bin").write_bytes(images)
    return folder


def test_binary_colmap_models_are_read(tmp_path: Path) -> None:
    camera, names = load_colmap(binary_model(tmp_path / "a", 5, [30, 31, 15, 13, 0, 0, 0, 0]))
    assert names == ["a.png", "b c.png"] and camera.model == "fisheye"
    assert camera.K[0].tolist() == [[30, 0, 15], [0, 31, 13], [0, 0, 1]]
    assert camera.centres[:, 0].tolist() == [-3, -5]
    (tmp_path / "a" / "points3D.bin").write_bytes(b"\0" * 60)
    with pytest.warns(UserWarning, match="not kept: the points and matches"):
        load_colmap(tmp_path / "a")
    with pytest.raises(InputError, match="camera model FOV is not supported"):
        load_colmap(binary_model(tmp_path / "b", 7, [30, 31, 15, 13, 0.9]))
    with pytest.raises(InputError, match=r"lens distortion \{'k1': 0.1\}"):
        load_colmap(binary_model(tmp_path / "c", 2, [30, 15, 13, 0.1]))
    data = (tmp_path / "a" / "images.bin").read_bytes()
    (tmp_path / "a" / "images.bin").write_bytes(data[:-30])
    with pytest.raises(InputError, match="not a usable COLMAP binary model"):
        load_colmap(tmp_path / "a")


def test_a_model_in_a_folder_below_is_pointed_at(tmp_path: Path) -> None:
    binary_model(tmp_path / "sparse", 1, [30, 31, 15, 13])
    with pytest.raises(InputError, match=r"the model lies in .*sparse"):
        load_colmap(tmp_path)


def test_skew_is_refused_on_writing(tmp_path: Path) -> None:
    camera = Camera.orbit(0.0, 0.0, 2.0, 40.0, 32, 24)
    K = camera.K.clone()
    K[0, 0, 1] = 0.5
    with pytest.raises(InputError, match=r"has skew 0\.5 px"):
        save_nerfstudio(tmp_path / "t.json", replace(camera, K=K), ["a.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_nerfstudio(tmp_path / "t.json", camera, ["a.png"])


def test_a_mark_before_the_text_of_cameras_is_passed_over(tmp_path: Path) -> None:
    path = transforms(tmp_path, **LENS)
    plain, _ = load_nerfstudio(path)
    save_colmap(tmp_path / "set", plain, ["a.png", "b.png"])
    for one in (path, *(tmp_path / "set").iterdir()):
        one.write_bytes(b"\xef\xbb\xbf" + one.read_bytes().replace(b"\n", b"\r\n"))
    assert torch.equal(load_nerfstudio(path)[0].c2w, plain.c2w)
    camera, names = load_colmap(tmp_path / "set")
    assert names == ["a.png", "b.png"]
    torch.testing.assert_close(camera.c2w, plain.c2w)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"w": True}, "has true in w, where a number belongs"),
        ({"fl_y": False}, "has false in fl_y"),
        ({"k1": True}, "has true in k1"),
        ({"applied_scale": True}, "has true in applied_scale"),
        ({"applied_transform": [[1, 0, 0, 0], [0, True, 0, 0], [0, 0, 1, 0]]}, "has true in applied_transform"),
        ({"w": 32.5}, "has w 32.5 and h 24; they must be whole numbers above 0"),
    ],
)
def test_truth_is_no_number(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_nerfstudio(transforms(tmp_path, **{**LENS, **entries}))


def test_truth_is_no_number_of_a_pose(tmp_path: Path) -> None:
    path = edited(transforms(tmp_path, **LENS), 1, transform_matrix=[*POSE[:3], [0, 0, 0, True]])
    with pytest.raises(InputError, match="has true in transform_matrix"):
        load_nerfstudio(path)
    path = edited(transforms(tmp_path, **{**LENS, "w": 32.0}), 1, h=24.0)
    assert load_nerfstudio(path)[0].width == 32


@pytest.mark.parametrize("colmap", [False, True])
def test_pictures_of_another_size_than_their_cameras_are_named(tmp_path: Path, colmap: bool) -> None:
    source = transforms(tmp_path, **LENS)
    camera, names = load_nerfstudio(source)
    if colmap:
        names = ["a.png", "b.png"]
        source = save_colmap(tmp_path / "set", camera, names)
    pictures = [tmp_path / ("set/images/a.png" if colmap else "train/r_0.png")]
    pictures.append(pictures[0].with_name("b.png" if colmap else "r_1.png"))
    pictures[0].parent.mkdir(parents=True)
    Image.new("RGB", (32, 24)).save(pictures[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_sizes(source, camera, names)  # the second is not there
    Image.new("RGB", (16, 12)).save(pictures[1])
    with pytest.warns(UserWarning, match=rf"pictures of 32 x 24 px, and .*{pictures[1].name} has 16 x 12 px"):
        warn_of_sizes(source, camera, names)
    pictures[0].write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=rf"{pictures[0].name} is not an image .*\(and so 1 more\)"):
        warn_of_sizes(source, camera, names)
