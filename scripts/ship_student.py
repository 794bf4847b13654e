"""A student for weights/: python -m unproject.scripts.ship_student EXPORT NAME [--out FOLDER].

What `unproject distill` exports is written once more, its numbers in half precision and packed integers as they are,
without the copy in plain/ that stock pipelines read. `--student NAME` and `--quality turbo` find it there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from ..core.training.export import folder_path
from ..utils.errors import InputError, UnprojectError
from ..utils.files import STUDENT, weights_root

PLAIN = "plain"


def ship(export: str | Path, name: str, out: str | Path | None = None) -> Path:
    """Writes OUT/NAME (None: the embedded weights); returns it.

    Raises InputError for a folder that is no student, and for a name that is taken by anything else.
    """
    export, folder = Path(export), Path(out or weights_root()) / name
    if not (export / STUDENT).is_file():
        raise InputError(f"{export} holds no {STUDENT}; give the export of a distillation")
    if not name or Path(name).name != name:
        raise InputError(f"name={name!r} must be the name of a folder")
    if folder.exists() and not (folder / STUDENT).is_file():
        raise InputError(f"{folder} is there and is no student; take another name")
    with folder_path(folder) as temporary:
        shutil.copytree(export, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns(PLAIN))
        for path in temporary.rglob("*.safetensors"):
            halve(path)
    return folder


def halve(path: Path) -> None:
    """Rewrites a file of tensors with its floating point numbers in half precision; its notes stay."""
    with safe_open(path, "pt") as given:
        notes = given.metadata()
        tensors = {name: given.get_tensor(name) for name in given.keys()}  # noqa: SIM118
    halves = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(halves, path, notes)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="ship_student", description=__doc__.splitlines()[0])
    parser.add_argument("export", help="folder of a distillation's export")
    parser.add_argument("name", help="what --student calls it")
    parser.add_argument("--out", help="folder of the weights (default: those of the package)")
    options = parser.parse_args(arguments)
    try:
        folder = ship(options.export, options.name, options.out)
    except UnprojectError as error:
        print(f"ship_student: {error}", file=sys.stderr)
        return error.exit_code
    files = [path for path in folder.rglob("*") if path.is_file()]
    print(f"{folder}: {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
