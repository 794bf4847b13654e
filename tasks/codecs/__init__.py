"""Target codecs, one file a target: all that is special about a kind of map. `CODECS` is their list."""

from __future__ import annotations

from .base import CodedOutput, Column, Invariance, TargetCodec
from .camera import CameraCodec
from .depth import DepthCodec, DepthOutput, DepthRange
from .gravity import GravityCodec
from .intrinsic import AlbedoCodec, SurfaceCodec
from .normals import FRAME_SIGNS, NormalCodec, NormalsOutput, convert_normals, unit_length
from .stack import StackCodec

CODECS: dict[str, type[TargetCodec]] = {
    kind.name: kind for kind in (DepthCodec, NormalCodec, CameraCodec, GravityCodec, AlbedoCodec, SurfaceCodec)
}

__all__ = [
    "CODECS",
    "FRAME_SIGNS",
    "AlbedoCodec",
    "CameraCodec",
    "CodedOutput",
    "Column",
    "DepthCodec",
    "DepthOutput",
    "DepthRange",
    "GravityCodec",
    "Invariance",
    "NormalCodec",
    "NormalsOutput",
    "StackCodec",
    "SurfaceCodec",
    "TargetCodec",
    "convert_normals",
    "unit_length",
]
