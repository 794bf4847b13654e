"""What a run will take, said before it: for `--dry-run` always, otherwise where it is far from usual.

Fitted to runs of the embedded priors on one processor core (CPU seconds, resident memory); other priors and devices
have no estimate. They are meant to tell a minute from an hour, and whether the memory suffices.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ..bench.queue import free_mb

BASE_MB = 600.0  # Python, the libraries, a loaded prior
ROW_S, ROW_MB = 0.015, 1.7  # of a network row at the prior's own size; of its activations
ATTENTION = 0.0047  # share that grows with the square of the pixels
NATIVE_PX = 64
USUAL_STEPS = 20
PICTURE_S, PICTURE_MB = 0.4, 60.0  # of a picture in a geometry head, whatever its size: it is scaled down
PIXEL_BYTES = 50.0  # of a picture that is read, with its maps
TEXEL_S, TEXEL_MB = 4.4e-6, 310e-6  # of a texel of a mesh, which views are baked into
TOLD_S, TOLD_MB = 120.0, 4000.0  # beyond these a run is told before it begins


@dataclass(frozen=True)
class Estimate:
    """Of a run on one core."""

    seconds: float
    memory_mb: float

    def __str__(self) -> str:
        return f"about {in_time(self.seconds)} on one core and {self.memory_mb / 1000:.1f} GB of memory"

    @property
    def unusual(self) -> bool:
        """Whether somebody would want to know before."""
        return self.seconds > TOLD_S or self.memory_mb > TOLD_MB

    def lines(self) -> list[str]:
        """What a dry run says."""
        free = free_mb()
        short = [f"only {free / 1000:.1f} GB of memory are free"] if self.memory_mb > free else []
        return [f"would take {self}", *short]

    def tell(self, name: str) -> None:
        """A line on standard error before an unusual run, and one when memory will not suffice."""
        if self.unusual or self.memory_mb > free_mb():
            for line in self.lines():
                print(f"{name}: {line}", file=sys.stderr, flush=True)


def of_drawing(images: int, size: int | None, steps: int | None, guided: bool, batch: int) -> Estimate:
    """Images of a side (None: the prior's own), `batch` at once."""
    pixels = ((size or NATIVE_PX) / NATIVE_PX) ** 2
    branches = 2 if guided else 1
    rows = images * branches * (steps or USUAL_STEPS)
    memory = BASE_MB + min(images, batch) * branches * pixels * ROW_MB
    return Estimate(rows * ROW_S * (pixels + ATTENTION * pixels**2), memory)


def of_pictures(pixels: list[int], calls: int, seconds_per_megapixel: float) -> Estimate:
    """Pictures through a geometry head, one after another; `calls` of the network for each."""
    seconds = len(pixels) * calls * PICTURE_S + seconds_per_megapixel * sum(pixels) / 1e6
    return Estimate(seconds, BASE_MB + PICTURE_MB + PIXEL_BYTES * max(pixels, default=0) / 1e6)


def of_meshes(
    count: int,
    share_of_usual_steps: float,
    frames: int,
    view_size: int,
    drawn: bool = False,
    texture: int | None = None,
) -> Estimate:
    """Meshes of the embedded recipe, or of drawn normal maps, with their films; `texture`: texels of a side, None: as
    many as are usual."""
    film = frames * 0.02 * (view_size / 256) ** 2
    steps, rest, usual = (4, 5, 512) if drawn else (32, 6, 1024)
    more = (texture or usual) ** 2 - usual**2
    seconds = steps * share_of_usual_steps + rest + film + TEXEL_S * more
    return Estimate(count * seconds, 900.0 + TEXEL_MB * more)


def in_time(seconds: float) -> str:
    """A time for people."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
