"""Several things of one kind in one command: what is there already is kept, what fails is told, the rest goes on.

The record (depth.run.json) is written as it goes, and says which input each name belongs to and with which settings it
was made; the same command typed again does what is left.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..utils.errors import InputError, NotWrittenError, Stopped, out_of_memory
from ..utils.runs import RunRecord, earlier, plain
from .outputs import Target

if TYPE_CHECKING:
    from .common import Command

P = TypeVar("P")
SOME_FAILED = 3
NOT_SHAPING = {  # options that change no output
    *("out", "json", "print_config", "dry_run", "overwrite", "threads", "device", "batch"),
    *("image", "prompt", "prompts", "recursive", "work"),
    *("offload", "compile", "step_memory"),
}


@dataclass(frozen=True)
class Job:
    """One of several: what it is made from, and the files by which it counts as done."""

    source: str
    target: Target
    files: tuple[Path, ...]


@dataclass
class Sorted:
    """Jobs that are left to do, and lines about those that are done."""

    left: list[Job] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


def sort_out(command: Command, jobs: Sequence[Job], target: Target, overwrite: bool) -> Sorted:
    """What is left to do of jobs whose record would be `target.record`.

    Raises InputError where files that are there belong to another input, another setting or nobody.
    """
    told = earlier(target.record)
    notes = told.get("notes")
    known = notes.get("sources") if isinstance(notes, dict) else None
    sources = dict(known) if isinstance(known, dict) else {}
    found = Sorted(sources=sources)
    for job in jobs:
        there = [path for path in job.files if os.path.exists(path)]
        name = _name(job, target)
        if overwrite or not there:
            found.left.append(job)
            continue
        made_from = sources.get(name)
        if made_from is not None and made_from != job.source:
            raise InputError(f"{there[0]} was made from {made_from}; choose another --out, or --overwrite it")
        if made_from is not None:
            _check_settings(command, told, there[0])
        if len(there) == len(job.files):
            found.kept.append(f"{job.source} (already there: {there[0]}; --overwrite makes it again)")
        elif made_from is not None:
            found.left.append(job)
        else:
            raise InputError(f"{there[0]} is already there; choose another --out, or --overwrite it")
    return found


def run_jobs(
    command: Command,
    found: Sorted,
    record: RunRecord,
    target: Target,
    load: Callable[[], P],
    do: Callable[[P, Job], None],
) -> tuple[list[str], int]:
    """Loads what the work needs and does what is left. Returns lines about what failed, and how many were made.

    One alone fails as it is; among several the rest goes on. Ctrl-C and SIGTERM finish the one at hand, then raise
    Stopped. A disk that refuses to take results ends all.
    """
    from ..core.training.loop_parts import stop_signals
    from ..utils.progress import Progress

    failed: list[str] = []
    asked: list[int] = []
    record.notes["sources"] = found.sources
    if not found.left:
        return failed, 0
    with record.stage("load"):
        pipe = load()
    record.begin(target.record)
    total = len(found.left) + len(found.kept)
    alone = total == 1
    with stop_signals(asked.append), Progress(total, command.name, done=len(found.kept), shown=not alone) as bar:
        for number, job in enumerate(found.left):
            if asked:
                raise Stopped(len(found.kept) + number, total, str(target.folder), asked[0])
            found.sources[_name(job, target)] = job.source
            record.update()
            try:
                do(pipe, job)
            except Exception as error:
                if (
                    alone
                    or isinstance(error, NotWrittenError)
                    or not (isinstance(error, InputError) or out_of_memory(error))
                ):
                    raise
                reason = str(error) if isinstance(error, InputError) else f"{job.source}: out of memory"
                failed.append(reason)
                found.sources.pop(_name(job, target))
            bar.advance()
    record.notes["sources"] = found.sources
    return failed, len(found.left) - len(failed)


def settings(command: Command) -> dict[str, Any]:
    """The options that decide what comes out, as plain values."""
    names = [f.name for f in dataclasses.fields(command) if f.name not in NOT_SHAPING]
    return {name: plain(getattr(command, name)) for name in names}


def _check_settings(command: Command, told: Mapping[str, Any], path: Path) -> None:
    made_with = told.get("config") or {}
    wanted = {name: value for name, value in settings(command).items() if name in made_with}
    changed = [f"--{n.replace('_', '-')} {made_with[n]}" for n, value in wanted.items() if made_with[n] != value]
    if changed:
        raise InputError(
            f"{path} was made with {', '.join(changed)}; --overwrite makes it again, or choose another --out"
        )


def _name(job: Job, target: Target) -> str:
    """How a record calls a job: its output's name inside the folder of the command."""
    folder = job.target.folder
    inside = folder.relative_to(target.folder) if folder.is_relative_to(target.folder) else folder
    return (inside / job.target.stem).as_posix()
