"""What heads return; how it is written stands in map_files.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils import BaseOutput
from torch import Tensor

from ..utils.bands import Compression
from .formats import USUAL
from .map_files import OneMap, Saving, WritesFiles

Maps = np.ndarray | Tensor


@dataclass
class TaskOutput(BaseOutput):
    """Maps of N images and what made them."""

    prediction: Maps  # np (N, H, W, C) or pt (N, C, H, W)
    uncertainty: Maps | None = None  # of an ensemble; np (N, H, W, 1) or pt (N, 1, H, W)
    valid: Maps | None = None  # where the picture shows something; np (N, H, W, 1) or pt (N, 1, H, W) bool; None: all
    confidence: Maps | None = None  # probability that the error is below `tolerance`; np (N, H, W, 1), pt (N, 1, H, W)
    tolerance: float | None = None  # in the unit of the target's error
    latent: Tensor | None = None  # (N E, C, h, w)
    nfe: int = 0  # network rows spent
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.prediction)

    def maps(self) -> np.ndarray:
        """The prediction as float32 (N, H, W, C)."""
        return _channels_last(self.prediction)

    def spread(self) -> np.ndarray | None:
        """The uncertainty as float32 (N, H, W)."""
        return None if self.uncertainty is None else _channels_last(self.uncertainty)[..., 0]

    def seen(self) -> np.ndarray:
        """Where the picture shows something, (N, H, W) bool."""
        if self.valid is None:
            return np.ones(self.maps().shape[:3], bool)
        return _channels_last(self.valid)[..., 0] > 0.5

    @property
    def codec(self) -> WritesFiles:
        """What is special about these maps."""
        raise TypeError(f"{type(self).__name__} names no codec")

    def one(self, index: int) -> OneMap:
        """The map of an image, for files."""
        spread, maps = self.spread(), self.maps()
        seen = None if self.valid is None else _channels_last(self.valid)[index, ..., 0] > 0.5
        if seen is not None and seen.all():
            seen = None
        sure = None if self.confidence is None else _channels_last(self.confidence)[index, ..., 0]
        return OneMap(self.codec, maps[index], None if spread is None else spread[index], seen, sure, self.tolerance)

    def save(
        self,
        base: str | Path,
        formats: Sequence[str] = USUAL,
        compression: Compression = "fast",
        colormap: str = "",
        legend: bool = False,
    ) -> list[Path]:
        """Writes BASE.npz (map, uncertainty, facts), BASE-16bit.png and BASE.png; of an ensemble
        BASE-uncertainty.png too. Several images get numbers.

        Where some pixels are not valid, the NPZ holds `valid`; there the 16-bit picture is 0 and the others are white.

        Args:
            formats: npz; npy, exr or tiff (float32, nan where not valid); png (both pictures).
            compression: none, fast or small.
            colormap: of matplotlib, for maps whose colours have no meaning of their own.
            legend: a scale beside BASE.png.
        """
        how = Saving(tuple(formats), compression, colormap, legend)
        return [path for i, stem in enumerate(_numbered(Path(base), len(self))) for path in self.one(i).save(stem, how)]


@dataclass
class GeometryOutput(BaseOutput):
    """Everything a head predicts for N images, by target; `made.depth` is `made["depth"]`, or None without it."""

    maps: dict[str, TaskOutput] = field(default_factory=dict)
    nfe: int = 0
    seed: int | None = None

    def __getitem__(self, key: Any) -> Any:
        """The output of a target, or a field."""
        return self.maps[key] if key in self.maps else super().__getitem__(key)

    @property
    def depth(self) -> Any:
        """DepthOutput, None when the head predicts none."""
        return self.maps.get("depth")

    @property
    def normals(self) -> Any:
        """NormalsOutput, None when the head predicts none."""
        return self.maps.get("normals")

    def save(self, base: str | Path, **how: Any) -> list[Path]:
        """Writes the files of all under BASE-depth, BASE-normals and so on; `how` as in TaskOutput.save."""
        base = Path(base)
        return [
            path for name, part in self.maps.items() for path in part.save(base.with_name(f"{base.name}-{name}"), **how)
        ]


def _channels_last(maps: Maps) -> np.ndarray:
    if isinstance(maps, Tensor):
        return maps.detach().float().permute(0, 2, 3, 1).cpu().numpy()
    return np.asarray(maps, np.float32)


def _numbered(base: Path, count: int) -> list[Path]:
    """BASE itself when there is one image, else BASE-000 and so on; BASE may hold dots."""
    return [base] if count == 1 else [base.with_name(f"{base.name}-{i:03d}") for i in range(count)]
