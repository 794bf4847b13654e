"""From one picture: background taken away, views with cameras, and the mesh of views that are known."""

from __future__ import annotations

import contextlib
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.core.priors import MultiViewPrior, from_pipeline, load_prior
from unproject.core.priors.multiview import inflate
from unproject.core.priors.orbits import OrbitPrior
from unproject.core.priors.temporal import TemporalConfig
from unproject.generate.fuse import FuseConfig
from unproject.geometry.camera_files import load_nerfstudio
from unproject.geometry.cameras import Camera
from unproject.geometry.meshes import Mesh
from unproject.geometry.metrics import compare_meshes
from unproject.geometry.outputs import camera_normals
from unproject.geometry.raycast import RayMesh
from unproject.pipelines import image_to_views
from unproject.pipelines.cutout import Cutout, attended, cut_out, plain_background
from unproject.pipelines.image_to_mesh import ImageToMesh, MeshOfViews, mesh_of_views
from unproject.pipelines.image_to_views import ImageToViews, find_weights
from unproject.pipelines.picture_views import drawer_of, frame_guidance
from unproject.scripts.random_backbones import tiny_sd, tiny_svd, write_folder
from unproject.tasks.codecs import NormalsOutput
from unproject.toybox.dataset import RenderJob, render_group
from unproject.toybox.reading import read_picture, upright
from unproject.utils.errors import InputError


def photo(size=(40, 60), box=(10, 30, 12, 40)):
    """A picture of noise with an opaque box (top, bottom, left, right)."""
    rgba = np.random.default_rng(0).integers(0, 256, (*size, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    rgba[box[0] : box[1], box[2] : box[3], 3] = 255
    return Image.fromarray(rgba)


def test_ways_to_tell_an_object(tmp_path):
    cut = cut_out(photo())
    assert cut.how == "transparency" and cut.alpha.sum() == 20 * 28 and cut.rgb.shape == (3, 40, 60)
    mask = Image.fromarray(np.where(np.arange(60) < 20, 255, 0).astype(np.uint8)[None].repeat(40, 0))
    marked = cut_out(photo(), mask)
    assert marked.how == "mask" and marked.alpha.sum() == 40 * 20
    opaque = photo().convert("RGB")
    flat = np.full((40, 60, 3), 200, np.uint8)
    flat[5:20, 30:50] = (30, 90, 160)
    plain = cut_out(Image.fromarray(flat), plain=True)
    assert plain.how == "a plain background" and plain.alpha.sum() == 15 * 20
    with pytest.raises(InputError, match=r"no transparency.*--mask.*--plain.*--subject"):
        cut_out(opaque)
    with pytest.raises(InputError, match=r"marks nothing: .* is the object"):
        cut_out(opaque, Image.fromarray(np.zeros((40, 60), np.uint8)))
    with pytest.raises(InputError, match="2 pictures"):
        cut_out([opaque, opaque])
    with pytest.raises(InputError, match=r"0\.17% of the picture"):
        cut_out(photo(box=(1, 3, 1, 3)))


def test_an_object_is_framed_in_the_middle():
    """Its larger side is `fill` of the square, wherever it was, and colours are over the grey."""
    rgb = torch.zeros(3, 50, 80)
    alpha = torch.zeros(1, 50, 80)
    alpha[:, 8:28, 40:80] = 1  # 20 x 40 at the border
    rgb[:, 8:28, 40:60] = 1
    shown = Cutout(rgb, alpha, "mask").framed(64, 0.5, 0.25)
    solid = shown[3] > 0.5
    rows, columns = (solid.any(dim=axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    assert (columns[0], columns[-1] + 1) == (16, 48) and (rows[0], rows[-1] + 1) == (24, 40)
    assert torch.allclose(shown[:3, 2, 2], torch.full((3,), 0.25)) and float(shown[3, 2, 2]) == 0
    assert float(shown[0, 32, 20]) == pytest.approx(1, abs=1e-4) and float(shown[0, 32, 44]) == pytest.approx(
        0, abs=1e-4
    )


def test_what_stands_before_one_colour_is_found():
    group = render_group(RenderJob("object", "val", 3, 64, maps=True), 2)
    found, true = plain_background(group["rgb"] / 255.0), group["alpha"] > 127
    overlap = (found & true).sum((1, 2)) / (found | true).sum((1, 2))
    assert overlap.min() > 0.95


def test_the_priors_attention_finds_a_word():
    group = render_group(RenderJob("object", "val", 1, 64, maps=True), 0, 1)  # a yellow duck
    images = torch.from_numpy(group["rgb"]).permute(0, 3, 1, 2).float() / 255
    found, true = attended(images, "yellow duck", load_prior("toybox")), group["alpha"][0] > 127
    assert (found & true).sum() / (found | true).sum() > 0.6


def test_a_subject_that_a_prior_has_never_seen_is_warned_of():
    prior, looked = load_prior("toybox"), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as told, contextlib.suppress(InputError):  # it need not find anything
        attended(looked, "xylophone", prior)
    assert "never seen 'xylophone' of the subject" in str(told[0].message)


@pytest.fixture(scope="module")
def orbit():
    base = from_pipeline(tiny_sd("v_prediction", block_out_channels=(32, 64)))
    return OrbitPrior(base, TemporalConfig(share=0.25, rank=0), 4)


SHORT = {"num_inference_steps": 2, "num_frames": 4}


def test_views_come_with_cameras_and_the_picture_is_one_of_them(orbit, tmp_path):
    made = ImageToViews(orbit)(photo(), elevation_deg=30, seed=5, **SHORT)
    assert made.views.shape == (4, 32, 32, 3) and made.alpha.shape == (4, 32, 32, 1) and made.nfe == 4 * 2 * 2
    shown = cut_out(photo()).framed(32, 0.75, 0.5)
    np.testing.assert_allclose(made.rgba()[made.picture_view], shown.permute(1, 2, 0).numpy(), atol=1e-6)
    heights = torch.rad2deg(torch.asin(made.cameras.centres[:, 2] / made.cameras.centres.norm(dim=1)))
    torch.testing.assert_close(heights, torch.full((4,), 30.0), rtol=1e-4, atol=1e-3)
    again = ImageToViews(orbit)(photo(), elevation_deg=30, seed=5, **SHORT)
    other = ImageToViews(orbit)(photo(), elevation_deg=30, seed=6, **SHORT)
    assert np.array_equal(made.views, again.views) and not np.allclose(made.views[1], other.views[1], atol=1e-3)
    written = made.save(tmp_path, "cup")
    assert [path.name for path in written] == [*(f"cup-0{k}.png" for k in range(4)), "cup-sheet.png", "transforms.json"]
    camera, names = load_nerfstudio(tmp_path / "transforms.json")
    assert names == [f"cup-0{k}.png" for k in range(4)]
    torch.testing.assert_close(camera.c2w.float(), made.cameras.c2w, rtol=1e-4, atol=1e-4)
    assert np.asarray(Image.open(written[0])).shape == (32, 32, 4)


def test_finished_views_are_taken_up_again_for_the_same_settings_only(orbit, tmp_path):
    pipe = ImageToViews(orbit)
    first = pipe(photo(), seed=1, out=tmp_path, **SHORT)
    before = orbit.nfe
    again = pipe(photo(), seed=1, out=tmp_path, **SHORT)
    assert orbit.nfe == before and again.nfe == first.nfe and np.array_equal(again.views, first.views)
    pipe(photo(), seed=1, out=tmp_path, elevation_deg=40, **SHORT)
    assert orbit.nfe > before
    before = orbit.nfe
    pipe(photo(), seed=1, out=tmp_path, resume=False, elevation_deg=40, **SHORT)
    assert orbit.nfe > before and json.loads((tmp_path / "views.json").read_text())["made_from"]["seed"] == 1


def test_guidance_of_one_needs_no_second_branch(orbit):
    made = ImageToViews(orbit)(photo(), min_guidance_scale=1, max_guidance_scale=1, **SHORT)
    assert made.nfe == 4 * 2


def test_what_draws_no_orbits_is_refused_by_name(orbit, tmp_path, monkeypatch):
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"comes with the prior 'toybox'; give a prior of several views"):
        find_weights("toybox")
    with pytest.raises(InputError, match="draws no views of a picture"):
        ImageToViews(orbit.base)
    with pytest.raises(InputError, match="draws films, whose cameras nobody knows"):
        ImageToViews(from_pipeline(tiny_svd()))
    sv3d = ImageToViews.from_pretrained(write_folder(tiny_svd(1, 4), tmp_path / "sv3d"))
    made = sv3d(photo(), **SHORT)
    assert made.picture_view == 3 and made.views.shape == (4, 32, 32, 3)
    assert frame_guidance(sv3d.prior, (1, 2.5), 5).scales == pytest.approx((1, 1.75, 2.5, 1.75, 1))
    assert frame_guidance(orbit, (1, 2), 4).scales == pytest.approx((1, 1.5, 2, 1.5))
    for options, message in (
        ({"size": 30}, "size=30 must be a positive multiple of 4"),
        ({"elevation_deg": 100}, "elevation_deg=100"),
        ({"fill": 0.0}, "fill=0"),
        ({"num_frames": 1}, "num_frames=1"),
    ):
        with pytest.raises(InputError, match=message):
            ImageToViews(orbit)(photo(), **{**SHORT, **options})


@pytest.fixture(scope="module")
def several():
    """A prior of several views with random weights."""
    pipe = tiny_sd("v_prediction", block_out_channels=(32, 64))
    views = inflate(pipe.unet)
    with torch.no_grad():
        views.camera_embedding[2].weight.normal_(generator=torch.Generator().manual_seed(3))
    return MultiViewPrior(pipe, views, "tiny-mv")


TOLD = {"prompt": "a red cup", "azimuth_deg": 20.0, "num_inference_steps": 3}


def test_the_picture_is_a_view_of_a_prior_of_several(several, monkeypatch):
    """Its x0 is known at every level, the others see it, and cameras go around from where it looks."""
    pipe = ImageToViews(several)
    made = pipe(photo(), **TOLD)
    assert made.views.shape == (4, 32, 32, 3) and made.nfe == 3 * 8 and made.settings.guidance == (5.0, 5.0)
    shown = cut_out(photo()).framed(32, 0.75, 0.85)
    np.testing.assert_allclose(made.rgba()[0], shown.permute(1, 2, 0).numpy(), atol=1e-6)
    turns = torch.rad2deg(torch.atan2(made.cameras.centres[:, 1], made.cameras.centres[:, 0])) % 360
    torch.testing.assert_close(turns, torch.tensor([20.0, 110.0, 200.0, 290.0]), rtol=1e-4, atol=1e-3)
    same = pipe(photo(), **TOLD)
    assert np.array_equal(same.views, made.views)
    turned = pipe(photo(), **{**TOLD, "azimuth_deg": 200.0})
    assert not np.allclose(turned.views[1], made.views[1], atol=1e-4)
    monkeypatch.setattr(several, "decode", lambda latents: latents)
    first, _ = pipe._drawn(shown[None, :3], made.settings)
    assert float((first[0] - several.encode(shown[None, :3])[0]).abs().max()) < 0.2  # up to the noise of the last level
    other, _ = pipe._drawn(1 - shown[None, :3], made.settings)
    assert float((first[1:] - other[1:]).abs().max()) > 2e-5  # the others see it


def test_the_embedded_prior_reads_what_it_is_shown():
    group = render_group(RenderJob("object", "val", 1, 64, maps=True), 0, 1)  # a yellow duck
    picture = torch.from_numpy(group["rgb"][0]).permute(2, 0, 1) / 255
    drawer = drawer_of(load_prior("toybox-mv"), "", read_picture)
    found = drawer.read(picture, None, None)
    assert found.prompt.endswith("yellow duck")
    x, y = group["c2w"][0, :2, 3]
    apart = abs((found.azimuth_deg - np.degrees(np.arctan2(y, x)) + 180) % 360 - 180)
    assert apart < 25
    assert drawer.read(picture, "a cat", 30.0) == ("a cat", 30.0)
    assert [upright(a) for a in (4.0, 352.0, 97.0, 130.0)] == [0.0, 0.0, 90.0, 130.0]


def test_a_prior_of_another_world_is_not_told_what_the_reader_says(several, monkeypatch):
    """MVDream's photographs are not the toybox's objects, and who says both needs no reader."""

    def asked(*_):
        raise AssertionError("the reader was asked")

    picture = torch.zeros(3, 32, 32)
    assert drawer_of(several, "", asked).read(picture, "a red cup", None) == ("a red cup", 0.0)
    monkeypatch.setattr(several, "recipe", "toybox")
    assert drawer_of(several, "", asked).read(picture, "a red cup", 20.0) == ("a red cup", 20.0)
    with pytest.raises(AssertionError, match="the reader was asked"):
        drawer_of(several, "", asked).read(picture, "a red cup", None)


def test_words_sizes_and_guidance_that_do_not_help_are_told(several, monkeypatch):
    pipe = ImageToViews(several)
    with pytest.warns(UserWarning, match=r"guidance_scale=0 draws without looking at the prompt"):
        pipe(photo(), **{**TOLD, "num_inference_steps": 1}, max_guidance_scale=0)
    with pytest.warns(UserWarning, match=r"64 x 64 px is far from the 32 px"):
        pipe(photo(), **{**TOLD, "num_inference_steps": 1}, size=64)
    with pytest.warns(UserWarning, match="the last .* words are ignored"):
        pipe(photo(), **{**TOLD, "num_inference_steps": 1, "prompt": "a red cup " * 60})
    monkeypatch.setattr(several, "vocabulary", ("red", "cup"))
    with pytest.warns(UserWarning, match=r"has never seen 'zebra'.*--prior mvdream"):
        pipe(photo(), **{**TOLD, "num_inference_steps": 1, "prompt": "a red zebra"})


def test_the_subject_is_what_a_prior_of_views_is_told_where_nothing_else_says_it(several, monkeypatch):
    short = {**TOLD, "num_inference_steps": 1, "prompt": None}
    monkeypatch.setattr(image_to_views, "cut_out", lambda image, mask, plain, subject, prior: cut_out(image, mask))
    told = ImageToViews(several)(photo(), **short, subject="red cup")
    assert told.settings.prompt == "red cup"
    both = ImageToViews(several)(photo(), **{**short, "prompt": "a blue cup"}, subject="red cup")
    assert both.settings.prompt == "a blue cup"
    monkeypatch.setattr(several, "recipe", "toybox")
    reader = lambda picture: ("a red cup", 90.0)  # noqa: E731
    for subject, words in (("red cup", "a red cup"), ("Cup", "a red cup"), ("red mug", "red mug")):
        read = ImageToViews(several, reader)(photo(), **{**short, "azimuth_deg": None}, subject=subject)
        assert (read.settings.prompt, read.settings.azimuth_deg) == (words, 90.0)


def test_what_a_prior_of_views_is_not_told_is_refused(several, orbit):
    for options, message in (
        ({"min_guidance_scale": 1.0}, "one scale of guidance for all views"),
        ({"noise_aug_strength": 0.1}, "sees the picture as it is; noise on it .*--cond-aug"),
        ({"azimuth_deg": float("nan")}, "azimuth_deg=nan"),
        ({"azimuth_deg": "left"}, "azimuth_deg='left' must be a finite number"),
        ({"max_guidance_scale": float("nan")}, "max_guidance_scale=nan must be a finite number"),
        ({"size": 32.0}, r"size=32\.0 must be a whole number"),
        ({"size": 0}, "size=0 must be at least 1"),
        ({"num_frames": 0}, "num_frames=0 must be at least 2"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": None}, "tiny-mv is told words: say what the picture shows"),
    ):
        with pytest.raises(InputError, match=message):
            ImageToViews(several)(photo(), **{**TOLD, **options})
    with pytest.raises(InputError, match="told the picture alone"):
        ImageToViews(orbit)(photo(), prompt="a red cup", **SHORT)


def ellipsoid() -> Mesh:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=4)
    ball.vertices = ball.vertices * [0.7, 0.5, 0.35] + [0.05, 0.0, -0.04]
    colors = np.where(ball.vertices[:, :1] > 0.05, [0.9, 0.1, 0.1], [0.1, 0.1, 0.9])
    from dataclasses import replace

    return replace(Mesh.from_trimesh(ball), vertex_colors=torch.from_numpy(colors).float()).with_smooth_normals()


SMALL = MeshOfViews(FuseConfig(hull=24, steps=12, edge=(0.1, 0.3), faces=500), texture=64)


def test_views_with_normals_become_the_solid_they_show_with_its_colours():
    truth = ellipsoid()
    camera = Camera.orbit([60.0 * k for k in range(6)], 15.0, image_to_views.DISTANCE, image_to_views.FOV_DEG, 32)
    seen = RayMesh(truth).render(camera, background=0.5)
    mesh = mesh_of_views(seen.rgb, seen.normal, seen.alpha[..., 0], camera, SMALL)
    found = compare_meshes(mesh, truth, 3000, torch.Generator().manual_seed(0))
    assert mesh.check().watertight and found["chamfer"] < 0.06 and 0 < mesh.notes["unseen_share"] < 0.5
    again = RayMesh(mesh).render(camera, background=0.5)
    assert float((again.rgb - seen.rgb).abs().mean()) < 0.04


def test_a_mesh_of_a_picture_whose_orbit_is_known(orbit, monkeypatch):
    """The whole pipeline around true views and true normals."""
    truth = ellipsoid()
    camera = Camera.orbit([90.0 * k for k in range(4)], 0.0, image_to_views.DISTANCE, image_to_views.FOV_DEG, 32)
    seen = RayMesh(truth).render(camera, background=0.5)
    views = ImageToViews(orbit)
    monkeypatch.setattr(views, "_drawn", lambda *_: (seen.rgb.permute(0, 3, 1, 2), 7))
    monkeypatch.setattr(Cutout, "framed", lambda *_: torch.cat([seen.rgb[0], seen.alpha[0]], -1).permute(2, 0, 1))
    asked = {}

    class Normals:
        head = type("Head", (), {"nfe": 0})()

        def __call__(self, pictures, **options):
            asked.update(options)
            return NormalsOutput(camera_normals(seen.normal, camera, opengl=True).numpy())  # a head's: y up, z near

    made = ImageToMesh(views, Normals(), SMALL)(photo(), elevation_deg=0, num_frames=4, faces=400, texture=80)
    assert made.mesh.textures["base_color"].shape == (80, 80, 3) and made.config.texture == 80
    assert made.report.watertight and len(made.mesh.faces) <= 400 and "base_color" in made.mesh.textures
    assert asked["valid"].shape == (4, 32, 32) and asked["processing_resolution"] == 128
    assert made.nfe == {"orbit": 7, "normals": 0} and set(made.seconds) == {"views", "normals", "mesh"}
    torch.testing.assert_close(torch.from_numpy(made.normals), seen.normal, rtol=0, atol=1e-5)
    low, high = made.mesh.bounds
    torch.testing.assert_close(high - low, torch.tensor([1.4, 1.0, 0.7]), rtol=0.12, atol=0.06)
    monkeypatch.setattr(views, "_drawn", lambda *_: (torch.full((4, 3, 32, 32), 0.5), 7))
    with pytest.raises(InputError, match="view 1 of the orbit shows no object"):
        ImageToMesh(views, Normals(), SMALL)(photo(), elevation_deg=0, num_frames=4)
