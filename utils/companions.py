"""Names of what lies beside a result: its record and report, which say whose they are, and its pictures and cameras."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .runs import earlier
from .shares import records_of_others

RECORD, REPORT = ".run.json", ".report.json"


def companion(folder: Path, stem: str, suffix: str, ending: str = RECORD) -> Path:
    """STEM.run.json or STEM.report.json of the file STEM.SUFFIX in a folder.

    Where that belongs to another file, as to x.obj beside x.glb, it is STEM.SUFFIX.run.json: files of one stem in
    several formats keep a record and a report each. Without a suffix, as of several files, it is STEM.run.json.
    """
    if not suffix:
        return folder / f"{stem}{ending}"
    return _first(folder, stem, suffix, ending, lambda path: _is_free(path, f"{stem}{suffix}"))


def record_of_set(folder: Path, stem: str, formats: Sequence[str]) -> Path:
    """STEM.run.json of files of a stem, or of several with a common record, that are written in formats together.

    Where that is the record of another set of formats, or of something else, it is STEM.exr-tiff.run.json.
    """
    return _first(folder, stem, f".{'-'.join(formats)}", RECORD, lambda path: _is_of_set(path, formats))


def records_of_sets(folder: Path, stem: str) -> list[Path]:
    """All records of a stem that are there, whatever their formats, with those of other processes."""
    names = glob.glob(f"{glob.escape(stem)}.*{RECORD[1:]}", root_dir=folder)
    return [folder / name for name in sorted(names)]


def formats_of(told: Mapping[str, Any]) -> list[str] | None:
    """The set of formats that a record speaks of; None where it names none."""
    notes = told.get("notes")
    formats = notes.get("formats") if isinstance(notes, dict) else None
    return formats if isinstance(formats, list) and all(isinstance(one, str) for one in formats) else None


def report_of(path: Path) -> Path:
    """Where the report of a file lies: NAME.report.json beside it, or NAME.glb.report.json (`companion`)."""
    return companion(path.parent, path.stem, path.suffix, REPORT)


def _first(folder: Path, stem: str, own: str, ending: str, free: Callable[[Path], bool]) -> Path:
    """The first of STEM + ENDING, STEM + OWN + ENDING, and this with numbers, that can be taken."""
    numbered = (folder / f"{stem}{own}{f'-{n}' if n > 1 else ''}{ending}" for n in itertools.count(1))
    return next(path for path in itertools.chain([folder / f"{stem}{ending}"], numbered) if free(path))


def _is_of_set(path: Path, formats: Sequence[str]) -> bool:
    """Whether a record, or what other processes have of it, is not there or speaks of this set of formats.

    One that lists what was made of what and names no formats was written before they were told apart.
    """
    for one in (path, *records_of_others(path)):
        if os.path.lexists(one):
            told = earlier(one)
            known, notes = formats_of(told), told.get("notes")
            listed = isinstance(notes, dict) and "sources" in notes
            if known != list(formats) if known is not None else not listed:
                return False
    return True


def _is_free(path: Path, name: str) -> bool:
    """Whether a record or report is not there or speaks of a file of this name."""
    if not os.path.lexists(path):
        return True
    told = earlier(path)
    config: Any = told.get("config")
    config = config if isinstance(config, dict) else {}
    outputs = told.get("outputs")
    outputs = outputs if isinstance(outputs, list) else []
    named = [told.get("file"), config.get("out"), config.get("destination"), *outputs]
    return any(isinstance(one, str) and Path(one).name == name for one in named)
