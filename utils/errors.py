"""Errors a user can act on. The command line prints their message in one line and exits with `exit_code`."""

from __future__ import annotations

from typing import NoReturn


class UnprojectError(Exception):
    """Something failed that the message explains; exit code 1."""

    exit_code = 1


class InputError(UnprojectError, ValueError):
    """The caller gave something unusable; the message names the argument, the value and the way out; exit code 2."""

    exit_code = 2


class MissingExtraError(UnprojectError, ImportError):
    """An optional package is absent; the message names the extra that installs it."""


def need_extra(package: str, extra: str) -> NoReturn:
    """Raises MissingExtraError for an optional package."""
    raise MissingExtraError(f"this needs {package}, which is not installed: pip install 'unproject[{extra}]'")
