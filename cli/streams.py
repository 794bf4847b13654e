"""A command in a pipe: - as a picture is standard input, - as --out is standard output."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import InputError

if TYPE_CHECKING:
    from .common import Command

STREAM = Path("-")


@contextlib.contextmanager
def given_by_pipe(command: Command) -> Iterator[Command]:
    """The command with a file in the place of every picture that is -; read once, removed afterwards."""
    image: Any = getattr(command, "image", None)
    listed = list(image) if isinstance(image, tuple) else [image]
    if STREAM not in listed:
        yield command
        return
    with tempfile.TemporaryDirectory(prefix="unproject-") as folder:
        path = Path(folder, "stdin")
        path.write_bytes(sys.stdin.buffer.read())
        if not path.stat().st_size:
            raise InputError("image - is empty: nothing came on standard input")
        files: list[Any] = [path if one == STREAM else one for one in listed]
        changes: dict[str, Any] = {"image": tuple(files) if isinstance(image, tuple) else files[0]}
        if command.out is None:
            changes["out"] = Path("outputs") / command.name
        yield replace(command, **changes)


def to_stdout(command: Command, execute: Callable[[Command], int]) -> int:
    """Runs a command in a folder of its own and copies the one file it makes to standard output.

    Everything else goes to standard error. Raises InputError where more than one file comes out.
    """
    if command.several or command.json:
        why = "--json prints there too" if command.json else command.several
        raise InputError(f"--out -: {command.name} cannot write to standard output, {why}; give a file or a folder")
    if not command.dry_run and sys.stdout.isatty():
        raise InputError("--out -: standard output is a terminal; send it to a file or another program")
    with tempfile.TemporaryDirectory(prefix="unproject-") as folder:
        path, said = Path(folder, f"stdout{command.streamed}"), io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                code = execute(replace(command, out=path))
        finally:
            print(_without(folder, path, said.getvalue()), end="", file=sys.stderr)
        if path.is_file():
            sys.stdout.flush()
            sys.stdout.buffer.write(path.read_bytes())
            sys.stdout.buffer.flush()
        return code


def _without(folder: str, path: Path, said: str) -> str:
    """What was said of files in a folder that goes away: the one that is copied by what it is, others not at all."""
    lines = [line.replace(str(path), "standard output") for line in said.splitlines(keepends=True)]
    return "".join(line for line in lines if folder not in line)
