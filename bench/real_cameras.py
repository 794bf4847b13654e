"""Real photographs whose cameras are known, read from the folder of real_depth.py; nothing where it is absent."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pipelines.photo_exif import read_exif
from ..utils.decoding import image_size
from ..utils.files import read_json
from ..utils.pictures import load_image
from .real_depth import real_root

CHESSBOARDS = ("left01", "left03", "left05", "left07", "right01", "right03", "right05", "right07")


@dataclass(frozen=True)
class KnownPhoto:
    """A photograph and the focal length that somebody measured, or its camera told."""

    name: str
    truth: str  # "calibrated", "structure from motion" or "EXIF"
    path: Path
    focal_px: float

    def image(self) -> np.ndarray:
        """(H, W, 3) in [0, 1]."""
        return load_image(self.path)

    @property
    def fov_y_deg(self) -> float:
        """Vertical field of view."""
        return self._fov(self.focal_px)

    @property
    def exif_fov_deg(self) -> float | None:
        """What its EXIF says, where that is not the truth itself."""
        focal = None if self.truth == "EXIF" else read_exif(self.path).focal_px(*image_size(self.path))
        return None if focal is None else self._fov(focal)

    def _fov(self, focal_px: float) -> float:
        return math.degrees(2 * math.atan(image_size(self.path)[1] / (2 * focal_px)))


def real_cameras(root: Path | None = None) -> Iterator[KnownPhoto]:
    """The photographs whose files are there."""
    folder = (root or real_root()) / "calibration"
    published = folder / "chessboard" / "intrinsics.yml"
    if published.is_file():
        focal = float(re.findall(r"data: \[ ([-+.\de]+)", published.read_text(encoding="utf-8"))[0])
        for name in CHESSBOARDS:
            path = folder / "chessboard" / f"{name}.jpg"
            if path.is_file():
                yield KnownPhoto(f"chessboard/{name}", "calibrated", path, focal)
    berlin = folder / "iphone4s_berlin"
    if (berlin / "reconstruction.json").is_file():
        (camera,) = read_json(berlin / "reconstruction.json")[0]["cameras"].values()
        sides = (camera["width"], camera["height"])
        yield KnownPhoto("iphone4s_berlin", "structure from motion", berlin / "01.jpg", camera["focal"] * max(sides))
    for path in sorted([*(folder / "nikon_p6000").glob("*.jpg"), *(folder / "exif").glob("*.jpg")]):
        told = read_exif(path).focal_px(*image_size(path))
        if told is not None:
            yield KnownPhoto(f"{path.parent.name}/{path.stem}", "EXIF", path, told)
