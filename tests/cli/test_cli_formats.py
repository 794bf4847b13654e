"""Formats on the command line: what is written under which name, cameras that read back, meshes of pictures."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.cli.maps import MAP_COMMANDS
from unproject.cli.points import Pointcloud
from unproject.geometry.camera_files import load_nerfstudio
from unproject.geometry.intrinsics import read_intrinsics
from unproject.geometry.meshes import Mesh
from unproject.geometry.points import PointCloud
from unproject.tasks.codecs import DepthOutput
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]
HEIGHT, WIDTH = 12, 16


@pytest.fixture(autouse=True)
def heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that see a slope to the right."""

    def depth(picture: np.ndarray, valid: np.ndarray, **_: Any) -> DepthOutput:
        slope = np.broadcast_to(np.linspace(0, 1, picture.shape[1], dtype=np.float32), picture.shape[:2])
        return DepthOutput(slope[None, ..., None].copy(), valid=valid[None, ..., None], nfe=1)

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", lambda self: depth)
    monkeypatch.setattr(Pointcloud, "load", lambda self: depth)


@pytest.fixture
def photo(in_tmp: Path) -> np.ndarray:
    picture = np.random.default_rng(0).random((HEIGHT, WIDTH, 3))
    save_image("photo.png", picture)
    return np.asarray(Image.open("photo.png"), np.float32) / 255


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir() if not path.name.endswith("run.json"))


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (("-o", "x"), ["photo-depth-16bit.png", "photo-depth.npz", "photo-depth.png"]),
        (("-o", "x/a.tiff"), ["a.tiff"]),
        (("-o", "x/a.png"), ["a-16bit.png", "a.npz", "a.png"]),
        (("-o", "x", "--format", "NPY,tiff"), ["photo-depth.npy", "photo-depth.tiff"]),
        (("-o", "x/a.npy", "--format", "npy,npz", "--preview"), ["a-preview.png", "a.npy", "a.npz"]),
    ],
)
def test_formats_of_maps(run: Run, photo: np.ndarray, words: tuple[str, ...], files: list[str]) -> None:
    code, _, err = run("depth", "photo.png", *words)
    assert (code, err) == (0, "") and names("x") == files
    assert run("depth", "photo.png", *words)[0] == 2  # there already


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("depth", "--format", "npz,jpg"), "--format jpg: maps are written as npz, npy, exr, tiff, png"),
        (("depth", "--format", ""), "--format : maps|is empty"),
        (("depth", "--format", "npy", "-o", "a.tiff"), "--out a.tiff is none of --format npy"),
        (("depth", "-o", "a.glb"), "depth writes a folder or .png, .npz, .npy, .exr, .tiff"),
        (("depth", "--format", "npy", "--legend"), "--legend belongs to a picture and --format npy makes none"),
        (("depth", "--format", "npy", "--colormap", "gray"), "--colormap colours a picture"),
        (("depth", "--colormap", "magmaa"), "--colormap 'magmaa' is unknown; there are magma"),
        (("depth", "--format", "npy", "--compression", "small"), "NPY knows none"),
        (("pointcloud", "--format", "stl"), ".stl: a point cloud is written as ply, glb, obj, xyz.*--mesh makes one"),
        (("pointcloud", "--mesh", "-o", "a.xyz"), ".xyz: a mesh is written as glb, obj, ply, stl"),
        (("pointcloud", "--faces", "10"), "--faces 10 bounds a mesh; give --mesh too"),
        (("pointcloud", "--undistort"), "--undistort needs --K"),
        (("pointcloud", "--undistort", "--K", "K.json"), "no lens distortion that --undistort"),
        (("pointcloud", "--K", "lens.json"), "has lens distortion; --undistort takes it out"),
        (("pointcloud", "--max-slant", "0"), "--max-slant must lie between 1 and 90"),
        (("normals", "--colormap", "gray"), "--colormap"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_loads(
    run: Run, photo: np.ndarray, words: tuple[str, ...], message: str
) -> None:
    matrix = {"camera_matrix": [[20, 0, 8], [0, 20, 6], [0, 0, 1]]}
    Path("K.json").write_text(json.dumps(matrix))
    Path("lens.json").write_text(json.dumps({**matrix, "dist_coeffs": [0.2, 0, 0, 0]}))
    code, out, err = run(words[0], "photo.png", *words[1:])
    told = " ".join((out + err).split())
    assert code == 2
    assert any(part in told for part in message.split("|")) or all(part in told for part in message.split(".*"))


@pytest.mark.parametrize(
    ("package", "words"), [("OpenEXR", ("depth", "-o", "a.exr")), ("pxr.Usd", ("pointcloud", "-o", "a.usdz"))]
)
def test_an_extra_that_is_missing_is_told_at_once(
    run: Run, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, package: str, words: tuple[str, ...]
) -> None:
    for name in (package, package.partition(".")[0]):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run(words[0], "photo.png", *words[1:])
    assert code == 1 and "pip install 'unproject[" in err and not Path("a.usdz").exists()


def test_one_file_of_numbers_can_go_to_standard_output(run: Run, photo: np.ndarray) -> None:
    code, _, err = run("depth", "photo.png", "-o", "-")
    assert code == 2 and "it writes several files; --format npz, npy, exr or tiff alone is one" in err
    command = MAP_COMMANDS["depth"](image=(Path("photo.png"),), format="npy")
    assert (command.streamed, command.several) == (".npy", "")


def test_a_map_that_lies_there_alone_is_known_by_its_record(run: Run) -> None:
    save_image("photos/a.png", np.zeros((6, 8, 3)))
    for _ in range(2):
        assert run("depth", "photos", "-o", "photos", "--format", "tiff")[0] == 0
    assert names("photos") == ["a-depth.tiff", "a.png"]


@pytest.mark.parametrize("formats", ["npz,png", "tiff", "png", "npy"])
def test_maps_in_their_own_folder_are_no_pictures(run: Run, formats: str) -> None:
    for name in ("a.jpg", "b.png"):
        save_image(f"photos/{name}", np.zeros((6, 8, 3)))
    words = ("depth", "photos", "-o", "photos", "--format", formats, "--preview")
    assert run(*words)[0] == 0
    once = names("photos")
    code, out, _ = run(*words)
    assert code == 0 and names("photos") == once and "is no picture" not in out
    assert run("pointcloud", "photos", "-o", "photos", "--preview")[0] == 0
    assert run("pointcloud", "photos", "-o", "photos", "--mesh")[0] == 0
    assert sorted(set(names("photos")) - set(once)) == sorted(
        f"{stem}-{end}"
        for stem in ("a", "b")
        for end in (
            *("pointcloud.ply", "pointcloud-camera.json", "pointcloud-preview.png"),
            *("mesh.glb", "mesh-camera.json", "mesh.report.json"),
        )
    )


def test_the_camera_beside_a_cloud_reads_back(run: Run, photo: np.ndarray) -> None:
    """By our own readers: as the camera of a set, whose projection gives the pixels, and as --K of the same picture."""
    assert run("pointcloud", "photo.png", "--fov", "70", "-o", "x/a.ply")[0] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        camera, (name,) = load_nerfstudio("x/a-camera.json")
    assert Path("x", name).resolve() == Path("photo.png").resolve()
    cloud = PointCloud.load("x/a.ply")
    pixels, depth = camera.project(cloud.points)
    v, u = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    torch.testing.assert_close(pixels[0], torch.stack([u, v], -1).reshape(-1, 2), atol=1e-3, rtol=0)
    assert float(depth.min()) == pytest.approx(1) and float(depth.max()) == pytest.approx(4)
    assert run("pointcloud", "photo.png", "--K", "x/a-camera.json", "-o", "y/b.ply")[0] == 0
    torch.testing.assert_close(PointCloud.load("y/b.ply").points, cloud.points, atol=1e-5, rtol=0)
    np.testing.assert_allclose(read_intrinsics("x/a-camera.json"), camera.K[0].numpy(), rtol=1e-6)
    assert cloud.normals is not None and float((cloud.normals * cloud.points).sum(-1).max()) < 0


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl"])
def test_a_mesh_of_a_picture(run: Run, photo: np.ndarray, suffix: str) -> None:
    code, _, err = run("pointcloud", "photo.png", "--mesh", "-o", f"m.{suffix}", "--faces", "200")
    assert code == 0, err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mesh = Mesh.load(f"m.{suffix}")
    assert 50 < len(mesh.faces) <= 200
    if suffix in ("glb", "obj"):
        np.testing.assert_array_equal(mesh.textures["base_color"], np.rint(photo * 255).astype(np.uint8))
    report = json.loads(Path("m.report.json").read_text())
    assert not report["solid"] and "a choice, not a measurement" in report["bounds"]["scale_from"]


def test_a_panorama_is_no_pinhole(run: Run, photo: np.ndarray) -> None:
    told = b'<x xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" GPano:ProjectionType="equirectangular"/>'
    Image.new("RGB", (16, 8)).save("all.jpg", xmp=told)
    code, _, err = run("pointcloud", "all.jpg")
    assert code == 2 and "all.jpg is a panorama of all directions" in err and "cut views out of it" in err
    assert run("depth", "all.jpg")[0] == 0


def test_a_bent_picture_is_straightened_first(run: Run, photo: np.ndarray) -> None:
    matrix = {"K": [[20, 0, 8], [0, 20, 6], [0, 0, 1]], "dist_coeffs": [0.4, 0, 0, 0]}
    Path("lens.json").write_text(json.dumps(matrix))
    assert run("pointcloud", "photo.png", "--K", "lens.json", "--undistort", "-o", "x/a.ply")[0] == 0
    assert names("x") == ["a-camera.json", "a-undistorted.png", "a.ply"]
    camera, (name,) = load_nerfstudio("x/a-camera.json")
    assert name == "a-undistorted.png" and camera.K[0].tolist() == matrix["K"]
    straight = np.asarray(Image.open("x/a-undistorted.png"))
    assert (straight[0, 0] == 0).all() and len(PointCloud.load("x/a.ply")) < HEIGHT * WIDTH  # what no lens saw
    np.testing.assert_allclose(straight[6, 8] / 255, photo[6, 8], atol=0.05)
