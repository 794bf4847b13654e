"""Files that are whole or absent: write to a temporary sibling, flush to disk, rename."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError, NotWritableError, NotWrittenError, UnprojectError, damage
from .temporary import held_file, sibling, sweep

STUDENT = "distill.json"  # what marks the folder of a distilled student
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file beside `path` (same suffix); on success it replaces `path`, on any failure it is removed.

    What a killed process left of the same file goes away (`temporary.sweep`). Raises NotWritableError when the folder
    cannot be made or written, NotWrittenError when the disk is full. Errors of other files that are read meanwhile pass
    as they are.
    """
    path = Path(path)
    temporary, handle = sibling(path), -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        temporary, handle = held_file(path)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)  # that of any new file here, which some libraries change
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        with contextlib.suppress(OSError):
            temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, UnprojectError) or _of_another(error, path, temporary):
            raise
        raise _not_written(path, error) from error
    except Exception as error:
        failed = _of_the_system(error)
        if failed is None:
            raise
        raise _not_written(path, failed) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if handle >= 0:
            os.close(handle)


def _of_the_system(error: Exception) -> OSError | None:
    """The system's error that safetensors tells of in words of its own; None for every other error."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if type(error).__name__ != "SafetensorError" or number is None:
        return None
    return OSError(int(number[1]), os.strerror(int(number[1])))


def _of_another(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether an error names a file that has nothing to do with writing this one."""
    if not isinstance(error.filename, (str, bytes, os.PathLike)):
        return False
    named = Path(os.fsdecode(error.filename))
    return named not in (path, temporary, *path.parents) and named.name not in (path.name, temporary.name)


def _not_written(path: Path, error: OSError) -> NotWrittenError:
    """An error of the machine as what it means for a file; the kinds that another --out mends are NotWritableError."""
    reason = error.strerror or str(error)
    if error.errno in REFUSED or isinstance(error, (PermissionError, NotADirectoryError)):
        return NotWritableError(f"cannot write {path}: {reason}; choose another --out")
    return NotWrittenError(f"writing {path} failed: {reason}; nothing was left behind")


def check_writable(path: str | Path, needs_bytes: int = 0) -> None:
    """Writes and removes a probe where `path` would be written, before work is spent on it.

    Raises NotWritableError for a place that cannot be written, NotWrittenError where fewer than `needs_bytes` are free.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise NotWritableError(f"cannot write {path}: it is a folder; choose another --out")
    try:
        if not Path.cwd().is_dir():
            raise FileNotFoundError
    except FileNotFoundError:
        if not path.is_absolute():
            raise NotWritableError(f"cannot write {path}: the working folder was deleted; cd to another one") from None
    folder = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), path.parent)
    probe = sibling(folder / path.name)
    sweep(folder / path.name)
    try:
        handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        try:
            os.write(handle, b"probe")
        finally:
            os.close(handle)
            probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _not_written(path, error) from error
    if free < needs_bytes:
        raise NotWrittenError(
            f"writing {path} needs about {in_words(needs_bytes)} and {in_words(free)} are free in {folder}"
        )


def in_words(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def usual_mode(path: Path) -> None:
    """Gives a file the permissions of any new file beside it, where the file system has such: some libraries write
    files that only their owner can read.

    They are those of a file made there: the process's mask can only be read by setting it for everybody.
    """
    probe = path.with_name(f".{secrets.token_hex(8)}.mode")
    with contextlib.suppress(OSError):
        made = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            mode = stat.S_IMODE(os.fstat(made).st_mode)
        finally:
            os.close(made)
            probe.unlink()
        path.chmod(mode)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Writes bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Writes text (UTF-8) atomically; bytes of file names that are no text are escaped, as JSON does."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any) -> Path:
    """Writes JSON (indent 2, trailing newline) atomically."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def is_there(path: Path) -> bool:
    """Whether a file is there, for names that were read from somewhere: too long or impossible ones are not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_json(path: str | Path) -> Any:
    """Reads JSON. Raises InputError for a missing, unreadable or malformed file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits too
        raise InputError(f"{path} is not valid JSON: {damage(error)}") from error


def weights_root() -> Path:
    """Folder of the embedded weights: UNPROJECT_WEIGHTS or the package's weights/."""
    return Path(os.environ.get("UNPROJECT_WEIGHTS") or Path(__file__).resolve().parents[1] / "weights")


def beside_weights(name: str | Path, kind: str) -> Path:
    """Where weights of a kind that go with a prior are, NAME-KIND beside it, there or not; the sibling of several views
    has those of its base."""
    sibling = Path(name).with_name(f"{Path(name).name.removesuffix('-mv')}-{kind}") if Path(name).name else Path(name)
    places = [sibling] if Path(name).name != str(name) else [weights_root() / sibling, sibling]
    return next((place for place in places if place.is_dir()), places[0])


def views_come_with(name: str | Path, kind: str) -> bool:
    """Whether a prior comes with weights of a kind (KIND.json, `beside_weights`) and draws several views, by its files:
    a folder with mv.json, or the name of an embedded one that has such a sibling."""
    embedded = Path(name).name == str(name) and (weights_root() / name).is_dir()
    places = [weights_root() / name, beside_weights(name, "mv")] if embedded else [Path(name)]
    several = any((place / "mv.json").is_file() for place in places)
    return several and (beside_weights(name, kind) / f"{kind}.json").is_file()


def check_named(name: str | Path, what: str, way_out: str) -> None:
    """Raises InputError for what is no name of a file or folder, or an empty one, which as a path would be the working
    directory."""
    if not isinstance(name, (str, os.PathLike)):
        raise InputError(f"{what} is {name!r}, which is no text; {way_out}")
    if isinstance(name, str) and not name.strip():
        raise InputError(f"{what} is empty ({name!r}); {way_out}")


def student_folder(name: str | Path) -> Path:
    """The folder of a student: one on disk, or an embedded one by name. Raises InputError where there is none, and
    where its distill.json does not say what it is."""
    inside = weights_root()
    check_named(name, "the student's name", "name a folder made by `unproject distill`")
    for place in (Path(name), inside / str(name)):
        if is_there(place / STUDENT):
            _check_student(place / STUDENT)
            return place
    have = ", ".join(sorted(path.parent.name for path in inside.glob(f"*/{STUDENT}"))) or "none"
    way = "make one with `unproject distill`"
    if is_there(Path(__file__).resolve().parents[1] / "configs" / "distill" / f"{name}.yaml"):
        way = f"make it with `unproject distill {name} --out runs/{name}`, then give runs/{name}/export"
    raise InputError(f"student {str(name)!r}: no folder with {STUDENT}; {way} (embedded: {have})")


def _check_student(path: Path) -> None:
    """Raises InputError for a distill.json without the kind of a student and its settings."""
    told = read_json(path)
    if (
        not isinstance(told, dict)
        or not isinstance(told.get("kind"), str)
        or not isinstance(told.get("settings"), dict)
    ):
        raise InputError(f"{path} does not say of what kind its student is; export it again with `unproject distill`")


def cache_root() -> Path:
    """Folder of what can be made again: UNPROJECT_CACHE, or `unproject` in the user's cache folder."""
    given, home = os.environ.get("UNPROJECT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else Path(home or Path.home() / ".cache") / "unproject"


def split_scale(text: str | Path, argument: str, folder: bool = False) -> tuple[Path, float]:
    """File and scale of "FILE.safetensors" or "FILE.safetensors:SCALE", scale 1 unless it is said.

    With `folder` it is a folder's. Raises InputError for one that is not there or of another kind, and for a scale that
    is no finite number.
    """
    name, colon, scale = str(text).rpartition(":")
    if not str(text).strip() or (colon and not name):
        raise InputError(f"{argument} {str(text)!r} names no file; write {'FOLDER' if folder else 'FILE'}")
    if not colon or Path(text).exists():
        name, scale = str(text), "1"
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = "FOLDER" if folder else "FILE"
        raise InputError(f"{argument} {text}: the scale {scale!r} is no number; write {what} or {what}:SCALE")
    if folder and Path(name).is_dir():
        return Path(name), value
    if not Path(name).is_file():
        raise InputError(f"{argument} {text}: {name} does not exist")
    if folder or Path(name).suffix != ".safetensors":
        wanted = "a folder in diffusers' layout" if folder else "a safetensors file; convert it first"
        raise InputError(f"{argument} {text}: {name} is not {wanted}")
    return Path(name), value
