"""A set of posed pictures taken through bent lenses as one of pinholes: their cameras, and a picture at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from ..utils.decoding import read_layers
from ..utils.errors import InputError
from .camera_files import Views, colmap_views, nerfstudio_views
from .cameras import Camera
from .distortion import COEFFICIENTS, FISHEYE, RATIONAL, straightened
from .lenses import Lens
from .posed import plain_colors
from .posed_files import image_folder, picture_file


class Straight(NamedTuple):
    """A picture as a pinhole with the same matrix and size shows it."""

    pixels: (
        np.ndarray
    )  # (H, W, 3), or (H, W, 4) where the picture has transparency; [0, 1], black where nothing is seen
    seen: float  # share of the pixels that the lens saw


class BentSet(NamedTuple):
    """What `bent_set` finds."""

    views: Views
    pictures: list[Path]
    names: list[str]  # relative paths for the straight pictures, one a view, all PNG

    @property
    def camera(self) -> Camera:
        """The pinholes."""
        return replace(self.views.camera, model="pinhole")

    def straight(self) -> Iterator[Straight]:
        """The pictures in order. Raises InputError for one that is no picture or of another size than its camera's."""
        for path, lens in zip(self.pictures, self.views.lenses, strict=True):
            yield _straight(path, lens)


def bent_set(source: str | Path) -> BentSet:
    """A transforms.json, or the folder of a COLMAP model, with its pictures beside it.

    Raises InputError where no lens is bent, for distortion that cannot be undone and for pictures that are not there.
    """
    source = Path(source)
    colmap = source.is_dir()
    views = colmap_views(source) if colmap else nerfstudio_views(source)
    if not any(lens.bent or lens.model == "fisheye" for lens in views.lenses):
        raise InputError(f"{source} has no lens distortion that --undistort could take out; leave it out")
    for lens in views.lenses:
        pinhole = RATIONAL if colmap else COEFFICIENTS  # k4 of nerfstudio's pinholes is another one than OpenCV's
        known: Mapping[str, tuple[str, ...]] = {"pinhole": pinhole, "fisheye": FISHEYE}
        odd = sorted(set(lens.bent) - set(known.get(lens.model, ())))
        if odd:
            raise InputError(
                f"{source} has the distortion {', '.join(odd)} of a {lens.model} lens, which is not undone"
            )
    root = image_folder(source, source) if colmap else source.parent
    pictures = []
    for name in views.names:
        found = picture_file(root, name)
        if found is None:
            raise InputError(
                f"the picture {root / name!s:.300} is not there; --undistort needs all pictures of the set"
            )
        pictures.append(found)
    return BentSet(views, pictures, distinct_names(views.names))


def distinct_names(names: list[str]) -> list[str]:
    """The names inside one folder, ending in .png: no roots, no steps upwards, each once."""
    found: list[str] = []
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        parts = tuple(part for part in parts if part not in ("/", "..") and not part.endswith(":"))
        plain = PurePosixPath(*parts or ("picture",)).with_suffix("")
        made, number = f"{plain}.png", 1
        while made in found:
            made, number = f"{plain}-{number}.png", number + 1
        found.append(made)
    return found


def _straight(path: Path, lens: Lens) -> Straight:
    layers = read_layers(path)
    height, width = layers.rgb.shape[:2]
    if (width, height) != (lens.width, lens.height):
        raise InputError(f"{path} has {width} x {height} px and its camera {lens.width} x {lens.height}; resize one")
    alpha = torch.ones(height, width, 1) if layers.alpha is None else torch.from_numpy(layers.alpha)[..., None]
    picture = torch.cat([torch.from_numpy(layers.rgb) * alpha, alpha], dim=-1)
    picture, seen = straightened(picture, lens.K, lens.bent, lens.model == "fisheye")
    shown = torch.cat([plain_colors(picture), picture[..., 3:]], dim=-1) * seen
    return Straight((shown[..., :3] if layers.alpha is None else shown).numpy(), float(seen.float().mean()))
