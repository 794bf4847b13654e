"""Surface normals: unit vectors as RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...geometry.cameras import Camera
from ...geometry.outputs import world_normals
from ...utils.errors import InputError
from ...utils.pictures import Picture, normals_to_rgb
from ..ensemble import Alignment, Ensembled, ensemble_directions
from ..metrics import angles_deg, mean_of_valid, normal_errors
from ..outputs import TaskOutput
from .base import Column, Invariance, TargetCodec

Frame = Literal["viewer", "opencv"]
FRAME_SIGNS: dict[str, tuple[float, float, float]] = {
    "viewer": (1.0, 1.0, 1.0),  # x right, y up, z toward the viewer (Marigold, diffusers)
    "opencv": (1.0, -1.0, -1.0),  # x right, y down, z forward (our cameras)
}
COS_LIMIT = 1 - 1e-5  # the slope of arccos is infinite at 1


@dataclass(frozen=True)
class NormalCodec(TargetCodec):
    """Unit normals as RGB: components in the "viewer" frame; targets are given and returned in `frame`."""

    name: ClassVar[str] = "normals"
    channels: ClassVar[int] = 3
    column: ClassVar[Column] = Column("normal", "normals", 127, (-1.0, 1.0, 1.0))
    weights: ClassVar[Mapping[str, float]] = {"normals": 1.0}
    tolerance: ClassVar[float] = 11.25
    error_unit: ClassVar[str] = "deg"
    summary: ClassVar[tuple[str, ...]] = ("normals_mean", "normals_below_30")
    frame: Frame = "viewer"
    full_z_range: bool = True
    """False: the picture's z in [-1, 1] stands for [0, 1]"""

    def __post_init__(self) -> None:
        if self.frame not in FRAME_SIGNS:
            raise InputError(f"frame={self.frame!r} is unknown; have {', '.join(FRAME_SIGNS)}")

    @property
    def invariance(self) -> Invariance:
        """See TargetCodec.invariance."""
        return "direction"

    @classmethod
    def published(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """See TargetCodec.published."""
        return {"full_z_range": bool(settings.get("use_full_z_range", True))}

    def truth(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See TargetCodec.truth: (B, H, W, 3) in OpenCV camera axes, zero where nothing is seen."""
        normals = values.permute(0, 3, 1, 2)
        return convert_normals(unit_length(normals), "opencv", self.frame), normals.norm(dim=1, keepdim=True) > 0.5

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

    def resized(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """See TargetCodec.resized; unit vectors again."""
        return unit_length(F.interpolate(maps, tuple(size), mode="bilinear"))

    def settled(self, maps: Tensor) -> Tensor:
        """See TargetCodec.settled: unit vectors again."""
        return unit_length(maps)

    def reduce(self, members: Tensor, alignment: Alignment, sampled: bool) -> Ensembled:
        """See TargetCodec.reduce: samples are not averaged to a direction that none of them took."""
        return ensemble_directions(members, "closest" if sampled else "mean")

    def loss(self, pictures: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.loss: the mean angle in radians."""
        coded, _ = self.encode(target, valid)
        cosine = (unit_length(pictures) * unit_length(coded)).sum(1)
        return {"normals": mean_of_valid(cosine.clamp(-COS_LIMIT, COS_LIMIT).arccos(), valid[:, 0])}

    def error(self, maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """See TargetCodec.error: degrees."""
        return angles_deg(maps, target)

    def metrics(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.metrics: `normal_errors` under normals_mean and so on."""
        return {f"normals_{name}": value for name, value in normal_errors(maps, target, valid[:, 0]).items()}

    def pooled(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.pooled: the mean angle (DSINE's average)."""
        return {"normals_mean_pooled": normal_errors(maps, target, valid[:, 0], pooling="pixels")["mean"]}

    def output(self, **common: Any) -> NormalsOutput:
        """See TargetCodec.output."""
        return NormalsOutput(**common, frame=self.frame)

    def facts(self) -> dict[str, str]:
        """See TargetCodec.facts."""
        return {"frame": self.frame}

    def levels(self, maps: np.ndarray) -> np.ndarray:
        """See TargetCodec.levels: (n + 1) / 2."""
        return (maps.clip(-1, 1) + 1) / 2

    def picture(self, maps: np.ndarray, colormap: str = "") -> Picture:
        """See TargetCodec.picture; white where there is no normal."""
        return normals_to_rgb(maps)

    def legend(self, height: int, colormap: str = "") -> Picture:
        """See TargetCodec.legend: a ball in the colours of its normals."""
        size = max(min(height, 256), 8)
        x, y = np.meshgrid(*(np.linspace(-1.1, 1.1, size),) * 2)
        z = np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
        ball = np.stack([x, -y, z], axis=-1) * (x**2 + y**2 <= 1)[..., None] * np.array(FRAME_SIGNS[self.frame])
        sheet = np.full((height, size, 3), 255, np.uint8)
        sheet[: min(size, height)] = normals_to_rgb(ball)[:height]
        return sheet

    def compared(self, maps: Tensor, target: Tensor, valid: Tensor) -> tuple[Picture, Picture]:
        """See TargetCodec.compared."""
        return normals_to_rgb((maps * valid)[0]), normals_to_rgb((target * valid)[0])


@dataclass
class NormalsOutput(TaskOutput):
    """Unit normals in camera space; the frame "viewer" has x right, y up, z toward the viewer."""

    frame: Frame = "viewer"

    @property
    def normals(self) -> np.ndarray:
        """float32 (N, H, W, 3)."""
        return self.maps()

    def in_world(self, cameras: Camera) -> Tensor:
        """Unit world normals (N, H, W, 3) float32 of the pictures of N cameras, whatever the frame."""
        local = convert_normals(torch.from_numpy(self.normals).permute(0, 3, 1, 2), self.frame, "opencv")
        return world_normals(local.permute(0, 2, 3, 1), cameras)

    @property
    def codec(self) -> NormalCodec:
        """See TaskOutput.codec."""
        return NormalCodec(self.frame)


def convert_normals(normals: Tensor, source: str, target: str) -> Tensor:
    """Normals (B, 3, H, W) from one camera frame to another; the frames of FRAME_SIGNS differ by signs."""
    for name in (source, target):
        if name not in FRAME_SIGNS:
            raise InputError(f"frame={name!r} is unknown; have {', '.join(FRAME_SIGNS)}")
    signs = torch.tensor(FRAME_SIGNS[source]) * torch.tensor(FRAME_SIGNS[target])
    return normals * signs.to(normals).reshape(3, 1, 1)


def unit_length(vectors: Tensor, eps: float = 1e-6) -> Tensor:
    """Vectors (B, 3, H, W) divided by max(norm, eps)."""
    return F.normalize(vectors, dim=1, eps=eps)


def _map_z(vectors: Tensor, scale: float, shift: float) -> Tensor:
    return torch.cat([vectors[:, :2], scale * vectors[:, 2:] + shift], 1)
