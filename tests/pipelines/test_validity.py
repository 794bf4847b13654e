"""Transparent pixels and black bars are marked in maps, left out of clouds and blank in pictures."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.pipelines.picture_inputs import photo_camera, pictures
from unproject.pipelines.validity import at_map_size, black_bars, file_valid, one_coloured, seen_pixels, telling_pixels
from unproject.tasks.codecs import DepthOutput, NormalsOutput
from unproject.utils.errors import InputError
from unproject.utils.pictures import load_image

RGBA = np.random.default_rng(0).integers(60, 256, (9, 12, 4), dtype=np.uint8)
RGBA[..., 3] = 255
RGBA[2:5, 3:9, 3] = 100
SEEN = RGBA[..., 3] >= 128


def test_transparency_of_files_and_images_is_not_seen(tmp_path: Path) -> None:
    Image.fromarray(RGBA).save(tmp_path / "a.png")
    Image.fromarray(RGBA[..., :3]).save(tmp_path / "b.png")
    one, plain = tmp_path / "a.png", tmp_path / "b.png"
    for image in (one, Image.fromarray(RGBA)):
        assert np.array_equal(seen_pixels(image, pictures(image))[0, 0].numpy(), SEEN)
    both = seen_pixels([plain, one], pictures([plain, one]))
    assert bool(both[0].all()) and np.array_equal(both[1, 0].numpy(), SEEN)
    assert np.array_equal(file_valid(one, load_image(one)), SEEN)
    assert bool(seen_pixels(load_image(one), pictures(load_image(one))).all())  # an array has no transparency
    nothing = RGBA.copy()
    nothing[..., 3] = 0
    with pytest.raises(InputError, match="shows nothing"):
        seen_pixels(Image.fromarray(nothing), pictures(Image.fromarray(nothing)))


def test_a_picture_of_one_colour_is_named(tmp_path: Path) -> None:
    images = torch.full((2, 3, 5, 6), 0.5)
    images[1] = 0.01
    with pytest.warns(UserWarning, match="a picture is black everywhere, which is no border"):
        assert seen_pixels(images, images).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seen_pixels(images, images, np.ones((5, 6), bool)).all()  # somebody knows better
        images[:, :, 2, 4] += 6 / 255
        assert seen_pixels(images, images).any()  # a dark picture with something in it
    with pytest.warns(UserWarning, match="a picture is of one colour everywhere: what is estimated of it"):
        assert seen_pixels(images + 0.3, images[:1] * 0 + 0.5).all()
    Image.new("RGB", (6, 5)).save(tmp_path / "night.png")
    with pytest.warns(UserWarning, match=r"night\.png is black everywhere"):
        file_valid(tmp_path / "night.png", load_image(tmp_path / "night.png"))
    Image.fromarray(RGBA[..., :1].repeat(4, axis=2) * np.uint8(0)).save(tmp_path / "glass.png")
    with pytest.raises(InputError, match=r"glass\.png: the picture shows nothing"):
        file_valid(tmp_path / "glass.png", load_image(tmp_path / "glass.png"))


def test_nothing_can_be_told_of_one_colour() -> None:
    """Of a picture whose channels are each constant up to 4 of 255 levels, whatever is seen of it."""
    images = torch.tensor([0.9, 0.1, 0.3])[None, :, None, None].expand(3, 3, 5, 6).clone()
    images[1, 2, 4, 1] += 4 / 255
    images[2, 2, 4, 1] += 5 / 255
    assert one_coloured(images).tolist() == [True, True, False]
    seen = torch.zeros(3, 1, 5, 6, dtype=torch.bool)
    seen[:, :, 1:3] = True
    told = telling_pixels(seen, images)
    assert not told[:2].any() and torch.equal(told[2], seen[2])


def test_black_bars_are_rows_and_columns_along_the_edges() -> None:
    image = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.3
    image[0, :, :4], image[0, :, :, 27:] = 0.01, 0.0
    image[1, :, 8:12] = 0.0  # a dark band within
    wanted = torch.zeros(2, 20, 30, dtype=torch.bool)
    wanted[0, :4], wanted[0, :, 27:] = True, True
    assert torch.equal(black_bars(image)[:, 0], wanted)
    assert not black_bars(torch.zeros(1, 3, 8, 8)).any()  # a black picture is no border
    assert torch.equal(black_bars(image.mT)[:, 0], wanted.mT)


def test_a_mask_that_is_given_takes_their_place() -> None:
    images = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = np.zeros((5, 6), bool)
    mask[1, 2] = True
    assert np.array_equal(seen_pixels(images, images, mask)[1, 0].numpy(), mask)
    with pytest.raises(InputError, match=r"valid has shape \(6, 5\), expected \(5, 6\)"):
        seen_pixels(images, images, mask.T)
    assert at_map_size(torch.from_numpy(mask)[None, None], (10, 12))[0, 0].sum() == 4


def test_files_and_clouds_leave_out_what_is_not_seen(tmp_path: Path) -> None:
    valid = SEEN[None, ..., None]
    unit = np.random.default_rng(1).random((1, 9, 12, 1), dtype=np.float32)
    made = DepthOutput(unit, valid=valid)
    made.save(tmp_path / "d")
    with np.load(tmp_path / "d.npz") as file:
        assert np.array_equal(file["valid"], SEEN) and np.array_equal(file["depth"], unit[0, ..., 0])
    with Image.open(tmp_path / "d-16bit.png") as deep:
        assert not np.asarray(deep)[~SEEN].any() and np.asarray(deep)[SEEN].any()
    assert (load_image(tmp_path / "d.png")[~SEEN] == 1).all()
    assert len(made.point_cloud(np.zeros((9, 12, 3)), photo_camera(12, 9))) == int(SEEN.sum())
    normals = np.random.default_rng(2).normal(size=(1, 3, 9, 12)).astype(np.float32)
    torch_made = NormalsOutput(torch.from_numpy(normals), valid=torch.from_numpy(SEEN)[None, None])
    torch_made.save(tmp_path / "n")
    assert (load_image(tmp_path / "n.png")[~SEEN] == 1).all()
    DepthOutput(unit).save(tmp_path / "all")
    with np.load(tmp_path / "all.npz") as file:
        assert "valid" not in file


def test_maps_of_one_colour_are_written_and_lead_nowhere(tmp_path: Path) -> None:
    """Nothing is valid in the files; metres, clouds and meshes are one message."""
    made = DepthOutput(
        np.random.default_rng(3).random((2, 9, 12, 1), dtype=np.float32), valid=np.zeros((2, 9, 12, 1), bool)
    )
    one = replace(made, prediction=made.prediction[:1], valid=made.valid[:1])
    one.save(tmp_path / "d", ("npz", "npy", "tiff", "png"))
    with np.load(tmp_path / "d.npz") as file:
        assert not file["valid"].any() and np.array_equal(file["depth"], made.prediction[0, ..., 0])
    assert np.isnan(np.load(tmp_path / "d.npy")).all()
    assert (load_image(tmp_path / "d.png") == 1).all()
    picture, camera = np.zeros((9, 12, 3)), photo_camera(12, 9)
    for lift in (made.point_cloud, made.surface, lambda *_: made.metres(1, 2)):
        with pytest.raises(InputError, match="no pixel of the depth is valid: a picture of one colour has no shape"):
            lift(picture, camera)
    made.valid[1, 2:, 3:] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metres = made.metres(1.0, 4.0)
    assert np.isnan(metres[0]).all() and np.isfinite(metres[1, 2:, 3:]).all()
    assert np.allclose([np.nanmin(metres[1]), np.nanmax(metres[1])], [1, 4])


def test_pipelines_mark_their_maps(tmp_path: Path) -> None:
    from unproject.pipelines.image_to_geometry import ImageToGeometry

    Image.fromarray(RGBA).resize((32, 24), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    made = ImageToGeometry.from_pretrained("toybox")(tmp_path / "a.png", seed=0)
    for output in made.maps.values():
        assert output.valid.shape == (1, 24, 32, 1) and 0 < int((~output.seen()).sum()) < 300
    both = np.full((2, 24, 32, 3), 0.5, np.float32)
    both[1, 3, 5] = 0.6
    with pytest.warns(UserWarning, match="of one colour"):
        made = ImageToGeometry.from_pretrained("toybox")(both, seed=0, output_type="pt")
    for output in made.maps.values():
        assert output.valid.dtype == torch.bool and output.valid.shape == (2, 1, 24, 32)
        assert not output.valid[0].any() and output.valid[1].all()
        assert output.one(0).seen is not None and output.one(1).seen is None  # the files of a whole picture say nothing
        assert bool(torch.isfinite(output.prediction).all())
