"""The direction of falling in camera axes, one for the whole picture, as a map of one colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..metrics import mean_of_valid
from ..outputs import TaskOutput
from .base import CodedOutput, Column
from .normals import Frame, NormalCodec, unit_length


@dataclass(frozen=True)
class GravityCodec(NormalCodec):
    """Unit vectors as RGB, as normals are, that agree in all pixels; they hold for any part of a photograph."""

    name: ClassVar[str] = "gravity"
    column: ClassVar[Column] = Column("gravity", "gravity", 127, (-1.0, 1.0, 1.0))
    weights: ClassVar[Mapping[str, float]] = {"gravity": 1.0}
    summary: ClassVar[tuple[str, ...]] = ("gravity_deg",)
    frame: Frame = "opencv"

    def loss(self, pictures: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.loss: the distance of the unit vectors, finite in slope where they agree."""
        coded, _ = self.encode(target, valid)
        return {"gravity": mean_of_valid((pictures - coded).abs().mean(1), valid[:, 0])}

    def metrics(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.metrics: the angle of the directions of whole pictures."""
        cosine = (common_direction(maps, valid) * common_direction(target, valid)).sum(1)
        return {"gravity_deg": torch.rad2deg(cosine.clamp(-1, 1).arccos()).double()}

    def output(self, **common: Any) -> TaskOutput:
        """See TargetCodec.output."""
        return CodedOutput(**common, coded_by=self)

    def pooled(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See TargetCodec.pooled: nothing."""
        return {}


def common_direction(vectors: Tensor, valid: Tensor, rounds: int = 20) -> Tensor:
    """(B, 3) unit direction that the valid vectors (B, 3, H, W) agree on: their geometric median (Weiszfeld), which
    less than half of them cannot carry away."""
    rows, keep = unit_length(vectors).double().flatten(2), valid.flatten(1).double()  # (B, 3, n), (B, n)
    found = (rows * keep[:, None]).sum(2) / keep.sum(1, keepdim=True).clamp(min=1)
    for _ in range(rounds):
        apart = (rows - found[..., None]).norm(dim=1).clamp(min=1e-9)
        weight = keep / apart
        found = (rows * weight[:, None]).sum(2) / weight.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.nn.functional.normalize(found, dim=1)
