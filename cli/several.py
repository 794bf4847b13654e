"""What the commands share that make files of each of several files: `depth`, `calibrate`, `sim2real` and their like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Seeded
from .jobs import SOME_FAILED, Job, run_jobs, sort_out
from .outputs import Target, check_apart, check_new, check_places
from .priors import HeadCommand
from .showing import Shown


@dataclass(frozen=True, kw_only=True)
class EachCommand(HeadCommand, Seeded):
    """Options of the commands that make files of each of several files."""

    splits: ClassVar[bool] = True
    reads: ClassVar[str] = ""
    """the option that names what is read"""
    plural: ClassVar[str] = ""
    """of what is read, in words"""

    recursive: bool = False
    """Enter the folders inside a folder too; the outputs lie in folders of the same names."""
    overwrite: bool = False
    """Make again what is already there. Otherwise what is there is kept, and an interrupted command goes on."""

    @property
    def given(self) -> tuple[Path, ...]:
        """The files and folders that are read."""
        paths: tuple[Path, ...] = getattr(self, self.reads)
        return paths

    @property
    def many(self) -> bool:
        """Whether the outputs of several share a folder."""
        return len(self.given) != 1 or self.given[0].is_dir()

    @property
    def because(self) -> str:
        """Why it makes outputs of several, in words."""
        several = f"there are {len(self.given)} {self.plural}"
        return f"{self.given[0]} is a folder" if len(self.given) == 1 else several

    @property
    def noun(self) -> str:
        """What is made, for names: photo.jpg becomes photo-NOUN."""
        return self.name

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats in force, where there is a choice."""
        return ()

    def marks(self) -> tuple[str, ...]:
        """Endings of the files by which one counts as done."""
        return ()

    def endings(self) -> tuple[str, ...]:
        """Endings of the files that may be written for one."""
        return self.marks()

    def target(self) -> Target:
        """See Command.target; of several the record is named after what is made."""
        target = super().target()
        formats = tuple(sorted(self.formats))
        return Target(target.folder, self.noun, formats=formats) if self.many else replace(target, formats=formats)

    def check_given(self) -> None:
        """Raises InputError for files that are not there, and for one file where several are written."""
        for path in self.given:
            if not path.exists():
                raise InputError(f"{self.reads} {path} does not exist")
        if self.many and self.out is not None and self.out.suffix and not self.out.is_dir():
            raise InputError(f"--out {self.out} is one file but {self.because}; give a folder")

    def jobs(self, target: Target) -> tuple[list[Job], list[str]]:
        """What is to be done, and lines about other files."""
        raise TypeError(f"{type(self).__name__} defines no jobs")

    def job(self, source: str, target: Target) -> Job:
        """What is made of one."""
        return Job(source, target, tuple(target.file(ending) for ending in self.marks()))

    def source_of(self, job: Job) -> Path:
        """The file that a job reads."""
        return Path(job.source)

    def check_places(self, target: Target) -> None:
        """See Command.check_places; what is there must be this command's own, and nothing that is read."""
        jobs, _ = self.jobs(target)
        places = [place for job in jobs for place in (job.target.file, job.target.beside)]
        written = [place(ending) for place in places for ending in self.endings()]
        check_apart(self.out or target.folder, written, [self.source_of(job) for job in jobs])
        found = sort_out(self, jobs, target, self.overwrite)
        if not self.many and found.kept:
            check_new(jobs[0].files)
        self.check_left(found.left)
        check_places([*(job.files[0] for job in found.left), target.record], self.needed_bytes(found.left))

    def check_left(self, left: Sequence[Job]) -> None:
        """Raises InputError, before a network is loaded, where nothing that is left to do can be done."""

    def needed_bytes(self, left: Sequence[Job]) -> int:
        """About how much the outputs of some jobs need on the disk."""
        raise TypeError(f"{type(self).__name__} defines no needed_bytes")

    def plan(self) -> list[str]:
        """What a dry run says; every file is read for it."""
        target = self.target()
        jobs, skipped = self.jobs(target)
        found = sort_out(self, jobs, target, self.overwrite)
        lines, failed = [], list[InputError]()
        for job in found.left:
            try:
                lines.append(f"would {self.planned(job)}")
            except InputError as error:
                if not self.many:
                    raise
                failed.append(error)
                lines.append(f"would skip {job.source}: {str(error).removeprefix(job.source).lstrip(': ')}")
        if failed and len(failed) == len(found.left) and not found.kept:
            raise self._none_of(len(jobs), failed[0])
        return [*super().plan(), *lines, *(f"would skip {text}" for text in (*found.kept, *skipped))]

    def planned(self, job: Job) -> str:
        """What would be done, in words; the file is read for it."""
        raise TypeError(f"{type(self).__name__} defines no planned")

    def run(self, record: RunRecord, target: Target) -> Shown:
        """One network for all; what is there is kept, one that cannot be done is named and skipped."""
        jobs, skipped = self.jobs(target)
        found = sort_out(self, jobs, target, self.overwrite)

        def do(pipe: Any, job: Job) -> None:
            self.do(pipe, job, record)
            if self.overwrite and not record.rescued:
                self._clear(job, record)

        failed, made = run_jobs(self, found, record, target, self.load, do)
        if failed and not made and not found.kept:
            raise self._none_of(len(jobs), failed[0])
        told = [*failed, *found.kept, *skipped]
        record.notes.update(skipped=told)
        return Shown([f"skipped: {t}" for t in told], data={"skipped": told}, exit_code=SOME_FAILED if failed else 0)

    def _clear(self, job: Job, record: RunRecord) -> None:
        """Removes what an earlier run with other options left of a job under names that this command writes."""
        for path in map(job.target.file, self.endings()):
            if str(path) not in record.outputs and path.is_file():
                path.unlink()

    def _none_of(self, count: int, first: InputError | str) -> InputError:
        return InputError(f"none of the {count} {self.plural} could be used: {first}")

    def load(self) -> Any:
        """The pipeline."""
        raise TypeError(f"{type(self).__name__} defines no load")

    def do(self, pipe: Any, job: Job, record: RunRecord) -> None:
        """Reads what a job reads and writes its outputs."""
        raise TypeError(f"{type(self).__name__} defines no do")
