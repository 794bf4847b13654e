"""What heads return, and how it is written: float32 NPZ, 16-bit PNG and a picture for people."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from ..geometry.cameras import Camera
from ..geometry.points import PointCloud
from ..utils.errors import InputError
from ..utils.files import atomic_path, write_bytes
from ..utils.pictures import colourise, normals_to_rgb, save_image

Maps = np.ndarray | Tensor


@dataclass
class TaskOutput(BaseOutput):
    """Maps of N images and what made them."""

    prediction: Maps  # np (N, H, W, C) or pt (N, C, H, W)
    uncertainty: Maps | None = None  # of an ensemble; np (N, H, W, 1) or pt (N, 1, H, W)
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


@dataclass
class DepthOutput(TaskOutput):
    """Depth in [0, 1] up to an affine map (or scale); larger is farther unless the space is "disparity"."""

    invariance: str = "affine"
    space: str = "linear"

    @property
    def depth(self) -> np.ndarray:
        """float32 (N, H, W) in [0, 1]."""
        return self.maps()[..., 0]

    def metres(self, near_m: float, far_m: float) -> np.ndarray:
        """float32 (N, H, W): the prediction's range [0, 1] laid on [near_m, far_m], in its own space."""
        if not 0 < near_m < far_m:
            raise InputError(f"near_m={near_m}, far_m={far_m}: need 0 < near_m < far_m")
        unit = self.depth.clip(0, 1)
        if self.space == "disparity":
            return 1 / (1 / far_m + unit * (1 / near_m - 1 / far_m))
        if self.space == "log":
            return near_m * (far_m / near_m) ** unit
        return near_m + unit * (far_m - near_m)

    def point_cloud(
        self, image: np.ndarray, camera: Camera, near_m: float = 1.0, far_m: float = 4.0, index: int = 0
    ) -> PointCloud:
        """Pixels of image `index`, sRGB (H, W, 3) in [0, 1], as points; the metres are a choice, not a measurement."""
        depth_m = torch.from_numpy(self.metres(near_m, far_m)[index : index + 1].astype(np.float32))
        colours = torch.as_tensor(np.asarray(image, np.float32))[None]
        return PointCloud.from_depth(depth_m, colours, camera)

    def save(self, base: str | Path) -> list[Path]:
        """Writes BASE.npz (depth, uncertainty), BASE-16bit.png and BASE.png; several images get numbers."""
        written: list[Path] = []
        for stem, depth, spread in _numbered(Path(base), self.depth, self.spread()):
            facts = {"invariance": np.array(self.invariance), "space": np.array(self.space)}
            written.append(_save_npz(_ending(stem, ".npz"), depth=depth, uncertainty=spread, **facts))
            levels = np.rint(depth.clip(0, 1) * 65535).astype(np.uint16)
            written.append(save_image(_ending(stem, "-16bit.png"), levels))
            written.append(save_image(_ending(stem, ".png"), colourise(depth, low=0.0, high=1.0)))
            if spread is not None:
                written.append(save_image(_ending(stem, "-uncertainty.png"), colourise(spread, cmap="viridis")))
        return written


@dataclass
class NormalsOutput(TaskOutput):
    """Unit normals in camera space; the frame "viewer" has x right, y up, z toward the viewer."""

    frame: str = "viewer"

    @property
    def normals(self) -> np.ndarray:
        """float32 (N, H, W, 3)."""
        return self.maps()

    def save(self, base: str | Path) -> list[Path]:
        """Writes BASE.npz (normals, uncertainty), BASE-16bit.png ((n + 1) / 2) and BASE.png."""
        written: list[Path] = []
        for stem, normals, spread in _numbered(Path(base), self.normals, self.spread()):
            facts = {"frame": np.array(self.frame)}
            written.append(_save_npz(_ending(stem, ".npz"), normals=normals, uncertainty=spread, **facts))
            levels = np.rint((normals.clip(-1, 1) + 1) / 2 * 65535).astype(np.uint16)
            written.append(write_bytes(_ending(stem, "-16bit.png"), png16(levels)))
            written.append(save_image(_ending(stem, ".png"), normals_to_rgb(normals)))
            if spread is not None:
                written.append(save_image(_ending(stem, "-uncertainty.png"), colourise(spread, cmap="viridis")))
        return written


@dataclass
class GeometryOutput(BaseOutput):
    """Everything a head predicts for N images; a target it does not predict is None."""

    depth: DepthOutput | None = None
    normals: NormalsOutput | None = None
    nfe: int = 0
    seed: int | None = None

    def save(self, base: str | Path) -> list[Path]:
        """Writes the files of both under BASE-depth and BASE-normals."""
        base, written = Path(base), []
        for name in ("depth", "normals"):
            part = getattr(self, name)
            if part is not None:
                written += part.save(_ending(base, f"-{name}"))
        return written


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
