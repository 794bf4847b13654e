"""`unproject depth --metric`: metres that go with the picture's camera."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import read_json
from ..utils.runs import RunRecord

if TYPE_CHECKING:
    import numpy as np

    from ..geometry.metric import Metric
    from ..pipelines.picture_camera import PictureCamera
    from ..tasks.map_files import OneMap
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
    _note(record, path, metric, seen)
    return made, seen, metric


def told_in_metres(command: LensOptions, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord) -> OneMap:
    """What a head of metres says of a picture; the record says where camera and scale come from.

    pipe: an ImageToMetres.
    """
    import torch

    from ..pipelines.picture_inputs import pictures
    from ..pipelines.validity import file_valid, telling_pixels
    from ..tasks.codecs.metres import MetresFiles
    from ..tasks.map_files import OneMap

    valid = file_valid(path, picture)
    seen = command.camera_of(picture, path, valid)
    metres, metric = pipe(picture, seen.camera, command.anchors(), seen.gravity)
    record.count("denoiser", 1)
    _note(record, path, metric, seen)
    files = MetresFiles(metric, metric.near_m, max(metric.far_m, metric.near_m + 1e-6))
    told = telling_pixels(torch.from_numpy(valid)[None, None], pictures(picture))
    return OneMap(files, metres[..., None], None, told[0, 0].numpy())


def _note(record: RunRecord, path: Path, metric: Metric, seen: PictureCamera) -> None:
    told = {"scale": metric.scale, "shape": metric.shape, "near_m": metric.near_m, "far_m": metric.far_m}
    focal = {"focal_px": float(seen.camera.K[0, 0, 0]), "focal_from": seen.source}
    record.notes.setdefault("metric", {})[str(path)] = {**told, **focal}


def says_metres(head: str | None) -> bool:
    """Whether a --head is one of metres, by its name or the files in its folder."""
    if head is None or head == "dm-calib":
        return head is not None
    about = Path(head) / "head.json"
    told = read_json(about) if about.is_file() else {}
    return (Path(head) / "calib" / "unet").is_dir() or (isinstance(told, dict) and told.get("kind") == "metric")


def load_metres(command: LensOptions, head: str) -> Any:
    """The pipeline of a head of metres."""
    from ..pipelines.metric_depth import ImageToMetres

    return ImageToMetres.from_pretrained(head, **command.placement())


def load_metric(command: LensOptions) -> Any:
    """The pipeline of everything a head predicts."""
    from ..pipelines.image_to_geometry import ImageToGeometry

    return ImageToGeometry.from_pretrained(command.prior, **command.placement())
