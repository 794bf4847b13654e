"""What all commands share: options, where results go, the run record, and how results are shown."""

from __future__ import annotations

import contextlib
import json as json_module
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from ..utils.configs import to_dict, to_yaml
from ..utils.errors import InputError, UnprojectError
from ..utils.files import write_json
from ..utils.runs import RunRecord, plain
from ..utils.threads import pin


@dataclass(frozen=True)
class Target:
    """Where a command writes: `folder/stem.suffix`, or only a folder when the user named no file."""

    folder: Path
    stem: str
    suffix: str = ""

    @property
    def record(self) -> Path:
        """run.json in a folder of its own; NAME.run.json beside a file the user named."""
        return self.folder / (f"{self.stem}.run.json" if self.suffix else "run.json")

    def file(self, ending: str) -> Path:
        """folder/stem plus an ending such as ".glb" or "-sheet.png"."""
        return self.folder / f"{self.stem}{ending}"


@dataclass
class Table:
    """Rows for people; `data` is the same for programs."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""


@dataclass
class Shown:
    """What a command hands back: lines and tables to print, data for --json, and the exit code."""

    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of every command."""

    name: ClassVar[str]
    """the word on the command line"""
    kinds: ClassVar[tuple[str, ...]] = ()
    """file suffixes that --out may name"""

    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File or folder to write (default: a folder in outputs/)."""
    seed: int = 0
    """Seed of all randomness."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """Processor threads to compute with (default: torch's own choice; one for bench and train)."""
    json: bool = False
    """Print one JSON object instead of text."""
    print_config: bool = False
    """Print the resolved options as YAML and stop."""
    dry_run: bool = False
    """Check the input, say what would be done and stop."""

    @property
    def leaves_files(self) -> bool:
        """False for commands that only tell something; they write a file only when --out is given."""
        return True

    @property
    def looks_at_out(self) -> bool:
        """True where --out names what is looked at, so that what is told is not written there."""
        return False

    def slug(self) -> str:
        """The base name of the outputs."""
        return self.name

    def check(self) -> None:
        """Raises InputError for input that can be recognised as wrong without loading a network."""

    def plan(self) -> list[str]:
        """What a dry run says, line by line."""
        return []

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Does the work."""
        raise TypeError(f"{type(self).__name__} defines no run")

    def target(self) -> Target:
        """Where the results go. Raises InputError for a suffix the command cannot write."""
        if self.out is None:
            return Target(Path("outputs") / self.name / self.slug(), self.slug())
        suffix = self.out.suffix.lower()
        if self.out.is_dir() or not suffix:
            return Target(self.out, self.slug())
        if suffix not in self.kinds:
            writes = f"a folder or {', '.join(self.kinds)}" if self.kinds else "a folder"
            raise InputError(f"--out {self.out}: {self.name} writes {writes}, not {suffix}")
        return Target(self.out.parent, self.out.stem, suffix)


def execute(command: Command) -> int:
    """Checks, runs, records and prints one command. Returns the exit code; failures are exceptions."""
    target = command.target()
    if command.print_config:
        print(to_yaml({"command": command.name, **to_dict(command)}), end="")
        return 0
    if command.seed is not None and command.seed < 0:
        raise InputError(f"--seed must be 0 or more, got {command.seed}")
    if command.threads is not None and command.threads < 1:
        raise InputError(f"--threads must be 1 or more, got {command.threads}")
    command.check()
    if command.dry_run:
        return _show_plan(command, target)
    record = RunRecord(command.name, to_dict(command), command.seed)
    try:
        with record, _plain_warnings(record):
            if command.threads is not None:
                pin(command.threads)
            shown = command.run(record, target)
    except BaseException:
        if command.leaves_files and record.outputs:
            with contextlib.suppress(UnprojectError):  # the first failure is the one to tell
                record.write(target.record)
        raise
    if command.leaves_files:
        record.write(target.record)
    elif command.out is not None and not command.looks_at_out:
        path = target.file(target.suffix or ".json")
        write_json(path, plain(shown.data))
    _show(command, record, shown, target)
    return shown.exit_code


def pick_device(name: str) -> str:
    """The torch device for --device; auto prefers cuda, then mps, then cpu. Raises InputError for an absent one."""
    import torch

    mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        kind = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name!r} is not a device; use auto, cpu, cuda, cuda:1 or mps") from error
    count = {"cuda": torch.cuda.device_count(), "mps": int(mps), "cpu": 1}.get(kind.type, 0)
    if (kind.index or 0) >= count:
        raise InputError(f"--device {name} is not available on this machine ({count} found); use --device auto")
    return name


def slugify(text: str, longest: int = 48) -> str:
    """A file name from a prompt: lower case words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].strip("-") or "result"


def check_range(option: str, value: float, low: float, high: float) -> None:
    """Raises InputError when a numeric option lies outside [low, high]."""
    if not low <= value <= high:
        raise InputError(f"{option} must lie between {low:g} and {high:g}, got {value:g}")


def check_picture(option: str, path: Path) -> None:
    """Raises InputError for a picture that is not there."""
    if not path.is_file():
        raise InputError(f"{option} {path} {'is a folder' if path.is_dir() else 'does not exist'}; give a picture")


def check_apart(out: Path, written: Iterable[Path], given: Iterable[Path]) -> None:
    """Raises InputError when a file to be written is a given picture, under another spelling or by a link too."""
    pictures = {_identity(path): path for path in given if path.exists()}
    for path in filter(Path.exists, written):
        if _identity(path) in pictures:
            raise InputError(
                f"--out {out} would overwrite {pictures[_identity(path)]}, the picture itself; choose another name"
            )


def _identity(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino


def check_prompt(prompt: str) -> None:
    """Raises InputError for a prompt without any letter."""
    if not any(c.isalnum() for c in prompt):
        raise InputError(f"the prompt is empty ({prompt!r}); describe what to make, for example 'a red chair'")


def size_text(path: Path) -> str:
    """The size of a file for people."""
    size = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def print_table(table: Table) -> None:
    """A rich table on a terminal, tab-separated lines elsewhere."""
    rows = [["" if cell is None else str(cell) for cell in row] for row in table.rows]
    if not sys.stdout.isatty():
        for row in [list(table.columns), *rows]:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(*table.columns, title=table.title or None)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def _show_plan(command: Command, target: Target) -> int:
    where = str(target.file(target.suffix) if target.suffix else target.folder)
    lines = [*command.plan(), *([f"would write to {where}"] if command.leaves_files else [])]
    if command.json:
        print(json_module.dumps({"command": command.name, "dry_run": True, "plan": lines, "out": where}))
    else:
        print("\n".join(lines) or "nothing to do")
    return 0


def _show(command: Command, record: RunRecord, shown: Shown, target: Target) -> None:
    if command.json:
        facts = record.to_dict() if command.leaves_files else {"command": command.name}
        print(json_module.dumps({**facts, **plain(shown.data)}, ensure_ascii=False))
        return
    for table in shown.tables:
        print_table(table)
    for line in shown.lines:
        print(line)
    for path in map(Path, record.outputs):
        if path.is_file():
            print(f"{path}  {size_text(path)}")
    if command.leaves_files:
        print(f"{target.record}  {record.seconds:.1f} s" + _calls(record.nfe))


def _calls(nfe: Mapping[str, int]) -> str:
    return "".join(f", {count} {network} calls" for network, count in nfe.items())


@contextlib.contextmanager
def _plain_warnings(record: RunRecord) -> Iterator[None]:
    """Each user warning once, as one line on standard error and in the record; developers' warnings are dropped."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if issubclass(category, UserWarning) and text not in record.warnings:
            record.warnings.append(text)
            print(f"warning: {text}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
