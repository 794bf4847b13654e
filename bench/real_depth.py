"""Real and near-real frames with depth, read from a folder that is not part of the package.

UNPROJECT_REAL names the folder (default: shared/data/real beside the repository). Nothing is read when it is absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.pictures import load_image

ROOMS = ("00000", "00002", "00004", "00040", "00080", "00120")
MOTORCYCLE = (193.001, 994.978, 31.086)  # baseline in mm, focal length in px, disparity offset in px


@dataclass(frozen=True)
class Frame:
    """A picture and its depth; the two may differ in size but not in view."""

    name: str
    truth: str  # "exact", "near-exact" or "measured"
    image: np.ndarray  # (H, W, 3) in [0, 1]
    depth_m: np.ndarray  # (h, w) float32, 0 = unknown


def real_root() -> Path:
    """The folder of the real data; it need not exist."""
    given = os.environ.get("UNPROJECT_REAL")
    return Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data" / "real"


def real_frames(root: Path | None = None) -> Iterator[Frame]:
    """The frames whose files are there."""
    folder = (root or real_root()) / "depth"
    for number in ROOMS:
        color = folder / "livingroom" / f"color_{number}.jpg"
        yield from _pair(f"livingroom/{number}", "exact", color, color.with_name(f"depth_clean_{number}.png"), 1000)
    yield from _pair("tum_desk", "measured", folder / "tum_desk/color.png", folder / "tum_desk/depth.png", 5000)
    kitti = folder / "kitti"
    yield from _pair("kitti", "measured", kitti / "rgb_0000000005.png", kitti / "depth_0000000005.png", 256)
    arkit = folder / "arkit_room"
    yield from _pair("arkit_room", "measured", arkit / "image.jpg", arkit / "lidar_depth.png", 1000)
    motorcycle = folder / "middlebury_motorcycle"
    if (motorcycle / "disp.npz").is_file():
        with np.load(motorcycle / "disp.npz") as stored:
            disparity = stored["arr_0"].astype(np.float64)
        baseline, focal, offset = MOTORCYCLE
        depth_m = np.where(np.isfinite(disparity), baseline * focal / (disparity + offset) / 1000, 0)
        image = load_image(motorcycle / "left.png")
        yield Frame("middlebury_motorcycle", "near-exact", image, depth_m.astype(np.float32))
    if (folder / "arc2017_bin" / "data.npz").is_file():
        with np.load(folder / "arc2017_bin" / "data.npz") as stored:
            image, depth_m = stored["rgb"].astype(np.float32) / 255, np.nan_to_num(stored["depth"])
        yield Frame("arc2017_bin", "measured", image, depth_m.astype(np.float32))


def _pair(name: str, truth: str, color: Path, depth: Path, counts_per_metre: float) -> Iterator[Frame]:
    """A frame whose depth is a 16-bit picture, 0 where it is unknown."""
    if color.is_file() and depth.is_file():
        with Image.open(depth) as picture:
            counts = np.asarray(picture).astype(np.float32)
        yield Frame(name, truth, load_image(color), counts / counts_per_metre)
