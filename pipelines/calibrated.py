"""Error models of a head from pictures whose maps are known: what its confidence rests on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry.camera_image import within_range
from ..geometry.pinhole_fit import fit_pinhole
from ..tasks.codecs.camera import matrix_errors
from ..tasks.confidence import fit_error_model
from ..tasks.data import GeometryData
from ..tasks.geometry_head import GeometryHead
from ..utils.errors import InputError
from .image_to_camera import RAYS, SQUARE, ImageToCamera, camera_features
from .image_to_geometry import ImageToGeometry
from .sureness import ENSEMBLE, seen_features

PIXELS = 400  # of a picture that count


class Scenes(NamedTuple):
    """Pictures one by one."""

    features: list[np.ndarray]  # (n, F) each
    errors: list[np.ndarray]  # (n,) each


def calibrate_head(head: GeometryHead, data: GeometryData, images: int = 256, members: int = ENSEMBLE) -> None:
    """Fits `head.confidence` to at most so many pictures, evenly taken from the data."""
    head.confidence = {}
    for name, scenes in measured_scenes(head, data, images, members).items():
        codec = head.codec.parts[name]
        head.confidence[name] = fit_error_model(scenes.features, scenes.errors, codec.error_unit, codec.tolerance)


def measured_scenes(head: GeometryHead, data: GeometryData, images: int, members: int = ENSEMBLE) -> dict[str, Scenes]:
    """Features and errors by target: of pixels, and of the camera one a picture."""
    picked = np.linspace(0, len(data) - 1, min(images, len(data))).astype(int)
    found = {name: Scenes([], []) for name in head.codec.parts}
    for index in picked:
        batch = data.batch(np.array([index]), None)
        targets, valid = head.codec.truth(batch, head.device)
        picture = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2).float() / 255
        made = ImageToGeometry(head)(picture, ensemble_size=members, output_type="pt", seed=int(index))
        for name, part in made.maps.items():
            maps, spread = (torch.as_tensor(one) for one in (part.prediction, part.uncertainty))
            size = (maps.shape[2], maps.shape[3])
            told = seen_features(maps, spread, picture.to(maps), head.config.processing_resolution)
            features = _at_pixels(told[0], size)
            error = head.codec.parts[name].error(maps, targets[name], valid)[0].flatten().double().cpu().numpy()
            keep = np.flatnonzero(valid[0].flatten().cpu().numpy() & np.isfinite(error))
            if len(keep):
                keep = keep[np.linspace(0, len(keep) - 1, min(PIXELS, len(keep))).astype(int)]
                found[name].features.append(features[keep])
                found[name].errors.append(error[keep])
        if RAYS in found:
            found[RAYS] = _with_camera(found[RAYS], ImageToCamera(head), picture, targets[RAYS], valid, int(index))
    return found


def _at_pixels(features: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Features (h, w, F) at every pixel of a size (H, W), of the cell that it lies in, (H W, F)."""
    rows, columns = (np.arange(side) * count // side for side, count in zip(size, features.shape[:2], strict=True))
    return features[np.ix_(rows, columns)].reshape(-1, features.shape[-1])


def _with_camera(
    scenes: Scenes, pipe: ImageToCamera, picture: Tensor, rays: Tensor, valid: Tensor, seed: int
) -> Scenes:
    """The last picture's pixels replaced by its camera: the error is that of the vertical field of view."""
    kept = Scenes(scenes.features[:-1], scenes.errors[:-1])
    height, width = picture.shape[2:]
    try:
        looked = pipe.looked(picture, seed)
        fit = fit_pinhole(looked.rays, within_range(looked.rays), (width, height), SQUARE)
    except InputError:  # an untrained head sees no camera
        return kept
    true = fit_pinhole(rays[:, :2], valid, (width, height)).K
    told = camera_features(fit, looked.spread[0], height)
    error = matrix_errors(fit.K, true, width, height)["fov_deg"]
    return Scenes([*kept.features, told[None]], [*kept.errors, np.array([error])])
