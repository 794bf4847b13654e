"""What a target is: everything about one kind of map that ensembles, tiles, training, evaluation and files ask for.

A codec turns physical maps into pictures in [-1, 1] that a picture VAE can hold, and back. It carries what its
normalisation needed (`state`), so that decoding never guesses, and declares up to what its decoded values are
determined (`invariance`). Maps are (B, C, H, W), masks (B, 1, H, W) bool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ...utils.pictures import Picture, to_uint8
from ..ensemble import Alignment, Ensembled, ensemble_median
from ..metrics import mean_of_valid
from ..outputs import TaskOutput
from ..tiling import Box

Invariance = Literal["none", "scale", "affine", "direction", "permutation"]


@dataclass(frozen=True)
class Column:
    """A channel of rendered sets, what batches call it, and what a mirror does to it."""

    stored: str
    """name in a rendered set, (n, H, W) or (n, H, W, C)"""
    batch: str
    """name in a batch, float32 of the same shape"""
    scale: float = 1.0
    """stored values are divided by it"""
    mirror: tuple[float, ...] = (1.0,)
    """sign of each channel in the mirrored picture; one for all, or C"""
    smooth: bool = False
    """linear between pixels and beyond the edge; otherwise a window that is resized takes the nearest pixels"""


class TargetCodec(ABC):
    """One kind of map, in one group of three picture channels."""

    name: ClassVar[str]
    channels: ClassVar[int]
    column: ClassVar[Column]
    """where its ground truth is"""
    unit: ClassVar[str | None] = None
    """of decoded values; None where they have none"""
    frame: str | None = None
    """axes that vectors refer to"""
    weights: ClassVar[Mapping[str, float]]
    """parts of the training loss and what they weigh by default"""
    colormap: ClassVar[str] = ""
    """of its picture, where another one would do; empty where the colours have a meaning"""
    tolerance: ClassVar[float] = 0.1
    """error below which a pixel counts as right, for confidence"""
    error_unit: ClassVar[str] = "relative"
    """of `error`"""
    summary: ClassVar[tuple[str, ...]]
    """the metrics that validation reports"""

    @property
    @abstractmethod
    def invariance(self) -> Invariance:
        """Up to what decoded values are determined."""

    @classmethod
    def published(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the codec that a diffusers pipeline's configuration implies."""
        return {}

    @abstractmethod
    def truth(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(targets (B, C, H, W), where they are known (B, 1, H, W)) of a batch of the column."""

    def beside(self, target: Tensor, images: Tensor) -> Tensor:
        """The target with what it holds of the images (B, 3, H, W), sRGB in [0, 1], themselves."""
        return target

    @abstractmethod
    def encode(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Any]:
        """(pictures (B, 3, H, W) in [-1, 1], state) of a target (B, channels, H, W)."""

    @abstractmethod
    def decode(self, pictures: Tensor, state: Any = None) -> Tensor:
        """Target (B, channels, H, W) of pictures (B, 3, H, W); without a state up to the codec's invariance."""

    def mirrored(self, maps: Tensor) -> Tensor:
        """Maps of a mirrored picture, mirrored back."""
        return maps.flip(-1) * maps.new_tensor(self.column.mirror).reshape(-1, 1, 1)

    def resized(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Maps at a size (H, W), bilinear."""
        if tuple(maps.shape[2:]) == tuple(size):
            return maps
        return F.interpolate(maps, tuple(size), mode="bilinear")

    def settled(self, maps: Tensor) -> Tensor:
        """Maps blended out of tiles, brought back to values the target can have."""
        return maps

    def reduce(self, members: Tensor, alignment: Alignment, sampled: bool) -> Ensembled:
        """One map (1, C, H, W) and its spread (1, 1, H, W) out of members (E, C, H, W).

        `alignment` says how members with a free scale are brought together. `sampled`: members were drawn from a
        distribution, so that their mean may be a value that none of them took; otherwise they are views of one.
        """
        return ensemble_median(members)

    def stitched(
        self, tiles: Sequence[Tensor], boxes: Sequence[Box], whole: Tensor
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | float]]:
        """(tiles (N, C, h, w) brought to agree, the factor of each one's spread); `whole` is a coarse (N, C, H, W)."""
        return tiles, [1.0] * len(tiles)

    def loss(self, pictures: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Parts of the training loss by the names of `weights`, scalars, of predicted pictures (B, 3, H, W)."""
        coded, _ = self.encode(target, valid)
        return {self.name: mean_of_valid((pictures - coded).abs().mean(1), valid[:, 0])}

    @abstractmethod
    def error(self, maps: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Error (B, H, W) at each pixel after what `invariance` leaves free was fitted; what uncertainty predicts."""

    @abstractmethod
    def metrics(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Every error metric of decoded maps, (B,) each, one value an image."""

    def pooled(self, maps: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Metrics (1,) over all pixels of the set, for targets whose literature pools them."""
        return {}

    def output(self, **common: Any) -> TaskOutput:
        """What a pipeline returns for this target; `common` are the fields of TaskOutput."""
        return CodedOutput(**common, coded_by=self)

    def facts(self) -> dict[str, str]:
        """What stands in the NPZ beside the map."""
        known = {"invariance": self.invariance, "unit": self.unit, "frame": self.frame}
        return {name: value for name, value in known.items() if value is not None}

    @abstractmethod
    def levels(self, maps: np.ndarray) -> np.ndarray:
        """A map (H, W, C), or some of its rows, as (H, W) or (H, W, 3) in [0, 1]: what 16-bit pictures hold."""

    def picture(self, maps: np.ndarray, colormap: str = "") -> Picture:
        """A map (H, W, C), or some of its rows, for people; `colormap` where `self.colormap` says that there is one."""
        return to_uint8(self.levels(maps))

    def legend(self, height: int, colormap: str = "") -> Picture | None:
        """What the picture's colours mean, (height, w, 3); None where there is nothing to tell."""
        return None

    def compared(self, maps: Tensor, target: Tensor, valid: Tensor) -> tuple[Picture, Picture]:
        """(prediction, truth) of one image (1, C, H, W) as pictures on one scale; white where it is not valid."""
        one, other = (
            np.where(valid[0, 0, ..., None].cpu().numpy(), self.picture(_channels_last(value)), np.uint8(255))
            for value in (maps, target)
        )
        return one, other


@dataclass
class CodedOutput(TaskOutput):
    """Maps of a target that has no class of outputs of its own."""

    coded_by: TargetCodec | None = None

    @property
    def codec(self) -> TargetCodec:
        """See TaskOutput.codec."""
        assert self.coded_by is not None
        return self.coded_by


def _channels_last(maps: Tensor) -> np.ndarray:
    return maps[0].detach().float().permute(1, 2, 0).cpu().numpy()
