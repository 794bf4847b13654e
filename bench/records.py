"""What a result has to hold before it is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..utils.errors import UnprojectError
from .experiment import Experiment

MEASURED = ("value", "mean", "ratio", "fid", "kid", "gain")  # the key that makes a cell a measurement


def refuse_vacuous(record: Mapping[str, Any], made: Experiment) -> None:
    """Raises UnprojectError for a result that says nothing: no rows, no baseline, numbers that are none, or rows that
    all measured the same (a quick run may, on few samples)."""
    name, rows = record["experiment"], record.get("table") or []
    wrong = next(_not_numbers(record), None)
    key, value = made.baseline
    if not rows:
        raise UnprojectError(f"{name} measured nothing: its table is empty; no result was written")
    if wrong is not None:
        raise UnprojectError(f"{name} measured no number at {wrong}; no result was written")
    if key and not any(row.get(key) == value for row in rows):
        raise UnprojectError(f"{name} has no baseline, a row with {key} {value!r}; no result was written")
    if not record.get("quick") and _all_alike(rows):
        raise UnprojectError(f"{name} measured the same in all {len(rows)} rows; no result was written")


def _not_numbers(value: Any, place: str = "") -> Iterator[str]:
    """Where a number is infinite or none."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_numbers(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _not_numbers(item, f"{place}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place


def _all_alike(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two rows or more share measured columns, and agree in all of them; times are not what is measured."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for key, cell in row.items():
            if isinstance(cell, Mapping) and any(name in cell for name in MEASURED) and "seconds" not in key:
                columns.setdefault(key, []).append(cell)
    shared = [cells for cells in columns.values() if len(cells) > 1]
    return bool(shared) and all(cell == cells[0] for cells in shared for cell in cells)
