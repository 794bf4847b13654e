"""`unproject demo`: one command of each kind, with a table of what was made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..utils.runs import RunRecord
from .common import Shown, Table, Target, check_apart, check_picture, size_text, slugify
from .image import MAP_COMMANDS, ImageCommand, Pointcloud
from .priors import PriorCommand, head_of
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

    def check(self) -> None:
        """All parts are checked before the first one runs; a room that is still to be rendered is taken as there."""
        if self.photo is not None:
            check_picture("--photo", self.photo)
            pictures = ("images.png", f"{self.stem}-sheet.png", f"{self.stem}-turntable.gif")
            check_apart(self.target().folder, map(self.target().folder.joinpath, pictures), [self.photo])
        super().check()
        for part in self.parts():
            if self.photo is None and isinstance(part, ImageCommand):
                PriorCommand.check(part)
            else:
                part.check()

    def parts(self) -> list[PriorCommand]:
        """The commands, each with the file it writes; a prior without geometry heads gets the embedded ones."""
        folder, photo = self.target().folder, self.photo or self.room
        common: dict[str, Any] = {"seed": self.seed, "device": self.device, "dtype": self.dtype}
        files = {"base": self.base, "variant": self.variant, "revision": self.revision, "lora": self.lora}
        text = {"prior": self.prior, "prompt": self.prompt, **files, **common}
        image = {"prior": head_of(self.prior), "image": photo, **common}
        return [
            TextToImage(grid=16, out=folder / "images.png", **text),
            TextToMesh(out=folder / f"{self.stem}.glb", **text),
            *(MAP_COMMANDS[name](out=folder / f"{name}.png", **image) for name in ("depth", "normals")),
            Pointcloud(out=folder / "points.ply", **image),
        ]

    @property
    def stem(self) -> str:
        """The mesh's file name: the last word of the prompt, which is its noun as a rule."""
        return slugify(" ".join(self.prompt.split()[-1:]))

    @property
    def room(self) -> Path:
        """The picture that is rendered when none is given."""
        return self.target().folder / "photo.png"

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would make images and a mesh of {self.prompt!r}, depth, normals and points"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Runs the commands one after another into one folder."""
        from ..utils.pictures import load_image

        if self.photo is None:
            record.output(room_photo(self.room))
        else:
            load_image(self.photo)  # one that cannot be read fails before the minute that the mesh takes
        rows: list[tuple[str, str, str, str]] = []
        for part in self.parts():
            rows += _timed(part, record)
        return Shown(tables=[Table(("made by", "file", "size", "seconds"), rows)])


def _timed(command: PriorCommand, record: RunRecord) -> list[tuple[str, str, str, str]]:
    """Runs one part and gives a row for each file it wrote; the seconds stand on the first."""
    before, began = len(record.outputs), time.perf_counter()
    command.run(record, command.target())
    took = f"{time.perf_counter() - began:.1f}"
    files = [Path(p) for p in record.outputs[before:]]
    return [(command.name, str(p), size_text(p), took if i == 0 else "") for i, p in enumerate(files)]
