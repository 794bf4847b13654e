"""`unproject sim2real`: what a depth sensor would measure of clean depth maps, one, several, or folders of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

from ..tasks.depth_files import DEPTH_SUFFIXES, not_depth, read_depth
from ..tasks.formats import MAP_FORMATS, PREVIEW, map_formats
from ..utils.bands import Compression, need_exr
from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import check_range
from .folders import distinct_stems
from .jobs import Job
from .outputs import Target
from .priors import OwnWeightsCommand
from .several import EachCommand


@dataclass(frozen=True, kw_only=True)
class Sim2real(OwnWeightsCommand, EachCommand):
    """Measure clean depth as a real sensor would: noise, flying edges and holes, from maps or folders of maps."""

    name: ClassVar[str] = "sim2real"
    kinds: ClassVar[tuple[str, ...]] = (".png", ".npz", ".npy", ".exr", ".tiff")
    reads: ClassVar[str] = "depth"
    plural: ClassVar[str] = "depth maps"

    prior: str = "toybox"
    """toybox, or the folder of a trained sensor."""
    depth: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Clean z-depth in metres: NPZ (depth_m or depth, K), NPY, 16-bit PNG in millimetres, or folders of them."""
    unit: float | None = None
    """Metres of a unit of the files (default: 1, of PNG .001)."""
    variants: int = 1
    """Measurements of each map, with other noise."""
    ensemble: int = 1
    """With more than one: the spread of so many measurements is written too."""
    steps: int | None = None
    """Solver steps of each stage (default: those of the sensor)."""
    format: str = "npz,png"
    """Files to write, of npz, npy, exr, tiff (float32 metres) and png (16 bits in millimetres, and a picture)."""
    compression: Compression = "fast"
    """none, fast or small; small takes longest."""

    @property
    def many(self) -> bool:
        """See EachCommand.many."""
        return super().many or self.variants > 1

    @property
    def because(self) -> str:
        """See EachCommand.because."""
        return super().because if super().many else f"{self.variants} measurements of it are made"

    @property
    def several(self) -> str:
        """See Command.several."""
        alone = not self.many and len(self.formats) == 1 and self.formats != ("png",)
        return super().several if alone else "it writes several files; --format npz of one map is one"

    @property
    def streamed(self) -> str:
        """See Command.streamed."""
        return f".{self.formats[0]}"

    @property
    def formats(self) -> tuple[str, ...]:
        """See EachCommand.formats."""
        return map_formats(self.format.split(","), "--format")

    def slug(self) -> str:
        """room.npz becomes room-sim2real."""
        first = self.depth[0] if self.depth else Path("none")
        return f"{first.stem or first.resolve().name}-{self.name}"

    def check(self) -> None:
        """Paths and ranges."""
        if not self.depth:
            raise InputError("sim2real needs depth maps or folders of them")
        self.check_given()
        if self.unit is not None and self.unit <= 0:
            raise InputError(f"--unit must be above 0, got {self.unit:g}")
        check_range("--variants", self.variants, 1, 1000)
        check_range("--ensemble", self.ensemble, 1, 64)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 1000)
        if "exr" in self.formats:
            need_exr()
        super().check()

    def marks(self) -> tuple[str, ...]:
        """See EachCommand.marks."""
        return tuple(MAP_FORMATS[name][0] for name in self.formats)

    def endings(self) -> tuple[str, ...]:
        """See EachCommand.endings."""
        return tuple(end for name in self.formats for end in MAP_FORMATS[name])

    def jobs(self, target: Target) -> tuple[list[Job], list[str]]:
        """See EachCommand.jobs. Raises InputError where a folder holds no depth."""
        if not self.many:
            return [self.job(str(self.depth[0]), target)], []
        found: list[tuple[Path, Path]] = []
        skipped: list[str] = []
        for given in self.depth:
            maps, lines = self._found(given, target)
            found, skipped = found + maps, skipped + lines
        jobs, mark = list[Job](), target.own_mark
        for place in dict.fromkeys(place for _, place in found):
            here = list(dict.fromkeys(path for path, own in found if own == place))
            for path, stem in zip(here, distinct_stems(here), strict=True):
                for number in range(self.variants):
                    source, ending = (f"{path}#{number}", f"-{number}") if self.variants > 1 else (str(path), "")
                    own = Target(target.folder / place, f"{stem}-{self.name}{ending}", mark=mark)
                    jobs.append(self.job(source, own))
        return jobs, skipped

    def _found(self, given: Path, target: Target) -> tuple[list[tuple[Path, Path]], list[str]]:
        """(map, folder of its results) of a file or a folder, and why others are left out; results of this command
        are no maps to measure."""
        if not given.is_dir():
            return [(given, Path())], []
        paths = sorted(given.rglob("*") if self.recursive else given.iterdir())
        maps = [p for p in paths if p.is_file() and p.suffix.lower() in DEPTH_SUFFIXES]
        maps = [p for p in maps if f"-{self.name}" not in p.stem and not p.name.endswith(PREVIEW)]
        maps = [p for p in maps if target.folder.resolve() not in p.resolve().parents or target.folder == given]
        reasons = {p: why for p in maps if (why := not_depth(p))}
        ours = [p for p in maps if p not in reasons]
        if not ours:
            more = f": {next(iter(reasons.values()))}" if reasons else ""
            raise InputError(f"{given} holds no depth maps ({', '.join(DEPTH_SUFFIXES)}){more}")
        inside = Path(given.name) if len(self.depth) > 1 else Path()
        return [(path, inside / path.parent.relative_to(given)) for path in ours], list(reasons.values())

    def source_of(self, job: Job) -> Path:
        """See EachCommand.source_of."""
        return Path(job.source.rpartition("#")[0] if self.variants > 1 else job.source)

    def needed_bytes(self, left: Sequence[Job]) -> int:
        """See EachCommand.needed_bytes."""
        return 1_000_000 * (1 + len(left))

    def planned(self, job: Job) -> str:
        """See EachCommand.planned."""
        height, width = read_depth(self.source_of(job), self.unit).depth_m.shape
        return f"measure {job.source} ({width} x {height} px)"

    def load(self) -> Any:
        """The simulator."""
        from ..tasks.sim2real import load_sensor

        return load_sensor(self.prior, **self.placement())

    def do(self, pipe: Any, job: Job, record: RunRecord) -> None:
        """See EachCommand.do: measures a map; the noise follows from the seed and the file's name."""
        from ..core.training.sampling_order import seed_of
        from ..tasks.map_files import Saving

        path = self.source_of(job)
        number = int(job.source.rpartition("#")[2]) if self.variants > 1 else 0
        given = read_depth(path, self.unit)
        own = zlib.crc32(path.name.encode("utf-8", "surrogateescape"))
        with record.stage("measure"):
            made = pipe(
                given.depth_m,
                seed=seed_of(self.seed, own, number),
                num_inference_steps=self.steps,
                ensemble_size=self.ensemble,
            )
        record.count("denoiser", made.nfe)
        with record.stage("write"):
            how, one = Saving(self.formats, self.compression), made.with_camera(given.K).one(0)
            record.keep(lambda base: one.save(base, how), job.target.file(""))
