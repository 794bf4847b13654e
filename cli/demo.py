"""`unproject demo`: one command of each kind, with a table of what was made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..utils.runs import RunRecord
from .common import Shown, Table, Target, size_text
from .image import Depth, Normals, Pointcloud
from .priors import PriorCommand
from .text import TextToImage, TextToMesh
from .world import room_photo


@dataclass(frozen=True, kw_only=True)
class Demo(PriorCommand):
    """Make images, a mesh, depth, normals and a point cloud, and list the files and the seconds each took."""

    name: ClassVar[str] = "demo"

    prompt: str = "a red chair"
    """The prompt of the mesh and the images."""
    photo: Path | None = None
    """Picture for depth, normals and points (default: a rendered room)."""

    def target(self) -> Target:
        """One folder for everything."""
        return Target(self.out or Path("outputs") / "demo", "demo")

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would make images and a mesh of {self.prompt!r}, depth, normals and points"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Runs the commands one after another into one folder."""
        folder = target.folder
        options: dict[str, Any] = {"prior": self.prior, "seed": self.seed, "device": self.device, "dtype": self.dtype}
        photo = self.photo or room_photo(folder / "photo.png")
        if self.photo is None:
            record.output(photo)
        commands: tuple[tuple[PriorCommand, str], ...] = (
            (TextToImage(prompt=self.prompt, grid=16, **options), "images"),
            (TextToMesh(prompt=self.prompt, **options), self.prompt.split()[-1]),
            (Depth(image=photo, **options), "depth"),
            (Normals(image=photo, **options), "normals"),
            (Pointcloud(image=photo, **options), "points"),
        )
        rows: list[tuple[str, str, str, str]] = []
        for command, stem in commands:
            rows += _timed(command, Target(folder, stem), record)
        return Shown(tables=[Table(("made by", "file", "size", "seconds"), rows)])


def _timed(command: PriorCommand, target: Target, record: RunRecord) -> list[tuple[str, str, str, str]]:
    """Runs one part and gives a row for each file it wrote; the seconds stand on the first."""
    before, began = len(record.outputs), time.perf_counter()
    command.run(record, target)
    took = f"{time.perf_counter() - began:.1f}"
    files = [Path(p) for p in record.outputs[before:]]
    return [(command.name, str(p), size_text(p), took if i == 0 else "") for i, p in enumerate(files)]
