"""How results are shown: tables, lines and warnings for people, one JSON object for programs."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.runs import RunRecord, plain
from .outputs import size_text

if TYPE_CHECKING:
    from .common import Command


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


def show(command: Command, record: RunRecord, shown: Shown, written: Path | None) -> None:
    """Prints what a command made; `written` is its record."""
    if command.json:
        facts = record.to_dict() if command.leaves_files else {"command": command.name}
        print(json.dumps({**facts, **plain(shown.data)}, ensure_ascii=False))
        return
    for table in shown.tables:
        print_table(table)
    for line in shown.lines:
        print(line)
    for path in map(Path, record.outputs):
        if path.is_file():
            print(f"{path}  {size_text(path)}")
    if written is not None:
        print(f"{written}  {record.seconds:.1f} s" + _calls(record.nfe))


def _calls(nfe: Mapping[str, int]) -> str:
    return "".join(f", {count} {network} calls" for network, count in nfe.items())


@contextlib.contextmanager
def plain_warnings(record: RunRecord) -> Iterator[None]:
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
