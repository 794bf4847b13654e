"""Fill the tables of README.md and docs/ from docs/results: python -m unproject.scripts.make_docs [--check].

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`; NAME is the experiment, optionally with `:COLUMNS`
(comma-separated keys of its rows). `KEY=VALUE` as the last of them spreads the rows: a column for each KEY, with VALUE
in its cells. `NAME/LIST` shows another list of rows than "table". No number of a table is typed by hand, and below a
table that was measured with other weights than those in the tree it is said so.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..bench.stale import stale
from ..bench.tables import cell
from ..utils.errors import InputError, UnprojectError
from ..utils.files import read_json, write_text

ROOT = Path(__file__).resolve().parent.parent
BEGIN = r"<!-- table:([a-z0-9-]+)(?:/([a-z_]+))?(?::([^\s>]+))? -->\n"
FORMER = "\n*Measured with earlier weights than those that are shipped.*\n"
MARK = "<!-- table:"
BLOCK = re.compile(rf"({BEGIN})(.*?)(<!-- /table -->)", re.DOTALL)


def table(rows: list[dict[str, Any]], columns: list[str] | None) -> str:
    """The rows of an experiment as a Markdown table."""
    names = columns or list(dict.fromkeys(key for row in rows for key in row))
    if "=" in names[-1]:
        names, rows = spread_rows(rows, names)
    lines = ["| " + " | ".join(n.replace("_", " ") for n in names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(cell(row.get(n)) for n in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def spread_rows(rows: list[dict[str, Any]], columns: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Rows that agree in all but the last of `columns`, KEY=VALUE, as one; what its columns are called."""
    *same, (key, value) = *columns[:-1], columns[-1].split("=")
    spread: dict[tuple[str, ...], dict[str, Any]] = {}
    headings: dict[str, None] = {}
    for row in rows:
        if row.get(value) is None:
            continue
        heading = f"{value} at {key} {cell(row.get(key))}"
        headings[heading] = None
        one = spread.setdefault(tuple(cell(row.get(name)) for name in same), {name: row.get(name) for name in same})
        one[heading] = row[value]
    return [*same, *headings], list(spread.values())


def fill(text: str, results: Path, former: Collection[str] = ()) -> str:
    """The page with every table block made anew; `former` are the experiments measured with other weights.

    Raises InputError when an experiment has no result, and for a marker that begins no block.
    """
    check_markers(text)

    def replace(match: re.Match[str]) -> str:
        path = results / f"{match[2]}.json"
        if not path.exists():
            raise InputError(
                f"the page wants a table of {match[2]}, but {path.name} is missing; run unproject bench {match[2]}"
            )
        result, rows = read_json(path), match[3] or "table"
        if rows not in result:
            raise InputError(f"the page wants the list {rows!r} of {path.name}, which holds {', '.join(result)}")
        columns = match[4].split(",") if match[4] else None
        said = FORMER if match[2] in former else ""
        return match[1] + table(result[rows], columns) + said + match[6]

    return BLOCK.sub(replace, text)


def check_markers(text: str) -> None:
    """Raises InputError where a marker of a page begins no block."""
    for part in text.split(MARK)[1:]:
        if not BLOCK.match(MARK + part):  # a block ends before the next one begins
            line = (MARK + part).splitlines()[0]
            raise InputError(f"{line!r} begins no table: it is not <!-- table:NAME:COLUMNS -->, or is never closed")


def on_pages(pages: Sequence[Path]) -> list[str]:
    """The experiments whose tables stand on the pages, in order."""
    return list(dict.fromkeys(match[2] for page in pages for match in BLOCK.finditer(page.read_text())))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Exit code 1 with --check when a page is out of date, which it also is when it does not say of a table that it was
    measured with other weights; those tables and those whose code has changed since are told.
    """
    parser = argparse.ArgumentParser(prog="make_docs", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the pages are up to date")
    options = parser.parse_args(arguments)
    pages, results = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))], ROOT / "docs" / "results"
    behind, states = [], stale(on_pages(pages), results)
    former = [name for name, state in states.items() if state.weights]
    try:
        for page in pages:
            before = page.read_text()
            after = fill(before, results, former)
            if after != before:
                behind.append(page.name)
                if not options.check:
                    write_text(page, after)
    except UnprojectError as error:
        print(f"make_docs: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{'out of date' if options.check else 'updated'}: {', '.join(behind) or 'nothing'}")
    wrong = False
    for name, state in states.items():
        print(f"{name}: {'; '.join(state.reasons)}")
        wrong |= bool(state.missing)
    return 1 if options.check and (behind or wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
