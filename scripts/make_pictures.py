"""Make the pictures of the README from the shipped weights: python -m unproject.scripts.make_pictures [--out FOLDER].

images.png: prompts drawn by the embedded prior. places.png: rooms, streets, things close by and interiors, with depth.
geometry.png: rendered rooms and interiors, their true depth, the estimated one and the estimated normals. Nothing is
chosen: seed 0 throughout.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..pipelines.image_to_geometry import ImageToGeometry
from ..pipelines.text_to_image import TextToImage, TextToImageOutput
from ..toybox.samples import sample
from ..utils.errors import InputError
from ..utils.pictures import colourise, grid, normals_to_rgb, save_image

PROMPTS = (
    "a red chair",
    "a blue car",
    "a yellow duck",
    "a white rabbit",
    "a green bottle",
    "a purple mug",
    "an orange lamp",
    "a brown table",
    "a red mushroom",
    "a blue house",
    "a green cactus",
    "a black cat",
    "a pink castle",
    "a gray robot",
)


def images(out: Path) -> Path:
    """Two drawings of each prompt, twice as large, so that the labels can be read."""
    prompts = [p for p in PROMPTS for _ in range(2)]
    drawn = TextToImage.from_pretrained("toybox")(prompts, seed=0, output_type="np")
    assert isinstance(drawn, TextToImageOutput)
    return save_image(out / "images.png", grid(list(np.asarray(drawn.images)), columns=7, labels=prompts, scale=2))


def places(out: Path, count: int = 4) -> Path:
    """Samples of the validation split, a row for each kind."""
    rows: list[npt.NDArray[Any]] = []
    for kind in ("room", "street", "table", "interior"):
        for index in range(count):
            seen = sample("val", index, kind, 128).renderings[0]
            assert seen.depth_m is not None
            rows += [seen.rgb, colourise(seen.depth_m, mask=seen.depth_m > 0)]
    return save_image(out / "places.png", grid(rows, columns=2 * count))


def geometry(out: Path, rooms: int = 2, interiors: int = 4) -> Path:
    """Rooms and interiors of the test split."""
    pipe = ImageToGeometry.from_pretrained("toybox")
    rows: list[npt.NDArray[Any]] = []
    for kind, index in [("room", i) for i in range(rooms)] + [("interior", i) for i in range(interiors)]:
        truth = sample("test", index, kind, 192).renderings[0]
        found = pipe(truth.rgb)
        if found.depth is None or found.normals is None or truth.depth_m is None:
            raise InputError("the embedded head must predict depth and normals")
        rows += [truth.rgb, colourise(truth.depth_m), colourise(found.depth.depth[0])]
        rows.append(normals_to_rgb(found.normals.normals[0]))
    return save_image(out / "geometry.png", grid(rows, columns=8))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="make_pictures", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "images")
    parser.add_argument("--only", choices=("images", "places", "geometry"))
    options = parser.parse_args(arguments)
    for make in (images, places, geometry):
        if options.only in (None, make.__name__):
            print(make(options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
