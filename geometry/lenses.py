"""Lenses of camera files as ours: which models are pinholes, fisheyes or orthographic; the rest is refused by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils.decoding import image_size
from ..utils.errors import InputError
from ..utils.files import is_there

# camera_model of transforms.json, as nerfstudio reads it
NERFSTUDIO = {
    **dict.fromkeys(("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "OPENCV", "SIMPLE_RADIAL", "RADIAL"), "pinhole"),
    "OPENCV_FISHEYE": "fisheye",
    "ORTHOPHOTO": "ortho",
}
WRITTEN = {"pinhole": "OPENCV", "fisheye": "OPENCV_FISHEYE", "ortho": "ORTHOPHOTO"}
# COLMAP: our model, how many numbers fx, fy, cx and cy are, the names of the coefficients that follow
COLMAP: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": ("pinhole", 3, ()),
    "PINHOLE": ("pinhole", 4, ()),
    "SIMPLE_RADIAL": ("pinhole", 3, ("k1",)),
    "RADIAL": ("pinhole", 3, ("k1", "k2")),
    "OPENCV": ("pinhole", 4, ("k1", "k2", "p1", "p2")),
    "FULL_OPENCV": ("pinhole", 4, ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", 3, ("k1",)),
    "RADIAL_FISHEYE": ("fisheye", 3, ("k1", "k2")),
    "OPENCV_FISHEYE": ("fisheye", 4, ("k1", "k2", "k3", "k4")),
}
LONGEST = 1e12  # px: more is an affine camera by mistake
NARROWEST_DEG, WIDEST_DEG, ALL_AROUND_DEG = 0.01, 179.9, 360.0  # fields of view of telescopes, pinholes and fisheyes
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
LENS_NUMBERS = ("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y", *DISTORTION)
NOT_BENT = 1e-9  # a smaller coefficient is none
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".exr")  # NeRF-synthetic leaves .png out


class Lens(NamedTuple):
    """One view's image and projection."""

    model: str  # as cameras.MODELS
    width: int
    height: int
    K: Tensor  # (3, 3) float64, px
    bent: Mapping[str, float] = {}  # coefficients of its distortion that are not 0, in OpenCV's names


def nerfstudio_model(model: str) -> str:
    """camera_model for one of ours."""
    return WRITTEN[model]


def lens_of_frame(frame: Mapping[str, Any], path: Path) -> Lens:
    """The lens of a frame of transforms.json merged with what holds for the whole file.

    Raises InputError for lenses that are not ours and for missing numbers; says which to add.
    """
    check_numbers({key: frame[key] for key in LENS_NUMBERS if key in frame}, path)
    named = "OPENCV_FISHEYE" if frame.get("is_fisheye") else str(frame.get("camera_model", "OPENCV"))
    model = NERFSTUDIO.get(named.upper())
    if model is None:
        known = ", ".join(NERFSTUDIO)
        way = "cut pinhole views out of the images first"
        raise InputError(f"{path} has camera_model {named[:80]}, which is not read (known: {known}); {way}")
    width, height = _size(frame, path)
    fx, fy = _focal(frame, "x", width, path), _focal(frame, "y", height, path)
    if fx is None:
        raise InputError(
            f"{path} is not a usable transforms.json: it has neither fl_x nor camera_angle_x; add "
            '"fl_x": the focal length in px'
        )
    cx, cy = float(frame.get("cx", 0.5 * width)), float(frame.get("cy", 0.5 * height))
    bent = _bent({key: float(frame.get(key, 0.0)) for key in DISTORTION})
    return Lens(model, width, height, intrinsics(fx, fx if fy is None else fy, cx, cy), bent)


def lens_of_colmap(model: str, width: int, height: int, values: list[float], folder: Path) -> Lens:
    """The lens of a row of COLMAP's cameras. Raises InputError for models that are not ours."""
    if model not in COLMAP:
        raise InputError(f"{folder}: camera model {model[:80]} is not supported; run colmap image_undistorter first")
    ours, count, names = COLMAP[model]
    if len(values) < count:
        raise InputError(f"{folder}: a camera {model} has {len(values)} parameters; it needs at least {count}")
    fx, fy = (values[0], values[0]) if count == 3 else (values[0], values[1])
    bent = _bent(dict(zip(names, values[count:])))
    return Lens(ours, width, height, intrinsics(fx, fy, values[count - 2], values[count - 1]), bent)


def colmap_row(lens: Lens) -> tuple[str, list[float]]:
    """(model, parameters) of cameras.txt. Raises InputError for lenses that COLMAP does not know."""
    check_lens(lens, "a view")
    K = lens.K
    values = [float(v) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2])]
    if lens.model == "pinhole":
        return "PINHOLE", values
    if lens.model == "fisheye":
        return "OPENCV_FISHEYE", [*values, 0.0, 0.0, 0.0, 0.0]
    raise InputError(f"COLMAP knows no {lens.model} cameras; write transforms.json instead")


def check_field(focal_px: Sequence[float], size: tuple[int, int], where: str, fisheye: bool = False) -> None:
    """Raises InputError for focal lengths (of a fisheye px per radian) with which no camera sees a picture of (width,
    height) px: its longer side would be narrower than a telescope's or wider than the lens can show."""
    widest, side = ALL_AROUND_DEG if fisheye else WIDEST_DEG, max(size)
    for focal in focal_px:
        ratio = side / focal if focal > 0 else math.inf
        angle_deg = math.degrees(ratio if fisheye else 2 * math.atan(0.5 * ratio))
        if not NARROWEST_DEG <= angle_deg <= widest:
            raise InputError(
                f"{where}: a focal length of {focal:g} px for a side of {side} px is a field of view of "
                f"{angle_deg:.3g} degrees, which is no camera's ({NARROWEST_DEG:g} to {widest:g}); give the focal "
                "length in px of this picture"
            )


def check_lens(lens: Lens, where: str) -> None:
    """Raises InputError for focal lengths that are no camera's and for skew, which no file of ours can hold; warns
    of a principal point outside the image."""
    K = lens.K
    focal = (float(K[0, 0]), float(K[1, 1]))
    if not all(0 < f < LONGEST for f in focal):
        raise InputError(f"{where} has focal lengths {focal[0]:g}, {focal[1]:g} px; they must be above 0 and finite")
    if lens.model != "ortho":
        check_field(focal, (lens.width, lens.height), where, lens.model == "fisheye")
    if not bool((K.abs() < LONGEST).all()):
        raise InputError(f"{where} has K {K.tolist()}, which holds numbers that are no pixels")
    if abs(float(K[0, 1])) > 1e-6 * focal[0]:
        raise InputError(
            f"{where} has skew {float(K[0, 1]):g} px, which camera files cannot hold; undistort the images"
        )
    cx, cy = float(K[0, 2]), float(K[1, 2])
    if not (0 <= cx <= lens.width and 0 <= cy <= lens.height):
        warnings.warn(
            f"{where}: the principal point ({cx:g}, {cy:g}) lies outside the image of {lens.width} x {lens.height} px",
            UserWarning,
            stacklevel=3,
        )


def check_numbers(entries: Mapping[str, Any], where: str | Path) -> None:
    """Raises InputError for entries of a camera file that are, or hold, true or false: Python would count those as 1
    and 0."""
    for name, value in entries.items():
        found: list[Any] = [value]
        while found:
            one = found.pop()
            if isinstance(one, bool):
                raise InputError(f"{where} has {str(one).lower()} in {name}, where a number belongs; write the number")
            found += one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else []


def reject_distortion(path: str | Path, lenses: Iterable[Lens]) -> None:
    """Raises InputError when a lens is bent."""
    bent = next((dict(lens.bent) for lens in lenses if lens.bent), None)
    if bent is not None:
        raise InputError(f"{path} has lens distortion {bent}; unproject convert --undistort takes it out of the images")


def _bent(coefficients: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in coefficients.items() if not abs(value) <= NOT_BENT}


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> Tensor:
    """K (3, 3) float64."""
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], dtype=torch.float64)


def _focal(frame: Mapping[str, Any], axis: str, side: int, path: Path) -> float | None:
    """fl_x, or from camera_angle_x; None where there is neither."""
    if f"fl_{axis}" in frame:
        return float(frame[f"fl_{axis}"])
    if f"camera_angle_{axis}" not in frame:
        return None
    angle = float(frame[f"camera_angle_{axis}"])
    if not 0 < angle < math.pi:
        raise InputError(f"{path} has camera_angle_{axis} {angle:g}; it is in radians between 0 and pi")
    return 0.5 * side / math.tan(0.5 * angle)


def _size(frame: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """w and h, or those of the frame's image beside the file."""
    if "w" in frame and "h" in frame:
        sides = float(frame["w"]), float(frame["h"])
        if not all(side >= 1 and side.is_integer() for side in sides):
            raise InputError(f"{path} has w {frame['w']} and h {frame['h']}; they must be whole numbers above 0")
        return int(sides[0]), int(sides[1])
    image = path.parent / str(frame["file_path"]).replace("\\", "/")
    for suffix in SUFFIXES:
        file = image.with_name(image.name + suffix)
        if is_there(file):
            return image_size(file)
    missing = " and ".join(key for key in ("w", "h") if key not in frame)
    raise InputError(
        f"{path} is not a usable transforms.json: it has no {missing}, and {str(image)[:200]} is not there to tell; "
        'add "w" and "h" (px of the images) beside "frames"'
    )
