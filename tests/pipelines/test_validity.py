"""Transparent pixels and black bars are marked in maps, left out of clouds and blank in pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.pipelines.picture_inputs import photo_camera, pictures
from unproject.pipelines.validity import at_map_size, black_bars, file_valid, seen_pixels
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


def test_a_picture_that_is_black_everywhere_is_named(tmp_path: Path) -> None:
    images = torch.full((2, 3, 5, 6), 0.5)
    images[1] = 0.01
    with pytest.warns(UserWarning, match="a picture is black everywhere, which is no border"):
        assert seen_pixels(images, images).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seen_pixels(images, images, np.ones((5, 6), bool)).all()  # somebody knows better
    Image.new("RGB", (6, 5)).save(tmp_path / "night.png")
    with pytest.warns(UserWarning, match=r"night\.png is black everywhere"):
        file_valid(tmp_path / "night.png", load_image(tmp_path / "night.png"))
    Image.fromarray(RGBA[..., :1].repeat(4, axis=2) * np.uint8(0)).save(tmp_path / "glass.png")
    with pytest.raises(InputError, match=r"glass\.png: the picture shows nothing"):
        file_valid(tmp_path / "glass.png", load_image(tmp_path / "glass.png"))


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


def test_pipelines_mark_their_maps(tmp_path: Path) -> None:
    from unproject.pipelines.image_to_geometry import ImageToGeometry

    Image.fromarray(RGBA).resize((32, 24), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    made = ImageToGeometry.from_pretrained("toybox")(tmp_path / "a.png", seed=0)
    for output in made.maps.values():
        assert output.valid.shape == (1, 24, 32, 1) and 0 < int((~output.seen()).sum()) < 300
    plain = ImageToGeometry.from_pretrained("toybox")(np.full((24, 32, 3), 0.5, np.float32), seed=0)
    assert all(output.valid is None for output in plain.maps.values())
