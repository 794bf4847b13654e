"""Cameras that were estimated, read or assumed, and how sure that is; as JSON that every `--K` reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

from ..geometry.cameras import Camera, upright_pose
from ..geometry.lenses import check_field
from ..utils.files import write_json
from .photo_exif import LensFacts

NOT_KNOWN = float("nan")
NO_FACTS = LensFacts()


@dataclass(frozen=True)
class SeenCamera:
    """One picture's camera."""

    K: np.ndarray  # (3, 3) float64, px, pixel centres at +0.5
    source: str  # where it comes from
    sd: np.ndarray = field(default_factory=lambda: np.full(4, NOT_KNOWN))  # of fx, fy, cx, cy
    inlier_share: float = NOT_KNOWN  # of the pixels
    saturated: float = NOT_KNOWN  # share of rays beyond what the head's picture can hold
    residual_px: float = NOT_KNOWN
    gravity: np.ndarray | None = None  # (3,) unit, the direction of falling in camera axes
    confidence: float = NOT_KNOWN  # probability that the field of view is right to `tolerance_deg`
    tolerance_deg: float = NOT_KNOWN
    fov_within_deg: float = NOT_KNOWN  # error of the vertical field of view that 90 % do not exceed


@dataclass
class CameraOutput(BaseOutput):
    """Cameras of N pictures of one size."""

    cameras: list[SeenCamera]
    width: int = 0
    height: int = 0
    nfe: int = 0
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def K(self) -> np.ndarray:  # noqa: N802
        """float64 (N, 3, 3), px, pixel centres at +0.5."""
        return np.stack([one.K for one in self.cameras])

    @property
    def fov_deg(self) -> np.ndarray:
        """(N, 2) horizontal and vertical field of view, each as if its principal point were in the middle."""
        sides = np.array([self.width, self.height])
        focal: np.ndarray = self.K[:, [0, 1], [0, 1]]
        return np.asarray(np.rad2deg(2 * np.arctan(sides / (2 * focal))))

    @property
    def gravity(self) -> np.ndarray | None:
        """(N, 3) direction of falling in camera axes, None where the head predicts none."""
        found = [one.gravity for one in self.cameras]
        return None if any(one is None for one in found) else np.stack([one for one in found if one is not None])

    def camera(self, index: int = 0) -> Camera:
        """Of a picture, at the origin of our world: upright by its gravity, level without one, looking along -x."""
        one = self.cameras[index]
        K = torch.from_numpy(one.K).float()[None]
        return Camera(upright_pose(one.gravity)[None], K, self.width, self.height)

    def document(self, index: int = 0, lens: LensFacts = NO_FACTS) -> dict[str, Any]:
        """What is known of a picture's camera, as plain values; `lens`: of its EXIF, for millimetres."""
        one, (fov_x, fov_y) = self.cameras[index], self.fov_deg[index].tolist()
        pixel = lens.mm_per_px(self.width, self.height)
        focal = [float(one.K[0, 0]), float(one.K[1, 1])]
        diagonal = math.hypot(self.width / focal[0], self.height / focal[1])
        return {
            "K": one.K.tolist(),
            "width": self.width,
            "height": self.height,
            "focal_px": focal,
            "focal_mm": None if pixel is None else float(np.mean(focal)) * pixel,
            "principal_px": [float(one.K[0, 2]), float(one.K[1, 2])],
            "fov_deg": {"x": fov_x, "y": fov_y, "diagonal": math.degrees(2 * math.atan(diagonal / 2))},
            "fov_within_deg": _known(one.fov_within_deg),
            "confidence": _known(one.confidence),
            "tolerance_deg": _known(one.tolerance_deg),
            "sd_px": dict(zip(("fx", "fy", "cx", "cy"), map(_known, one.sd.tolist()))),
            "inliers": _known(one.inlier_share),
            "residual_px": _known(one.residual_px),
            "saturated": _known(one.saturated),
            "gravity": None if one.gravity is None else one.gravity.tolist(),
            **_angles(one.gravity),
            "source": one.source,
            "exif": {
                "focal_mm": lens.focal_mm,
                "focal_35mm": lens.focal_35mm,
                "focal_px": lens.focal_px(self.width, self.height),
                "sensor_mm": lens.sensor_mm(self.width, self.height),
            },
            "axes": "OpenCV: x right, y down, z forward; pixel centres at +0.5",
        }

    def save(self, path: str | Path, lenses: Sequence[LensFacts] = ()) -> list[Path]:
        """Writes PATH, of several pictures NAME-000.json and so on."""
        path, facts = Path(path), list(lenses) or [NO_FACTS] * len(self)
        names = [path] if len(self) == 1 else [path.with_stem(f"{path.stem}-{i:03d}") for i in range(len(self))]
        return [write_json(name, self.document(i, facts[i])) for i, name in enumerate(names)]


def given_camera(
    K: np.ndarray, width: int, height: int, source: str, gravity: np.ndarray | None = None
) -> CameraOutput:
    """A camera that is known rather than estimated. Raises InputError for a focal length that is no camera's."""
    check_field((float(K[0, 0]), float(K[1, 1])), (width, height), source)
    return CameraOutput([SeenCamera(np.asarray(K, np.float64), source, gravity=gravity)], width, height)


def _angles(gravity: np.ndarray | None) -> dict[str, float | None]:
    """Roll (clockwise turn of the camera) and pitch (upwards) in degrees."""
    if gravity is None:
        return {"roll_deg": None, "pitch_deg": None}
    x, y, z = gravity.tolist()
    return {
        "roll_deg": math.degrees(math.atan2(x, y)),
        "pitch_deg": math.degrees(math.atan2(-z, math.hypot(x, y))),
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
