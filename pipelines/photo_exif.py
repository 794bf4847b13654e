"""What a photo's EXIF says of its lens and sensor: focal lengths in mm and px, and the size of a pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..geometry.lenses import check_field
from ..utils.errors import InputError

EXIF_IFD = 0x8769
FOCAL_MM, FOCAL_35MM, PLANE_RESOLUTION, PLANE_UNIT = 0x920A, 0xA405, 0xA20E, 0xA210
WIDTH_PX, HEIGHT_PX = 0xA002, 0xA003
UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # of the focal plane's resolution: inch, cm, mm, um
FILM_DIAGONAL_MM = math.hypot(36, 24)
SAME_SHAPE = 0.02  # relative difference of aspect ratios that rounding may cause


@dataclass(frozen=True)
class LensFacts:
    """Of a photo; None where its file does not say."""

    focal_mm: float | None = None
    focal_35mm: float | None = None
    """mm: of a film camera (36 x 24 mm) with the same diagonal angle"""
    px_per_mm: float | None = None
    """of the picture as the camera wrote it, along its longer side"""
    size: tuple[int, int] | None = None
    """px of the picture as the camera wrote it, before any turn"""

    def focal_px(self, width: int, height: int) -> float | None:
        """Focal length in px of the picture at this size; None where it was cropped since, so that nobody knows, and
        where what the file says is no camera's.

        By the sensor's resolution where the file tells it, else by the 35-mm equivalent, which is rounded to whole mm.
        """
        if self.cropped(width, height):
            return None
        if self.focal_mm is not None and self.px_per_mm is not None and self.size is not None:
            return _possible(self.focal_mm * self.px_per_mm * max(width, height) / max(self.size), width, height)
        if self.focal_35mm is not None:
            return _possible(self.focal_35mm / FILM_DIAGONAL_MM * math.hypot(width, height), width, height)
        return None

    def mm_per_px(self, width: int, height: int) -> float | None:
        """Side of a pixel on the sensor at this size of the picture."""
        focal_px = self.focal_px(width, height)
        return None if focal_px is None or self.focal_mm is None else self.focal_mm / focal_px

    def sensor_mm(self, width: int, height: int) -> tuple[float, float] | None:
        """Width and height of the part of the sensor that the picture of this size shows."""
        pixel = self.mm_per_px(width, height)
        return None if pixel is None else (pixel * width, pixel * height)

    def cropped(self, width: int, height: int) -> bool:
        """Whether the picture has another shape than the one that the camera wrote."""
        if self.size is None:
            return False
        now, then = (max(pair) / min(pair) for pair in ((width, height), self.size))
        return abs(now / then - 1) > SAME_SHAPE


def read_exif(path: str | Path) -> LensFacts:
    """The facts in a photo's file; of other files none."""
    try:
        with Image.open(path) as image:
            told: Mapping[int, Any] = image.getexif().get_ifd(EXIF_IFD)
    except (OSError, ValueError, SyntaxError):
        return LensFacts()
    unit = UNIT_MM.get(int(_number(told, PLANE_UNIT) or 2), 25.4)
    resolution = _number(told, PLANE_RESOLUTION)
    sides = [_number(told, tag) for tag in (WIDTH_PX, HEIGHT_PX)]
    size = None if sides[0] is None or sides[1] is None else (int(sides[0]), int(sides[1]))
    return LensFacts(
        _number(told, FOCAL_MM, 0.5, 5000),
        _number(told, FOCAL_35MM, 5, 2000),
        None if resolution is None else resolution / unit,
        None if size is None or min(size) < 1 else size,
    )


def _possible(focal_px: float, width: int, height: int) -> float | None:
    """A focal length of a camera that sees such a picture; None for another."""
    try:
        check_field((focal_px,), (width, height), "EXIF")
    except InputError:
        return None
    return focal_px


def _number(told: Mapping[int, Any], tag: int, low: float = 1e-9, high: float = math.inf) -> float | None:
    """A finite number in a range; None for anything else that a file may hold."""
    try:
        value = float(told[tag])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) and low <= value <= high else None
