"""Target codecs: physical maps to pictures in [-1, 1] that a picture VAE can hold, and back.

A codec carries what its normalisation needed (`state`), so that decoding never guesses, and declares up to what its
decoded values are determined (`invariance`). Maps are (B, C, H, W), masks (B, 1, H, W) bool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..utils.errors import InputError

Invariance = Literal["none", "scale", "affine", "direction", "permutation"]
Space = Literal["linear", "disparity", "log"]
Frame = Literal["viewer", "opencv"]
MIN_RANGE = 1e-6
FRAME_SIGNS: dict[str, tuple[float, float, float]] = {
    "viewer": (1.0, 1.0, 1.0),  # x right, y up, z toward the viewer (Marigold, diffusers)
    "opencv": (1.0, -1.0, -1.0),  # x right, y down, z forward (our cameras)
}


class TargetCodec(ABC):
    """One group of three picture channels."""

    channels: ClassVar[int]
    invariance: Invariance

    @abstractmethod
    def encode(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Any]:
        """(pictures (B, 3, H, W) in [-1, 1], state) of a target (B, channels, H, W)."""

    @abstractmethod
    def decode(self, pictures: Tensor, state: Any = None) -> Tensor:
        """Target (B, channels, H, W) of pictures (B, 3, H, W); without a state up to the codec's invariance."""


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

    channels: ClassVar[int] = 1
    space: Space = "linear"
    quantile: float = 0.02
    clip: bool = True  # to [-1, 1]: values outside the quantiles are lost
    invariance: Invariance = "affine"

    def __post_init__(self) -> None:
        if self.space not in ("linear", "disparity", "log"):
            raise InputError(f"space={self.space!r} is unknown; have linear, disparity, log")
        if not 0 <= self.quantile < 0.5:
            raise InputError(f"quantile={self.quantile} must lie in [0, 0.5)")

    @property
    def larger_is(self) -> str:
        """What large picture values mean."""
        return "near" if self.space == "disparity" else "far"

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
        ends = torch.tensor([self.quantile, 1 - self.quantile], device=values.device)
        low, high = torch.nanquantile(hidden, ends, dim=1).nan_to_num(0.0)  # (B,) each
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


@dataclass(frozen=True)
class NormalCodec(TargetCodec):
    """Unit normals as RGB: components in the "viewer" frame; targets are given and returned in `frame`."""

    channels: ClassVar[int] = 3
    frame: Frame = "viewer"
    full_z_range: bool = True  # False: the picture's z in [-1, 1] stands for [0, 1]
    invariance: Invariance = "direction"

    def __post_init__(self) -> None:
        if self.frame not in FRAME_SIGNS:
            raise InputError(f"frame={self.frame!r} is unknown; have {', '.join(FRAME_SIGNS)}")

    def encode(self, target: Tensor, valid: Tensor) -> tuple[Tensor, None]:
        """See TargetCodec.encode; invalid pixels become 0."""
        pictures = convert_normals(target.float(), self.frame, "viewer")
        if not self.full_z_range:
            pictures = _map_z(pictures, 2.0, -1.0)
        return pictures.masked_fill(~valid, 0.0), None

    def decode(self, pictures: Tensor, state: None = None) -> Tensor:
        """See TargetCodec.decode: clipped to [-1, 1], then unit length."""
        vectors = pictures.clamp(-1, 1)
        if not self.full_z_range:
            vectors = _map_z(vectors, 0.5, 0.5)
        return convert_normals(unit_length(vectors), "viewer", self.frame)


@dataclass(frozen=True)
class StackCodec:
    """Several targets of one image, a group of pictures each, in the order of `parts`."""

    parts: Mapping[str, TargetCodec]

    @property
    def groups(self) -> int:
        """Number of groups n."""
        return len(self.parts)

    def encode(self, targets: Mapping[str, Tensor], valid: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """(pictures (B, n, 3, H, W), states by name)."""
        coded = {name: codec.encode(targets[name], valid) for name, codec in self.parts.items()}
        return torch.stack([pictures for pictures, _ in coded.values()], 1), {k: s for k, (_, s) in coded.items()}

    def decode(self, pictures: Tensor, states: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Targets by name of pictures (B, n, 3, H, W)."""
        if pictures.ndim != 5 or pictures.shape[1] != self.groups:
            raise InputError(f"pictures have shape {tuple(pictures.shape)}, expected (B, {self.groups}, 3, H, W)")
        states = states or {}
        return {
            name: codec.decode(pictures[:, i], states.get(name)) for i, (name, codec) in enumerate(self.parts.items())
        }


def convert_normals(normals: Tensor, source: str, target: str) -> Tensor:
    """Normals (B, 3, H, W) from one camera frame to another; the frames of FRAME_SIGNS differ by signs."""
    for name in (source, target):
        if name not in FRAME_SIGNS:
            raise InputError(f"frame={name!r} is unknown; have {', '.join(FRAME_SIGNS)}")
    signs = torch.tensor(FRAME_SIGNS[source]) * torch.tensor(FRAME_SIGNS[target])
    return normals * signs.to(normals).reshape(3, 1, 1)


def unit_length(vectors: Tensor, eps: float = 1e-6) -> Tensor:
    """Vectors (B, 3, H, W) divided by max(norm, eps)."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=eps)


def _map_z(vectors: Tensor, scale: float, shift: float) -> Tensor:
    return torch.cat([vectors[:, :2], scale * vectors[:, 2:] + shift], 1)
