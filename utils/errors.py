"""Errors a user can act on. The command line prints their message in one line and exits with `exit_code`."""

from __future__ import annotations

from typing import NoReturn


class UnprojectError(Exception):
    """Something failed that the message explains; exit code 1."""

    exit_code = 1


class InputError(UnprojectError, ValueError):
    """The caller gave something unusable; the message names the argument, the value and the way out; exit code 2."""

    exit_code = 2


class NotWrittenError(UnprojectError):
    """A file could not be written: the disk is full or failing; exit code 1."""


class NotWritableError(NotWrittenError, InputError):
    """A file may not be written where it was asked for; exit code 2."""

    exit_code = 2


class Stopped(KeyboardInterrupt):
    """A signal ended a run after a whole step whose state is saved: the same call goes on from there.

    signal: its number, 2 for Ctrl-C and 15 for SIGTERM; step, total: where the whole run is.
    """

    def __init__(self, step: int, total: int, folder: str, signal: int = 2) -> None:
        super().__init__(f"stopped after step {step} of {total}, which is saved in {folder}")
        self.step, self.total, self.folder, self.signal = step, total, folder, signal


_SHAPES = ("reshape", "broadcast", "inhomogeneous", "unpack", "out of bounds", "shape", "dimension")  # numpy's words


def damage(error: BaseException, longest: int = 300) -> str:
    """What the failure of a parser says of its file, for people: Python's own words speak of the parser."""
    said = " ".join(str(error).split())
    said = said if len(said) <= longest else f"{said[:longest]} ..."
    if isinstance(error, KeyError):
        return f"it lacks the entry {said}"
    if isinstance(error, IndexError):
        return "an entry points to something that is not there"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, (TypeError, AttributeError)):
        return "an entry is of another type than it has to be"
    if isinstance(error, ValueError) and any(word in said for word in _SHAPES):
        return "its numbers are too few or too many, or do not fit together"
    return said or f"it is damaged ({type(error).__name__})"


class MissingExtraError(UnprojectError, ImportError):
    """An optional package is absent; the message names the extra that installs it."""


def need_extra(package: str, extra: str) -> NoReturn:
    """Raises MissingExtraError for an optional package."""
    raise MissingExtraError(f"this needs {package}, which is not installed: pip install 'unproject[{extra}]'")


def out_of_memory(error: BaseException) -> bool:
    """Whether the machine or a device had too little memory: Python's, numpy's, and torch's error on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without loading it
        return True
    told = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and ("out of memory" in told or "allocate memory" in told)
