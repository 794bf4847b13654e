"""Depth up to an affine map (or a scale), linear, as disparity or as its logarithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ...geometry.cameras import Camera
from ...geometry.lifting import MAX_SLANT_DEG, depth_mesh
from ...geometry.meshes import Mesh
from ...geometry.points import PointCloud
from ...utils.errors import InputError
from ...utils.pictures import Picture, colourise, scale_bar
from ..ensemble import Alignment, Ensembled, ensemble_affine
from ..metrics import align, depth_errors, edge_error, fit_affine, mean_of_valid
from ..outputs import TaskOutput
from ..tiling import Box, stitch_images
from .base import Column, Invariance, TargetCodec

Space = Literal["linear", "disparity", "log"]
MIN_RANGE = 1e-6


@dataclass(frozen=True)
class DepthRange:
    """The values that -1 and +1 stand for, each (B, 1, 1, 1), in the codec's space."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class DepthCodec(TargetCodec):
    """Affine-invariant depth: d' = 2 (f(d) - f_q) / (f_(1-q) - f_q) - 1 with per-image quantiles, in three channels.

    f is the identity ("linear"), 1 / d ("disparity") or ln d ("log"); the picture's larger values are farther,
    in disparity nearer.
    """

    name: ClassVar[str] = "depth"
    channels: ClassVar[int] = 1
    column: ClassVar[Column] = Column("depth_m", "depth_m")
    weights: ClassVar[Mapping[str, float]] = {"depth": 1.0, "relative": 0.0, "anchor": 0.5, "edges": 0.5}
    colormap: ClassVar[str] = "Spectral"
    summary: ClassVar[tuple[str, ...]] = ("upright", "abs_rel", "delta1", "silog")
    space: Space = "linear"
    quantile: float = 0.02
    clip: bool = True
    """to [-1, 1]: values outside the quantiles are lost"""
    shift: bool = True
    """False: decoded values are determined up to scale only"""

    def __post_init__(self) -> None:
        if self.space not in ("linear", "disparity", "log"):
            raise InputError(f"space={self.space!r} is unknown; have linear, disparity, log")
        if not 0 <= self.quantile < 0.5:
            raise InputError(f"quantile={self.quantile} must lie in [0, 0.5)")

    @property
    def invariance(self) -> Invariance:
        """See TargetCodec.invariance."""
        return "affine" if self.shift else "scale"

    @classmethod
    def published(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """See TargetCodec.published."""
        space = "disparity" if settings.get("prediction_type") == "disparity" else "linear"
        return {"space": space, "shift": bool(settings.get("shift_invariant", True))}

    def truth(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See TargetCodec.truth: metres (B, H, W), 0 where nothing is seen."""
        depth_m = values[:, None]
        return depth_m, (depth_m > 0) & torch.isfinite(depth_m)

    def to_space(self, depth_m: Tensor) -> Tensor:
        """f(depth); depth > 0."""
        if self.space == "linear":
            return depth_m
        return depth_m.log() if self.space == "log" else 1 / depth_m

    def from_space(self, values: Tensor) -> Tensor:
        """Inverse of `to_space`."""
        if self.space == "linear":
            return values
        return values.exp() if self.space == "log" else 1 / values.clamp(min=1e-6)

    def range_of(self, depth_m: Tensor, valid: Tensor) -> DepthRange:
        """Quantiles over the valid pixels of each image; (0, 1) for an image without any."""
        values = self.to_space(torch.where(valid, depth_m, torch.ones_like(depth_m)).float())
        hidden = values.masked_fill(~valid, torch.nan).flatten(1)
        low, high = nanquantiles(hidden, (self.quantile, 1 - self.quantile)).nan_to_num(0.0)  # (B,) each
        high = torch.where(valid.flatten(1).any(1), high, torch.ones_like(high))
        high = torch.maximum(high, low + MIN_RANGE * low.abs().clamp(min=1))
        return DepthRange(low.reshape(-1, 1, 1, 1), high.reshape(-1, 1, 1, 1))

    def relative_unit(self, depth_m: Tensor, valid: Tensor, state: DepthRange) -> Tensor:
        """Relative error of depth, |dd| / d, that one unit of the picture stands for at each pixel; 0 where invalid."""
        depth = torch.where(valid, depth_m, torch.ones_like(depth_m)).float()
        slope = {"linear": depth, "log": torch.ones_like(depth), "disparity": 1 / depth}[self.space]  # |df / d ln d|
        return torch.where(valid, (state.high - state.low) / (2 * slope), torch.zeros_like(depth))

    def encode(self, target: Tensor, valid: Tensor) -> tuple[Tensor, DepthRange]:
        """See TargetCodec.encode: depth (B, 1, H, W) in metres, positive where valid; invalid pixels become 1."""
        state = self.range_of(target, valid)
        values = self.to_space(torch.where(valid, target, torch.ones_like(target)).float())
        unit = 2 * (values - state.low) / (state.high - state.low) - 1
        unit = torch.where(valid, unit.clamp(-1, 1) if self.clip else unit, torch.ones_like(unit))
        return unit.expand(-1, 3, -1, -1), state

    def decode(self, pictures: Tensor, state: DepthRange | None = None) -> Tensor:
        """See TargetCodec.decode: [0, 1] in the codec's space, or metres with the state."""
        unit = pictures.mean(1, keepdim=True)
        unit = ((unit.clamp(-1, 1) if self.clip else unit) + 1) / 2
        return unit if state is None else self.from_space(state.low + unit * (state.high - state.low))

    def reduce(self, members: Tensor, alignment: Alignment, sampled: bool) -> Ensembled:
        """See TargetCodec.reduce: aligned, then their median."""
        return ensemble_affine(members, how=alignment._replace(shift=self.shift))

    def stitched(
        self, tiles: Sequence[Tensor], boxes: Sequence[Box], whole: Tensor
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | float]]:
        """See TargetCodec.stitched: each tile has its own scale and shift."""
        return stitch_images(tiles, boxes, whole)

    def settled(self, maps: Tensor) -> Tensor:
        """See TargetCodec.settled: [0, 1]."""
        return maps.clamp(0, 1)

    def loss(self, pictures: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.loss.

        `depth`: L1 after least-squares alignment, in units of half the depth range; `relative`: the same error in
        metres over the true depth, to first order, what AbsRel counts; `anchor`: L1 without alignment, which keeps
        larger = farther and the output in its range; `edges`: the error of differences between neighbours at 3 scales,
        after alignment. The fitted scale is kept positive: with a free sign a head that starts inverted stays inverted.
        """
        coded, state = self.encode(target, valid)
        unit = self.relative_unit(target, valid, state)
        prediction, wanted, keep = pictures.mean(1), coded[:, 0], valid[:, 0]
        fitted = fit_affine(prediction, wanted, keep, ridge=1e-3, positive=True)(prediction.double()).float()
        error = fitted - wanted
        return {
            "depth": mean_of_valid(error.abs(), keep),
            "relative": mean_of_valid(error.abs() * unit[:, 0], keep),
            "anchor": mean_of_valid((prediction - wanted).abs(), keep),
            "edges": edge_error(error, keep),
        }

    def error(self, maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """See TargetCodec.error: |d' - d| / d of the aligned depth."""
        metres = align(maps[:, 0], target[:, 0], valid[:, 0])
        return (metres - target[:, 0]).abs() / target[:, 0].clamp(min=1e-6)

    def metrics(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.metrics: `depth_errors` after least squares in depth.

        `upright` is 1 where the fit needed a positive scale: it would forgive an inverted head.
        """
        unit, truth, keep = maps[:, 0], target[:, 0], valid[:, 0]
        upright = (fit_affine(unit, truth, keep).scale > 0).double()
        return {"upright": upright, **depth_errors(align(unit, truth, keep), truth, keep)}

    def output(self, **common: Any) -> DepthOutput:
        """See TargetCodec.output."""
        return DepthOutput(**common, invariance=self.invariance, space=self.space)

    def facts(self) -> dict[str, str]:
        """See TargetCodec.facts."""
        return {"invariance": self.invariance, "space": self.space}

    def levels(self, maps: np.ndarray) -> np.ndarray:
        """See TargetCodec.levels: the range [0, 1] as it is."""
        return maps[..., 0].clip(0, 1)

    def picture(self, maps: np.ndarray, colormap: str = "") -> Picture:
        """See TargetCodec.picture: red is the smallest value, blue the largest."""
        return colourise(maps[..., 0], colormap or self.colormap, low=0.0, high=1.0)

    def legend(self, height: int, colormap: str = "") -> Picture:
        """See TargetCodec.legend."""
        ends = ("0 far", "1 near") if self.space == "disparity" else ("0 near", "1 far")
        return scale_bar(height, colormap or self.colormap, *ends)

    def compared(self, maps: Tensor, target: Tensor, valid: Tensor) -> tuple[Picture, Picture]:
        """See TargetCodec.compared: metres, the prediction aligned to the truth."""
        truth, keep = target[0, 0], valid[0, 0]
        metres = align(maps[:, 0], target[:, 0], valid[:, 0])[0]
        seen = truth[keep] if keep.any() else truth
        low, high = float(seen.min()), float(seen.max())
        one, other = (colourise(values, mask=keep, low=low, high=high) for values in (metres, truth))
        return one, other


@dataclass
class DepthOutput(TaskOutput):
    """Depth in [0, 1] up to an affine map (or scale); larger is farther unless the space is "disparity"."""

    invariance: str = "affine"
    space: Space = "linear"

    @property
    def depth(self) -> np.ndarray:
        """float32 (N, H, W) in [0, 1]."""
        return self.maps()[..., 0]

    @property
    def codec(self) -> DepthCodec:
        """See TaskOutput.codec."""
        return DepthCodec(self.space, shift=self.invariance == "affine")

    def metres(self, near_m: float, far_m: float) -> np.ndarray:
        """float32 (N, H, W), z-depth: the range [near_m, far_m] in the prediction's own space; nan where the picture
        shows nothing.

        Of depth up to an affine map the nearest pixel of each image is at near_m and the farthest at far_m; where only
        the scale is free, as far as the prediction reaches within [0, 1]. Raises InputError where no picture shows
        anything.
        """
        if not 0 < near_m < far_m:
            raise InputError(f"near_m={near_m}, far_m={far_m}: need 0 < near_m < far_m")
        seen = self.seen()
        if not seen.any():
            raise InputError("no pixel of the depth is valid: a picture of one colour has no shape; give another one")
        unit = np.where(seen, self.depth.clip(0, 1), np.float32(np.nan))
        if self.invariance == "affine":
            unit = _stretched(unit)
        if self.space == "disparity":
            return 1 / (1 / far_m + unit * (1 / near_m - 1 / far_m))
        if self.space == "log":
            return near_m * (far_m / near_m) ** unit
        return near_m + unit * (far_m - near_m)

    def point_cloud(
        self,
        image: np.ndarray,
        camera: Camera,
        near_m: float = 1.0,
        far_m: float = 4.0,
        index: int = 0,
        max_slant_deg: float | None = MAX_SLANT_DEG,
    ) -> PointCloud:
        """Pixels of image `index`, sRGB (H, W, 3) in [0, 1], as points with normals; the metres are a choice, not a
        measurement. Points that fly between near and far are left out by `max_slant_deg` (None keeps them)."""
        depth_m = torch.from_numpy(self.one_metres(near_m, far_m, index))[None]
        colours = torch.as_tensor(np.asarray(image, np.float32))[None]
        return PointCloud.from_depth(depth_m, colours, camera, max_slant_deg=max_slant_deg, normals=True)

    def surface(
        self,
        image: np.ndarray,
        camera: Camera,
        near_m: float = 1.0,
        far_m: float = 4.0,
        max_faces: int = 200_000,
        max_slant_deg: float = MAX_SLANT_DEG,
        index: int = 0,
    ) -> Mesh:
        """Image `index` as a mesh with the picture as its texture, torn at depth edges (lifting.depth_mesh)."""
        depth_m = torch.from_numpy(self.one_metres(near_m, far_m, index))
        return depth_mesh(depth_m, image, camera, max_faces, max_slant_deg)

    def one_metres(self, near_m: float, far_m: float, index: int) -> np.ndarray:
        """`metres` of one image, (H, W)."""
        valid = None if self.valid is None else self.valid[index : index + 1]
        alone = replace(self, prediction=self.prediction[index : index + 1], valid=valid)
        return alone.metres(near_m, far_m)[0].astype(np.float32, copy=False)


def _stretched(unit: np.ndarray) -> np.ndarray:
    """Maps (N, H, W) whose smallest and largest finite values become 0 and 1; one of a single value or none stays."""
    known: Any = {"axis": (1, 2), "keepdims": True, "where": np.isfinite(unit)}
    low, high = np.min(unit, initial=np.inf, **known), np.max(unit, initial=-np.inf, **known)
    return np.where(high - low > 1e-6, (unit - low) / np.maximum(high - low, 1e-6), unit).astype(np.float32)


def nanquantiles(values: Tensor, shares: Sequence[float]) -> Tensor:
    """Quantiles (len(shares), B) of rows (B, n) without their nans, linear between neighbours; nan for rows of nans.

    By numpy: torch.nanquantile refuses more than 2^24 values.
    """
    rows = [row[~np.isnan(row)] for row in values.detach().cpu().numpy()]
    found = [np.quantile(row, shares) if len(row) else np.full(len(shares), np.nan) for row in rows]
    return torch.from_numpy(np.stack(found, 1)).to(values)
