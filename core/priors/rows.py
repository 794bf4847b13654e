"""What a network is told beside state and time: named tensors with one row an image, in named branches.

`Rows` is a bag of tensors of equal length (text, pooled, cameras, concat, guidance, ...); whatever is done to it is
done to every tensor. `Condition` holds a bag for each branch of guidance ("cond", "null", ...), all of the same length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.errors import InputError

LEVEL_TIME = "level_time"  # rows (B,): model times of the states, where the network is told others
NEGATIVE = "negative"  # rows (B, L, D): the negative prompt, of networks that read it beside the text
COND, NULL = "cond", "null"  # the conditional branch, and the one of the negative or empty prompt
Index = slice | Tensor | Sequence[int] | Sequence[bool]


@dataclass(frozen=True, eq=False)
class Rows:
    """Tensors (B, ...) by name; `frames` consecutive rows are the views of one object and see each other."""

    tensors: Mapping[str, Tensor]
    frames: int = 1

    def __post_init__(self) -> None:
        lengths = {name: value.shape[0] if value.ndim else None for name, value in self.tensors.items()}
        if len(set(lengths.values())) != 1 or None in lengths.values():
            raise InputError(f"the tensors of a condition need the same number of rows, got {lengths or 'none'}")
        if self.frames < 1 or len(self) % self.frames:
            raise InputError(f"{len(self)} rows do not hold whole groups of frames={self.frames} views")

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise InputError(f"the network needs {name!r}, which its condition lacks; it has {', '.join(self.tensors)}")
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """A tensor, or None where there is none of this name."""
        return self.tensors.get(name)

    def map(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """Every tensor changed; the groups stay."""
        return Rows({name: change(value) for name, value in self.tensors.items()}, self.frames)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Rows:
        """Every tensor on a device, those of floating point in a dtype."""
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else None))

    def repeat(self, n: int) -> Rows:
        """Every group (a row where frames = 1) n times, copies adjacent: images per prompt, noises per object."""
        if not isinstance(n, int) or n < 0:
            raise InputError(f"rows cannot be repeated {n} times; give a whole number")
        return self.map(lambda t: t.unflatten(0, (-1, self.frames)).repeat_interleave(n, 0).flatten(0, 1))

    def index(self, rows: Index) -> Rows:
        """The chosen rows: numbers (negative ones count from the end), a slice or a mask of booleans; whole groups of
        views."""
        chosen = picked(rows, len(self), self.frames)
        return self.map(lambda t: t[chosen.to(t.device)])

    def with_tensors(self, **tensors: Tensor) -> Rows:
        """With other or further tensors, each (B, ...) or (1, ...) for all rows."""
        added = {
            name: t.expand(len(self), *t.shape[1:]) if t.ndim and t.shape[0] == 1 else t for name, t in tensors.items()
        }
        return Rows({**self.tensors, **added}, self.frames)

    def for_batch(self, n: int) -> Rows:
        """These rows for n states: as they are, or one group repeated. Raises InputError for any other number."""
        if n == len(self):
            return self
        if len(self) == self.frames and n % self.frames == 0:
            return self.repeat(n // self.frames)
        raise InputError(f"a batch of {n} latents does not fit a condition of {len(self)} rows")

    @staticmethod
    def join(bags: Sequence[Rows]) -> Rows:
        """The rows of several bags one after the other, for one network call; they carry the same tensors."""
        if len(bags) == 1:
            return bags[0]
        first = bags[0]
        for other in bags[1:]:
            if other.tensors.keys() != first.tensors.keys() or other.frames != first.frames:
                raise InputError(
                    f"branches of one call carry the same tensors, got {_told(first)} and {_told(other)}; add what is "
                    "missing to every branch (condition.with_rows)"
                )
        return Rows({name: torch.cat([bag[name] for bag in bags]) for name in first.tensors}, first.frames)


def _told(rows: Rows) -> str:
    return f"{', '.join(sorted(rows.tensors))} (frames={rows.frames})"


def picked(rows: Index, count: int, frames: int = 1) -> Tensor:
    """Numbers (n,) of the rows that an index means among `count`, on the CPU.

    Raises InputError for a mask of another length, bytes (numbers to some, a mask to others), numbers out of range, and
    for parts of groups of `frames` views.
    """
    if isinstance(rows, slice):
        chosen = torch.tensor(range(count)[rows], dtype=torch.long)  # torch has no negative strides
    else:
        given = torch.as_tensor(rows).cpu().reshape(-1)
        if given.dtype == torch.uint8:
            raise InputError("rows in uint8 may be a mask or numbers; give mask.bool(), or numbers as numbers.long()")
        if given.dtype == torch.bool:
            if len(given) != count:
                raise InputError(f"a mask of {len(given)} entries does not fit {count} rows")
            chosen = given.nonzero()[:, 0]
        else:
            chosen = given.long()
            if bool(((chosen < -count) | (chosen >= count)).any()) or (len(given) and given.is_floating_point()):
                raise InputError(f"rows {given.tolist()} do not exist among {count}; count from 0, or from the end")
            chosen = chosen % count
    if frames > 1:
        groups = chosen.unflatten(0, (-1, frames)) if len(chosen) % frames == 0 else chosen[:, None] + 1
        if bool((groups != groups[:, :1] + torch.arange(groups.shape[1])).any() or (groups[:, 0] % frames).any()):
            raise InputError(f"rows {chosen.tolist()} are no whole groups of {frames} views, which see each other")
    return chosen


@dataclass(frozen=True, eq=False)
class Condition:
    """Branches of equally many rows by name; "cond" is always there."""

    branches: Mapping[str, Rows]
    prompts: Sequence[str] = ()  # of the rows of "cond"; may be empty

    def __post_init__(self) -> None:
        forms = {name: (len(rows), rows.frames) for name, rows in self.branches.items()}
        if COND not in forms or len(set(forms.values())) != 1:
            raise InputError(f"a condition needs {COND!r} and equal (rows, frames) in every branch, got {forms}")
        if isinstance(self.prompts, str) or len(self.prompts) not in (0, self.rows):
            raise InputError(f"prompts={self.prompts!r} must be one text for each of the {self.rows} rows, or none")

    def __contains__(self, name: str) -> bool:
        return name in self.branches

    def __getitem__(self, name: str) -> Rows:
        if name not in self.branches:
            raise InputError(f"this condition lacks the branch {name!r}; it has {', '.join(self.branches)}")
        return self.branches[name]

    @property
    def rows(self) -> int:
        """Number of images described."""
        return len(self.branches[COND])

    @property
    def frames(self) -> int:
        """Consecutive rows that are views of one object."""
        return self.branches[COND].frames

    def _mapped(self, change: Callable[[Rows], Rows], prompts: Sequence[str] | None = None) -> Condition:
        changed = {name: change(rows) for name, rows in self.branches.items()}
        return Condition(changed, self.prompts if prompts is None else prompts)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """See Rows.to."""
        return self._mapped(lambda rows: rows.to(device, dtype))

    def repeat(self, n: int) -> Condition:
        """See Rows.repeat."""
        groups = [range(first, first + self.frames) for first in range(0, len(self.prompts), self.frames)]
        order = [row for group in groups for _ in range(n) for row in group]
        return self._mapped(lambda rows: rows.repeat(n), self._texts(order))

    def index(self, rows: Index) -> Condition:
        """See Rows.index."""
        chosen = picked(rows, self.rows, self.frames)
        return self._mapped(lambda bag: bag.index(chosen), self._texts(chosen.tolist()))

    def _texts(self, rows: Iterable[int]) -> list[str]:
        return [self.prompts[row] for row in rows] if self.prompts else []

    def for_batch(self, n: int) -> Condition:
        """See Rows.for_batch."""
        if n == self.rows:
            return self
        self[COND].for_batch(n)  # refuses what does not fit
        return self.repeat(n // self.rows)

    def with_rows(self, **tensors: Tensor) -> Condition:
        """Further tensors in every branch, each (B, ...) or (1, ...) for all rows."""
        return self._mapped(lambda rows: rows.with_tensors(**tensors))

    def branch(self, name: str, rows: Rows) -> Condition:
        """With another or a further branch."""
        return Condition({**self.branches, name: rows}, self.prompts)

    def with_views(self, cameras: Tensor, frames: int) -> Condition:
        """Each object (row) seen from `frames` cameras: (F, 16) shared by all objects, or (rows * F, 16)."""
        if self.frames != 1:
            raise InputError(f"this condition has groups of {self.frames} views already; give cameras to one without")
        if cameras.shape[0] == frames:
            cameras = cameras.repeat(self.rows, 1)
        if cameras.shape != (self.rows * frames, 16):
            expected = f"{(self.rows * frames, 16)} or {(frames, 16)}"
            raise InputError(f"cameras have shape {tuple(cameras.shape)}, expected {expected}")
        grown = self.repeat(frames)._mapped(lambda rows: Rows(rows.tensors, frames))
        text = next(t for t in self[COND].tensors.values() if t.is_floating_point())
        return grown.with_rows(cameras=cameras.to(text))
