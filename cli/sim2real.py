"""`unproject sim2real`: what a depth sensor would measure of clean depth maps, one, several, or folders of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

from ..tasks.depth_files import DEPTH_SUFFIXES, not_depth, read_depth
from ..tasks.formats import MAP_FORMATS, PREVIEW, map_formats
from ..utils.bands import Compression, need_exr
from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Seeded, check_range
from .folders import distinct_stems
from .jobs import SOME_FAILED, Job, run_jobs, sort_out
from .outputs import Target, check_apart, check_new, check_places
from .priors import OwnWeightsCommand
from .showing import Shown


@dataclass(frozen=True, kw_only=True)
class Sim2real(OwnWeightsCommand, Seeded):
    """Measure clean depth as a real sensor would: noise, flying edges and holes, from maps or folders of maps."""

    name: ClassVar[str] = "sim2real"
    kinds: ClassVar[tuple[str, ...]] = (".png", ".npz", ".npy", ".exr", ".tiff")

    prior: str = "toybox"
    """toybox, or the folder of a trained sensor."""
    depth: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Clean z-depth in metres: NPZ (depth_m or depth, K), NPY, 16-bit PNG in millimetres, or folders of them."""
    recursive: bool = False
    """Enter the folders inside a folder too; the outputs lie in folders of the same names."""
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
    overwrite: bool = False
    """Make again what is already there. Otherwise what is there is kept, and an interrupted command goes on."""

    @property
    def many(self) -> bool:
        """Whether the outputs share a folder."""
        return len(self.depth) != 1 or self.depth[0].is_dir() or self.variants > 1

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
        """The formats in force."""
        return map_formats(self.format.split(","), "--format")

    def slug(self) -> str:
        """room.npz becomes room-sim2real."""
        first = self.depth[0] if self.depth else Path("none")
        return f"{first.stem or first.resolve().name}-{self.name}"

    def target(self) -> Target:
        """See Command.target; of several maps the record is named after the command."""
        target = super().target()
        return Target(target.folder, self.name) if self.many else target

    def check(self) -> None:
        """Paths and ranges."""
        if not self.depth:
            raise InputError("sim2real needs depth maps or folders of them")
        for path in self.depth:
            if not path.exists():
                raise InputError(f"depth {path} does not exist")
        if self.many and self.out is not None and self.out.suffix and not self.out.is_dir():
            raise InputError(f"--out {self.out} is one file but several are written; give a folder")
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
        """Endings of the files by which a map counts as done."""
        return tuple(MAP_FORMATS[name][0] for name in self.formats)

    def jobs(self, target: Target) -> tuple[list[Job], list[str]]:
        """The measurements to make, and lines about other files. Raises InputError where a folder holds no depth."""
        if not self.many:
            return [self._job(self.depth[0], target)], []
        found: list[tuple[Path, Path]] = []
        skipped: list[str] = []
        for given in self.depth:
            maps, lines = self._found(given, target)
            found, skipped = found + maps, skipped + lines
        jobs: list[Job] = []
        for place in dict.fromkeys(place for _, place in found):
            here = list(dict.fromkeys(path for path, own in found if own == place))
            for path, stem in zip(here, distinct_stems(here), strict=True):
                for number in range(self.variants):
                    ending = f"-{number}" if self.variants > 1 else ""
                    jobs.append(self._job(path, Target(target.folder / place, f"{stem}-{self.name}{ending}"), number))
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

    def _job(self, path: Path, target: Target, number: int = 0) -> Job:
        files = tuple(target.file(ending) for ending in self.marks())
        return Job(str(path) if self.variants == 1 else f"{path}#{number}", target, files)

    def check_places(self, target: Target) -> None:
        """See Command.check_places; what is there must be this command's own, and no depth map."""
        jobs, _ = self.jobs(target)
        written = [job.target.file(end) for job in jobs for name in self.formats for end in MAP_FORMATS[name]]
        check_apart(self.out or target.folder, written, [_path(job) for job in jobs])
        found = sort_out(self, jobs, target, self.overwrite)
        if not self.many and found.kept:
            check_new(jobs[0].files)
        check_places([*(job.files[0] for job in found.left), target.record], 1_000_000 * (1 + len(found.left)))

    def plan(self) -> list[str]:
        """What a dry run says; every map is read for it."""
        target = self.target()
        jobs, skipped = self.jobs(target)
        found = sort_out(self, jobs, target, self.overwrite)
        lines = []
        for job in found.left:
            height, width = read_depth(_path(job), self.unit).depth_m.shape
            lines.append(f"would measure {job.source} ({width} x {height} px)")
        return [*super().plan(), *lines, *(f"would skip {text}" for text in (*found.kept, *skipped))]

    def load(self) -> Any:
        """The simulator."""
        from ..tasks.sim2real import load_sensor

        return load_sensor(self.prior, **self.placement())

    def run(self, record: RunRecord, target: Target) -> Shown:
        """One network for all maps; what is there is kept, one that cannot be read is named and skipped."""
        jobs, skipped = self.jobs(target)
        found = sort_out(self, jobs, target, self.overwrite)
        failed, made = run_jobs(self, found, record, target, self.load, lambda pipe, job: self.one(pipe, job, record))
        if failed and not made and not found.kept:
            raise InputError(f"none of the {len(jobs)} maps could be measured: {failed[0]}")
        told = [*failed, *found.kept, *skipped]
        record.notes.update(skipped=told)
        return Shown([f"skipped: {t}" for t in told], data={"skipped": told}, exit_code=SOME_FAILED if failed else 0)

    def one(self, pipe: Any, job: Job, record: RunRecord) -> None:
        """Measures a map and writes its files; the noise follows from the seed and the file's name."""
        from ..core.training.sampling_order import seed_of
        from ..tasks.map_files import Saving

        path = _path(job)
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


def _path(job: Job) -> Path:
    """The file that a job reads."""
    head, mark, tail = job.source.rpartition("#")
    return Path(head if mark and tail.isdigit() and not Path(job.source).exists() else job.source)
