"""One-line use: `unproject.depth("photo.jpg")`, `unproject.normals("photo.jpg")`; the loaded head is kept."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from .image_to_geometry import ImageToDepth, ImageToNormals


def depth(image: str | Path | Any, prior: str = "toybox", device: str = "cpu", **options: Any) -> Any:
    """Depth of a picture (a path, or whatever ImageToDepth takes); options go to the pipeline's call."""
    return _head(ImageToDepth, prior, device)(image, **options)


def normals(image: str | Path | Any, prior: str = "toybox", device: str = "cpu", **options: Any) -> Any:
    """Surface normals of a picture (a path, or whatever ImageToNormals takes); options go to the pipeline's call."""
    return _head(ImageToNormals, prior, device)(image, **options)


@functools.lru_cache(maxsize=2)
def _head(kind: type[ImageToDepth] | type[ImageToNormals], prior: str, device: str) -> Any:
    return kind.from_pretrained(prior, device=device, dtype=torch.float32)
