"""Image to maps, for any head and any picture: prepare, encode, denoise, decode, ensemble, restore."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from ..core.sampling.grids import Spacing
from ..core.sampling.sampler import StepCallback
from ..tasks.codecs import DepthOutput, NormalsOutput
from ..tasks.ensemble import ALIGNMENTS, Alignment
from ..tasks.map_head import MapHead
from ..tasks.outputs import GeometryOutput, TaskOutput
from ..tasks.tiling import tile_boxes
from ..tasks.walk import Walk
from ..utils.errors import InputError
from ..utils.seeds import generator as seeded
from ..utils.seeds import sample_noise
from .geometry_maps import Made, at_size, merged
from .head_pipeline import HeadPipeline
from .picture_inputs import PictureLike, fitted, pictures, resized, squared
from .sampling_parts import TENSORS, StepEnd, check_tensors, randomness, step_callback, whole_number
from .sureness import add_confidence
from .validity import at_map_size, seen_pixels, telling_pixels

Out = TypeVar("Out")
Generators = torch.Generator | Sequence[torch.Generator] | None
TILE_OVERLAP = 0.25  # of a tile's side
VARIANTS = (  # (mirrored, scale): the embedded head gains from larger copies and loses with smaller ones
    (False, 1.0),
    (True, 1.0),
    (False, 1.125),
    (True, 1.125),
    (False, 1.25),
    (True, 1.25),
    (False, 0.875),
    (True, 0.875),
)


@dataclass(frozen=True)
class Settings:
    """How maps are made for one batch of equally large images."""

    steps: int
    spacing: Spacing | None
    members: int
    resolution: int  # px of the longest edge, 0 = as it is
    batch: int
    alignment: Alignment
    callback: StepCallback | None = None  # after every network call


class _FromImage(HeadPipeline, ABC, Generic[Out]):
    """Prediction, shared by the pipelines below."""

    @torch.no_grad()
    def __call__(
        self,
        image: PictureLike | Sequence[PictureLike],
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        *,
        valid: Any = None,
        tiles: int = 1,
        spacing: Spacing | None = None,
        seed: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        batch_size: int = 8,
        alignment: Alignment | None = None,
        output_type: str = "np",
        output_latent: bool = False,
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSORS,
    ) -> Out:
        """Predicts maps.

        Args:
            image: a path, PIL image, array (H, W, 3) or tensor (3, H, W) in [0, 1], or several of one size.
            num_inference_steps: None: what suits the head; a regressor takes 1.
            ensemble_size: predictions to align and reduce. A sampler draws other noise for each; a regressor looks at
                mirrored and rescaled copies. Uncertainty comes with 2 or more, confidence with 3.
            processing_resolution: px of the longest edge inside the network; 0: the image's own; None: the head's.
            match_input_resolution: return maps of the image's size.
            valid: (H, W) or (N, H, W) bool of what the picture shows; None: where a file or a PIL image is not
                transparent, and no black bar runs along an edge. What is not valid is marked in the output, and all
                of a picture that is of one colour.
            tiles: tiles along the longest edge, each at the processing resolution; for detail in large pictures.
            spacing: of the time steps; None: the head's.
            seed: of a sampler's starting noise; image i uses seed + i for all its members and tiles, so a list equals
                its images one by one; None: a fresh one (reported).
            generator: one for all, one per image, or one per image and member, instead of seeds.
            latents: starting state (N E, C, h, w) instead of drawing it.
            batch_size: rows at once.
            alignment: how members of a free scale are aligned; None: as suits the head (a Marigold checkpoint's as
                published).
            output_type: "np" (N, H, W, C) or "pt" (N, C, H, W).
            output_latent: also return the final latents.
            return_dict: False returns a tuple, as diffusers' Marigold does: (prediction, uncertainty, latents).
            callback_on_step_end: called with (pipe, call, timestep, {"latents": ...}) after every network call; may
                return {"latents": ...}. The calls of each `batch_size` rows count from 0.
            callback_on_step_end_tensor_inputs: what it is handed; there is "latents".
        """
        check_tensors(callback_on_step_end_tensor_inputs)
        images = pictures(image).to(self.head.device)
        settings = self._settings(
            num_inference_steps,
            spacing,
            ensemble_size,
            processing_resolution,
            batch_size,
            alignment or ALIGNMENTS[self.head.config.alignment],
        )
        if callback_on_step_end is not None:
            settings = replace(settings, callback=step_callback(self, callback_on_step_end))
        self._check(tiles, seed, generator, latents, output_type)
        source: Generators = generator
        draws = self.head.config.start == "noise" and (latents is None or self.head.stochastic)
        if draws and generator is None:
            seeds, source = randomness(seed, None, len(images))
            seed = seeds[0] if seeds else None
        before = self.head.nfe
        size = (images.shape[2], images.shape[3])
        made = (
            self._tiled(images, settings, tiles, source)
            if tiles > 1
            else self._whole(images, settings, source, latents)
        )
        if match_input_resolution:
            made = at_size(made, size, self.head.codec.parts)
        seen = telling_pixels(seen_pixels(image, images, valid), images)
        result = self._outputs(made, output_type, output_latent, self.head.nfe - before, seed)
        for output in result.maps.values():
            height, width = output.prediction.shape[2:] if output_type == "pt" else output.prediction.shape[1:3]
            own = at_map_size(seen, (height, width))
            output.valid = own if output_type == "pt" else own.permute(0, 2, 3, 1).cpu().numpy()
        if self.head.confidence:
            models, longest = self.head.confidence, settings.resolution
            add_confidence(result, made, images, models, longest, output_type, settings.members)
        chosen = self._chosen(result)
        if return_dict:
            return chosen
        parts = [chosen] if isinstance(chosen, TaskOutput) else list(result.maps.values())
        return tuple(value for one in parts for value in (one.prediction, one.uncertainty, one.latent))  # type: ignore[return-value]

    @abstractmethod
    def _chosen(self, result: GeometryOutput) -> Out:
        """The part of everything predicted that this pipeline returns."""

    def _settings(
        self, steps: int | None, spacing: Any, members: int, resolution: int | None, batch: int, alignment: Alignment
    ) -> Settings:
        config = self.head.config
        steps = config.steps if steps is None else steps
        resolution = config.processing_resolution if resolution is None else resolution
        for name, value, least in (
            ("num_inference_steps", steps, 1),
            ("ensemble_size", members, 1),
            ("batch_size", batch, 1),
            ("processing_resolution", resolution, 0),
        ):
            whole_number(name, value, least)
        if config.start == "zeros" and steps != 1:
            raise InputError(f"num_inference_steps={steps}: this head is a one-step regressor; use 1 or leave it out")
        return Settings(steps, spacing, members, resolution, batch, alignment)

    def _check(self, tiles: int, seed: int | None, generator: Generators, latents: Tensor | None, kind: str) -> None:
        if tiles < 1:
            raise InputError(f"tiles={tiles} must be at least 1")
        if seed is not None and generator is not None:
            raise InputError("give either seed or generator, not both")
        if tiles > 1 and latents is not None:
            raise InputError("latents belong to one network input; leave them out with tiles")
        if kind not in ("np", "pt"):
            raise InputError(f"output_type={kind!r} is unknown; have np, pt")

    def _whole(self, images: Tensor, settings: Settings, source: Generators, latents: Tensor | None = None) -> Made:
        """Maps at the processing size of images (N, 3, H, W)."""
        if settings.members > 1 and self.head.config.start == "zeros":
            return self._varied(images, settings)
        members = settings.members
        padded, inner = fitted(images, settings.resolution, self.head.prior.vae_factor)
        padded, top, left = squared(padded) if self.head.config.square else (padded, 0, 0)
        condition = _in_chunks(self.head.encode_image, padded, settings.batch).repeat_interleave(members, 0)
        start = self._start(condition, source, latents, members)
        later = self._later(source, len(condition))
        rows = range(0, len(condition), settings.batch)
        final = torch.cat(
            [
                self.head.predict(
                    condition[i : i + settings.batch],
                    start[i : i + settings.batch],
                    Walk(
                        settings.steps,
                        settings.spacing,
                        settings.callback,
                        later[i : i + settings.batch] if isinstance(later, list) else later,
                    ),
                )
                for i in rows
            ]
        )
        decoded = [self.head.decode(final[i : i + settings.batch]) for i in rows]
        inside = (..., slice(top, top + inner[0]), slice(left, left + inner[1]))
        maps = {name: torch.cat([part[name] for part in decoded])[inside] for name in decoded[0]}
        if members == 1:
            return Made(maps, {}, final)
        return self._reduced({name: value.split(members) for name, value in maps.items()}, settings, final)

    def _start(self, condition: Tensor, source: Generators, latents: Tensor | None, members: int) -> Tensor:
        """Starting state (N E, C, h, w)."""
        shape = self.head.shape(condition)
        if latents is not None:
            if latents.shape != (len(condition), *shape):
                raise InputError(f"latents have shape {tuple(latents.shape)}, expected {(len(condition), *shape)}")
            return latents.to(condition)
        if self.head.config.start == "zeros":
            return condition.new_zeros((len(condition), *shape))
        assert source is not None
        rows, form = len(condition), (condition.device, condition.dtype)
        if isinstance(source, torch.Generator) or len(source) == rows:
            return sample_noise(shape, source, rows, *form)
        if len(source) * members != rows:
            raise InputError(
                f"got {len(source)} generators for {rows // members} images of {members} members; give one, one per "
                "image, or one per image and member"
            )
        return torch.cat([sample_noise(shape, one, members, *form) for one in source])

    def _later(self, source: Generators, rows: int) -> Generators:
        """What draws the noise between steps, where the head's add some: one for each row, so that parts of any size
        make the same maps; one that was given for all serves all."""
        if not self.head.stochastic or source is None or isinstance(source, torch.Generator):
            return source
        drawn = [int(torch.randint(2**62, (1,), generator=one, device=one.device)) for one in source]
        each = rows // len(source)
        return [seeded(seed + member) for seed in drawn for member in range(each)]

    def _varied(self, images: Tensor, settings: Settings) -> Made:
        """An ensemble of a deterministic head: mirrored and rescaled copies of the images."""
        alone = replace(settings, members=1)
        resolution = settings.resolution or max(images.shape[2:])
        codecs, parts = self.head.codec.parts, list[dict[str, Tensor]]()
        for member in range(settings.members):
            flip, scale = VARIANTS[member % len(VARIANTS)]
            scale *= 1 + 0.02 * (member // len(VARIANTS))
            own = replace(alone, resolution=max(round(resolution * scale), 8))
            made = self._whole(images.flip(3) if flip else images, own, None)
            maps = {name: codecs[name].mirrored(value) if flip else value for name, value in made.maps.items()}
            size = next(iter((parts or [maps])[0].values())).shape[2:]
            parts.append({name: codecs[name].resized(value, size) for name, value in maps.items()})
        stacked = {name: torch.stack([part[name] for part in parts], 1).unbind() for name in parts[0]}
        return self._reduced(stacked, settings, None)

    def _reduced(self, members: Mapping[str, Sequence[Tensor]], settings: Settings, latent: Tensor | None) -> Made:
        """Maps and spreads out of members (E, C, h, w) of each image, by target."""
        made = Made({}, {}, latent)
        sampled = self.head.config.start == "noise"
        for name, groups in members.items():
            codec = self.head.codec.parts[name]
            found = [codec.reduce(group, settings.alignment, sampled) for group in groups]
            made.maps[name] = torch.cat([one.prediction for one in found])
            made.spread[name] = torch.cat([one.uncertainty for one in found])
        return made

    def _tiled(self, images: Tensor, settings: Settings, tiles: int, source: Generators) -> Made:
        """Maps with `tiles` times the detail: overlapping tiles brought to the scale of the whole, then blended."""
        side = settings.resolution or self.head.config.processing_resolution
        if side == 0:
            raise InputError("tiles need a processing_resolution: the size of one tile in px")
        overlap = int(TILE_OVERLAP * side)
        large = resized(images, tiles * side - (tiles - 1) * overlap)
        height, width = large.shape[2:]
        boxes = tile_boxes(height, width, side, overlap)
        whole = self._whole(images, settings, source)
        native = replace(settings, resolution=0)
        parts = [self._whole(box.of(large), native, source) for box in boxes]
        return merged(whole, parts, boxes, (height, width), self.head.codec.parts)

    def _outputs(self, made: Made, kind: str, latent: bool, nfe: int, seed: int | None) -> GeometryOutput:
        def form(maps: Tensor | None) -> Any:
            return maps if maps is None or kind == "pt" else maps.float().permute(0, 2, 3, 1).cpu().numpy()

        result = GeometryOutput(nfe=nfe, seed=seed)
        for name, maps in made.maps.items():
            common = {
                "prediction": form(maps),
                "uncertainty": form(made.spread.get(name)),
                "latent": made.latent if latent else None,
                "nfe": nfe,
                "seed": seed,
            }
            result.maps[name] = self.head.codec.parts[name].output(**common)
        return result


class ImageToGeometry(_FromImage[GeometryOutput]):
    """Depth and normals from one network.

    >>> made = ImageToGeometry.from_pretrained("toybox")("room.jpg")
    >>> made.save("room")
    """

    def _chosen(self, result: GeometryOutput) -> GeometryOutput:
        return result


class ImageToDepth(_FromImage[DepthOutput]):
    """Depth up to an affine map.

    >>> ImageToDepth.from_pretrained("toybox")("room.jpg", ensemble_size=5).save("room-depth")
    """

    needs = ("depth",)

    def _chosen(self, result: GeometryOutput) -> DepthOutput:
        return cast(DepthOutput, result.depth)


class ImageToNormals(_FromImage[NormalsOutput]):
    """Camera-space unit normals."""

    needs = ("normals",)

    def _chosen(self, result: GeometryOutput) -> NormalsOutput:
        return cast(NormalsOutput, result.normals)


class ImageToMap(_FromImage[TaskOutput]):
    """One target of a head, by its codec's name."""

    def __init__(self, head: MapHead, target: str) -> None:
        self.needs = (target,)
        super().__init__(head)

    def _chosen(self, result: GeometryOutput) -> TaskOutput:
        return result.maps[self.needs[0]]


def _in_chunks(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    return torch.cat([function(part) for part in rows.split(size)])
