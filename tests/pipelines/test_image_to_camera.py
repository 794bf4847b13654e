"""Pictures to cameras: what is done to a picture is done to its camera, whatever the network sees in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.geometry.cameras import upright_pose
from unproject.geometry.intrinsics import read_intrinsics
from unproject.geometry.pinhole_fit import Known
from unproject.pipelines.camera_output import SeenCamera, given_camera
from unproject.pipelines.image_to_camera import ImageToCamera
from unproject.pipelines.photo_exif import LensFacts, read_exif
from unproject.pipelines.picture_inputs import UPRIGHT, exif_focal_px
from unproject.tasks.codecs import CameraCodec, GravityCodec
from unproject.tasks.confidence import ErrorModel
from unproject.tasks.geometry_head import HeadConfig
from unproject.utils.errors import InputError

WIDTH, HEIGHT = 96, 64
FX, FY, CX, CY = 80.0, 70.0, 40.0, 37.0
FREE = Known()


def photo() -> np.ndarray:
    """Red says where a pixel is between left and right, green between top and bottom."""
    x, y = np.meshgrid((np.arange(WIDTH) + 0.5) / WIDTH, (np.arange(HEIGHT) + 0.5) / HEIGHT)
    return np.stack([0.1 + 0.8 * x, 0.1 + 0.8 * y, np.full_like(x, 0.5)], -1).astype(np.float32)


class Reader:
    """A head that reads the rays of the photo off its colours, in whatever part of it, and notes what it was shown."""

    def __init__(self, start: str = "zeros") -> None:
        config = HeadConfig(targets=("camera", "gravity"), start=start, steps=1 if start == "zeros" else 2)
        parts = {"camera": CameraCodec(), "gravity": GravityCodec()}
        self.head = SimpleNamespace(
            config=config, device=torch.device("cpu"), codec=SimpleNamespace(parts=parts), confidence={}
        )
        self.asked: list[dict[str, Any]] = []

    def __call__(self, images: torch.Tensor, **options: Any) -> Any:
        self.asked.append(options)
        x = ((images[:, 0] - 0.1) / 0.8 * WIDTH - CX) / FX
        y = ((images[:, 1] - 0.1) / 0.8 * HEIGHT - CY) / FY
        x = x * torch.sign(x[:, :1, -1:] - x[:, :1, :1])
        tilt = torch.tensor([0.3, 0.8, 0.5]).reshape(1, 3, 1, 1) * torch.tensor([1.0, 1, 1]).reshape(1, 3, 1, 1)
        turned = torch.sign(images[:, :1, :1, -1:] - images[:, :1, :1, :1])
        falling = (tilt * torch.cat([turned, torch.ones_like(turned), torch.ones_like(turned)], 1)).expand(
            -1, -1, *x.shape[1:]
        )
        if "generator" in options and options["generator"] is not None:
            x = x + 0.01 * torch.randn(1, generator=options["generator"])
        maps = {"camera": torch.stack([x, y], 1), "gravity": falling}
        found = {name: SimpleNamespace(prediction=value) for name, value in maps.items()}
        return SimpleNamespace(maps=found, nfe=len(images))


def pipeline(start: str = "zeros") -> ImageToCamera:
    pipe = ImageToCamera.__new__(ImageToCamera)
    pipe.look = Reader(start)  # type: ignore[assignment]
    pipe.head = pipe.look.head
    return pipe


def matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def test_the_camera_goes_with_the_picture() -> None:
    """Crop, mirror, padding and size, by the whole pipeline."""
    pipe, picture = pipeline(), photo()

    def of(image: np.ndarray, **options: Any) -> np.ndarray:
        return pipe(image, known=FREE, **options).K[0]

    np.testing.assert_allclose(of(picture), matrix(FX, FY, CX, CY), rtol=1e-5)
    np.testing.assert_allclose(of(picture[10:50, 20:90]), matrix(FX, FY, CX - 20, CY - 10), rtol=1e-5)
    np.testing.assert_allclose(of(picture[:, ::-1].copy()), matrix(FX, FY, WIDTH - CX, CY), rtol=1e-5)
    padded = np.pad(picture, ((12, 4), (6, 18), (0, 0)))
    np.testing.assert_allclose(of(padded), matrix(FX, FY, CX + 6, CY + 12), rtol=1e-5)
    seen = np.zeros((HEIGHT, WIDTH), bool)
    seen[5:60, 30:] = True
    np.testing.assert_allclose(of(picture, valid=seen), matrix(FX, FY, CX, CY), rtol=1e-5)
    larger = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None], (3 * HEIGHT, 2 * WIDTH), mode="bilinear"
    )
    np.testing.assert_allclose(
        of(larger[0].permute(1, 2, 0).numpy()), matrix(2 * FX, 3 * FY, 2 * CX, 3 * CY), rtol=1e-4
    )


def test_bars_are_cut_off_before_the_network_sees_them() -> None:
    pipe = pipeline()
    made = pipe(np.pad(photo(), ((0, 0), (20, 10), (0, 0))), known=FREE)
    assert pipe.look.asked[0]["valid"].shape == (1, HEIGHT, WIDTH)  # type: ignore[attr-defined]
    assert (made.width, made.height) == (WIDTH + 30, HEIGHT)
    fixed = pipe(np.pad(photo(), ((0, 0), (20, 10), (0, 0))), known=Known(principal_px=(61.0, 36.0)))
    assert fixed.K[0, 0, 2] == pytest.approx(61.0) and fixed.K[0, 1, 2] == pytest.approx(36.0)


def test_a_batch_is_its_pictures_one_by_one() -> None:
    pipe = pipeline()
    several = [photo(), np.ascontiguousarray(photo()[:, ::-1]), 0.9 * photo() + 0.02]
    together = pipe(several, known=FREE)
    alone = [pipe(one, known=FREE) for one in several]
    np.testing.assert_allclose(together.K, np.concatenate([one.K for one in alone]), rtol=1e-12)
    np.testing.assert_allclose(together.gravity, np.concatenate([one.gravity for one in alone]), rtol=1e-6)
    assert together.nfe == 6 and len(together) == 3
    one_camera = pipe([several[0], several[0]], shared=True, known=FREE)
    np.testing.assert_allclose(one_camera.K[1], matrix(FX, FY, CX, CY), rtol=1e-5)
    with pytest.raises(InputError, match="bars at different places"):
        pipe([np.pad(photo(), ((0, 0), (9, 0), (0, 0))), np.pad(photo(), ((0, 0), (0, 9), (0, 0)))], shared=True)


@pytest.mark.filterwarnings("ignore:a picture is of one colour")
def test_one_colour_has_no_camera() -> None:
    """Whatever is said to be seen of it, and in whatever company; dots within one are enough."""
    pipe, grey = pipeline(), np.full((HEIGHT, WIDTH, 3), 0.4, np.float32)
    for options in ({}, {"valid": np.ones((HEIGHT, WIDTH), bool)}):
        with pytest.raises(InputError, match="picture 1 of 1 is of one colour, which tells nothing of its camera"):
            pipe(grey, **options)
    with pytest.raises(InputError, match="picture 2 of 3 is of one colour"):
        pipe([photo(), grey, photo()], shared=True)
    assert not pipe.look.asked  # type: ignore[attr-defined]


def test_a_mirror_image_gets_the_same_noise() -> None:
    """Of a sampler as of a regressor, the mirrored picture has exactly the mirrored camera."""
    pipe = pipeline("noise")
    one = pipe(photo(), generator=torch.Generator().manual_seed(5), known=FREE).K[0]
    other = pipe(photo()[:, ::-1].copy(), generator=torch.Generator().manual_seed(5), known=FREE).K[0]
    np.testing.assert_allclose(other, matrix(one[0, 0], one[1, 1], WIDTH - one[0, 2], one[1, 2]), rtol=1e-9)
    assert pipe(photo(), seed=7).seed == 7
    assert [options["seed"] for options in pipe.look.asked[-2:]] == [7, 7]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="either seed or generator"):
        pipe(photo(), seed=1, generator=torch.Generator())


def test_square_pixels_are_the_usual_case() -> None:
    made = pipeline()(photo())
    assert made.K[0, 0, 0] == pytest.approx(made.K[0, 1, 1], rel=1e-12)
    assert 70 < made.K[0, 0, 0] < 80


def test_a_camera_is_told_as_json_that_others_read(tmp_path: Path) -> None:
    made = pipeline()(photo(), known=FREE)
    lens = LensFacts(focal_mm=4.0, focal_35mm=35.0, size=(WIDTH * 10, HEIGHT * 10))
    (written,) = made.save(tmp_path / "cam.json", [lens])
    told = json.loads(written.read_text())
    np.testing.assert_allclose(read_intrinsics(written, (WIDTH, HEIGHT)), made.K[0])
    pixel = 4.0 / (35 / math.hypot(36, 24) * math.hypot(WIDTH, HEIGHT))
    assert told["focal_mm"] == pytest.approx(75 * pixel, rel=1e-4)
    assert told["fov_deg"]["y"] == pytest.approx(math.degrees(2 * math.atan(HEIGHT / 2 / FY)), rel=1e-4)
    assert told["gravity"] == pytest.approx((np.array([0.3, 0.8, 0.5]) / np.sqrt(0.98)).tolist(), abs=1e-5)
    assert told["roll_deg"] == pytest.approx(math.degrees(math.atan2(0.3, 0.8)), abs=1e-3)
    assert told["confidence"] is None and told["source"] == "camera head" and told["inliers"] == 1.0
    with pytest.raises(InputError, match="K is for 96 x 64 px"):
        read_intrinsics(written, (WIDTH, HEIGHT + 1))
    assert [p.name for p in pipeline()([photo()] * 2).save(tmp_path / "two.json")] == ["two-000.json", "two-001.json"]


def test_gravity_points_down_in_the_world() -> None:
    np.testing.assert_array_equal(upright_pose().numpy(), np.array(UPRIGHT, np.float32))
    for gravity in ([0.3, 0.8, -0.5], [0, 0, 1.0], [0, 0, -2.0], [-0.9, 0.1, 0.2]):
        pose = upright_pose(np.array(gravity)).double()[:3, :3]
        unit = torch.tensor(gravity, dtype=torch.float64) / np.linalg.norm(gravity)
        torch.testing.assert_close(pose @ unit, torch.tensor([0, 0, -1.0]).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.linalg.det(pose), torch.ones(()).double())
        ahead = pose @ torch.tensor([0, 0, 1.0]).double()
        assert float(ahead[0]) <= 1e-6 and abs(float(ahead[1])) < 1e-6
    camera = given_camera(matrix(9, 9, 4, 4), 8, 8, "mine", np.array([0.3, 0.8, -0.5])).camera()
    assert camera.c2w.shape == (1, 4, 4) and camera.K[0, 0, 0] == 9
    with pytest.raises(InputError, match="no direction"):
        upright_pose(np.zeros(3))


def test_confidence_comes_with_the_head() -> None:
    pipe = pipeline()
    quantiles = tuple(np.linspace(0.1, 3, 99).tolist())
    model = ErrorModel("deg", 5.0, (0.0, 0.0, 0.0, math.log(2.0)), quantiles)
    pipe.head.confidence["camera"] = model
    (seen,) = pipe(photo(), known=FREE).cameras
    assert seen.confidence == pytest.approx(np.interp(2.5, quantiles, np.arange(1, 100) / 100))
    assert seen.fov_within_deg == pytest.approx(2 * np.interp(0.9, np.arange(1, 100) / 100, quantiles))
    assert math.isnan(SeenCamera(np.eye(3), "mine").confidence)


def written_photo(path: Path, size: tuple[int, int], **tags: Any) -> Path:
    names = {"mm": 0x920A, "film": 0xA405, "resolution": 0xA20E, "unit": 0xA210, "width": 0xA002, "height": 0xA003}
    image = Image.new("RGB", size)
    exif = image.getexif()
    exif.get_ifd(0x8769).update({names[name]: value for name, value in tags.items()})
    image.save(path, exif=exif)
    return path


def test_exif_tells_millimetres(tmp_path: Path) -> None:
    film = written_photo(tmp_path / "film.jpg", (400, 300), mm=5.0, film=35, width=4000, height=3000)
    facts = read_exif(film)
    assert exif_focal_px(film, 400, 300) == pytest.approx(35 / math.hypot(36, 24) * 500)
    assert facts.sensor_mm(400, 300) == pytest.approx(
        (5 / 35 * math.hypot(36, 24) * 0.8, 5 / 35 * 43.2666 * 0.6), rel=1e-4
    )
    turned = written_photo(
        tmp_path / "plane.jpg", (300, 400), mm=10.0, resolution=200.0, unit=4, width=4000, height=3000, film=99
    )
    assert exif_focal_px(turned, 300, 400) == pytest.approx(10 * 200 / 10)  # by the sensor, not by the rounded film
    assert read_exif(turned).sensor_mm(300, 400) == pytest.approx((15.0, 20.0))
    cut = written_photo(tmp_path / "cut.jpg", (300, 300), film=35, width=4000, height=3000)
    assert exif_focal_px(cut, 300, 300) is None and read_exif(cut).cropped(300, 300)
    assert read_exif(tmp_path / "missing.jpg") == LensFacts()
