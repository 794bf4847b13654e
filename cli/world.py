"""`unproject toybox`: look at the procedural world, or render a data set of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Threaded, Writer, check_range
from .outputs import Target
from .showing import Shown


@dataclass(frozen=True, kw_only=True)
class Toybox(Threaded, Writer):
    """Show samples of the procedural world on a sheet, or render a data set of it with --render."""

    name: ClassVar[str] = "toybox"
    kinds: ClassVar[tuple[str, ...]] = (".png",)

    kind: Literal["object", "scene", "pair", "room", "street", "table", "interior", "orbit"] = "object"
    """One object, two or three objects, two objects in a relation, a furnished room, a street, things close by, a
    lived-in room, or one object from eight sides."""
    split: Literal["train", "val", "test", "heldout"] = "train"
    """Which part of the world; heldout holds combinations the other parts never contain."""
    index: int = 0
    """Number of the first sample."""
    count: int = 16
    """Number of samples on the sheet."""
    size: int | None = None
    """Pixels of a side (default: 128 on a sheet, 64 with --render)."""
    sheet: bool = False
    """Nouns against looks (colours, patterns, finishes, shapes) instead of samples."""
    nouns: bool = False
    """Every noun from four sides instead of samples."""
    render: bool = False
    """Render shards of a data set into --out instead of a sheet; an interrupted run goes on where it was."""
    groups: int = 1024
    """With --render: number of groups (two views of a scene or pair, eight of an orbit, four of anything else)."""
    geometry: bool = False
    """With --render: depth and normals too."""
    maps: bool = False
    """With --render: depth, normals, albedo, roughness, metallic and parts too."""
    workers: int = 0
    """With --render: processes (0 = one per processor)."""

    @property
    def pixels(self) -> int:
        """The size in force."""
        return self.size or (64 if self.render else 128)

    def slug(self) -> str:
        """The base name of the outputs."""
        if self.sheet or self.nouns:
            return "looks" if self.sheet else "nouns"
        return f"{self.kind}-{self.split}" + ("" if self.render else f"-{self.index}")

    def check(self) -> None:
        """Ranges of the numbers."""
        if self.render + self.sheet + self.nouns > 1:
            raise InputError("--render, --sheet and --nouns are three different things; give one of them")
        check_range("--index", self.index, 0, 2**31)
        check_range("--count", self.count, 1, 256)
        check_range("--size", self.pixels, 8, 1024)
        check_range("--groups", self.groups, 1, 2**31)
        check_range("--workers", self.workers, 0, 1024)

    def written(self, target: Target) -> list[Path]:
        """See Command.written; a set goes on where it was."""
        return [] if self.render else [target.file(target.suffix or ".png")]

    @property
    def several(self) -> str:
        """See Command.several."""
        return "a set is many files" if self.render else ""

    def plan(self) -> list[str]:
        """What a dry run says."""
        if self.render:
            return [f"would render {self.groups} groups ({self.kind}, {self.split}) at {self.pixels} px"]
        if self.sheet or self.nouns:
            return ["would draw nouns in different looks" if self.sheet else "would draw every noun from four sides"]
        return [f"would draw samples {self.index} to {self.index + self.count - 1} ({self.kind}, {self.split})"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Renders the sheet or the set."""
        if self.render:
            return self._render_set(record, target)
        if self.sheet or self.nouns:
            from ..toybox.sheet import write_noun_sheet, write_sheet

            write = write_sheet if self.sheet else write_noun_sheet
            path = record.keep(lambda to: write(to, size=self.pixels), self.written(target)[0])
            return Shown(data={"sheet": str(path)})
        return self._samples(record, target)

    def _render_set(self, record: RunRecord, target: Target) -> Shown:
        from ..toybox.dataset import RenderJob, render_set

        job = RenderJob(self.kind, self.split, self.groups, self.pixels, self.geometry, self.index, self.maps)
        folder = render_set(job, target.folder, self.workers or None)
        shards = sorted(folder.glob("shard-*.npz"))
        for path in shards:
            record.output(path)
        return Shown([f"{len(shards)} shards in {folder}"], data={"folder": str(folder), "shards": len(shards)})

    def _samples(self, record: RunRecord, target: Target) -> Shown:
        from ..utils.pictures import grid, save_image
        from ..utils.progress import progress

        numbers = range(self.index, self.index + self.count)
        drawn = [_sample(self.split, i, self.kind, self.pixels) for i in progress(numbers, label="rendering")]
        captions = [caption for _, caption in drawn]
        columns = max(1, round(len(drawn) ** 0.5))
        sheet = grid([picture for picture, _ in drawn], columns, labels=captions if self.pixels >= 96 else None)
        record.keep(lambda to: save_image(to, sheet), self.written(target)[0])
        lines = [f"{i}: {caption}" for i, caption in zip(numbers, captions, strict=True)]
        return Shown(lines, data={"captions": captions})


def _sample(split: str, index: int, kind: str, size: int) -> tuple[Any, str]:
    """One picture (H, W, 3) float32 in [0, 1] and its caption."""
    from ..toybox.samples import sample

    one = sample(split, index, kind, size)
    return one.renderings[0].rgb, one.caption


def room_photo(path: Path, size: int = 512, index: int = 0) -> Path:
    """Renders a lived-in room as a photograph for the demo; stored beside the demo's other outputs."""
    from ..toybox.dataset import group_cameras
    from ..toybox.places import make_scene
    from ..toybox.programs import draw
    from ..toybox.render import render_views
    from ..utils.pictures import save_image

    scene = make_scene(draw("test", index, "interior"), index)
    camera = group_cameras("test", "interior", index, scene, size)[0][0]
    pair = (camera.c2w[0].numpy().astype(float), camera.K[0].numpy().astype(float))
    return save_image(path, render_views(scene, [pair], size, geometry=False)[0].rgb)
