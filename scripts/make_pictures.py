"""Make the pictures of the README from the shipped weights: python -m unproject.scripts.make_pictures [--out FOLDER].

images.png: prompts drawn by the embedded prior. meshes.png: four sides of one mesh per prompt, colours above normals.
geometry.png: rendered rooms, their true depth, the estimated one and the estimated normals.
Nothing is chosen: seed 0 throughout.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..geometry.meshes import Mesh
from ..geometry.turntable import contact_sheet
from ..pipelines.image_to_geometry import ImageToGeometry
from ..pipelines.text_to_image import TextToImage, TextToImageOutput
from ..pipelines.text_to_mesh import TextToMesh
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
)
MORE = ("a red mushroom", "a blue house", "a green cactus", "a black cat", "a pink castle", "a gray robot")
Picture = npt.NDArray[np.float32]


def images(out: Path) -> Path:
    """Two drawings of each prompt."""
    prompts = [p for p in (*PROMPTS, *MORE) for _ in range(2)]
    drawn = TextToImage.from_pretrained("toybox")(prompts, seed=0, output_type="np")
    assert isinstance(drawn, TextToImageOutput)
    return save_image(out / "images.png", grid(list(np.asarray(drawn.images)), columns=7, labels=prompts))


def mesh_tile(mesh: Mesh, size: int = 128) -> Picture:
    """Four of the eight sides of the sheet, colours above normals, in [0, 1]."""
    sheet = contact_sheet(mesh, size, light=None)[: 2 * size].astype(np.float32) / 255
    return np.concatenate([sheet[:, side * size : (side + 1) * size] for side in (1, 3, 5, 7)], axis=1)


def meshes(out: Path) -> Path:
    """One mesh of each prompt."""
    pipe = TextToMesh.from_pretrained("toybox")
    tiles = [mesh_tile(pipe(prompt, seed=0).mesh) for prompt in PROMPTS]
    return save_image(out / "meshes.png", grid(tiles, columns=2, labels=list(PROMPTS)))


def geometry(out: Path, rooms: int = 3) -> Path:
    """Rooms of the test split."""
    pipe = ImageToGeometry.from_pretrained("toybox")
    rows: list[npt.NDArray[Any]] = []
    for index in range(rooms):
        truth = sample("test", index, "room", 192).renderings[0]
        found = pipe(truth.rgb)
        if found.depth is None or found.normals is None or truth.depth_m is None:
            raise InputError("the embedded head must predict depth and normals")
        rows += [truth.rgb, colourise(truth.depth_m), colourise(found.depth.depth[0])]
        rows.append(normals_to_rgb(found.normals.normals[0]))
    return save_image(out / "geometry.png", grid(rows, columns=4))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="make_pictures", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "images")
    parser.add_argument("--only", choices=("images", "meshes", "geometry"))
    options = parser.parse_args(arguments)
    for make in (images, meshes, geometry):
        if options.only in (None, make.__name__):
            print(make(options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
