"""Pictures of any kind and size to depth and normals; agreement with diffusers' own pipelines; files."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, MarigoldDepthPipeline
from PIL import Image

from unproject.pipelines.image_to_geometry import ImageToDepth, ImageToGeometry, ImageToNormals
from unproject.pipelines.picture_inputs import fitted, photo_camera, pictures, resized
from unproject.tasks.codecs import DepthOutput, NormalsOutput
from unproject.tasks.ensemble import CONSENSUS
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.heads import load_head, marigold_head
from unproject.utils.errors import InputError

HELPERS = runpy.run_path(str(Path(__file__).parents[1] / "tasks" / "conftest.py"))
BANDS = runpy.run_path(str(Path(__file__).parents[1] / "utils" / "test_bands.py"))
PIPES = {"depth": ImageToDepth, "normals": ImageToNormals}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(height: int = 45, width: int = 61) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=seeded())


@pytest.fixture(scope="module")
def pipe() -> ImageToGeometry:
    return ImageToGeometry(GeometryHead.from_prior(HELPERS["tiny_sd_prior"](), HeadConfig(processing_resolution=32)))


@pytest.fixture(scope="module")
def tiny_marigold():
    """Builds tiny Marigold pipelines."""
    return HELPERS["tiny_marigold"]


@pytest.mark.parametrize("target", ["depth", "normals"])
def test_equals_diffusers_with_the_same_generator(tiny_marigold, target: str) -> None:
    theirs = tiny_marigold(target)
    ours = PIPES[target](marigold_head(theirs))
    expected = theirs(image(), generator=seeded(3), output_latent=True)
    found = ours(image(), generator=seeded(3), output_latent=True)
    torch.testing.assert_close(found.latent, expected.latent, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.prediction, expected.prediction, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_equals_diffusers_at_other_steps_sizes_and_schedules(tiny_marigold, spacing: str) -> None:
    """Steps that divide 1000: otherwise diffusers' DDIM lands one index beside the timestep it asks next."""
    theirs = tiny_marigold("depth", timestep_spacing=spacing, rescale_betas_zero_snr=False)
    ours = ImageToDepth(marigold_head(theirs))
    picture = image(20, 70)
    expected = theirs(picture, 4, processing_resolution=40, match_input_resolution=False, generator=seeded(1))
    found = ours(picture, 4, processing_resolution=40, match_input_resolution=False, generator=seeded(1))
    np.testing.assert_allclose(found.prediction, expected.prediction, rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", ["depth", "normals"])
@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_heads_of_few_steps_equal_diffusers(tiny_marigold, target: str, kind: str) -> None:
    """Marigold-LCM: its steps add noise, drawn as the stock pipeline draws it."""
    theirs = tiny_marigold(target, few=True, prediction_type=kind)
    head = marigold_head(theirs)
    assert (head.config.solver, head.config.spacing, head.stochastic) == ("lcm", None, True)
    ours = PIPES[target](head)
    for steps in (1, 4):
        expected = theirs(image(), steps, generator=seeded(3), output_latent=True)
        found = ours(image(), steps, generator=seeded(3), output_latent=True)
        torch.testing.assert_close(found.latent, expected.latent, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.prediction, expected.prediction, rtol=0, atol=1e-3)


def test_parts_of_any_size_draw_the_same_noise(tiny_marigold) -> None:
    ours = ImageToDepth(marigold_head(tiny_marigold("depth", few=True)))
    both = torch.cat([image(), 1 - image()])
    draw = {"ensemble_size": 3, "output_type": "pt", "alignment": CONSENSUS}
    whole = ours(both, 3, seed=5, batch_size=6, **draw).prediction
    torch.testing.assert_close(ours(both, 3, seed=5, batch_size=2, **draw).prediction, whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours(both[1:], 3, seed=6, **draw).prediction, whole[1:], rtol=0, atol=1e-4)
    given = torch.zeros(1, 4, 6, 8)
    made = [ours(image(), 3, latents=given, seed=seed, output_type="pt").prediction for seed in (5, 5, 6)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_few_steps_are_kept_with_a_head(tiny_marigold, tmp_path) -> None:
    head = marigold_head(tiny_marigold("normals", few=True))
    head.save(tmp_path / "head")
    assert load_head(tmp_path / "head").config == head.config
    assert marigold_head(tiny_marigold("normals", few=True), "zeros").config.solver == "ddim"
    with pytest.raises(InputError, match="solver='lcm': a head that starts from zeros"):
        head.with_config(start="zeros", steps=1)
    other = tiny_marigold("normals")
    other.scheduler = EulerDiscreteScheduler.from_config(other.scheduler.config)
    with pytest.raises(InputError, match=r"EulerDiscreteScheduler of this head.*DDIMScheduler or LCMScheduler"):
        marigold_head(other)


def test_normals_ensemble_equals_diffusers(tiny_marigold) -> None:
    theirs = tiny_marigold("normals")
    expected = theirs(image(), ensemble_size=3, generator=seeded(1), output_uncertainty=True)
    found = ImageToNormals(marigold_head(theirs))(image(), ensemble_size=3, generator=seeded(1))
    differs = np.abs(found.prediction - expected.prediction).max(-1) > 1e-3
    assert differs.mean() < 1e-2  # where two members are equally close the choice may flip
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [3, 4])
def test_depth_ensemble_of_a_marigold_checkpoint_is_the_published_one(tiny_marigold, size: int) -> None:
    """On the same members: those of two runs differ in their last bits, which the published solver magnifies."""
    head = marigold_head(tiny_marigold("depth"))
    latents = 2 * torch.randn(size, 4, 6, 8, generator=seeded(4))
    head.predict = lambda condition, start, *_: latents[: len(start)]  # type: ignore[method-assign]
    expected, spread = MarigoldDepthPipeline.ensemble_depth(head.decode(latents)["depth"], output_uncertainty=True)
    options = {"ensemble_size": size, "processing_resolution": 0, "seed": 0, "output_type": "pt"}
    found = ImageToDepth(head)(image(24, 32), **options)
    torch.testing.assert_close(found.prediction, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.uncertainty, spread, rtol=0, atol=1e-4)
    other = ImageToDepth(head)(image(24, 32), alignment=CONSENSUS, **options)
    assert float((other.prediction - expected).abs().max()) > 1e-2


def test_only_samples_of_marigold_are_aligned_as_published(tiny_marigold, pipe, tmp_path) -> None:
    head = marigold_head(tiny_marigold("depth"))
    assert (head.config.alignment, pipe.head.config.alignment) == ("published", "consensus")
    assert marigold_head(tiny_marigold("depth"), "zeros").config.alignment == "consensus"
    manifest = head.save(tmp_path / "head") / "head.json"
    values = json.loads(manifest.read_text())
    del values["config"]["alignment"]  # a file that says nothing of it
    manifest.write_text(json.dumps(values))
    assert load_head(tmp_path / "head").config.alignment == "published"


def test_depth_ensemble_has_members_of_its_own_and_uncertainty(tiny_marigold) -> None:
    head = marigold_head(tiny_marigold("depth"))
    made = ImageToDepth(head)(image(), ensemble_size=3, seed=1, alignment=CONSENSUS)
    assert made.uncertainty.shape == (1, 45, 61, 1)
    assert made.uncertainty.max() > 0
    assert made.nfe == 3 * 2
    assert made.prediction.min() >= 0


def test_marigold_folder_loads(tiny_marigold, tmp_path) -> None:
    tiny_marigold("normals").save_pretrained(tmp_path / "m")
    head = load_head(tmp_path / "m")
    config = head.config
    assert (config.kind, config.start, config.steps, config.prompt_padding) == (
        "v_prediction",
        "noise",
        2,
        "do_not_pad",
    )
    assert load_head(tmp_path / "m", start="zeros").config.steps == 1
    with pytest.raises(InputError, match="not depth"):
        ImageToDepth.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize(("height", "width"), [(45, 61), (7, 300), (300, 5), (32, 32), (2, 2)])
def test_any_size_and_aspect(pipe, height: int, width: int) -> None:
    made = pipe(image(height, width))
    assert made.depth.depth.shape == (1, height, width)
    assert made.normals.normals.shape == (1, height, width, 3)
    assert 0 <= made.depth.depth.min() <= made.depth.depth.max() <= 1
    np.testing.assert_allclose(np.linalg.norm(made.normals.normals, axis=-1), 1, atol=1e-4)


def test_every_kind_of_picture_gives_the_same(pipe, tmp_path) -> None:
    array = (np.random.default_rng(0).random((24, 32, 3)) * 255).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "picture.png")
    floats = array.astype(np.float32) / 255
    kinds = [
        array,
        floats,
        Image.fromarray(array),
        str(tmp_path / "picture.png"),
        tmp_path / "picture.png",
        torch.from_numpy(floats).permute(2, 0, 1),
        [array],
    ]
    batch = torch.cat([pictures(kind) for kind in kinds])
    torch.testing.assert_close(batch, batch[:1].expand_as(batch), rtol=0, atol=1e-6)
    one, two = pipe([array, array]).depth.depth
    np.testing.assert_array_equal(one, two)


def test_batch_equals_one_by_one(pipe) -> None:
    both = torch.cat([image(), 1 - image()])
    together = pipe(both, batch_size=1).depth.depth
    alone = np.concatenate([pipe(both[i : i + 1]).depth.depth for i in range(2)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_regressor_ensemble_mirrors_and_rescales(pipe) -> None:
    made = pipe(image(), ensemble_size=4)
    assert made.nfe == 4
    assert made.depth.uncertainty.shape == (1, 45, 61, 1)
    assert made.normals.uncertainty.max() > 0
    np.testing.assert_allclose(np.linalg.norm(made.normals.normals, axis=-1), 1, atol=1e-4)


def test_ensemble_of_two_is_mirror_symmetric(pipe) -> None:
    """Members are the image and its mirror image: a mirrored input gives the mirrored mean."""
    one = pipe(image(32, 32), ensemble_size=2).normals.uncertainty[0, ..., 0]
    other = pipe(image(32, 32).flip(3), ensemble_size=2).normals.uncertainty[0, ..., 0]
    np.testing.assert_allclose(one, other[:, ::-1], atol=1e-3)


def test_ensemble_of_two_turns_normals_of_the_mirror_image(pipe) -> None:
    """A mirrored input gives the mirrored mean, whose normals point the other way along x."""
    one = pipe(image(32, 32), ensemble_size=2).normals.normals
    other = pipe(image(32, 32).flip(3), ensemble_size=2).normals.normals
    np.testing.assert_allclose(other, one[:, :, ::-1] * np.float32([-1, 1, 1]), atol=1e-3)
    assert np.abs(one[..., 0]).mean() > 0.05


def test_tiles_cover_large_pictures(pipe) -> None:
    made = pipe(image(100, 64), tiles=2)
    assert made.depth.depth.shape == (1, 100, 64)
    assert np.isfinite(made.depth.depth).all()
    np.testing.assert_allclose(np.linalg.norm(made.normals.normals, axis=-1), 1, atol=1e-4)
    assert made.nfe > 2


def test_latents_can_be_given_and_returned(tiny_marigold) -> None:
    pipe = ImageToDepth(marigold_head(tiny_marigold("depth")))
    start = torch.randn(1, 4, 6, 8, generator=seeded(2))
    one = pipe(image(), latents=start, output_latent=True)
    assert one.latent.shape == start.shape
    np.testing.assert_array_equal(one.prediction, pipe(image(), generator=seeded(2)).prediction)
    with pytest.raises(InputError, match="latents have shape"):
        pipe(image(), latents=start[:, :2])


def test_seed_repeats_and_matters(tiny_marigold) -> None:
    pipe = ImageToDepth(marigold_head(tiny_marigold("depth")))
    a, b, c = (pipe(image(), seed=seed).prediction for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_inference_steps": 4}, "one-step regressor"),
        ({"ensemble_size": 0}, "ensemble_size=0"),
        ({"tiles": 0}, "tiles=0"),
        ({"output_type": "pil"}, "output_type"),
        ({"seed": 1, "generator": torch.Generator()}, "not both"),
        ({"processing_resolution": -1}, "processing_resolution"),
    ],
)
def test_bad_options_are_named(pipe, options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        pipe(image(), **options)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (3.0 * np.ones((4, 4, 3), np.float32), r"expected \[0, 1\]"),
        (np.full((4, 4, 3), np.nan, np.float32), "not finite"),
        (np.zeros((4, 4, 5), np.float32), "shape"),
        (np.zeros((4, 4, 3), np.int32), "dtype"),
        ([], "empty list"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "differ in size"),
        (3, "is a int"),
    ],
)
def test_bad_pictures_are_named(bad, match: str) -> None:
    with pytest.raises(InputError, match=match):
        pictures(bad)


def test_tensor_output(pipe) -> None:
    made = pipe(image(), output_type="pt")
    assert made.depth.prediction.shape == (1, 1, 45, 61)
    assert made.depth.depth.shape == (1, 45, 61)


def test_fitting_keeps_the_aspect_and_pads_at_the_end() -> None:
    padded, inner = fitted(image(45, 61), 32, 4)
    assert inner == (23, 32)
    assert padded.shape[2:] == (24, 32)
    torch.testing.assert_close(padded[:, :, 23], padded[:, :, 22])
    assert resized(image(5, 300), 32).shape[2:] == (1, 32)
    assert resized(image(), 0).shape[2:] == (45, 61)


def test_depth_files_round_trip(tmp_path) -> None:
    depth = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 6, 8, 1)
    written = DepthOutput(depth).save(tmp_path / "room.1")
    assert [path.name for path in written] == ["room.1.npz", "room.1-16bit.png", "room.1.png"]
    np.testing.assert_array_equal(np.load(written[0])["depth"], depth[0, ..., 0])
    levels = np.asarray(Image.open(written[1])).astype(np.int64)
    np.testing.assert_allclose(levels / 65535, depth[0, ..., 0], atol=1e-5)


def test_several_images_get_numbers(tmp_path) -> None:
    written = DepthOutput(np.zeros((2, 4, 4, 1), np.float32), np.zeros((2, 4, 4, 1), np.float32)).save(tmp_path / "d")
    assert written[0].name == "d-000.npz"
    assert written[-1].name == "d-001.png"  # by which the picture counts as done


def test_normals_files_round_trip(tmp_path) -> None:
    normals = np.random.default_rng(0).normal(size=(1, 5, 7, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    written = NormalsOutput(normals).save(tmp_path / "n")
    loaded = np.load(written[0])
    np.testing.assert_array_equal(loaded["normals"], normals[0])
    assert str(loaded["frame"]) == "viewer"
    assert Image.open(written[1]).size == (7, 5)
    levels = BANDS["png_pixels"](written[1]).astype(np.float64)
    np.testing.assert_allclose(2 * levels / 65535 - 1, normals[0], atol=4e-5)


@pytest.mark.parametrize(("space", "ends"), [("linear", (1, 4)), ("log", (1, 4)), ("disparity", (4, 1))])
def test_metres_span_the_chosen_range(space: str, ends: tuple[float, float]) -> None:
    made = DepthOutput(np.array([0.0, 1.0], np.float32).reshape(1, 1, 2, 1), space=space)
    np.testing.assert_allclose(made.metres(1, 4).flatten(), ends, rtol=1e-6)
    with pytest.raises(InputError, match="near_m"):
        made.metres(4, 1)


@pytest.mark.parametrize("space", ["linear", "log", "disparity"])
def test_the_nearest_and_the_farthest_point_are_where_they_were_asked_for(space: str) -> None:
    maps = np.array([[0.2, 0.4, 0.7], [0.5, 0.5, 0.5]], np.float32).reshape(2, 1, 3, 1)
    metres = DepthOutput(maps, space=space).metres(2.0, 6.0)[0].flatten()
    np.testing.assert_allclose((metres.min(), metres.max()), (2, 6), rtol=1e-5)
    order = np.argsort(metres)
    assert order.tolist() == ([2, 1, 0] if space == "disparity" else [0, 1, 2])
    if space == "linear":
        assert metres[1] == pytest.approx(2 + 4 * 0.4, rel=1e-5)
    scaled = DepthOutput(maps, invariance="scale", space=space).metres(2.0, 6.0)
    assert scaled.min() > 2 and scaled.max() < 6


def test_point_cloud_stands_upright() -> None:
    """The top of the picture is up (+z), the right of the picture is +y, far is along -x."""
    made = DepthOutput(np.array([[0.0, 0.0], [1.0, 1.0]], np.float32).reshape(1, 2, 2, 1))
    camera = photo_camera(2, 2, fov_deg=90)
    points = made.point_cloud(np.zeros((2, 2, 3)), camera, 1.0, 4.0).points.numpy()
    np.testing.assert_allclose(points[:, 0], [-1, -1, -4, -4], atol=1e-5)
    assert (points[:2, 2] > 0).all()
    assert (points[2:, 2] < 0).all()
    assert points[0, 1] < 0 < points[1, 1]


def test_camera_from_angle_matrix_and_photo(tmp_path) -> None:
    assert photo_camera(200, 100, fov_deg=90).K[0, 0, 0].item() == pytest.approx(100)
    assert photo_camera(200, 100).K[0, 1, 1].item() == pytest.approx(100 / math.tan(math.radians(27.5)))
    K = [[50, 0, 10], [0, 60, 20], [0, 0, 1]]
    (tmp_path / "K.json").write_text(json.dumps({"K": K}))
    assert photo_camera(200, 100, K=tmp_path / "K.json").K[0].tolist() == K
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50
    Image.new("RGB", (300, 200)).save(tmp_path / "a.jpg", exif=exif)
    focal = photo_camera(300, 200, photo=tmp_path / "a.jpg").K[0, 0, 0].item()
    assert focal == pytest.approx(50 / 36 * 300, rel=1e-5)  # same aspect as film
    with pytest.raises(InputError, match="fov_deg=180"):
        photo_camera(2, 2, fov_deg=180)
    with pytest.raises(InputError, match="3 x 3"):
        photo_camera(2, 2, K=np.eye(2))
