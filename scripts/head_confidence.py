"""Confidence for a head: python -m unproject.scripts.head_confidence HEAD --val FOLDER ... --out FOLDER.

HEAD is a folder or a name. The error models of its targets are fitted to rendered validation sets and calibrated on
other scenes of them; --out is the same head with these, or HEAD's own folder. What else its head.json told, such as
the numbers of validation, is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..pipelines.calibrated import calibrate_head
from ..tasks.data import CameraColumns, GeometryData
from ..tasks.heads import load_head
from ..toybox.dataset import RenderedSet
from ..utils.errors import UnprojectError
from ..utils.threads import pin


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="head_confidence", description=__doc__.splitlines()[0])
    parser.add_argument("head", help="a folder with head.json, or a name")
    parser.add_argument("--val", type=Path, nargs="+", required=True, help="rendered folders that no head learnt from")
    parser.add_argument("--out", type=Path, required=True, help="folder for the head with its confidence")
    parser.add_argument("--images", type=int, default=256, help="pictures at most")
    options = parser.parse_args(arguments)
    pin(1)
    try:
        head = load_head(options.head)
        sets = [CameraColumns(RenderedSet(folder)) for folder in options.val]
        calibrate_head(head, GeometryData(sets, columns=head.codec.columns()), options.images)
        print(head.save(options.out, **head.facts))
    except UnprojectError as error:
        print(f"head_confidence: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
