"""A picture is the same whether it comes as a file or as the PIL image that was opened from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.pipelines.picture_inputs import pictures
from unproject.utils.errors import InputError

VALUES = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)


def palette_with_a_hole() -> Image.Image:
    image = Image.fromarray(VALUES[..., :3]).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    image.info["transparency"] = 3
    return image


def sideways() -> Image.Image:
    image = Image.fromarray(VALUES[..., :3])
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(VALUES[..., :3]),
        Image.fromarray(VALUES),
        Image.fromarray(VALUES[..., :2], "LA"),
        Image.fromarray(VALUES[..., 0]),
        palette_with_a_hole(),
        Image.fromarray(VALUES[..., 0].astype(np.uint16) * 257),
        Image.fromarray(VALUES[..., 0] > 100),
        sideways(),
    ],
    ids=["RGB", "RGBA", "LA", "L", "P", "I;16", "1", "exif"],
)
def test_an_opened_picture_equals_its_file(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "picture.png"
    image.save(path, exif=image.getexif())
    with Image.open(path) as opened:
        assert torch.equal(pictures(opened), pictures(path))
    torch.testing.assert_close(pictures(image), pictures(path), rtol=0, atol=1e-6)


def test_greys_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"the PIL image holds values outside \[0, 1\]"):
        pictures(Image.fromarray(np.full((4, 4), 2, np.float32)))
