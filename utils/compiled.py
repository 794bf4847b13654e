"""Loops that torch and numpy cannot express, compiled by numba on their first call and kept for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """The function as machine code; kept beside the source or in the user's cache where one of them can be written."""
    try:
        return cast(F, njit(cache=True, error_model="numpy")(function))
    except RuntimeError:  # nowhere to keep it
        return cast(F, njit(error_model="numpy")(function))
