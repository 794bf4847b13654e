"""Image to depth and normals, for any head and any picture: prepare, encode, denoise, decode, ensemble, restore."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.sampling.grids import Spacing
from ..tasks.codecs import DepthCodec, unit_length
from ..tasks.ensemble import CONSENSUS, Alignment, Ensembled, ensemble_affine, ensemble_directions
from ..tasks.geometry_head import GeometryHead
from ..tasks.heads import load_head
from ..tasks.outputs import DepthOutput, GeometryOutput, NormalsOutput
from ..tasks.tiling import blend, stitch_affine, tile_boxes
from ..utils.errors import InputError
from ..utils.seeds import generator as seeded
from ..utils.seeds import sample_noise
from .picture_inputs import PictureLike, fitted, pictures, resized

Out = TypeVar("Out")
Generators = torch.Generator | Sequence[torch.Generator] | None
TILE_OVERLAP = 0.25  # of a tile's side
VARIANTS = (
    (False, 1.0),
    (True, 1.0),
    (False, 0.875),
    (True, 0.875),
    (False, 1.125),
    (True, 1.125),
    (False, 0.75),
    (True, 0.75),
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


@dataclass
class Made:
    """Maps (N, C, H, W) by name, with uncertainties of ensembles."""

    maps: dict[str, Tensor]
    spread: dict[str, Tensor]
    latent: Tensor | None


class _FromImage(ABC, Generic[Out]):
    """Loading and prediction, shared by the pipelines below."""

    needs: tuple[str, ...] = ()

    def __init__(self, head: GeometryHead) -> None:
        missing = [name for name in self.needs if name not in head.config.targets]
        if missing:
            raise InputError(f"this head predicts {', '.join(head.config.targets)}, not {', '.join(missing)}")
        self.head = head

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "toybox",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> Any:
        """Loads a head: "toybox", a folder with head.json, a Marigold folder, a known id or a hub repository."""
        return cls(load_head(name, cls.needs, device, dtype, **options))

    def save_pretrained(self, folder: str | Path, base: str = "toybox") -> Path:
        """Writes the head's own weights; `base` names the prior they go with."""
        return self.head.save(folder, base)

    @torch.no_grad()
    def __call__(
        self,
        image: PictureLike | Sequence[PictureLike],
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        *,
        tiles: int = 1,
        spacing: Spacing | None = None,
        seed: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        batch_size: int = 8,
        alignment: Alignment = CONSENSUS,
        output_type: str = "np",
        output_latent: bool = False,
    ) -> Out:
        """Predicts maps.

        Args:
            image: a path, PIL image, array (H, W, 3) or tensor (3, H, W) in [0, 1], or several of one size.
            num_inference_steps: None: what suits the head; a regressor takes 1.
            ensemble_size: predictions to align and reduce. A sampler draws other noise for each; a regressor looks at
                mirrored and rescaled copies. Uncertainty comes with 2 or more and is useful from 3 on.
            processing_resolution: px of the longest edge inside the network; 0: the image's own; None: the head's.
            match_input_resolution: return maps of the image's size.
            tiles: tiles along the longest edge, each at the processing resolution; for detail in large pictures.
            spacing: of the time steps; None: the head's.
            seed: of the starting noise.
            generator: one, or one per image and member, instead of a seed.
            latents: starting state (N E, C, h, w) instead of drawing it.
            batch_size: rows at once.
            alignment: how depth members are aligned.
            output_type: "np" (N, H, W, C) or "pt" (N, C, H, W).
            output_latent: also return the final latents.
        """
        images = pictures(image).to(self.head.device)
        settings = self._settings(
            num_inference_steps, spacing, ensemble_size, processing_resolution, batch_size, alignment
        )
        self._check(tiles, seed, generator, latents, output_type)
        source = generator if generator is not None else seeded(0 if seed is None else seed)
        before = self.head.nfe
        size = (images.shape[2], images.shape[3])
        made = (
            self._tiled(images, settings, tiles, source)
            if tiles > 1
            else self._whole(images, settings, source, latents)
        )
        if match_input_resolution:
            made = _at_size(made, size)
        result = self._outputs(made, output_type, output_latent, self.head.nfe - before, seed)
        return self._chosen(result)

    @abstractmethod
    def _chosen(self, result: GeometryOutput) -> Out:
        """The part of everything predicted that this pipeline returns."""

    def _settings(
        self, steps: int | None, spacing: Any, members: int, resolution: int | None, batch: int, alignment: Alignment
    ) -> Settings:
        config = self.head.config
        steps = config.steps if steps is None else steps
        resolution = config.processing_resolution if resolution is None else resolution
        if steps < 1 or members < 1 or batch < 1 or resolution < 0:
            raise InputError(
                f"num_inference_steps={steps}, ensemble_size={members}, batch_size={batch} must be at least 1 and "
                f"processing_resolution={resolution} at least 0"
            )
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

    def _whole(self, images: Tensor, settings: Settings, source: Any, latents: Tensor | None = None) -> Made:
        """Maps at the processing size of images (N, 3, H, W)."""
        if settings.members > 1 and self.head.config.start == "zeros":
            return self._varied(images, settings)
        count, members = len(images), settings.members
        padded, inner = fitted(images, settings.resolution, self.head.prior.vae_factor)
        condition = _in_chunks(self.head.encode_image, padded, settings.batch).repeat_interleave(members, 0)
        start = self._start(condition, source, latents)
        rows = range(0, len(condition), settings.batch)
        final = torch.cat(
            [
                self.head.predict(
                    condition[i : i + settings.batch], start[i : i + settings.batch], settings.steps, settings.spacing
                )
                for i in rows
            ]
        )
        decoded = [self.head.decode(final[i : i + settings.batch]) for i in rows]
        maps = {name: torch.cat([part[name] for part in decoded])[..., : inner[0], : inner[1]] for name in decoded[0]}
        if members == 1:
            return Made(maps, {}, final)
        joined = {
            name: [self._ensemble(name, m, settings) for m in value.split(members)] for name, value in maps.items()
        }
        assert all(len(parts) == count for parts in joined.values())
        return Made(
            {name: torch.cat([part.prediction for part in parts]) for name, parts in joined.items()},
            {name: torch.cat([part.uncertainty for part in parts]) for name, parts in joined.items()},
            final,
        )

    def _start(self, condition: Tensor, source: Any, latents: Tensor | None) -> Tensor:
        """Starting state (N E, C, h, w)."""
        shape = self.head.shape(condition)
        if latents is not None:
            if latents.shape != (len(condition), *shape):
                raise InputError(f"latents have shape {tuple(latents.shape)}, expected {(len(condition), *shape)}")
            return latents.to(condition)
        if self.head.config.start == "zeros":
            return condition.new_zeros((len(condition), *shape))
        if not isinstance(source, torch.Generator) and len(source) != len(condition):
            raise InputError(
                f"got {len(source)} generators for {len(condition)} rows; give one, or one per image and member"
            )
        return sample_noise(shape, source, len(condition), condition.device, condition.dtype)

    def _varied(self, images: Tensor, settings: Settings) -> Made:
        """An ensemble of a deterministic head: mirrored and rescaled copies of the images."""
        alone = replace(settings, members=1)
        resolution = settings.resolution or max(images.shape[2:])
        parts: list[dict[str, Tensor]] = []
        for member in range(settings.members):
            mirrored, scale = VARIANTS[member % len(VARIANTS)]
            scale *= 1 + 0.02 * (member // len(VARIANTS))
            own = replace(alone, resolution=max(round(resolution * scale), 8))
            made = self._whole(images.flip(3) if mirrored else images, own, None)
            maps = {name: _mirrored(name, value) if mirrored else value for name, value in made.maps.items()}
            size = (
                tuple(next(iter(parts[0].values())).shape[2:]) if parts else tuple(next(iter(maps.values())).shape[2:])
            )
            parts.append({name: _resize_map(name, value, size) for name, value in maps.items()})
        maps, spread = {}, {}
        for name in parts[0]:
            stacked = torch.stack([part[name] for part in parts], 1)  # (N, E, C, h, w)
            found = [self._ensemble(name, group, settings) for group in stacked]
            maps[name] = torch.cat([one.prediction for one in found])
            spread[name] = torch.cat([one.uncertainty for one in found])
        return Made(maps, spread, None)

    def _ensemble(self, name: str, members: Tensor, settings: Settings) -> Ensembled:
        """One map out of members (E, C, h, w)."""
        if name == "normals":
            return ensemble_directions(members)
        return ensemble_affine(members, how=settings.alignment._replace(shift=self.head.config.shift_invariant))

    def _tiled(self, images: Tensor, settings: Settings, tiles: int, source: Any) -> Made:
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
        maps, spread = {}, {}
        for name, coarse in whole.maps.items():
            reference = _resize_map(name, coarse, (height, width))
            windows = [part.maps[name] for part in parts]
            if name == "depth":
                rows = [
                    stitch_affine([w[i : i + 1] for w in windows], boxes, reference[i : i + 1])
                    for i in range(len(images))
                ]
                windows = [torch.cat([row[k] for row in rows]) for k in range(len(boxes))]
            merged = blend(windows, boxes, height, width)
            maps[name] = merged.clamp(0, 1) if name == "depth" else unit_length(merged)
            if settings.members > 1:
                spread[name] = blend([part.spread[name] for part in parts], boxes, height, width)
        return Made(maps, spread, None)

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
            codec = self.head.codec.parts[name]
            if isinstance(codec, DepthCodec):
                result.depth = DepthOutput(**common, invariance=codec.invariance, space=codec.space)
            else:
                result.normals = NormalsOutput(**common)
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
        assert result.depth is not None
        return result.depth


class ImageToNormals(_FromImage[NormalsOutput]):
    """Camera-space unit normals."""

    needs = ("normals",)

    def _chosen(self, result: GeometryOutput) -> NormalsOutput:
        assert result.normals is not None
        return result.normals


def _in_chunks(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    return torch.cat([function(part) for part in rows.split(size)])


def _mirrored(name: str, maps: Tensor) -> Tensor:
    """Maps of a mirrored image, mirrored back; normals change the sign of x."""
    flipped = maps.flip(3)
    return torch.cat([-flipped[:, :1], flipped[:, 1:]], 1) if name == "normals" else flipped


def _resize_map(name: str, maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear; normals become unit vectors again."""
    if tuple(maps.shape[2:]) == tuple(size) and name != "normals":
        return maps
    scaled = F.interpolate(maps, tuple(size), mode="bilinear")
    return unit_length(scaled) if name == "normals" else scaled


def _at_size(made: Made, size: tuple[int, int]) -> Made:
    maps = {name: _resize_map(name, value, size) for name, value in made.maps.items()}
    spread = {name: F.interpolate(value, size, mode="bilinear") for name, value in made.spread.items()}
    return replace(made, maps=maps, spread=spread)
