"""How maps are written: numbers in several formats, 16-bit levels, pictures with legends, a band of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from ..utils.bands import Bands, Compression, bands, write_exr, write_npy, write_npz, write_png, write_tiff
from ..utils.errors import InputError
from ..utils.pictures import Picture, colourise, to_rgb8, usual_range
from .formats import PREVIEW, USUAL, map_formats

SPREAD_COLOURS = "viridis"
PREVIEW_SIDE = 640  # px, longer side of a picture on a preview
GAP = 4  # px between pictures of a preview


class WritesFiles(Protocol):
    """What files need to know of a codec."""

    name: ClassVar[str]
    channels: ClassVar[int]
    colormap: ClassVar[str]

    def facts(self) -> dict[str, Any]:
        """Entries of the NPZ beside the map."""
        ...

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Rows of the map (h, W, C) as 16-bit levels."""
        ...

    def picture(self, values: np.ndarray, colormap: str = "") -> Picture:
        """Rows of the map (h, W, C) for people."""
        ...

    def legend(self, height: int, colormap: str = "") -> Picture | None:
        """What the colours mean, (height, w, 3); None where there is nothing to tell."""
        ...


@dataclass(frozen=True)
class Saving:
    """How maps are written."""

    formats: tuple[str, ...] = USUAL
    """npz, npy, exr, tiff, png"""
    compression: Compression = "fast"
    colormap: str = ""
    """of matplotlib, for targets without colours of their own; empty: the target's"""
    legend: bool = False
    """beside the picture, what its colours mean"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", map_formats(self.formats))

    def check(self, codec: WritesFiles) -> None:
        """Raises InputError for a colour map that does not exist or would change nothing, and for no legend."""
        check_colormap(self.colormap)
        if self.colormap and not codec.colormap:
            raise InputError(f"colormap={self.colormap!r}: the colours of {codec.name} have a meaning; leave it out")
        if self.legend and codec.legend(8) is None:
            raise InputError(f"there is no legend for {codec.name}; leave it out")


def check_colormap(name: str, argument: str = "colormap") -> None:
    """Raises InputError for a name that matplotlib does not know."""
    import difflib

    import matplotlib

    known = list(matplotlib.colormaps)
    if name and name not in known:
        near = difflib.get_close_matches(name, known, n=3) or ["Spectral", "viridis", "magma", "turbo", "gray"]
        raise InputError(f"{argument} {name!r} is unknown; there are {', '.join(near)} and the others of matplotlib")


@dataclass(frozen=True)
class OneMap:
    """The map of one image."""

    codec: WritesFiles
    values: np.ndarray  # (H, W, C) float32
    spread: np.ndarray | None  # (H, W)
    seen: np.ndarray | None  # (H, W) bool; None: everywhere
    confidence: np.ndarray | None = None  # (H, W), the probability of an error below the tolerance
    tolerance: float | None = None

    def save(self, base: Path, how: Saving) -> list[Path]:
        """Writes its files, of each format the one last that tells that it is done; BASE may hold dots."""
        how.check(self.codec)
        written: list[Path] = []
        for kind in how.formats:
            if kind == "npz":
                written.append(self._save_npz(base, how))
            elif kind == "png":
                written += self._save_pictures(base, how)
            else:
                written += self._save_numbers(base, kind, how)
        return written

    def picture(self, how: Saving, rows: slice | None = None, legend: Picture | None = None) -> Picture:
        """For people: white where nothing is seen, the legend on the right."""
        part = self.codec.picture(self._rows(self.values, rows), how.colormap)
        if self.seen is not None:
            part = np.where(self._rows(self.seen, rows)[..., None], to_rgb8(part), np.uint8(255))
        return part if legend is None else np.concatenate([to_rgb8(part), self._rows(legend, rows)], axis=1)

    def preview(self, image: np.ndarray, base: Path, how: Saving) -> Path:
        """Writes BASE-preview.png: the picture (H, W, 3), sRGB in [0, 1], beside the map, both scaled down."""
        values, seen = _thinned(self.values), None if self.seen is None else _thinned(self.seen)
        shown = _scaled(OneMap(self.codec, values, None, seen).picture(how))
        photo = _scaled(to_rgb8(_thinned(image)), shown.shape[1::-1])
        white = np.full((len(photo), GAP, 3), 255, np.uint8)
        legend = self.codec.legend(len(photo), how.colormap) if how.legend else None
        panels = [photo, white, shown, *([] if legend is None else [legend])]
        return write_png(_ending(base, PREVIEW), [np.concatenate(panels, axis=1)], len(photo))

    def _save_npz(self, base: Path, how: Saving) -> Path:
        codec = self.codec
        arrays = {
            codec.name: self._numbers(),
            "uncertainty": self.spread,
            "valid": self.seen,
            "confidence": self.confidence,
        }
        facts = {name: np.array(value) for name, value in codec.facts().items()}
        if self.tolerance is not None:
            facts["tolerance"] = np.array(self.tolerance)
        return write_npz(_ending(base, ".npz"), {**arrays, **facts}, how.compression)

    def _save_numbers(self, base: Path, kind: str, how: Saving) -> list[Path]:
        """Float formats hold nan where nothing is seen; facts stand in the file where it can hold them."""
        facts, written = self.codec.facts(), []
        maps = (("-uncertainty", self.spread), ("-confidence", self.confidence), ("", self._numbers()))
        for ending, values in maps:
            if values is None:
                continue
            path, parts = _ending(base, f"{ending}.{kind}"), self._masked(values)
            if kind == "npy":
                written.append(write_npy(path, parts, values.shape))
            else:
                write = write_exr if kind == "exr" else write_tiff
                written.append(write(path, parts, values.shape, facts, how.compression))
        return written

    def _save_pictures(self, base: Path, how: Saving) -> list[Path]:
        height = len(self.values)
        legend = self.codec.legend(height, how.colormap) if how.legend else None
        made: list[tuple[str, Callable[[slice], np.ndarray]]] = [("-16bit.png", self._levels)]
        if self.spread is not None:
            low, high = usual_range(self.spread, self.seen)
            made.append(("-uncertainty.png", lambda rows: self._shades(self.spread, rows, low, high)))
        if self.confidence is not None:
            made.append(("-confidence.png", lambda rows: self._shades(self.confidence, rows, 0.0, 1.0)))
        made.append((".png", lambda rows: self.picture(how, rows, legend)))
        return [
            write_png(_ending(base, ending), (draw(rows) for rows in self._bands()), height, how.compression)
            for ending, draw in made
        ]

    def _levels(self, rows: slice) -> np.ndarray:
        levels = np.rint(self.codec.levels(self.values[rows]) * 65535).astype(np.uint16)
        if self.seen is None:
            return levels
        seen = self.seen[rows]
        return np.where(seen if levels.ndim == 2 else seen[..., None], levels, np.uint16(0))

    def _shades(self, values: np.ndarray | None, rows: slice, low: float, high: float) -> Picture:
        assert values is not None
        mask = None if self.seen is None else self.seen[rows]
        return colourise(values[rows], SPREAD_COLOURS, mask, low, high)

    def _numbers(self) -> np.ndarray:
        return self.values[..., 0] if self.codec.channels == 1 else self.values

    def _masked(self, values: np.ndarray) -> Bands:
        for rows in self._bands():
            if self.seen is None:
                yield values[rows]
            else:
                seen = self.seen[rows]
                yield np.where(seen if values.ndim == 2 else seen[..., None], values[rows], np.float32(np.nan))

    def _bands(self) -> Iterator[slice]:
        return bands(*self.values.shape[:2])

    def _rows(self, values: np.ndarray, rows: slice | None) -> np.ndarray:
        return values if rows is None else values[rows]


def _thinned(values: np.ndarray) -> np.ndarray:
    """Every so many rows and columns, four times as many as a preview shows at least."""
    step = max(1, max(values.shape[:2]) // (4 * PREVIEW_SIDE))
    return values[::step, ::step]


def _scaled(picture: Picture, size: tuple[int, int] | None = None) -> Picture:
    """At a size (W, H), or with its longer side at that of a preview, where it is larger."""
    height, width = picture.shape[:2]
    scale = min(1.0, PREVIEW_SIDE / max(height, width))
    size = size or (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _ending(base: Path, ending: str) -> Path:
    """BASE plus an ending; BASE may hold dots."""
    return base.with_name(base.name + ending)
