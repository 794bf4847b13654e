"""Options of the commands that see a picture through its camera: the lens, and what is known of the scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..utils.errors import InputError
from .common import Seeded, check_file, check_range
from .numbers import numbers
from .priors import PriorCommand

if TYPE_CHECKING:
    import numpy as np

    from ..geometry.metric import Anchors
    from ..pipelines.picture_camera import PictureCamera


@dataclass(frozen=True, kw_only=True)
class LensOptions(PriorCommand, Seeded):
    """Options that tell the camera and the scale."""

    fov: float | None = None
    """Field of view of the picture's longer side in degrees (default: by the focal length in the photo's EXIF, else by
    a camera head where there is one, else 55)."""
    K: Annotated[Path | None, tyro.conf.arg(aliases=["--camera"])] = None
    """JSON file with the camera matrix in px: 3 x 3, as a list or under "K" (pixel centres at +0.5; what `calibrate`
    writes), under "camera_matrix" as OpenCV writes it (pixel centres at whole numbers), or a transforms.json; instead
    of --fov."""
    known_distance: str | None = None
    """U,V,METRES: what is seen at pixel (U, V) is so far from the camera; it gives everything its scale."""
    camera_height: float | None = None
    """Metres of the camera above a floor that is seen; it gives everything its scale."""

    @property
    def scaled(self) -> bool:
        """Whether the scale is measured."""
        return self.known_distance is not None or self.camera_height is not None

    def check_lens(self, many: bool, undistort: bool = False) -> None:
        """Raises InputError for a camera or a scale that cannot be."""
        if self.fov is not None:
            check_range("--fov", self.fov, 1, 170)
        if self.K is not None:
            from ..geometry.intrinsics import check_intrinsics

            if self.fov is not None:
                raise InputError(f"give --fov {self.fov:g} or --K {self.K}, not both")
            check_file("--K", self.K, "give a JSON file with a 3 x 3 camera matrix in px")
            check_intrinsics(self.K, undistort)
        if self.known_distance is not None:
            if self.camera_height is not None:
                raise InputError("--known-distance and --camera-height are two scales; give one of them")
            numbers("--known-distance", self.known_distance, (3,))
            if many:
                raise InputError(f"--known-distance {self.known_distance} is of one picture; give one")
        if self.camera_height is not None:
            check_range("--camera-height", self.camera_height, 0.01, 10_000)

    def check_seen(self, path: Path) -> None:
        """Raises InputError for a picture that the camera or the point of the known distance does not fit, by its
        header."""
        from ..geometry.intrinsics import read_lens
        from ..geometry.metric import check_inside
        from ..utils.decoding import image_size

        measured = self.anchors().distance
        if self.K is None and measured is None:
            return
        size = image_size(path)
        if self.K is not None:
            read_lens(self.K, size, path)
        if measured is not None:
            check_inside(measured, *size)

    def anchors(self) -> Anchors:
        """What is known of the scale."""
        from ..geometry.metric import Anchors, Measured

        if self.known_distance is None:
            return Anchors(height_m=self.camera_height)
        u, v, metres = numbers("--known-distance", self.known_distance, (3,))
        return Anchors(Measured(u, v, metres))

    def camera_of(self, picture: np.ndarray, path: Path, valid: np.ndarray, undistorted: bool = False) -> PictureCamera:
        """The camera of a picture, by the best that tells it."""
        from ..pipelines.picture_camera import picture_camera

        return picture_camera(
            picture,
            path,
            fov_deg=self.fov,
            K=self.K,
            undistorted=undistorted,
            device=self.placement()["device"],
            valid=valid,
            seed=self.seed,
        )
