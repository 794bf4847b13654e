"""One-line use: `unproject.depth("photo.jpg")`, whose loaded head is kept; `unproject.fit_splats("capture")`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from ..generate.splat_fit import SplatFitConfig
from ..geometry.posed import PosedImages
from .image_to_geometry import ImageToDepth, ImageToNormals
from .images_to_splats import ImagesToSplats, ImagesToSplatsOutput


def depth(image: str | Path | Any, prior: str = "toybox", device: str = "cpu", **options: Any) -> Any:
    """Depth of a picture (a path, or whatever ImageToDepth takes); options go to the pipeline's call."""
    return _head(ImageToDepth, prior, device)(image, **options)


def normals(image: str | Path | Any, prior: str = "toybox", device: str = "cpu", **options: Any) -> Any:
    """Surface normals of a picture (a path, or whatever ImageToNormals takes); options go to the pipeline's call."""
    return _head(ImageToNormals, prior, device)(image, **options)


def fit_splats(
    pictures: PosedImages | str | Path,
    recipe: SplatFitConfig | str | Path = "default",
    device: str = "cpu",
    **options: Any,
) -> ImagesToSplatsOutput:
    """Splats of posed pictures (whatever ImagesToSplats takes); options go to the pipeline's call."""
    return ImagesToSplats(recipe, device)(pictures, **options)


@functools.lru_cache(maxsize=2)
def _head(kind: type[ImageToDepth] | type[ImageToNormals], prior: str, device: str) -> Any:
    return kind.from_pretrained(prior, device=device, dtype=torch.float32)
