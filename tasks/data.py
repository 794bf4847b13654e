"""Training batches of images with exact maps, by default depth and normals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ..geometry.camera_image import pixel_tangents
from ..utils.errors import InputError
from .codecs import Column, DepthCodec, NormalCodec


class GeometryPictures(Protocol):
    """Images (n, H, W, 3) uint8 with columns, e.g. depth_m (n, H, W) and normal (n, H, W, 3) int8, OpenCV, x 127."""

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray) -> np.ndarray: ...

    def column(self, name: str, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training image."""

    crop: int = 0
    """px of a random square window; 0 = the whole image"""
    zoom: float = 1.0
    """smallest share of the image's sides that a centred window keeps, enlarged to the image again: a longer lens"""
    off_centre: bool = False
    """windows that `zoom` and `shapes` cut lie anywhere, not around the centre: for targets that hold for a part of a
    photograph, as rays do and normals in camera axes do not"""
    shapes: tuple[tuple[int, int], ...] = ()
    """(width, height) px; each batch is given one of them: the largest centred window of that shape, at that size"""
    plain: tuple[int, int] | None = None
    """(width, height) px of images without augmentation, those of validation; None: as they are"""
    flip: bool = True
    texture: float = 0.0
    """largest standard deviation, in log units, of a coloured pattern of coarse to fine noise painted over the image"""
    grey: float = 0.0
    """share of images that lose their colour"""
    gain: float = 0.3
    """spread of brightness and of each colour channel, in log units"""
    contrast: float = 0.3
    noise: float = 0.02
    """largest standard deviation of grain"""

    def __post_init__(self) -> None:
        if not 0 < self.zoom <= 1:
            raise InputError(f"zoom={self.zoom} must lie in (0, 1], 1 = none")
        if any(min(shape) < 8 for shape in self.shapes):
            raise InputError(f"shapes={self.shapes} must be pairs (width, height) of at least 8 px")
        if not 0 <= self.grey <= 1 or self.texture < 0:
            raise InputError(f"grey={self.grey} must lie in [0, 1] and texture={self.texture} be at least 0")


class GeometryData:
    """Batches of rendered sets: "images" uint8 (B, H, W, 3) and float32 columns under their names in a batch.

    By default "depth_m" (B, H, W) and "normals" (B, H, W, 3). Depth is 0 and normals are zero where nothing is seen;
    normals are in OpenCV camera axes.
    """

    def __init__(
        self,
        sets: Sequence[GeometryPictures],
        augment: AugmentConfig = AugmentConfig(),
        columns: Sequence[Column] = (DepthCodec.column, NormalCodec.column),
    ) -> None:
        if not sets:
            raise InputError("give at least one rendered set")
        self.sets, self.augment, self.columns = list(sets), augment, tuple(columns)
        self._ends = np.cumsum([len(part) for part in self.sets])
        self.identity = {"lengths": [len(part) for part in self.sets]}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """The images at `indices`, augmented with `rng`, or cropped to the middle and plain without."""
        shapes = self.augment.shapes
        shape = shapes[int(rng.integers(len(shapes)))] if rng is not None and shapes else None
        rows = [self._row(int(i), rng, shape) for i in indices]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, index: int, rng: np.random.Generator | None, shape: tuple[int, int] | None) -> dict[str, np.ndarray]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        part, inner = self.sets[which], np.array([index - (int(self._ends[which - 1]) if which else 0)])
        image = part.images(inner)[0]
        window = self._window(image.shape[:2], rng)
        image = image[window]
        maps = [part.column(c.stored, inner)[0].astype(np.float32)[window] / np.float32(c.scale) for c in self.columns]
        if rng is None and self.augment.plain is not None:
            image, maps = zoomed(image, maps, 1.0, self.augment.plain, smooth=[c.smooth for c in self.columns])
        if rng is not None:
            share = float(rng.uniform(self.augment.zoom, 1)) if self.augment.zoom < 1 else 1.0
            if share < 1 or shape is not None:
                at = rng.uniform(0, 1, 2) if self.augment.off_centre else np.full(2, 0.5)
                image, maps = zoomed(image, maps, share, shape, at, [c.smooth for c in self.columns])
            if self.augment.flip and rng.random() < 0.5:
                image = image[:, ::-1]
                maps = [
                    one[:, ::-1] * np.array(c.mirror, np.float32) for one, c in zip(maps, self.columns, strict=True)
                ]
            image = self._recoloured(image, rng)
        return {"images": image, **{c.batch: one for c, one in zip(self.columns, maps, strict=True)}}

    def _window(self, size: tuple[int, int], rng: np.random.Generator | None) -> tuple[slice, slice]:
        side = self.augment.crop or min(size)
        if side > min(size):
            raise InputError(f"crop={side} is larger than the images of {size[1]} x {size[0]} px")
        spare = [length - side for length in size]
        start = [length // 2 if rng is None else int(rng.integers(length + 1)) for length in spare]
        return slice(start[0], start[0] + side), slice(start[1], start[1] + side)

    def _recoloured(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Gain, tint, contrast and grain, drawn once an image; uint8."""
        config = self.augment
        gain = np.exp(config.gain * (0.5 * rng.normal() + 0.25 * rng.normal(size=3)))
        values = image.astype(np.float32) / 255 * gain.astype(np.float32)
        if config.texture > 0:
            values = values * np.exp(rng.uniform(0, config.texture) * noise_pattern(image.shape, rng))
        if config.grey > 0 and rng.random() < config.grey:
            values = np.broadcast_to(values.mean(-1, keepdims=True), image.shape)
        middle = values.mean()
        values = middle + (values - middle) * np.float32(np.exp(config.contrast * rng.normal()))
        if config.noise > 0:
            values = values + np.float32(rng.uniform(0, config.noise)) * rng.normal(size=image.shape).astype(np.float32)
        return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def zoomed(
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    share: float,
    size: tuple[int, int] | None = None,
    at: Sequence[float] | np.ndarray = (0.5, 0.5),
    smooth: Sequence[bool] = (),
) -> tuple[np.ndarray, list[np.ndarray]]:
    """`share` of the largest window of the shape of `size` (width, height; None: the image's), at that size.

    Maps come from the nearest pixel, those that are `smooth` linearly from four, which is exact for rays. A window
    around the centre is what a longer lens sees, so normals in camera axes keep their meaning.

    at: where the window lies between left and right, top and bottom; a half: around the centre.
    """
    height, width = image.shape[:2]
    to = np.array(size or (width, height))
    window = np.minimum(share * min(width / to[0], height / to[1]) * to, (width, height))  # rounding may exceed them
    left, top = (np.array([width, height]) - window) * at
    picture = Image.fromarray(image).resize(
        (int(to[0]), int(to[1])), Image.Resampling.BICUBIC, box=(left, top, left + window[0], top + window[1])
    )
    places = [
        n / 2 + (place - 0.5) * (n - part) + part / count * (np.arange(count) + 0.5 - count / 2)
        for n, part, count, place in zip((width, height), window, to, at, strict=True)
    ]
    nearest = np.ix_(*(np.floor(place).astype(int) for place in places[::-1]))
    kinds = smooth or [False] * len(maps)
    return np.asarray(picture), [
        _between(one, places) if linear else one[nearest] for one, linear in zip(maps, kinds, strict=True)
    ]


def _between(values: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    """Values (H, W, ...) at places (x, y) in pixels, linear between the centres and beyond the outermost."""
    for axis, place in zip((1, 0), places, strict=True):
        at = place - 0.5
        first = np.clip(np.floor(at).astype(int), 0, values.shape[axis] - 2)
        share = (at - first).astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1 - axis))
        values = values.take(first, axis) * (1 - share) + values.take(first + 1, axis) * share
    return values


class CameraColumns:
    """Rendered views with what their cameras K (n, 3, 3) and c2w (n, 4, 4) say of each pixel.

    "rays": tangents (n, H, W, 2); "gravity": the direction of falling in camera axes (n, H, W, 3), x 127.
    """

    def __init__(self, views: GeometryPictures) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3)."""
        return self.views.images(indices)

    def column(self, name: str, indices: np.ndarray) -> np.ndarray:
        """A column of the views, or one that is made of their cameras."""
        made = {"rays": self._rays, "gravity": self._gravity}.get(name)
        return self.views.column(name, indices) if made is None else made(indices)

    def _rays(self, indices: np.ndarray) -> np.ndarray:
        height, width = self.images(indices).shape[1:3]
        K = torch.from_numpy(self.views.column("K", indices)).double()
        return pixel_tangents(K, width, height).permute(0, 2, 3, 1).numpy()

    def _gravity(self, indices: np.ndarray) -> np.ndarray:
        down = -self.views.column("c2w", indices)[:, 2, :3].astype(np.float32)  # R^T (0, 0, -1)
        shape = self.images(indices).shape[:3]
        return np.broadcast_to(127 * down[:, None, None], (*shape, 3))


def noise_pattern(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise (H, W, 3) of mean 0 and standard deviation 1: octaves from 2 cells to single pixels, randomly weighted."""
    height, width = shape[:2]
    octaves = [2**k for k in range(1, 12) if 2**k < 2 * min(height, width)]
    pattern = np.zeros((height, width, 3), np.float32)
    for cells, weight in zip(octaves, rng.exponential(size=len(octaves)), strict=True):
        shared = rng.normal(size=(cells, cells))
        for channel in range(3):
            values = (shared + 0.5 * rng.normal(size=(cells, cells))).astype(np.float32)
            layer = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
            pattern[..., channel] += np.float32(weight) * np.asarray(layer)
    pattern -= pattern.mean()
    return pattern / pattern.std()
