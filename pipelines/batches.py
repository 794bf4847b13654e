"""Rows in parts that fit the memory: as many at once as there is room for, and half of that after it ran out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ..core.priors import Prior
from ..utils.device_memory import free_bytes, release_device_memory
from ..utils.errors import UnprojectError, out_of_memory
from .sampling_parts import Generators

T = TypeVar("T")
USED = 0.8  # of what is free: sizes of parts are estimates


def fitting_rows(prior: Prior, size: Sequence[int], branches: int) -> int | None:
    """How many pictures of (height, width) px can be drawn at once, at least one; None where nothing is known."""
    height, width = size
    row = max(branches * prior.row_bytes(height, width), prior.decode_bytes(height, width))
    free = free_bytes(prior.device)
    return max(1, int(USED * free // row)) if row and free is not None else None


class Batches:
    """The size of the parts of a run; it shrinks when memory runs out, and stays small for what is left."""

    def __init__(
        self, prior: Prior, rows: int, size: Sequence[int], branches: int, largest: int | None = None, frames: int = 1
    ) -> None:
        """For `rows` pictures of (height, width) px, at most `largest` at once; `frames` of an object stay together."""
        self.prior, self.rows, self.frames = prior, rows, frames
        fits = fitting_rows(prior, size, branches)
        self.at_once = self._whole_groups(min(n for n in (rows, largest, fits) if n is not None))

    def _whole_groups(self, rows: int) -> int:
        return max(rows // self.frames, 1) * self.frames

    def each(self, do: Callable[[slice], T], generators: Generators | None = None) -> list[T]:
        """What `do` makes of each part; one that does not fit is made again in halves.

        `generators`, one for all rows or one a row, are set back before that. Raises UnprojectError naming the next
        smaller setting where a single row does not fit.
        """
        made: list[T] = []
        first = 0
        while first < self.rows:
            part = slice(first, min(first + self.at_once, self.rows))
            rewind = _Rewind(generators if isinstance(generators, torch.Generator) else (generators or [])[part])
            failed = ""
            try:
                made.append(do(part))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                failed = str(error) or type(error).__name__
            if failed:  # what the failed try held is let go of by now
                self._shrink(part.stop - part.start, failed)
                rewind()
            else:
                first = part.stop
        return made

    def _shrink(self, tried: int, failed: str) -> None:
        release_device_memory()
        smaller = self._whole_groups(tried // 2)
        if smaller >= tried:
            what = "the views of one object" if self.frames > 1 else "one picture"
            raise UnprojectError(f"out of memory with {what} at a time ({failed}); {self.prior.smaller_setting()}")
        self.at_once = smaller
        warnings.warn(
            f"out of memory with {tried} pictures at once; they are made again {smaller} at a time "
            f"(--batch {smaller} from the start saves the failed try)",
            stacklevel=2,
        )


class _Rewind:
    """Generators as they were when it was made, for a try that begins again."""

    def __init__(self, generators: torch.Generator | Sequence[torch.Generator]) -> None:
        self.generators = [generators] if isinstance(generators, torch.Generator) else list(generators)
        self.states = [one.get_state() for one in self.generators]

    def __call__(self) -> None:
        """Sets them back."""
        for one, state in zip(self.generators, self.states, strict=True):
            one.set_state(state)
