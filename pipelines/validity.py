"""Where a picture shows something: not behind transparency, not in the black bars beside a film or a scan."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..utils.decoding import Layers, has_transparency, layers_of, read_layers
from ..utils.errors import InputError
from .picture_inputs import PictureLike

BLACK = 4 / 255  # what compression leaves of black
LEAST_BAR = 0.01  # of a side; thinner dark edges belong to the picture


def seen_pixels(image: PictureLike | Sequence[PictureLike], images: Tensor, valid: Any = None) -> Tensor:
    """(N, 1, H, W) bool for a pipeline's input and its pictures (N, 3, H, W) in [0, 1].

    valid: (H, W) or (N, H, W) to use instead. Warns of a picture that is of one colour. Raises InputError for other
    shapes and for a picture that shows nothing.
    """
    if valid is None:
        seen = covered(image, images) & ~black_bars(images)
    else:
        mask = torch.as_tensor(np.asarray(valid)).to(images.device).bool()
        height, width = images.shape[2:]
        if mask.shape not in ((height, width), (len(images), height, width)):
            raise InputError(f"valid has shape {tuple(mask.shape)}, expected ({height}, {width}) as the picture")
        seen = mask.reshape(-1, 1, height, width).expand(len(images), -1, -1, -1)
    if not bool(seen.flatten(1).any(dim=1).all()):
        raise InputError("the picture shows nothing: it is transparent everywhere, or black where it is not")
    if valid is None and bool(one_coloured(images).any()):
        named = image if isinstance(image, (str, Path)) else "a picture"
        dark = bool((images.amax(dim=(1, 2, 3)) <= BLACK).any())
        shade = "black everywhere, which is no border" if dark else "of one colour everywhere"
        warnings.warn(f"{named} is {shade}: what is estimated of it means nothing", UserWarning, stacklevel=3)
    return seen


def telling_pixels(seen: Tensor, images: Tensor) -> Tensor:
    """(N, 1, H, W) bool: where pictures (N, 3, H, W) show something (`seen_pixels`) that a map can tell of; nowhere in
    one that is of one colour, whatever a network answers to it."""
    return seen & ~one_coloured(images)[:, None, None, None]


def one_coloured(images: Tensor) -> Tensor:
    """(N,) bool: no channel of a picture (N, 3, H, W) in [0, 1] differs by more than what compression leaves."""
    return (images.amax(dim=(2, 3)) - images.amin(dim=(2, 3))).amax(dim=1) <= BLACK


def file_valid(path: Path, picture: np.ndarray) -> np.ndarray:
    """(H, W) bool of a picture (H, W, 3) that was read from a file. Raises InputError, with its name, for one that
    shows nothing."""
    images = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    try:
        return np.asarray(seen_pixels(path, images)[0, 0].numpy())
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def check_shows(path: Path, picture: np.ndarray | None = None) -> None:
    """Raises InputError, with its name, for a file that shows nothing; only one with transparency can, others are not
    read. picture: (H, W, 3) where it was read already."""
    if has_transparency(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the work tells them
            file_valid(path, read_layers(path).over_white() if picture is None else picture)


def covered(image: PictureLike | Sequence[PictureLike], images: Tensor) -> Tensor:
    """(N, 1, H, W) bool: alpha of at least a half, where files and PIL images have one."""
    shape = (len(images), 1, *images.shape[2:])
    if isinstance(image, (list, tuple)) and any(isinstance(one, (str, Path, Image.Image)) for one in image):
        parts, at = [], 0
        for one in image:
            count = 1 if isinstance(one, (str, Path, Image.Image)) else _count(one)
            parts.append(covered(one, images[at : at + count]))
            at += count
        return torch.cat(parts)
    layers: Layers | None = None
    if isinstance(image, (str, Path)) and has_transparency(image):
        layers = read_layers(image)
    elif isinstance(image, Image.Image):
        layers = layers_of(image, "the PIL image")
    if layers is None or layers.alpha is None:
        return torch.ones(shape, dtype=torch.bool, device=images.device)
    return torch.from_numpy(np.ascontiguousarray(layers.alpha >= 0.5)).to(images.device).reshape(shape)


def black_bars(images: Tensor) -> Tensor:
    """(N, 1, H, W) bool: rows and columns along the edges that are black from end to end, where others are not."""
    dark = images.amax(dim=1) <= BLACK  # (N, H, W)
    bars = torch.zeros_like(dark)
    for axis in (1, 2):
        lines = dark.all(dim=3 - axis).long()  # (N, side)
        before, after = lines.cumprod(1), lines.flip(1).cumprod(1).flip(1)
        least = max(1, round(LEAST_BAR * lines.shape[1]))
        for run in (before, after):
            wide = (run.sum(dim=1, keepdim=True) >= least) & (run.sum(dim=1, keepdim=True) < lines.shape[1])
            bars |= (run.bool() & wide).unsqueeze(3 - axis)
    return bars[:, None]


def at_map_size(seen: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, H, W) bool at another size: a pixel is seen where its centre is."""
    return seen if seen.shape[2:] == size else F.interpolate(seen.float(), size, mode="nearest-exact") > 0.5


def _count(one: PictureLike) -> int:
    return one.shape[0] if isinstance(one, (np.ndarray, Tensor)) and one.ndim == 4 else 1
