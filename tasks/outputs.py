"""What heads return, and how it is written: float32 NPZ, 16-bit PNG and a picture for people."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from diffusers.utils import BaseOutput
from torch import Tensor

from ..utils.files import atomic_path, write_bytes
from ..utils.pictures import Picture, colourise, save_image

Maps = np.ndarray | Tensor


class WritesFiles(Protocol):
    """What files need to know of a codec."""

    name: ClassVar[str]
    channels: ClassVar[int]

    def facts(self) -> dict[str, Any]:
        """Entries of the NPZ beside the map."""
        ...

    def levels(self, values: np.ndarray) -> np.ndarray:
        """The map (H, W, C) as 16-bit levels."""
        ...

    def picture(self, values: np.ndarray) -> Picture:
        """The map (H, W, C) for people."""
        ...


@dataclass
class TaskOutput(BaseOutput):
    """Maps of N images and what made them."""

    prediction: Maps  # np (N, H, W, C) or pt (N, C, H, W)
    uncertainty: Maps | None = None  # of an ensemble; np (N, H, W, 1) or pt (N, 1, H, W)
    valid: Maps | None = None  # where the picture shows something; np (N, H, W, 1) or pt (N, 1, H, W) bool; None: all
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

    def save(self, base: str | Path) -> list[Path]:
        """Writes BASE.npz (map, uncertainty, facts), BASE-16bit.png and BASE.png; of an ensemble
        BASE-uncertainty.png too. Several images get numbers.

        Where some pixels are not valid, the NPZ holds `valid`; there the 16-bit picture is 0 and the others are white.
        """
        codec, written = self.codec, []
        for (stem, one, spread), seen in zip(_numbered(Path(base), self.maps(), self.spread()), self.seen()):
            array = one[..., 0] if codec.channels == 1 else one
            facts = {name: np.array(value) for name, value in codec.facts().items()}
            valid = None if seen.all() else seen
            arrays = {codec.name: array, "uncertainty": spread, "valid": valid}
            written.append(_save_npz(_ending(stem, ".npz"), **arrays, **facts))
            written.append(_save_16bit(_ending(stem, "-16bit.png"), _where(seen, codec.levels(one), 0)))
            written.append(save_image(_ending(stem, ".png"), _where(seen, codec.picture(one), 255)))
            if spread is not None:
                shown = colourise(spread, cmap="viridis", mask=valid)
                written.append(save_image(_ending(stem, "-uncertainty.png"), shown))
        return written


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

    def save(self, base: str | Path) -> list[Path]:
        """Writes the files of all under BASE-depth, BASE-normals and so on."""
        return [path for name, part in self.maps.items() for path in part.save(_ending(Path(base), f"-{name}"))]


def png16(levels: np.ndarray) -> bytes:
    """A 16-bit RGB PNG of uint16 (H, W, 3): Pillow has no such mode."""
    height, width, _ = levels.shape
    rows = np.zeros((height, 1 + 6 * width), np.uint8)  # a filter byte (0 = none) starts each row
    rows[:, 1:] = np.ascontiguousarray(levels.astype(">u2")).view(np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _save_16bit(path: Path, unit: np.ndarray) -> Path:
    """A map (H, W) or (H, W, 3) in [0, 1] as 16-bit PNG."""
    levels = np.rint(unit * 65535).astype(np.uint16)
    return save_image(path, levels) if levels.ndim == 2 else write_bytes(path, png16(levels))


def _where(seen: np.ndarray, picture: np.ndarray, other: int) -> np.ndarray:
    """A picture (H, W) or (H, W, C) with another value where seen (H, W) is false."""
    if seen.all():
        return picture
    return np.where(seen.reshape(*seen.shape, *(1,) * (picture.ndim - 2)), picture, np.asarray(other, picture.dtype))


def _channels_last(maps: Maps) -> np.ndarray:
    if isinstance(maps, Tensor):
        return maps.detach().float().permute(0, 2, 3, 1).cpu().numpy()
    return np.asarray(maps, np.float32)


def _ending(base: Path, ending: str) -> Path:
    """BASE plus an ending; BASE may hold dots."""
    return base.with_name(base.name + ending)


def _numbered(base: Path, maps: np.ndarray, spread: np.ndarray | None) -> list[tuple[Path, np.ndarray, Any]]:
    """(base, map, uncertainty) of each image; BASE itself when there is one image, else BASE-000 and so on."""
    stems = [base] if len(maps) == 1 else [_ending(base, f"-{i:03d}") for i in range(len(maps))]
    return [(stem, maps[i], None if spread is None else spread[i]) for i, stem in enumerate(stems)]


def _save_npz(path: Path, **arrays: np.ndarray | None) -> Path:
    with atomic_path(path) as temporary:
        present: dict[str, Any] = {name: value for name, value in arrays.items() if value is not None}
        np.savez_compressed(temporary, **present)
    return path
