"""What is fuzzed and what can be wrong with a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """A file that is read without complaint."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Case:
    """A file to read."""

    kind: str
    name: str
    data: bytes
    made: str = ""
    """how: the sample and the changes"""
    unknown: str = ""
    """a word in it that nobody can know; it has to be named, in an error or a warning"""
    refuse: bool = False
    """whether it has to be an error"""


@dataclass(frozen=True)
class Kind:
    """A kind of input and its reader."""

    name: str
    read: Callable[[Path], None]
    """Reads and looks at a file. Raises InputError for what is refused, OddError for values that no file may give."""
    samples: Callable[[], Sequence[Sample]]
    share: float
    """of all cases"""
    beside: Callable[[], Mapping[str, bytes]] = dict
    """other files that belong to the samples"""
    planted: Callable[[Random, Sequence[Sample], str], Case | None] | None = None
    """a case with an unknown word"""
    grammar: Callable[[], Any] | None = None
    """a hypothesis strategy of (name, bytes)"""
    text: bool = False
    """whether its files are text, whose numbers and words are changed as such"""
    names: bool = True
    """whether a message has to name the file"""


class OddError(AssertionError):
    """A reader gave something that no file may give."""


class Wrong(NamedTuple):
    """A finding."""

    sort: str
    """crash, memory, hang, killed, unclear, swallowed, odd, noise"""
    told: str
    where: str


@dataclass
class Tally:
    """What became of the cases of a kind."""

    cases: int = 0
    read: int = 0
    refused: int = 0
    planted: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    wrong: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Counts another tally in."""
        self.cases += other.cases
        self.read += other.read
        self.refused += other.refused
        self.planted += other.planted
        self.seconds += other.seconds
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        for sort, count in other.wrong.items():
            self.wrong[sort] = self.wrong.get(sort, 0) + count
