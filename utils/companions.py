"""Names of what lies beside a result: its record and report, which say whose they are, and its pictures and cameras."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from .runs import earlier

RECORD, REPORT = ".run.json", ".report.json"


def companion(folder: Path, stem: str, suffix: str, ending: str = RECORD) -> Path:
    """STEM.run.json or STEM.report.json of the file STEM.SUFFIX in a folder.

    Where that belongs to another file, as to x.obj beside x.glb, it is STEM.SUFFIX.run.json: files of one stem in
    several formats keep a record and a report each. Without a suffix, as of several files, it is STEM.run.json.
    """
    plain = folder / f"{stem}{ending}"
    if not suffix:
        return plain
    own = (folder / f"{stem}{suffix}{f'-{n}' if n > 1 else ''}{ending}" for n in itertools.count(1))
    return next(path for path in itertools.chain([plain], own) if _is_free(path, f"{stem}{suffix}"))


def report_of(path: Path) -> Path:
    """Where the report of a file lies: NAME.report.json beside it, or NAME.glb.report.json (`companion`)."""
    return companion(path.parent, path.stem, path.suffix, REPORT)


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
