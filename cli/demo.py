"""`unproject demo`: one command of each kind, with a table of what was made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..utils.configs import to_dict
from ..utils.runs import RunRecord, earlier
from .common import Seeded, check_picture
from .image import ImageCommand
from .jobs import sort_out
from .maps import MAP_COMMANDS
from .outputs import Target, check_apart, size_text, slugify
from .points import Pointcloud
from .priors import PriorCommand, head_of
from .shapes import TextToMesh
from .showing import Shown, Table
from .text import TextToImage
from .world import room_photo


@dataclass(frozen=True, kw_only=True)
class Demo(PriorCommand, Seeded):
    """Make images, a mesh, depth, normals and a point cloud, and list the files and the seconds each took."""

    name: ClassVar[str] = "demo"

    prompt: str = "a red chair"
    """The prompt of the mesh and the images."""
    photo: Path | None = None
    """Picture for depth, normals and points (default: a rendered room)."""
    overwrite: bool = False
    """Make again what is already there. Otherwise it is kept, and an interrupted demo goes on."""

    def target(self) -> Target:
        """One folder for everything."""
        return Target(self.out or Path("outputs") / "demo", "demo")

    def check(self) -> None:
        """All parts are checked before the first one runs; a room that is still to be rendered is taken as there."""
        from ..utils.pictures import load_image

        if self.photo is not None:
            check_picture("--photo", self.photo)
            names = ("images.png", f"{self.stem}-sheet.png", f"{self.stem}-turntable.gif")
            maps = (
                part.target().file(end)
                for part in self.parts()
                if isinstance(part, ImageCommand)
                for end in part.endings()
            )
            check_apart(self.target().folder, [*map(self.target().folder.joinpath, names), *maps], [self.photo])
            load_image(self.photo)
        super().check()
        for part in self.parts():
            if self.photo is None and isinstance(part, ImageCommand):
                PriorCommand.check(part)
            else:
                part.check()

    def check_places(self, target: Target) -> None:
        """See Command.check_places; what is there must be the demo's own."""
        super().check_places(target)
        waits = self.photo is None and not self.room.exists()
        for part in filter(self.left, self.parts()):
            if waits and isinstance(part, ImageCommand):  # the picture is rendered before it is looked at
                PriorCommand.check_places(part, part.target())
            else:
                part.check_places(part.target())

    def left(self, part: TextToImage | TextToMesh | ImageCommand) -> bool:
        """Whether a part is still to be made. Raises InputError when something else has its place."""
        target = part.target()
        found = part.jobs(target)
        jobs = found[0] if isinstance(found, tuple) else found
        return bool(sort_out(part, jobs, target, self.overwrite).left)

    def parts(self) -> list[TextToImage | TextToMesh | ImageCommand]:
        """The commands, each with the file it writes; a prior without geometry heads gets the embedded ones."""
        folder, photo = self.target().folder, self.photo or self.room
        common: dict[str, Any] = {"seed": self.seed, "device": self.device, "dtype": self.dtype}
        common["overwrite"] = self.overwrite
        files = {"base": self.base, "variant": self.variant, "revision": self.revision, "lora": self.lora}
        text = {"prior": self.prior, "prompt": self.prompt, **files, **common}
        image = {"prior": head_of(self.prior), "image": (photo,), **common}
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
        rows: list[tuple[str, str, str, str]] = []
        if self.photo is None:
            if self.room.exists():
                record.go_on({}, [self.room])
            else:
                record.output(room_photo(self.room))
        for part in self.parts():
            if self.left(part):
                rows += self._timed(part, record)
                continue
            told = earlier(part.target().record)
            record.go_on({"outputs": told.get("outputs")}, costs=[told])
            rows.append((part.name, "(already there)", "", ""))
        told = earlier(target.record)
        if not record.outputs and told.get("status") == "done":  # nothing was left to do
            record.stand(told)
        return Shown(tables=[Table(("made by", "file", "size", "seconds"), rows)])

    def _timed(self, part: PriorCommand, record: RunRecord) -> list[tuple[str, str, str, str]]:
        """Runs one part, which has a record of its own; a row for each file, the seconds on the first."""
        target, began = part.target(), time.perf_counter()
        own = RunRecord(part.name, to_dict(part), self.seed)
        with own:
            part.run(own, target)
        own.keep(own.write, own.place or target.record, note=False)
        took = f"{time.perf_counter() - began:.1f}"
        for path in own.outputs:
            record.output(path)
        for network, calls in own.nfe.items():
            record.count(network, calls)
        record.rescued |= own.rescued
        files = [Path(path) for path in own.outputs]
        return [(part.name, str(path), size_text(path), took if i == 0 else "") for i, path in enumerate(files)]
