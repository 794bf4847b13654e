"""Pictures to the cameras that took them: where a head says that each pixel looks, and the pinhole that fits.

A picture and its mirror image are looked at together, with the same noise, so that a mirrored picture has exactly the
mirrored camera; bars around a picture are cut off before, so that padding moves the principal point and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry.camera_image import within_range
from ..geometry.pinhole_fit import Known, PinholeFit, fit_pinhole
from ..tasks.codecs.gravity import common_direction
from ..tasks.confidence import ErrorModel
from ..tasks.ensemble import CONSENSUS
from ..tasks.map_head import MapHead
from ..utils.errors import InputError
from .camera_output import CameraOutput, SeenCamera
from .head_pipeline import HeadPipeline
from .image_to_geometry import Generators, ImageToGeometry
from .picture_inputs import PictureLike, pictures
from .sampling_parts import StepEnd, randomness
from .validity import at_map_size, seen_pixels, telling_pixels

RAYS, FALLING = "camera", "gravity"  # targets of a camera head
SQUARE = Known(square=True)


class Window(NamedTuple):
    """The part of a picture without bars, px."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Looked:
    """What a head says of N pictures of one size."""

    rays: Tensor  # (N, 2, h, w) tangents
    spread: Tensor  # (N, 1, h, w) rad between the picture and its mirror image
    falling: Tensor | None  # (N, 3, h, w)
    nfe: int


class ImageToCamera(HeadPipeline):
    """The camera of a picture.

    >>> made = ImageToCamera.from_pretrained("runs/camera-head/export")("room.jpg")
    >>> made.K, made.fov_deg
    """

    needs = (RAYS,)

    def __init__(self, head: MapHead) -> None:
        super().__init__(head)
        self.look = ImageToGeometry(head)

    @torch.no_grad()
    def __call__(
        self,
        image: PictureLike | Sequence[PictureLike],
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        *,
        known: Known = SQUARE,
        shared: bool = False,
        valid: Any = None,
        seed: int | None = None,
        generator: Generators = None,
        batch_size: int = 8,
        callback_on_step_end: StepEnd | None = None,
    ) -> CameraOutput:
        """Estimates cameras, in px of the pictures as given.

        Args:
            image: a path, PIL image, array (H, W, 3) or tensor (3, H, W) in [0, 1], or several of one size.
            num_inference_steps: None: what suits the head.
            ensemble_size: predictions for the picture, and as many for its mirror image.
            processing_resolution: px of the longest edge inside the network; None: the head's.
            known: focal length, principal point or square pixels that are not estimated.
            shared: the pictures were taken with one camera, whose matrix they share.
            valid: (H, W) or (N, H, W) bool of what the pictures show; None: by transparency and black bars.
            seed: of a sampler; image i uses seed + i. None: a fresh one, reported.
            generator: instead of seeds, see `ImageToGeometry`.
            batch_size: rows at once.
            callback_on_step_end: see `ImageToGeometry`.

        Raises InputError for a picture of one colour.
        """
        images = pictures(image).to(self.head.device)
        seen = telling_pixels(seen_pixels(image, images, valid), images)
        windows = [_window(one[0], f"picture {i} of {len(seen)}") for i, one in enumerate(seen, 1)]
        asked = {
            "num_inference_steps": num_inference_steps,
            "ensemble_size": ensemble_size,
            "processing_resolution": processing_resolution,
            "batch_size": batch_size,
            "callback_on_step_end": callback_on_step_end,
        }
        seeds, source = self._randomness(len(images), seed, generator)
        height, width = images.shape[2:]
        made = CameraOutput([], width, height, seed=seeds[0] if seeds else None)
        if len(set(windows)) == 1:
            groups = [list(range(len(images)))]
        elif shared:
            raise InputError("the pictures have bars at different places; crop them alike to share a camera")
        else:
            groups = [[i] for i in range(len(images))]
        for rows in groups:
            box = windows[rows[0]]
            part = images[rows, :, box.top : box.bottom, box.left : box.right]
            shown = seen[rows, :, box.top : box.bottom, box.left : box.right]
            looked = self._look(part, shown, source(rows), asked)
            made.nfe += looked.nfe
            keep = at_map_size(shown, (looked.rays.shape[2], looked.rays.shape[3])) & within_range(looked.rays)
            made.cameras += self._fitted(looked, keep, box, known, shared)
        return made

    def _randomness(self, count: int, seed: int | None, generator: Generators) -> tuple[list[int], Any]:
        """(seeds, what randomness some rows get)."""
        if seed is not None and generator is not None:
            raise InputError("give either seed or generator, not both")
        if generator is None and self.head.config.start == "noise":
            seeds = randomness(seed, None, count)[0] or []
            return seeds, lambda rows: {"seed": seeds[rows[0]]}
        if isinstance(generator, (list, tuple)) and len(generator) == count:
            each = list(generator)
            return [], lambda rows: {"generator": [each[i] for i in rows]}
        return [], lambda _: {"generator": generator}

    def looked(self, images: Tensor, seed: int | None = None) -> Looked:
        """What the head says of whole pictures (N, 3, H, W), before any camera is fitted."""
        seeds = {} if self.head.config.start == "zeros" else {"seed": seed}
        everything = torch.ones_like(images[:, :1], dtype=torch.bool)
        return self._look(images, everything, seeds, {})

    def _look(self, images: Tensor, shown: Tensor, source: dict[str, Any], asked: dict[str, Any]) -> Looked:
        """Rays of pictures (N, 3, H, W) and of their mirror images, together."""
        options = {**asked, "output_type": "pt", "match_input_resolution": False}
        held = _states(source.get("generator"))
        nfe, sides = 0, []
        for mirrored in (False, True):
            _restore(source.get("generator"), held)
            image, mask = (part.flip(3) if mirrored else part for part in (images, shown))
            made = self.look(image, valid=mask[:, 0].cpu().numpy(), **source, **options)
            nfe += made.nfe
            maps = {name: torch.as_tensor(part.prediction) for name, part in made.maps.items()}
            codecs = self.head.codec.parts
            sides.append({name: codecs[name].mirrored(one) if mirrored else one for name, one in maps.items()})
        merged = {name: self._merged(name, [side[name] for side in sides]) for name in sides[0]}
        rays, spread = merged[RAYS]
        return Looked(rays, spread, merged[FALLING][0] if FALLING in merged else None, nfe)

    def _merged(self, name: str, sides: list[Tensor]) -> tuple[Tensor, Tensor]:
        """One map of each picture out of two, and how far these are apart."""
        codec = self.head.codec.parts[name]
        found = [codec.reduce(torch.stack(pair), CONSENSUS, False) for pair in zip(*sides, strict=True)]
        return torch.cat([one.prediction for one in found]), torch.cat([one.uncertainty for one in found])

    def _fitted(self, looked: Looked, keep: Tensor, box: Window, known: Known, shared: bool) -> list[SeenCamera]:
        size = (box.right - box.left, box.bottom - box.top)
        if known.principal_px is not None:
            centre = (known.principal_px[0] - box.left, known.principal_px[1] - box.top)
            known = replace(known, principal_px=centre)
        count = len(looked.rays)
        parts = [slice(0, count)] if shared else [slice(i, i + 1) for i in range(count)]
        offset = np.array([[0, 0, box.left], [0, 0, box.top], [0, 0, 0.0]])
        cameras: list[SeenCamera] = []
        for rows in parts:
            fit = fit_pinhole(looked.rays[rows], keep[rows], size, known)
            model = self.head.confidence.get(RAYS)
            for i in range(count)[rows]:
                own = fit.inliers[i - rows.start]
                falling = None
                if looked.falling is not None:
                    row = slice(i, i + 1)
                    everywhere = torch.ones_like(keep[row])
                    falling = common_direction(looked.falling[row], everywhere)[0].cpu().numpy()
                cameras.append(
                    SeenCamera(
                        K=fit.K + offset,
                        sd=fit.sd,
                        source="camera head",
                        inlier_share=float(own.mean()),
                        saturated=float(1 - within_range(looked.rays[i : i + 1]).float().mean()),
                        residual_px=fit.residual_px,
                        gravity=falling,
                        **_sureness(model, fit, looked.spread[i], size[1]),
                    )
                )
        return cameras


def camera_features(fit: PinholeFit, spread: Tensor, height: int) -> np.ndarray:
    """(3,) of what goes with the error of the field of view: its jackknife deviation, how far the picture and its
    mirror image disagree, and the robust spread of the rays; logarithms of degrees."""
    fov = 2 * np.arctan(0.5 * height / fit.K[1, 1])
    turn = np.sin(fov) * fit.sd[1] / fit.K[1, 1]  # d fov = sin(fov) d f / f
    told = np.rad2deg([np.nan_to_num(turn), float(spread.mean()), fit.spread_rad])
    return np.asarray(np.log(np.maximum(told, 1e-3)))


def _sureness(model: ErrorModel | None, fit: PinholeFit, spread: Tensor, height: int) -> dict[str, float]:
    """Calibrated confidence and error bound of the field of view; nothing where the head brings no model."""
    if model is None:
        return {}
    features = camera_features(fit, spread, height)
    return {
        "confidence": float(model.probability(features)),
        "tolerance_deg": model.tolerance,
        "fov_within_deg": float(model.bound(features, 0.9)),
    }


def _window(seen: Tensor, name: str) -> Window:
    """The smallest window around what (H, W) shows. Raises InputError, with the picture's name, where that is
    nothing."""
    rows, columns = (torch.nonzero(seen.any(axis)).flatten() for axis in (1, 0))
    if not len(rows):
        raise InputError(f"{name} is of one colour, which tells nothing of its camera; leave it out")
    return Window(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _states(generator: Any) -> list[Tensor]:
    if generator is None:
        return []
    return [one.get_state() for one in ([generator] if isinstance(generator, torch.Generator) else generator)]


def _restore(generator: Any, states: list[Tensor]) -> None:
    """Generators draw for the mirror image what they drew for the picture."""
    if generator is not None:
        for one, state in zip([generator] if isinstance(generator, torch.Generator) else generator, states):
            one.set_state(state)
