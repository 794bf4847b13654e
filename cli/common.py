"""What all commands share: options, where results go, the run record, and how results are shown."""

from __future__ import annotations

import contextlib
import json as json_module
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ..utils.configs import to_dict, to_yaml
from ..utils.errors import InputError, UnprojectError
from ..utils.files import atomic_path, write_json
from ..utils.progress import under_way
from ..utils.runs import RunRecord, earlier, held, plain
from ..utils.shares import Share, share
from ..utils.threads import pin
from .estimates import Estimate
from .outputs import Target, check_new, check_places, made_beside
from .showing import Shown, plain_warnings, show
from .streams import STREAM, given_by_pipe, to_stdout

LONGEST_NUMBER = 40  # characters of a number in a message
MOST_THREADS = 1024  # beyond some thousands the process dies where it starts them
LONGEST_SIDE, SHORTEST_SIDE = 4096, 4  # px of what is drawn
NAMED = 5  # files that a dry run names
HOW_TO_TELL = ("json", "print_config", "dry_run", "overwrite")  # of a run, not of its result


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of every command."""

    name: ClassVar[str]
    """the word on the command line"""
    kinds: ClassVar[tuple[str, ...]] = ()
    """file suffixes that --out may name"""
    splits: ClassVar[bool] = False
    """whether processes that a launcher started share its work, of which the first one tells"""

    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File or folder to write, or - for standard output where one file comes out (default: a folder in outputs/)."""
    json: bool = False
    """Print one JSON object instead of text."""
    print_config: bool = False
    """Print the resolved options as YAML and stop; --config FILE reads them back, and those of a run.json."""
    dry_run: bool = False
    """Check the input and the places of the output, say what would be done and stop."""

    @property
    def leaves_files(self) -> bool:
        """False for commands that only tell something; they write a file only when --out is given."""
        return True

    @property
    def looks_at_out(self) -> bool:
        """True where --out names what is looked at, so that what is told is not written there."""
        return False

    @property
    def textured(self) -> bool:
        """Whether an OBJ that it writes is a mesh, with a library and pictures beside it, and not points."""
        return True

    @property
    def choice(self) -> str:
        """What names its output."""
        return "--out"

    @property
    def several(self) -> str:
        """Why no single file comes out that - could name; empty where one does."""
        return "" if self.kinds else "it writes no single file"

    @property
    def streamed(self) -> str:
        """The suffix of what goes to standard output."""
        return self.kinds[0]

    def slug(self) -> str:
        """The base name of the outputs."""
        return self.name

    def check(self) -> None:
        """Raises InputError for input that can be recognised as wrong without loading a network."""

    def written(self, target: Target) -> list[Path]:
        """The files that a run writes, as far as they are known before it; the record is not among them."""
        if self.leaves_files or self.out is None or self.looks_at_out:
            return []
        return [target.file(target.suffix or ".json")]

    def size_bytes(self) -> int:
        """About how much all outputs need on the disk."""
        return 1_000_000

    def check_places(self, target: Target) -> None:
        """Raises InputError or NotWrittenError when the outputs cannot be written, before any work is done."""
        written = self.written(target)
        check_places([*written, *([target.record] if self.leaves_files else [])], self.size_bytes())

    def plan(self) -> list[str]:
        """What a dry run says, line by line."""
        return []

    def forewarn(self) -> None:
        """Warns in a dry run of what the work would warn of once a network is loaded, as far as files tell it."""

    def estimate(self) -> Estimate | None:
        """What a run will take; None where nobody knows."""
        return None

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Does the work."""
        raise TypeError(f"{type(self).__name__} defines no run")

    def target(self) -> Target:
        """Where the results go. Raises InputError for a suffix the command cannot write."""
        if self.out is None:
            return Target(Path("outputs") / self.name / self.slug(), self.slug())
        suffix = self.out.suffix.lower()
        if os.path.isdir(self.out) or not suffix:
            return Target(self.out, self.slug())
        if suffix not in self.kinds:
            writes = f"a folder or {', '.join(self.kinds)}" if self.kinds else "a folder"
            raise InputError(f"--out {self.out}: {self.name} writes {writes}, not {suffix}")
        return Target(self.out.parent, self.out.stem, suffix)


@dataclass(frozen=True, kw_only=True)
class Writer(Command):
    """Options of commands whose outputs have names that could be taken."""

    overwrite: bool = False
    """Replace outputs that are already there."""

    def check_places(self, target: Target) -> None:
        """See Command.check_places; and that nothing is overwritten unasked but what this command left unfinished."""
        if not self.overwrite and not self._unfinished(target):
            check_new(self.written(target), self.textured, self.choice)
        super().check_places(target)

    def _unfinished(self, target: Target) -> bool:
        """Whether the record says that the same command began and did not come to its end."""
        told = earlier(target.record)
        if told.get("command") != self.name or told.get("status") == "done" or held(target.record):
            return False
        mine, config = plain(to_dict(self)), told.get("config")
        return isinstance(config, dict) and all(config.get(k) == v for k, v in mine.items() if k not in HOW_TO_TELL)


@dataclass(frozen=True, kw_only=True)
class Threaded(Command):
    """Options of commands that compute."""

    threads: int | None = None
    """Processor threads to compute with (default: torch's own choice; one for bench and train)."""


@dataclass(frozen=True, kw_only=True)
class Seeded(Command):
    """Options of commands with randomness."""

    seed: int = 0
    """Seed of all randomness."""


def check_numbers(command: Command) -> None:
    """Raises InputError for a seed or a number of threads that cannot be."""
    seed, threads = getattr(command, "seed", None), getattr(command, "threads", None)
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"--seed must be {'0 or more' if seed < 0 else 'below 2^63'}, got {seed}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        bound = "1 or more" if threads < 1 else f"at most {MOST_THREADS}"
        raise InputError(f"--threads must be {bound}, got {threads}")


def execute(command: Command) -> int:
    """Checks, runs, records and prints one command. Returns the exit code; failures are exceptions."""
    if command.print_config:
        command.target()
        print(to_yaml({"command": command.name, **to_dict(command)}), end="")
        return 0
    with given_by_pipe(command) as given:
        if given.out == STREAM:
            return to_stdout(given, _execute)
        return _execute(given)


def _execute(command: Command) -> int:
    target = command.target()
    check_numbers(command)
    command.check()
    command.check_places(target)
    if command.dry_run:
        return _show_plan(command, target)
    mine = share() if command.splits else Share()
    estimate = command.estimate() if mine.first else None
    if estimate is not None:
        estimate.tell(command.name)
    record = RunRecord(command.name, to_dict(command), getattr(command, "seed", None))
    folders = [one for one in (target.folder, *target.folder.parents) if not os.path.lexists(one)]
    before = _as_it_is(mine.beside(target.record))
    begun = isinstance(command, Writer) and command.leaves_files and len(command.written(target)) > 1
    if begun:  # killed between its files, it is known again
        record.begin(target.record)
    try:
        with record, plain_warnings(record), under_way(command.name):
            threads = getattr(command, "threads", None)
            if threads is not None:
                pin(threads)
            shown = command.run(record, target)
            for path in made_beside(map(Path, tuple(record.outputs))) if command.textured else ():
                record.output(path)
    except BaseException as error:
        nothing = begun and not any(map(os.path.exists, command.written(target)))
        nothing |= isinstance(error, InputError) and not record.outputs
        if nothing and record.place is not None:  # it left nothing to go on with
            _take_back(record.place, before if record.place == mine.beside(target.record) else None, folders)
        elif command.leaves_files and (record.outputs or record.place):
            with contextlib.suppress(UnprojectError):  # the first failure is the one to tell
                record.write(record.place or mine.beside(target.record))
        raise
    if not mine.first:
        return shown.exit_code or int(record.rescued)
    written = _write_record(command, record, shown, target)
    show(command, record, shown, written)
    return shown.exit_code or int(record.rescued)


def _as_it_is(record: Path) -> bytes | None:
    """What stands in a record; None where there is none that can be read."""
    try:
        return record.read_bytes()
    except OSError:
        return None


def _take_back(record: Path, before: bytes | None, folders: Sequence[Path]) -> None:
    """Leaves a record as it was, and of folders that were made for it those in which something lies meanwhile."""
    if before is not None:
        with contextlib.suppress(UnprojectError), atomic_path(record) as temporary:
            temporary.write_bytes(before)
        return
    record.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _write_record(command: Command, record: RunRecord, shown: Shown, target: Target) -> Path | None:
    """The record of a command that leaves files, what was told where --out names a file for it."""
    if record.stands:
        return target.record if target.record.is_file() else None
    with plain_warnings(record):
        if command.leaves_files:
            record.status = "done"
            return Path(record.keep(record.write, record.place or target.record, note=False))
        for path in command.written(target):
            record.keep(lambda to: write_json(to, plain(shown.data)), path)
    return None


def pick_device(name: str) -> str:
    """The torch device for --device; auto prefers cuda (of several processes one card each), then mps, then cpu.

    Raises InputError for an absent one.
    """
    import torch

    mps, mine = torch.backends.mps.is_available(), share()
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return "cuda" if mine.count == 1 else f"cuda:{mine.local % torch.cuda.device_count()}"
    if name == "auto":
        return "mps" if mps else "cpu"
    try:
        kind = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name!r} is not a device; use auto, cpu, cuda, cuda:1 or mps") from error
    count = {"cuda": torch.cuda.device_count(), "mps": int(mps), "cpu": 1}.get(kind.type, 0)
    if (kind.index or 0) >= count:
        raise InputError(f"--device {name} is not available on this machine ({count} found); use --device auto")
    return name


def check_range(option: str, value: float, low: float, high: float) -> None:
    """Raises InputError when a numeric option lies outside [low, high]."""
    if not low <= value <= high:
        told = f"{value:g}" if isinstance(value, float) else str(value)  # a whole number may exceed all floats
        told = told if len(told) <= LONGEST_NUMBER else f"{told[:LONGEST_NUMBER]}..."
        raise InputError(f"{option} must lie between {low:g} and {high:g}, got {told}")


def check_size(size: int | None) -> None:
    """Raises InputError for a --size that no prior draws; whether one draws the others it tells once it is loaded."""
    if size is not None:
        check_range("--size", size, SHORTEST_SIDE, LONGEST_SIDE)


def check_file(option: str, path: Path, way_out: str = "give a file") -> None:
    """Raises InputError for a file that is not there."""
    if not path.is_file():
        raise InputError(f"{option} {path} {'is a folder' if path.is_dir() else 'does not exist'}; {way_out}".lstrip())


def check_picture(option: str, path: Path) -> None:
    """Raises InputError for a picture that is not there."""
    check_file(option, path, "give a picture")


def _show_plan(command: Command, target: Target) -> int:
    where = str(target.file(target.suffix) if target.suffix else target.folder)
    names = [] if target.suffix else [os.path.relpath(path, target.folder) for path in command.written(target)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    files = f": {', '.join(names[:NAMED])}{more}" if names else ""
    estimate = command.estimate()
    taken = [] if estimate is None else estimate.lines()
    record = RunRecord(command.name)
    with plain_warnings(record):
        command.forewarn()
        plan = command.plan()
    lines = [*plan, *taken, *([f"would write to {where}{files}"] if command.leaves_files else [])]
    if command.json:
        print(
            json_module.dumps(
                {"command": command.name, "dry_run": True, "plan": lines, "out": where, "warnings": record.warnings}
            )
        )
    else:
        print("\n".join(lines) or "nothing to do")
    return 0
