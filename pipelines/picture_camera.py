"""The camera of a picture from whatever tells it: a file, an angle, EXIF, a head, or what is usual."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..geometry.cameras import Camera, upright_pose
from ..geometry.lenses import check_numbers
from ..utils.errors import InputError
from ..utils.files import read_json
from .picture_inputs import DEFAULT_FOV_DEG, exif_focal_px, photo_camera

if TYPE_CHECKING:
    from .image_to_camera import ImageToCamera


class PictureCamera(NamedTuple):
    """A camera at the origin of our world, looking along -x."""

    camera: Camera  # of one picture
    source: str  # where its focal length comes from
    gravity: np.ndarray | None  # (3,) in camera axes, where it is known; the camera then stands by it


def picture_camera(
    picture: np.ndarray,
    photo: str | Path,
    *,
    fov_deg: float | None = None,
    K: str | Path | None = None,
    undistorted: bool = False,
    device: torch.device | str | None = None,
    valid: np.ndarray | None = None,
    seed: int | None = None,
) -> PictureCamera:
    """K if given, else fov_deg, else the EXIF of the photo, else what a camera head sees, else 55 degrees.

    Args:
        picture: (H, W, 3) in [0, 1].
        photo: its file.
        fov_deg: field of view of the longer side.
        K: JSON file as `intrinsics.read_lens` takes it; "gravity" in it turns the camera upright.
        undistorted: the distortion in K was taken out of the picture.
        device: where a camera head may look; None: it is not asked.
        valid: (H, W) bool of what the picture shows, for it.
        seed: for it.
    """
    height, width, _ = picture.shape
    camera = photo_camera(width, height, fov_deg=fov_deg, K=K, photo=photo, undistorted=undistorted)
    if K is not None:
        gravity = read_gravity(K)
        stands = camera if gravity is None else replace(camera, c2w=upright_pose(gravity)[None])
        return PictureCamera(stands, f"--K {K}", gravity)
    if fov_deg is not None:
        return PictureCamera(camera, f"--fov {fov_deg:g}", None)
    if exif_focal_px(photo, width, height) is not None:
        return PictureCamera(camera, "EXIF of the photo", None)
    calibrate = None if device is None else own_calibration(str(device))
    if calibrate is None:
        return PictureCamera(camera, f"{DEFAULT_FOV_DEG:g} degrees, a usual lens", None)
    made = calibrate(picture, valid=valid, seed=seed)
    gravity = None if made.gravity is None else made.gravity[0]
    return PictureCamera(made.camera(), made.cameras[0].source, gravity)


def read_gravity(path: str | Path) -> np.ndarray | None:
    """(3,) direction of falling in camera axes in a camera file, None where it does not say. Raises InputError for what
    is no direction."""
    found = read_json(path)
    told = found.get("gravity") if isinstance(found, dict) else None
    if told is None:
        return None
    check_numbers({"gravity": told}, path)
    try:
        gravity = np.asarray(told, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: gravity {str(told)[:60]} is no direction of three numbers") from error
    if gravity.shape != (3,) or not np.isfinite(gravity).all() or np.linalg.norm(gravity) < 1e-6:
        raise InputError(f"{path}: gravity {str(told)[:60]} is no direction of three numbers")
    return gravity / np.linalg.norm(gravity)


@functools.lru_cache(maxsize=1)
def own_calibration(device: str) -> ImageToCamera | None:
    """The embedded camera head, which is kept; None where its weights are not there."""
    from .image_to_camera import ImageToCamera

    try:
        return ImageToCamera.from_pretrained("toybox", device=device)
    except InputError:
        return None
