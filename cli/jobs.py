"""Several things of one kind in one command: what is there already is kept, what fails is told, the rest goes on.

The record (depth.run.json) is written as it goes, and says which input each name belongs to and with which settings it
was made; the same command typed again does what is left and goes on telling of the rest (`go_on`, `stand`). Other
formats of the same have a record of their own (depth.exr.run.json). Processes that a launcher started share the work
(`utils.shares`): each does its own jobs and keeps a record of them, in the end the first one's holds all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..utils.companions import formats_of, records_of_sets
from ..utils.errors import InputError, MissingExtraError, NotWrittenError, Stopped, UnprojectError, out_of_memory
from ..utils.files import write_json
from ..utils.locks import in_turn
from ..utils.runs import RunRecord, earlier, plain
from ..utils.shares import Share, records_of_others, share
from .outputs import Target, check_new

if TYPE_CHECKING:
    from .common import Command

P = TypeVar("P")
SOME_FAILED = 3
NOT_SHAPING = {  # options that change no output
    *("out", "json", "print_config", "dry_run", "overwrite", "threads", "device", "batch"),
    *("image", "prompt", "prompts", "recursive", "work"),
    *("offload", "compile", "graphs", "step_memory"),
}
OF_ONE_RUN = {"skipped", "processes"}  # notes that say nothing of what a later run leaves as it is


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
    costs: dict[str, Any] = field(default_factory=dict)  # of what is kept and made, by the names of `sources`
    own: dict[Path, dict[str, Any]] = field(default_factory=dict)  # our records of earlier runs
    told: set[str] = field(default_factory=set)  # names of what they speak of and this process leaves as it is
    files: list[Path] = field(default_factory=list)  # of those among the jobs
    total: int = 0  # of all processes
    replaced: dict[str, list[Path]] = field(default_factory=dict)  # records of other formats that claim a file of ours


def sort_out(command: Command, jobs: Sequence[Job], target: Target, overwrite: bool) -> Sorted:
    """What is left for this process to do of jobs whose record would be `target.record`.

    Raises InputError where files that are there belong to another input, another setting or nobody.
    """
    record = target.record
    own = {path: earlier(path) for path in (record, *records_of_others(record))}
    siblings = _siblings(target, own)
    found = Sorted(total=len(jobs), own={path: one for path, one in own.items() if one})
    for one in own.values():
        found.sources.update(_sources(one))
    if share().first:
        found.told = found.sources.keys() - {name_of(job, target) for job in jobs}
    for job in share().own(jobs):
        there = [path for path in job.files if os.path.exists(path)]
        name = name_of(job, target)
        ours = name in found.sources
        if overwrite or not there:
            if not overwrite and found.sources.get(name) != job.source:
                check_new(job.files, command.textured)
            found.replaced[name] = [path for path, one in siblings.items() if name in _sources(one)]
            found.left.append(job)
            continue
        told = next((one for one in (own if ours else siblings).values() if name in _sources(one)), None)
        if told is not None:
            _check_source(told, name, job, there[0])
            _check_settings(command, told, target.formats if ours else None, there[0])
        if len(there) == len(job.files):
            found.kept.append(f"{job.source} (already there: {there[0]}; --overwrite makes it again)")
            if ours:
                found.told.add(name)
                found.files += there
        elif ours:
            found.left.append(job)
        else:
            raise InputError(f"{there[0]} is already there; choose another --out, or --overwrite it")
    costs = {name: cost for one in own.values() for name, cost in _noted(one, "costs").items()}
    found.costs = {name: costs[name] for name in sorted(found.told & costs.keys())}
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

    One alone fails as it is; Ctrl-C and SIGTERM interrupt it, unless its work is kept step by step. Among several the
    rest goes on; they finish the one at hand, then raise Stopped. A disk that refuses to take results ends all. Of
    several processes every one returns what all of them did, and the record of the first says so.
    """
    mine = share()
    mine.gathered({})  # nobody writes before all have looked at what is there
    failed: list[str] = []
    if target.formats:
        record.notes["formats"] = list(target.formats)
    record.notes.update(sources=found.sources, costs=found.costs)
    if found.left:
        failed = _work(command, found, record, target, load, do)
    else:
        go_on(record, found)
    made = len(found.left) - len(failed)
    if mine.count > 1:
        failed, made = _together(mine, found, record, failed, made)
    if not failed and not made:
        stand(record, found, target)
    if mine.first:
        for path in records_of_others(target.record):
            path.unlink(missing_ok=True)
    return failed, made


def go_on(record: RunRecord, found: Sorted) -> None:
    """Lets a record go on telling of what is kept: its files, what they cost, and what was noted of them."""
    if not found.told:
        return
    for told in found.own.values():
        notes = {name: note for name, note in _notes(told).items() if name not in OF_ONE_RUN}
        record.go_on({**told, "notes": notes})
    record.go_on({}, found.files, [cost for cost in found.costs.values() if isinstance(cost, dict)])


def stand(record: RunRecord, found: Sorted, target: Target) -> None:
    """Nothing is left to do: the record of the run that did it stays as it is, and none is made of others' work."""
    whole = list(found.own) in ([], [target.record])  # and none of processes that were killed
    told = found.own.get(target.record, {"status": "done", "command": record.command})
    if whole and told.get("status") == "done":
        record.stand(told)


def _work(
    command: Command,
    found: Sorted,
    record: RunRecord,
    target: Target,
    load: Callable[[], P],
    do: Callable[[P, Job], None],
) -> list[str]:
    """Does this process's jobs; lines about what failed."""
    from ..core.training.loop_parts import stop_signals
    from ..utils.progress import Progress

    mine, failed, asked = share(), list[str](), list[int]()
    with record.stage("load"):
        pipe = load()
    go_on(record, found)
    record.begin(mine.beside(target.record))
    total = len(found.left) + len(found.kept)
    alone = found.total == 1
    label = command.name if mine.count == 1 else f"{command.name} (process {mine.rank + 1} of {mine.count})"
    shown = not alone and mine.first
    stopping = contextlib.nullcontext() if alone else stop_signals(asked.append)
    with stopping, Progress(total, label, done=len(found.kept), shown=shown) as bar:
        for number, job in enumerate(found.left):
            if asked:
                raise Stopped(len(found.kept) + number, total, str(target.folder), asked[0])
            found.sources[name_of(job, target)] = job.source
            record.update()
            _give_up(found.replaced.get(name_of(job, target), ()), name_of(job, target))
            try:
                with record.cost_of() as cost:
                    do(pipe, job)
            except Exception as error:
                told = isinstance(error, UnprojectError) and not isinstance(error, (NotWrittenError, MissingExtraError))
                if alone or not (told or out_of_memory(error)):
                    raise
                reason = str(error) if told else "out of memory"
                reason = reason if job.source in reason else f"{job.source}: {reason}"
                failed.append(reason)
                found.sources.pop(name_of(job, target))
            else:
                found.costs[name_of(job, target)] = cost
            bar.advance()
    return failed


def _together(mine: Share, found: Sorted, record: RunRecord, failed: list[str], made: int) -> tuple[list[str], int]:
    """(failed, made) of all processes; `found` and the first one's record are completed by what the others tell."""
    own = {"failed": failed, "kept": found.kept, "files": record.kept, "made": made, "notes": record.notes}
    facts = mine.gathered({**own, **merged_facts(record)})
    found.kept = [line for one in facts for line in one["kept"]]
    record.notes = {}
    for name, note in ((name, note) for one in reversed(facts) for name, note in one["notes"].items()):
        known = record.notes.get(name)  # of other pictures, as a rule
        record.notes[name] = {**known, **note} if isinstance(known, dict) and isinstance(note, dict) else note
    found.sources, found.costs = record.notes["sources"], record.notes["costs"]
    record.kept = list(dict.fromkeys(path for one in facts for path in one["files"]))
    merge(record, facts)
    return [line for one in facts for line in one["failed"]], sum(one["made"] for one in facts)


def merged_facts(record: RunRecord) -> dict[str, Any]:
    """What a process tells of its record (see `merge`)."""
    return {"outputs": record.outputs, "nfe": record.nfe, "warnings": record.warnings, "seconds": record.seconds}


def merge(record: RunRecord, facts: Sequence[Mapping[str, Any]]) -> None:
    """Files, network calls and warnings of all processes in one record, and how long each of them took."""
    record.outputs = list(dict.fromkeys(path for one in facts for path in one["outputs"]))
    record.warnings = list(dict.fromkeys(text for one in facts for text in one["warnings"]))
    record.nfe = {}
    for one in facts:
        for network, calls in one["nfe"].items():
            record.count(network, calls)
    record.notes["processes"] = [{"seconds": round(one["seconds"], 3), "nfe": one["nfe"]} for one in facts]


def _notes(told: Mapping[str, Any]) -> dict[str, Any]:
    notes = told.get("notes")
    return notes if isinstance(notes, dict) else {}


def _noted(told: Mapping[str, Any], note: str) -> dict[str, Any]:
    """What a record notes of each name: which input it belongs to ("sources"), what it took ("costs")."""
    known = _notes(told).get(note)
    return dict(known) if isinstance(known, dict) else {}


def _sources(told: Mapping[str, Any]) -> dict[str, str]:
    """Which input each name of a record belongs to."""
    return _noted(told, "sources")


def settings(command: Command) -> dict[str, Any]:
    """The options that decide what comes out, as plain values."""
    names = [f.name for f in dataclasses.fields(command) if f.name not in NOT_SHAPING]
    return {name: plain(getattr(command, name)) for name in names}


def _siblings(target: Target, own: Collection[Path]) -> dict[Path, dict[str, Any]]:
    """Records beside the own ones of what was made under the same names in other sets of formats that share one."""
    if not target.formats or target.suffix:
        return {}
    beside = (path for path in records_of_sets(target.folder, target.stem) if path not in own)
    told = {path: earlier(path) for path in beside}
    return {path: one for path, one in told.items() if not set(target.formats).isdisjoint(formats_of(one) or ())}


def _check_source(told: Mapping[str, Any], name: str, job: Job, path: Path) -> None:
    made_from = _sources(told)[name]
    if made_from != job.source:
        raise InputError(f"{path} was made from {made_from}; choose another --out, or --overwrite it")


def _check_settings(command: Command, told: Mapping[str, Any], formats: Sequence[str] | None, path: Path) -> None:
    """Raises InputError where a record says that a file was made in another way; of `formats`, if they matter."""
    config = told.get("config")
    made_with = dict(config) if isinstance(config, dict) else {}
    wanted = {option: value for option, value in settings(command).items() if option in made_with}
    made_in = formats_of(told)
    if made_in is not None:
        made_with["format"] = ",".join(made_in)
        wanted["format"] = made_with["format"] if formats is None else ",".join(formats)
    changed = [f"--{n.replace('_', '-')} {made_with[n]}" for n, value in wanted.items() if made_with[n] != value]
    if changed:
        raise InputError(
            f"{path} was made with {', '.join(changed)}; --overwrite makes it again, or choose another --out"
        )


def _give_up(records: Sequence[Path], name: str) -> None:
    """Takes a name out of records of other formats, where a file that they speak of is made anew."""
    for path in records:
        with in_turn(path.parent):
            told = earlier(path)
            if name in _sources(told):
                for note in ("sources", "costs"):
                    told["notes"][note] = {key: one for key, one in _noted(told, note).items() if key != name}
                write_json(path, told)


def name_of(job: Job, target: Target) -> str:
    """How a record calls a job: its output's name inside the folder of the command."""
    folder = job.target.folder
    inside = folder.relative_to(target.folder) if folder.is_relative_to(target.folder) else folder
    return (inside / job.target.stem).as_posix()
