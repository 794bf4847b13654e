"""`unproject depth --metric`: metres that go with the picture's camera."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.runs import RunRecord

if TYPE_CHECKING:
    import numpy as np

    from ..geometry.metric import Metric
    from ..pipelines.picture_camera import PictureCamera
    from ..tasks.outputs import GeometryOutput
    from .lens import LensOptions


def seen_in_metres(
    command: LensOptions, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, **how: Any
) -> tuple[GeometryOutput, PictureCamera, Metric]:
    """What a head sees in a picture, through which camera, and its metres; the record says where these come from.

    pipe: an ImageToGeometry. how: of its call.
    """
    from ..pipelines.metric_depth import metric_of
    from ..pipelines.validity import file_valid

    valid = how.pop("valid", None)
    valid = file_valid(path, picture) if valid is None else valid
    undistorted = how.pop("undistorted", False)
    made = pipe(picture, valid=valid, **how)
    record.count("denoiser", made.nfe)
    seen = command.camera_of(picture, path, valid, undistorted)
    metric = metric_of(made, seen.camera, command.anchors(), seen.gravity)
    told = {"scale": metric.scale, "shape": metric.shape, "near_m": metric.near_m, "far_m": metric.far_m}
    focal = {"focal_px": float(seen.camera.K[0, 0, 0]), "focal_from": seen.source}
    record.notes.setdefault("metric", {})[str(path)] = {**told, **focal}
    return made, seen, metric


def load_metric(command: LensOptions) -> Any:
    """The pipeline of everything a head predicts."""
    from ..pipelines.image_to_geometry import ImageToGeometry

    return ImageToGeometry.from_pretrained(command.prior, **command.placement())
