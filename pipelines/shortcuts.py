"""One-line use: `unproject.text_to_image("a red chair")`, `unproject.text_to_mesh("a red chair")` and
`unproject.depth("photo.jpg")`, whose loaded networks are kept; `unproject.fit_splats("capture")`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from ..generate.splat_fit import SplatFitConfig
from ..geometry.posed import PosedImages
from ..utils.files import check_named, views_come_with
from .direct25_mesh import Direct25TextToMesh
from .image_to_geometry import ImageToDepth, ImageToNormals
from .images_to_splats import ImagesToSplats, ImagesToSplatsOutput
from .prompts import check_prompt
from .text_to_image import TextToImage
from .text_to_mesh import MadeMesh, TextToMesh


def depth(image: str | Path | Any, prior: str = "toybox", device: str = "cpu", **options: Any) -> Any:
    """Depth of a picture (a path, or whatever ImageToDepth takes); options go to the pipeline's call."""
    return _head(ImageToDepth, _named(prior), device)(image, **options)


def normals(image: str | Path | Any, prior: str = "toybox", device: str = "cpu", **options: Any) -> Any:
    """Surface normals of a picture (a path, or whatever ImageToNormals takes); options go to the pipeline's call."""
    return _head(ImageToNormals, _named(prior), device)(image, **options)


def fit_splats(
    pictures: PosedImages | str | Path,
    recipe: SplatFitConfig | str | Path = "default",
    device: str = "cpu",
    **options: Any,
) -> ImagesToSplatsOutput:
    """Splats of posed pictures (whatever ImagesToSplats takes); options go to the pipeline's call."""
    return ImagesToSplats(recipe, device)(pictures, **options)


def text_to_image(prompt: str | list[str], prior: str = "toybox", device: str = "cpu", **options: Any) -> Any:
    """Pictures of what a prompt, or each of several, says (`TextToImageOutput`); options go to the pipeline's call."""
    for one in [prompt] if isinstance(prompt, str) or not prompt else prompt:
        check_prompt(one)
    return _painter(_named(prior), device)(prompt, **options)


def text_to_mesh(prompt: str, prior: str = "toybox", device: str = "cpu", **options: Any) -> MadeMesh:
    """A textured mesh of what a prompt says, by `mesh_maker`; options go to the pipeline's call."""
    check_prompt(prompt)
    made: MadeMesh = _maker(_named(prior), device)(prompt, **options)
    return made


def mesh_maker(prior: str | Path, device: str = "cpu", **options: Any) -> Any:
    """The pipeline that `unproject text-to-mesh` takes for a prior, with options of its loading: drawn normal maps
    where what paints them comes with the prior, else score distillation."""
    kind = Direct25TextToMesh if views_come_with(prior, "direct25") else TextToMesh
    return kind.from_pretrained(prior, device=device, **options)


def _named(prior: str | Path) -> str | Path:
    """A prior by name. Raises InputError for a list of them and all else, which cannot be remembered."""
    check_named(prior, "prior", "give the name or folder of one, such as 'toybox'")
    return prior


@functools.lru_cache(maxsize=1)
def _painter(prior: str | Path, device: str) -> TextToImage:
    return TextToImage.from_pretrained(prior, device=device)


@functools.lru_cache(maxsize=1)
def _maker(prior: str | Path, device: str) -> Any:
    return mesh_maker(prior, device)


@functools.lru_cache(maxsize=2)
def _head(kind: type[ImageToDepth] | type[ImageToNormals], prior: str | Path, device: str) -> Any:
    return kind.from_pretrained(prior, device=device, dtype=torch.float32)
