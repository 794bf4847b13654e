"""`calibrate`, `depth --metric`, `geometry` and scaled clouds, with a head that knows one room exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.cli.camera import Calibrate
from unproject.cli.geometry import Geometry
from unproject.cli.maps import MAP_COMMANDS
from unproject.cli.points import Pointcloud
from unproject.geometry.cameras import Camera
from unproject.geometry.meshes import Mesh
from unproject.geometry.points import PointCloud
from unproject.pipelines import picture_camera
from unproject.pipelines.camera_output import CameraOutput, SeenCamera
from unproject.tasks.codecs import DepthOutput, NormalsOutput
from unproject.tasks.outputs import GeometryOutput
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]
WIDTH, HEIGHT, FOCAL, EYE_M = 64, 48, 30.0, 1.2
K = [[FOCAL, 0.0, 32.0], [0.0, FOCAL, 24.0], [0.0, 0.0, 1.0]]


def room() -> tuple[np.ndarray, np.ndarray]:
    """z-depth (H, W) and normals (H, W, 3), OpenCV axes, of a floor and a wall 3 m away."""
    rays = Camera(torch.eye(4)[None], torch.tensor(K)[None], WIDTH, HEIGHT).pixel_directions()[0].numpy()
    with np.errstate(divide="ignore"):
        floor = np.where(rays[..., 1] > 0, EYE_M / rays[..., 1], np.inf)
    on_floor = floor < 3
    normals = np.where(on_floor[..., None], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0])
    return np.minimum(floor, 3).astype(np.float32), normals.astype(np.float32)


DEPTH, NORMALS = room()


class Head:
    """ImageToGeometry and ImageToDepth of the room, and cameras as ImageToCamera gives them."""

    def __call__(self, picture: np.ndarray, valid: Any = None, **_: Any) -> GeometryOutput:
        unit = (DEPTH - DEPTH.min()) / (DEPTH.max() - DEPTH.min())
        viewer = NORMALS * np.float32([1, -1, -1])
        depth = DepthOutput(unit[None, ..., None], nfe=1, valid=None if valid is None else valid[None, ..., None])
        return GeometryOutput({"depth": depth, "normals": NormalsOutput(viewer[None], nfe=1)}, nfe=1)


class Calibrator:
    """Says the same camera of every picture and notes what it was told."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, image: Any, *, known: Any = None, shared: bool = False, **options: Any) -> CameraOutput:
        self.asked.append({"known": known, "shared": shared, **options})
        several = isinstance(image, list)
        height, width = (image[0] if several else image).shape[:2]
        one = SeenCamera(np.array(K), "camera head", gravity=np.array([0.0, 1.0, 0.0]), confidence=0.8)
        return CameraOutput([one] * (len(image) if several else 1), width, height, nfe=2)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> Calibrator:
    """One exact head for all commands, photo.png, and the room's K.json."""
    calibrator = Calibrator()
    picture_camera.own_calibration.cache_clear()
    monkeypatch.setattr(picture_camera, "own_calibration", lambda device: calibrator)
    monkeypatch.setattr(Calibrate, "load", lambda self: calibrator)
    monkeypatch.setattr(Calibrate, "headless", lambda self: "")
    monkeypatch.setattr(Geometry, "load", lambda self: Head())
    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", lambda self: Head())
    monkeypatch.setattr(Pointcloud, "load", lambda self: Head())
    save_image("photo.png", np.random.default_rng(0).random((HEIGHT, WIDTH, 3)))
    Path("K.json").write_text(json.dumps({"K": K, "width": WIDTH, "height": HEIGHT}))
    return calibrator


def test_calibrate_writes_what_other_commands_read(run: Run, seen: Calibrator) -> None:
    code, out, _ = run("calibrate", "photo.png", "-o", "cam.json", "--principal", "centre", "--two-focals")
    assert code == 0 and "30.0" in out and "0.80" in out
    told = json.loads(Path("cam.json").read_text())
    assert told["K"] == K and told["gravity"] == [0, 1, 0] and told["confidence"] == 0.8
    known = seen.asked[-1]["known"]
    assert known.principal_px == (32, 24) and not known.square and known.focal_px is None
    code, _, err = run("depth", "photo.png", "--metric", "--camera", "cam.json", "--camera-height", "1.2", "-o", "d")
    assert code == 0, err
    assert run("calibrate", "photo.png", "-o", "cam.json")[0] == 2  # nothing is overwritten
    code, out, _ = run(
        "calibrate", "photo.png", "-o", "again.json", "--focal", "50,51", "--principal", "30,20", "--json"
    )
    assert code == 0 and json.loads(out)["cameras"]["photo.png"]["source"] == "camera head"
    known = seen.asked[-1]["known"]
    assert (known.focal_px, known.principal_px, known.square) == ((50, 51), (30, 20), True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--focal", "wide"), "--focal 'wide': give 1 or 2 numbers above 0"),
        (("--focal", "exif"), "does not tell its focal length"),
        (("--principal", "3"), "--principal '3': give 2 numbers"),
        (("--focal", "40", "--two-focals"), "--two-focals estimates what --focal 40 says"),
    ],
)
def test_what_is_known_is_understood_or_refused(run: Run, seen: Calibrator, words: Any, message: str) -> None:
    code, _, err = run("calibrate", "photo.png", *words, "-o", "x.json")
    assert code == 2 and message in err


def test_pictures_of_one_camera_share_a_file_each(run: Run, seen: Calibrator) -> None:
    save_image("other.png", np.zeros((HEIGHT, WIDTH, 3)) + 0.3)
    code, _, err = run("calibrate", "photo.png", "other.png", "--shared", "-o", "cams")
    assert code == 0, err
    assert seen.asked[-1]["shared"] and len(seen.asked) == 1
    files = sorted(path.name for path in Path("cams").glob("*-calibrate.json"))
    assert files == ["other-calibrate.json", "photo-calibrate.json"]
    before = Path("cams/calibrate.run.json").read_bytes()
    code, out, _ = run("calibrate", "photo.png", "other.png", "--shared", "-o", "cams")
    assert code == 0 and out.count("skipped") == 2 and len(seen.asked) == 1
    assert Path("cams/calibrate.run.json").read_bytes() == before and json.loads(before)["notes"]["costs"]
    save_image("large.png", np.zeros((HEIGHT, 2 * WIDTH, 3)) + 0.3)
    code, _, err = run("calibrate", "photo.png", "large.png", "--shared", "-o", "more")
    assert code == 2 and "have one size, these have 64 x 48, 128 x 48" in err


def test_one_camera_of_folders_in_folders_is_known_again(run: Run, seen: Calibrator) -> None:
    for name in ("p/a.png", "p/q/b.png"):
        save_image(name, np.zeros((HEIGHT, WIDTH, 3)) + 0.3)
    assert run("calibrate", "p", "--recursive", "--shared", "-o", "cams")[0] == 0
    sources = json.loads(Path("cams/calibrate.run.json").read_text())["notes"]["sources"]
    assert sources == {"a-calibrate": "p/a.png", "q/b-calibrate": "p/q/b.png"}
    code, _, err = run("calibrate", "p", "--recursive", "--shared", "--two-focals", "-o", "cams")
    assert code == 2 and "was made with --two-focals False" in err


def test_without_weights_a_photo_still_has_its_exif(run: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Calibrate, "load", lambda self: "no weights here")
    monkeypatch.setattr(Calibrate, "headless", lambda self: "no weights here")
    image = Image.new("RGB", (60, 40), (90, 20, 40))
    exif = image.getexif()
    exif.get_ifd(0x8769).update({0x920A: 5.0, 0xA405: 30})
    image.save("phone.jpg", exif=exif)
    code, _, err = run("calibrate", "phone.jpg", "-o", "phone.json")
    assert code == 0, err
    told = json.loads(Path("phone.json").read_text())
    assert told["source"] == "EXIF of the photo; no camera head" and told["focal_mm"] == pytest.approx(5.0)
    assert told["focal_px"][0] == pytest.approx(30 / math.hypot(36, 24) * math.hypot(60, 40))
    Image.new("RGB", (60, 40), (90, 20, 40)).save("plain.png")
    monkeypatch.setattr(Calibrate, "load", lambda self: pytest.fail("a network is loaded"))
    told = "tells no focal length and there is no camera head: no weights here"
    for how in ((), ("--dry-run",)):
        code, _, err = run("calibrate", "plain.png", "-o", "plain.json", *how)
        assert code == 2 and told in err
        code, _, err = run("calibrate", "plain.png", "--focal", "exif", "-o", "plain.json", *how)
        assert code == 2 and "--focal exif: plain.png does not tell its focal length" in err
        code, _, err = run("calibrate", "phone.jpg", "plain.png", "--shared", "-o", "cams", *how)
        assert code == 2 and "--shared needs a camera head: no weights here" in err
    code, out, _ = run("calibrate", "phone.jpg", "plain.png", "-o", "cams", "--dry-run")
    assert code == 0 and "would read phone.jpg (60 x 40 px)" in out and "would skip plain.png: its EXIF tells no" in out
    monkeypatch.setattr(Calibrate, "load", lambda self: "no weights here")
    assert run("calibrate", "plain.png", "--focal", "70", "-o", "given.json")[0] == 0
    assert json.loads(Path("given.json").read_text())["K"][0][0] == 70


def test_an_absent_camera_head_is_told_by_its_files(run: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(in_tmp))
    Image.new("RGB", (60, 40), (90, 20, 40)).save("plain.png")
    told = [run("calibrate", "plain.png", *how) for how in ((), ("--dry-run",))]
    assert [code for code, _, _ in told] == [2, 2] and told[0][2] == told[1][2]
    assert "there is no camera head: the weights of the embedded camera head are not in" in told[0][2]
    assert run("calibrate", "plain.png", "--prior", "owner/head", "--dry-run")[0] == 0
    assert run("calibrate", "plain.png", "--focal", "50", "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (1.0, ("--camera-height", "1.2")),
        (2.0, ("--camera-height", "2.4")),
        (1.0, ("--known-distance", "32.5,2.5,3.6912")),
        (1.25, ()),
    ],
)
def test_depth_in_metres(run: Run, seen: Calibrator, scale: float, words: tuple[str, ...]) -> None:
    """The wall at (32.5, 2.5) is 3 m deep and 3 sqrt(1 + (21.5 / 30)^2) m away; without a scale the camera is 1.5 m
    high."""
    code, _, err = run("depth", "photo.png", "--metric", "--K", "K.json", *words, "-o", "d", "--preview", "--legend")
    assert code == 0, err
    stored = np.load("d/photo-depth.npz")
    np.testing.assert_allclose(stored["depth"], scale * DEPTH, rtol=0.03)
    assert str(stored["unit"]) == "m" and bool(stored["measured"]) == bool(words)
    assert str(stored["scale"]).startswith("measured" if words else "assumed")
    millimetres = np.asarray(Image.open("d/photo-depth-16bit.png")).astype(float)
    np.testing.assert_allclose(millimetres, 1000 * stored["depth"], atol=1)
    notes = json.loads(Path("d/photo-depth.run.json").read_text())["notes"]["metric"]["photo.png"]
    assert notes["focal_px"] == FOCAL and notes["focal_from"] == "--K K.json"


def test_a_camera_head_is_asked_where_nothing_else_tells(run: Run, seen: Calibrator) -> None:
    code, _, err = run("depth", "photo.png", "--metric", "--camera-height", "1.2", "-o", "d")
    assert code == 0, err
    notes = json.loads(Path("d/photo-depth.run.json").read_text())["notes"]["metric"]["photo.png"]
    assert notes["focal_from"] == "camera head" and len(seen.asked) == 1
    run("depth", "photo.png", "--metric", "--fov", "93.7", "--camera-height", "1.2", "-o", "e")
    assert len(seen.asked) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("depth", "--camera-height", "2"), "--camera-height belongs to --metric"),
        (("depth", "--metric", "--known-distance", "1,2"), "--known-distance '1,2': give 3 numbers above 0"),
        (("depth", "--metric", "--known-distance", "1,2,3", "--camera-height", "1"), "two scales; give one of them"),
        (("depth", "--metric", "--fov", "40", "--K", "K.json"), "give --fov 40 or --K K.json, not both"),
        (("depth", "--metric", "--K", "none.json"), "--K none.json does not exist"),
        (("geometry", "--camera-height", "0"), "--camera-height must lie between"),
        (
            ("depth", "--metric", "--known-distance", "900,5,2"),
            "the known distance is at (900, 5), outside the picture",
        ),
        (("pointcloud", "--K", "far.json"), "K has its principal point at (900, 4), outside the picture"),
        (("pointcloud", "--camera-height", "1", "--near", "2"), "are a choice where the scale is measured"),
    ],
)
def test_scales_that_cannot_be_are_refused(run: Run, seen: Calibrator, words: Any, message: str) -> None:
    Path("far.json").write_text("[[30, 0, 900], [0, 30, 4], [0, 0, 1]]")
    code, _, err = run(words[0], "photo.png", *words[1:], "-o", "out", "--dry-run")
    assert code == 2 and message in err and not seen.asked


def test_one_picture_that_a_camera_fits_is_enough(run: Run, seen: Calibrator, in_tmp: Path) -> None:
    save_image("small.png", np.full((4, 4, 3), 0.5))
    Path("K.json").write_text("[[30, 0, 9], [0, 30, 4], [0, 0, 1]]")
    words = ("pointcloud", "--K", "K.json", "-o", "out", "--dry-run")
    assert run(*words, "photo.png", "small.png")[0] == 0
    assert "(9, 4), outside the picture of 4 x 4 px" in run(*words, "small.png")[2]


def test_geometry_agrees_with_itself(run: Run, seen: Calibrator) -> None:
    code, out, err = run("geometry", "photo.png", "--K", "K.json", "--camera-height", "1.2", "-o", "g")
    assert code == 0, err
    stored, told = np.load("g/photo-geometry.npz"), json.loads(Path("g/photo-geometry.json").read_text())
    np.testing.assert_allclose(stored["depth_m"], DEPTH, rtol=0.03)
    np.testing.assert_allclose(stored["normals"], NORMALS, atol=1e-6)
    assert stored["mask"].all() and stored["K"].tolist() == K == told["K"]
    report = told["report"]
    assert report["normals_median_deg"] < 1 and report["plane_rms"] < 0.002 and report["measured"]
    assert "1.2 m above the floor" in out
    assert "confidence" not in stored and "depth_confidence" not in report
    cloud, mesh = PointCloud.load("g/photo-geometry.ply"), Mesh.load("g/photo-geometry.glb")
    floor = cloud.points[:, 2].min().item()
    assert floor == pytest.approx(-EYE_M, rel=0.03)  # z is up, the camera at the origin
    assert mesh.vertices[:, 2].min().item() == pytest.approx(-EYE_M, rel=0.03)
    points = torch.from_numpy(stored["c2w"][:3, :3]).float() @ torch.tensor([0.0, 0.0, 3.0])
    assert float(points[0]) == pytest.approx(-3.0)
    code, _, err = run(
        "pointcloud", "photo.png", "--camera", "g/photo-geometry.json", "--camera-height", "1.2", "-o", "c"
    )
    assert code == 0, err
    lifted = PointCloud.load("c/photo-pointcloud.ply")
    assert lifted.points[:, 2].min().item() == pytest.approx(-EYE_M, rel=0.03)


def test_gravity_in_a_camera_file_turns_the_world(run: Run, seen: Calibrator) -> None:
    tilted = [0.0, math.cos(0.2), math.sin(0.2)]
    Path("K.json").write_text(json.dumps({"K": K, "width": WIDTH, "height": HEIGHT, "gravity": tilted}))
    code, _, err = run("geometry", "photo.png", "--K", "K.json", "-o", "g")
    assert code == 0, err
    pose = np.load("g/photo-geometry.npz")["c2w"][:3, :3]
    np.testing.assert_allclose(pose @ tilted, [0, 0, -1], atol=1e-6)
    Path("K.json").write_text(json.dumps({"K": K, "width": WIDTH, "height": HEIGHT, "gravity": [0, 0]}))
    code, _, err = run("geometry", "photo.png", "--K", "K.json", "-o", "h")
    assert code == 2 and "no direction of three numbers" in err


def test_convert_names_pictures_of_another_size(run: Run, in_tmp: Path) -> None:
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
    Path("transforms.json").write_text(json.dumps({"frames": [frame], "w": 640, "h": 480, "fl_x": 500}))
    save_image("a.png", np.full((24, 32, 3), 0.5))
    code, _, err = run("convert", "transforms.json", "out.json")
    assert code == 0 and "a.png has 32 x 24 px" in " ".join(err.split())
