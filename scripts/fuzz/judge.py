"""Reads one case and says what is wrong with what happened."""

from __future__ import annotations

import functools
import os
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...utils.errors import InputError, UnprojectError
from .cases import Case, Kind, OddError, Wrong

LONGEST = 1500  # characters of a message
PYTHON = re.compile(
    r"Traceback|object at 0x|NoneType|not subscriptable|unsupported operand|has no attribute|argument of type|"
    r"object is not|must be str|list indices|unhashable type|KeyError|IndexError|TypeError|AttributeError|"
    r"out of bounds for axis|could not broadcast|cannot reshape|numpy\.|np\.|takes \d+ positional|expected str, bytes"
)
HERE = Path(__file__).parent


def judge(kind: Kind, case: Case, folder: Path) -> tuple[str, Wrong | None]:
    """("read" or "refused", None or what is wrong); `folder` is the working folder, with the files beside it."""
    path = folder / "case" / case.name
    with _around(kind, case, path), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        error: BaseException | None = None
        try:
            kind.read(path)
        except Exception as raised:
            error = raised
    ours = [one for one in said if not issubclass(one.category, (DeprecationWarning, FutureWarning, ResourceWarning))]
    told = [str(one.message) for one in ours]
    wrong = _of_error(error, kind, path) if error is not None else None
    noise = next((one for one in ours if issubclass(one.category, RuntimeWarning)), None)
    if wrong is None and noise is not None:
        wrong = Wrong("noise", str(noise.message)[:200], f"{Path(noise.filename).name}:{noise.lineno}")
    if wrong is None and case.unknown:
        refused = error is not None
        everything = " ".join([*told, str(error or "")])
        if case.refuse and not refused:
            wrong = Wrong("swallowed", f"{case.made}: not refused", case.made.split(",")[-1].strip())
        elif case.unknown.lower() not in everything.lower():
            wrong = Wrong(
                "swallowed",
                f"{case.made}: {case.unknown} is not named in {everything[:200]!r}",
                case.made.split(",")[-1].strip(),
            )
    return "read" if error is None else "refused", wrong


def _of_error(error: BaseException, kind: Kind, path: Path) -> Wrong | None:
    where, text = _where(error), " ".join(str(error).split())
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return Wrong("memory", text[:200], where)
    if isinstance(error, OddError):
        return Wrong("odd", text[:300], kind.name + ": " + re.sub(r"[\d.e+-]+", "#", text)[:60])
    if not isinstance(error, UnprojectError):
        return Wrong("crash", f"{type(error).__name__}: {text[:300]}", where)
    if not text:
        return Wrong("unclear", "an empty message", where)
    if kind.name == "options":  # the parser's words, with the help
        return None
    if len(text) > LONGEST:
        return Wrong("unclear", f"a message of {len(text)} characters: {text[:200]}", where)
    if PYTHON.search(text):
        return Wrong("unclear", text[:300], where)
    if kind.names and isinstance(error, InputError) and path.name not in text:
        return Wrong("unclear", f"the file is not named: {text[:200]}", where)
    return None


def _where(error: BaseException) -> str:
    """The innermost line of the package on the way to an error, and of a library behind it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "site-packages" not in f.filename and not Path(f.filename).is_relative_to(HERE)]
    cause = error.__cause__
    inner = f" <- {_where(cause)}" if cause is not None and cause is not error else ""
    if not ours:
        return f"{type(error).__name__}{inner}"
    last = ours[-1]
    return f"{type(error).__name__} {Path(last.filename).name}:{last.lineno} {last.name}{inner}"


@contextmanager
def _around(kind: Kind, case: Case, path: Path) -> Iterator[None]:
    """The case in its folder beside its neighbours, and the folder as it was afterwards."""
    folder = path.parent
    folder.mkdir(exist_ok=True)
    neighbours = _placed(kind, folder)
    path.write_bytes(case.data)
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        if path.name in neighbours:
            path.write_bytes(neighbours[path.name])
        else:
            path.unlink(missing_ok=True)


@functools.cache
def _placed(kind: Kind, folder: Path) -> dict[str, bytes]:
    """Writes the files that belong to the samples, once a folder."""
    files = dict(kind.beside())
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files
