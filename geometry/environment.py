"""Light from all around: pictures of radiance over directions, read from and written to Radiance HDR files.

A picture is equirectangular: row 0 looks up (+z), the middle column to the front (+x), columns further right turn to
the right of who looks there (-y). Values are linear radiance, with no upper bound.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import write_bytes

MAX_PIXELS = 64_000_000
LARGEST = 1e37  # of radiance
RUN = 128  # lengths above it are runs of one value


@dataclass(frozen=True)
class Environment:
    """Radiance (H, W, 3), linear, at least 0."""

    radiance: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.radiance.shape)
        if len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < 2:
            raise InputError(f"radiance has shape {shape}, expected (H, W, 3) with H, W >= 2")

    @classmethod
    def load(cls, path: str | Path) -> Environment:
        """From a Radiance file (.hdr). Raises InputError for what is none."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        return cls(torch.from_numpy(read_hdr(data, str(path))))

    def save(self, path: str | Path) -> Path:
        """As a Radiance file; three parts in a thousand are lost."""
        return write_bytes(path, write_hdr(self.radiance.detach().cpu().numpy()))

    @property
    def directions(self) -> Tensor:
        """Unit world directions (H W, 3) of the pixels' centres."""
        height, width, _ = self.radiance.shape
        like = self.radiance
        theta = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * math.pi / height
        phi = (0.5 - (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width) * 2 * math.pi
        sine, cosine = theta.sin()[:, None], theta.cos()[:, None].expand(-1, width)
        return torch.stack([sine * phi.cos(), sine * phi.sin(), cosine], -1).reshape(-1, 3)

    @property
    def solid_angles(self) -> Tensor:
        """Steradians (H W,) of the pixels; their sum is 4 pi."""
        height, width, _ = self.radiance.shape
        edges = (torch.arange(height + 1, dtype=torch.float64) * math.pi / height).cos()
        rows = (edges[:-1] - edges[1:]) * 2 * math.pi / width
        return rows.to(self.radiance)[:, None].expand(-1, width).reshape(-1)

    def resized(self, height: int, width: int) -> Environment:
        """With so many pixels, each the mean radiance of the directions that it covers."""
        angles = self.solid_angles.reshape(1, 1, *self.radiance.shape[:2])
        size = (height, width)
        power = F.interpolate(self.radiance.movedim(-1, 0)[None] * angles, size, mode="area")
        return Environment((power / F.interpolate(angles, size, mode="area"))[0].movedim(0, -1))

    def turned(self, degrees: float) -> Environment:
        """Turned around the vertical, counter-clockwise from above."""
        width = self.radiance.shape[1]
        shift = -degrees / 360 * width
        whole, part = math.floor(shift), shift - math.floor(shift)
        near, far = (self.radiance.roll(s, 1) for s in (whole, whole + 1))
        return Environment((1 - part) * near + part * far)


def read_hdr(data: bytes, name: str = "the file") -> np.ndarray:
    """Radiance (H, W, 3) float32 of a Radiance picture (RGBE; Ward, Graphics Gems II, 1991), top row first.

    Raises InputError for other files and for parts that are not whole.
    """
    head, mark, rest = data.partition(b"\n\n")
    if not data.startswith((b"#?RADIANCE", b"#?RGBE")) or not mark:
        raise InputError(f"{name} is no Radiance picture (.hdr)")
    if b"32-bit_rle_xyze" in head:
        raise InputError(f"{name} holds XYZ colours; convert it to RGBE")
    line, mark, body = rest.partition(b"\n")
    size = re.fullmatch(rb"-Y (\d{1,6}) \+X (\d{1,6})", line.strip())
    if not mark or size is None:
        raise InputError(f"{name}: its rows and columns {line[:40]!r} are not -Y HEIGHT +X WIDTH")
    height, width = int(size[1]), int(size[2])
    if not 1 <= height * width <= MAX_PIXELS:
        raise InputError(f"{name} has {width} x {height} px, more than {MAX_PIXELS} or none")
    exposure = _exposure(head, name)
    rgbe = _pixels(body, height, width, name)
    scale = np.ldexp(1.0, rgbe[..., 3].astype(np.int32) - 136).astype(np.float32)
    values = (rgbe[..., :3].astype(np.float32) + np.float32(0.5)) * scale[..., None]
    values[rgbe[..., 3] == 0] = 0
    if values.max() > LARGEST * exposure:
        raise InputError(f"{name}: EXPOSURE={exposure:g} makes its values too large for numbers of 32 bits")
    return values / np.float32(exposure)


def _exposure(head: bytes, name: str) -> float:
    """The product of all exposures that a header tells."""
    product = 1.0
    for found in re.findall(rb"^EXPOSURE=(.*)$", head, re.MULTILINE):
        try:
            product *= float(found)
        except ValueError as error:
            raise InputError(f"{name}: EXPOSURE={found[:40]!r} is no number") from error
    if not 1e-30 < product < 1e30:
        raise InputError(f"{name}: EXPOSURE={product:g} must lie between 1e-30 and 1e30")
    return product


def _pixels(body: bytes, height: int, width: int, name: str) -> np.ndarray:
    """(H, W, 4) bytes, flat or in runs."""
    packed = 8 <= width < 32768 and len(body) >= 4 and body[:2] == b"\x02\x02" and body[2] < 128
    if not packed:
        if len(body) < 4 * height * width:
            raise InputError(f"{name} ends before its {height} rows do, or is packed in an older way")
        return np.frombuffer(body, np.uint8, 4 * height * width).reshape(height, width, 4)
    out, at = np.empty((height, 4, width), np.uint8), 0
    for row in range(height):
        if body[at : at + 4] != bytes((2, 2, width >> 8, width & 255)):
            raise InputError(f"{name}: row {row} does not begin as it should")
        at += 4
        for channel in range(4):
            at = _unpacked(body, at, out[row, channel], f"{name}: row {row}")
    return out.transpose(0, 2, 1)


def _unpacked(body: bytes, at: int, into: np.ndarray, name: str) -> int:
    """Fills one channel of a row; returns the place behind it."""
    done = 0
    while done < len(into):
        count = body[at] if at < len(body) else 0
        run = count > RUN
        length = count - RUN if run else count
        if not length or done + length > len(into) or at + 1 + (1 if run else length) > len(body):
            raise InputError(f"{name} is broken or not whole")
        into[done : done + length] = body[at + 1] if run else np.frombuffer(body, np.uint8, length, at + 1)
        at += 2 if run else 1 + length
        done += length
    return at


def write_hdr(radiance: np.ndarray) -> bytes:
    """A Radiance picture, flat, of linear values (H, W, 3)."""
    values = np.nan_to_num(np.asarray(radiance, np.float64), nan=0.0, posinf=1e30).clip(0, 1e30)
    highest = values.max(-1)
    mantissa, exponent = np.frexp(highest)
    seen = highest > 1e-32
    scale = np.where(seen, mantissa * 256 / np.where(seen, highest, 1), 0)
    rgb = np.floor(values * scale[..., None]).clip(0, 255).astype(np.uint8)
    e = np.where(seen, exponent + 128, 0).clip(0, 255).astype(np.uint8)
    head = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {values.shape[0]} +X {values.shape[1]}\n"
    return head.encode() + np.concatenate([rgb, e[..., None]], -1).tobytes()
