"""Folders of weights that are whole or absent and say nothing about the machine that wrote them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...utils.errors import UnprojectError
from ...utils.files import read_json, usual_mode, write_json
from ...utils.temporary import held_folder, sibling, sweep


@contextlib.contextmanager
def folder_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success it replaces `path`, on failure it is removed.

    Raises UnprojectError when the disk refuses.
    """
    path, handle = Path(path), -1
    temporary = sibling(path)
    try:
        _recover(path)
        sweep(path)
        temporary, handle = held_folder(path)
        yield temporary
        _forget_origin(temporary)
        for written in temporary.rglob("*.safetensors"):
            usual_mode(written)
        if path.exists():
            previous = path.with_name(f".{path.name}.previous")
            os.replace(path, previous)
            os.replace(temporary, path)
            shutil.rmtree(previous, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise UnprojectError(
            f"writing {path} failed: {error.strerror or error}; what was there is unchanged"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def _recover(path: Path) -> None:
    """What was at `path` before comes back where a process was killed between the two renamings; else it goes."""
    previous = path.with_name(f".{path.name}.previous")
    if previous.is_dir() and not path.exists():
        os.replace(previous, path)
    shutil.rmtree(previous, ignore_errors=True)


def _forget_origin(folder: Path) -> None:
    """Removes the path a model was loaded from, which diffusers writes into the configs."""
    for path in (*folder.rglob("config.json"), *folder.rglob("model_index.json")):
        settings = read_json(path)
        if settings.pop("_name_or_path", None) is not None:
            write_json(path, settings)
