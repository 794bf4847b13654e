"""Parts of an experiment that stay where they were made, so that one that was interrupted goes on with the next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..utils.files import read_json, write_json
from .fingerprints import fingerprints
from .runner import Context

Row = dict[str, Any]


def place_of(context: Context, config: Any, without: Collection[str] = ()) -> Path:
    """The folder in `config.work` of parts of this code, these weights, seed and sizes; others are never taken for
    them.

    without: weights that the parts do not depend on.
    """
    found = fingerprints(context.name, context.prior)
    weights = {name: digest for name, digest in found["weights"].items() if name not in without}
    described = json.dumps([found["code"], weights, context.seed, asdict(config)], sort_keys=True)
    return Path(config.work) / hashlib.sha256(described.encode()).hexdigest()[:12]


def kept(path: Path, make: Callable[[], list[Row]]) -> list[Row]:
    """The rows in a file, made first unless they are there."""
    if not path.exists():
        write_json(path, {"rows": make()})
    return list(read_json(path)["rows"])
