"""Albedo, and roughness with metallic, of what a picture shows: the targets of a material prior (MaterialFusion, 2024).

Albedo is sRGB, white where nothing is seen; the other picture is (occlusion, roughness, metallic) with an occlusion of
0, black where nothing is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..metrics import masked_mean
from .base import Column, Invariance, TargetCodec


@dataclass(frozen=True)
class AlbedoCodec(TargetCodec):
    """Base colour (B, 3, H, W), sRGB in [0, 1]; determined up to a factor of each channel."""

    name: ClassVar[str] = "albedo"
    channels: ClassVar[int] = 3
    column: ClassVar[Column] = Column("albedo", "albedo", 255)
    weights: ClassVar[Mapping[str, float]] = {"albedo": 1.0}
    summary: ClassVar[tuple[str, ...]] = ("albedo_psnr",)

    @property
    def invariance(self) -> Invariance:
        """See TargetCodec.invariance."""
        return "scale"

    def truth(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See TargetCodec.truth: (B, H, W, 3); what is black in all channels is not there."""
        albedo = values.permute(0, 3, 1, 2)
        return albedo, albedo.amax(1, keepdim=True) > 0

    def encode(self, target: Tensor, valid: Tensor) -> tuple[Tensor, None]:
        """See TargetCodec.encode; invalid pixels become white."""
        return torch.where(valid, 2 * target.float() - 1, 1.0), None

    def decode(self, pictures: Tensor, state: None = None) -> Tensor:
        """See TargetCodec.decode: clipped."""
        return (pictures.clamp(-1, 1) + 1) / 2

    def error(self, maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """See TargetCodec.error: root mean square over the channels after `channel_scaled`."""
        return (channel_scaled(maps, target, valid) - target).square().mean(1).sqrt()

    def metrics(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.metrics: PSNR in dB, range 1, after `channel_scaled`, and without it."""
        found = {"albedo_psnr": channel_scaled(maps, target, valid), "albedo_psnr_unscaled": maps}
        return {name: psnr(one, target, valid) for name, one in found.items()}

    def levels(self, maps: np.ndarray) -> np.ndarray:
        """See TargetCodec.levels."""
        return maps.clip(0, 1)


@dataclass(frozen=True)
class SurfaceCodec(TargetCodec):
    """Roughness and metallic (B, 2, H, W) in [0, 1]."""

    name: ClassVar[str] = "surface"
    channels: ClassVar[int] = 2
    column: ClassVar[Column] = Column("material", "surface", 255)
    weights: ClassVar[Mapping[str, float]] = {"surface": 1.0}
    summary: ClassVar[tuple[str, ...]] = ("roughness_mse", "metallic_mse")

    @property
    def invariance(self) -> Invariance:
        """See TargetCodec.invariance."""
        return "none"

    def truth(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See TargetCodec.truth: (B, H, W, 2); nothing is as smooth as 0."""
        surface = values.permute(0, 3, 1, 2)
        return surface, surface[:, :1] > 0

    def encode(self, target: Tensor, valid: Tensor) -> tuple[Tensor, None]:
        """See TargetCodec.encode: (occlusion 0, roughness, metallic); invalid pixels become black."""
        packed = torch.cat([torch.zeros_like(target[:, :1]), target.float()], 1)
        return torch.where(valid, 2 * packed - 1, -1.0), None

    def decode(self, pictures: Tensor, state: None = None) -> Tensor:
        """See TargetCodec.decode: the last two channels, clipped."""
        return (pictures[:, 1:].clamp(-1, 1) + 1) / 2

    def error(self, maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """See TargetCodec.error: root mean square over both."""
        return (maps - target).square().mean(1).sqrt()

    def metrics(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.metrics: mean squared errors."""
        error = (maps - target).square()
        names = ("roughness_mse", "metallic_mse")
        return {name: masked_mean(error[:, k], valid[:, 0]) for k, name in enumerate(names)}

    def levels(self, maps: np.ndarray) -> np.ndarray:
        """See TargetCodec.levels: (0, roughness, metallic)."""
        return np.concatenate([np.zeros_like(maps[..., :1]), maps], -1).clip(0, 1)


def channel_scaled(maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Maps (B, 3, H, W) times the factor of each channel that fits the target best over the valid pixels."""
    keep = valid.to(maps)
    over = (maps * target * keep).flatten(2).sum(2)
    under = (maps.square() * keep).flatten(2).sum(2).clamp(min=1e-12)
    return maps * (over / under)[..., None, None]


def psnr(maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """dB (B,) with range 1 over the valid pixels."""
    return -10 * masked_mean((maps - target).square().mean(1), valid[:, 0]).clamp(min=1e-10).log10()
