"""Camera matrices from files: a plain 3 x 3 list, OpenCV's, or the lens of a transforms.json; with lens distortion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..utils.errors import InputError
from ..utils.files import read_json
from .distortion import COEFFICIENTS, FISHEYE, RATIONAL, straightened
from .lenses import LONGEST, check_field, check_numbers, lens_of_frame

Matrix = str | Path | np.ndarray
Size = tuple[int, int]  # (width, height) px
SIDES = (("width", "image_width"), ("height", "image_height"))
NUMBERS = ("K", "camera_matrix", "distortion_coefficients", "dist_coeffs", *(name for side in SIDES for name in side))
OPENCV_SHIFT = 0.5  # px: there pixel centres are whole numbers


@dataclass(frozen=True)
class DistortedLens:
    """A pinhole's matrix, or an equidistant fisheye's, and how the lens departs from it."""

    K: np.ndarray  # (3, 3) px, pixel centres at +0.5
    bent: Mapping[str, float] = field(default_factory=dict)  # of distortion.RATIONAL, or of FISHEYE
    fisheye: bool = False

    def __post_init__(self) -> None:
        known = FISHEYE if self.fisheye else RATIONAL
        odd = [name for name in self.bent if name not in known]
        if odd or not all(math.isfinite(value) for value in self.bent.values()):
            raise InputError(f"distortion {dict(self.bent)}: known are finite {', '.join(known)}")

    @property
    def is_bent(self) -> bool:
        """Whether there is anything to undo."""
        return self.fisheye or bool(self.bent)


def opencv_coefficients(values: Sequence[Any], fisheye: bool) -> dict[str, float]:
    """The list that OpenCV writes (4, 5 or 8 numbers, of a fisheye 4; the rest of 12 and 14 has to be zero) by name.

    Raises InputError for others.
    """
    names = FISHEYE if fisheye else RATIONAL
    flat = [float(value) for value in np.asarray(values, dtype=np.float64).reshape(-1)]
    if any(flat[len(names) :]):
        raise InputError(f"distortion coefficients {flat}: those after {names[-1]} (thin prism, tilt) are not undone")
    return {name: value for name, value in zip(names, flat) if value}


def undistorted(
    picture: np.ndarray, lens: DistortedLens, valid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(picture (H, W, 3) float32 of a pinhole with the same matrix and size, (H, W) bool of where it shows something).

    What lies outside the lens's picture, or was not valid there, is black and not valid. Raises InputError where
    nothing is left.
    """
    layers = torch.ones(*picture.shape[:2], 4)
    layers[..., :3] = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32))
    if valid is not None:
        layers[..., 3] = torch.from_numpy(valid).float()
    straight, seen = straightened(layers, torch.from_numpy(lens.K), lens.bent, lens.fisheye)
    inside = seen[..., 0] & (straight[..., 3] > 0.5)
    if not bool(inside.any()):
        raise InputError("nothing of the picture is left after undistorting; the distortion seems to be another lens's")
    return (straight[..., :3] * inside[..., None]).numpy(), inside.numpy()


def check_intrinsics(K: Matrix, undistort: bool = False) -> None:
    """Raises InputError for a matrix that is no pinhole's, whatever the picture's size.

    undistort: the lens may, and has to, have a distortion that can be undone.
    """
    lens, _ = _read(K, None)
    _check_distortion(K, lens, undistort)


def read_lens(K: Matrix, size: Size | None = None, picture: str | Path | None = None) -> DistortedLens:
    """The matrix (3, 3), pixel centres at +0.5, and distortion of a lens, for a picture of a size.

    picture: whose lens it shall be where a transforms.json holds several. Raises InputError for what is no matrix, is
    for another size, is no camera's at this one, or has its principal point outside the picture.
    """
    lens, said = _read(K, picture)
    if size is None:
        return lens
    if said is not None and said != size:
        raise InputError(f"K is for {said[0]} x {said[1]} px, the picture has {size[0]} x {size[1]}; scale K along")
    named = "K" if isinstance(K, np.ndarray) else str(K)
    check_field((float(lens.K[0, 0]), float(lens.K[1, 1])), size, named, lens.fisheye)
    if not (0 <= lens.K[0, 2] <= size[0] and 0 <= lens.K[1, 2] <= size[1]):
        raise InputError(
            f"K has its principal point at ({lens.K[0, 2]:g}, {lens.K[1, 2]:g}), outside the picture of {size[0]} x "
            f"{size[1]} px; K seems to be for another size"
        )
    return lens


def read_intrinsics(
    K: Matrix, size: Size | None = None, picture: str | Path | None = None, undistort: bool = False
) -> np.ndarray:
    """The matrix alone, see `read_lens`; a lens with distortion is refused unless its picture is undistorted."""
    lens = read_lens(K, size, picture)
    _check_distortion(K, lens, undistort)
    return lens.K


def _check_distortion(source: Matrix, lens: DistortedLens, undistort: bool) -> None:
    named = "K" if isinstance(source, np.ndarray) else str(source)
    if lens.is_bent and not undistort:
        kind = "is of a fisheye" if lens.fisheye else "has lens distortion"
        raise InputError(f"{named} {kind}; --undistort takes it out of the picture (in Python intrinsics.undistorted)")
    if undistort and not lens.is_bent:
        raise InputError(f"{named} has no lens distortion that --undistort could take out; leave it out")


def _read(source: Matrix, picture: str | Path | None) -> tuple[DistortedLens, Size | None]:
    if not isinstance(source, (str, Path)):
        return DistortedLens(checked_matrix(source, source)), None
    found = read_json(source)
    if not isinstance(found, Mapping):
        check_numbers({"its matrix": found}, source)
        return DistortedLens(checked_matrix(found, source)), None
    if isinstance(found.get("frames"), list):
        return _lens_of_document(found, Path(source), picture)
    check_numbers({name: found[name] for name in NUMBERS if name in found}, source)
    fisheye = str(found.get("distortion_model", found.get("camera_model", ""))).lower() in ("fisheye", "equidistant")
    values = found.get("distortion_coefficients", found.get("dist_coeffs", []))
    values = values.get("data", []) if isinstance(values, Mapping) else values
    sides = [found.get(a, found.get(b)) for a, b in SIDES]
    try:
        coefficients = opencv_coefficients(values, fisheye)
        size = None if None in sides else (int(str(sides[0])), int(str(sides[1])))
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error
    matrix = checked_matrix(*_matrix_of(found, source))
    return DistortedLens(matrix, coefficients, fisheye), size


def _matrix_of(found: Mapping[str, Any], source: str | Path) -> tuple[Any, str | Path, float]:
    """(rows, their file, what to add to the principal point)."""
    if "K" in found:
        return found["K"], source, 0.0
    values = found.get("camera_matrix")
    if isinstance(values, Mapping):  # OpenCV's FileStorage: rows, cols, dt, data
        data = np.asarray(values.get("data", []), dtype=np.float64)
        values = data.reshape(3, 3) if data.size == 9 else None
    if values is None:
        raise InputError(
            f'{source} has no "K" (pixel centres at +0.5), no "camera_matrix" (OpenCV\'s) and no "frames" '
            "(transforms.json)"
        )
    return values, source, OPENCV_SHIFT


def _lens_of_document(
    document: Mapping[str, Any], path: Path, picture: str | Path | None
) -> tuple[DistortedLens, Size]:
    """The one lens of all frames, or that of the frame which names the picture."""
    lenses = []
    for frame in document["frames"]:
        try:
            lens = lens_of_frame({**document, **frame}, path)
            name = Path(str(frame["file_path"]).replace("\\", "/")).name
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            told = error if isinstance(error, InputError) else InputError(f"{path}: a frame is damaged: {error!r}")
            raise told from error
        if lens.model == "ortho":
            raise InputError(f"{path} is of an orthographic camera, which has no camera matrix; leave --K out")
        fisheye = lens.model == "fisheye"
        odd = sorted(set(lens.bent) - set(FISHEYE if fisheye else COEFFICIENTS))
        if odd:  # k4 of nerfstudio's pinholes is another one than OpenCV's
            raise InputError(f"{path} has the distortion {', '.join(odd)}, which is not undone; undistort the images")
        matrix = DistortedLens(checked_matrix(lens.K.numpy(), path), lens.bent, fisheye)
        lenses.append((name, matrix, (lens.width, lens.height)))
    if not lenses:
        raise InputError(f"{path} has no frames")
    first = lenses[0]
    if all(np.array_equal(m.K, first[1].K) and (m.bent, s) == (first[1].bent, first[2]) for _, m, s in lenses):
        return first[1], first[2]
    wanted = None if picture is None else Path(picture).name
    own = [one for one in lenses if (wanted is not None and wanted in (one[0], Path(one[0]).stem)) or one[0] == wanted]
    if not own:
        raise InputError(f"{path} holds several lenses and no frame named {wanted}; give a file with one")
    return own[0][1], own[0][2]


def checked_matrix(values: Any, source: Matrix, shift: float = 0.0) -> np.ndarray:
    """The matrix, moved to pixel centres at +0.5. Raises InputError for one that is no pinhole's."""
    try:
        if np.iscomplexobj(values):
            raise TypeError("complex numbers")
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"K in {source} is no matrix of numbers") from error
    named = f"{source}: " if isinstance(source, (str, Path)) else ""
    if matrix.shape != (3, 3) or not (np.abs(matrix) < LONGEST).all() or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise InputError(
            f"{named}K must be a 3 x 3 matrix in px with positive focal lengths below {LONGEST:g}, got "
            f"{matrix.tolist()}"
        )
    if not np.allclose(matrix[2], (0, 0, 1)) or matrix[1, 0] != 0:
        raise InputError(
            f"{named}K has the rows {matrix[1].tolist()}, {matrix[2].tolist()}; they must be 0 fy cy and 0 0 1"
        )
    return matrix + np.array([[0, 0, shift], [0, 0, shift], [0, 0, 0]])
