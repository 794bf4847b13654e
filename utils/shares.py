"""Lists that several processes share, one for each card: `accelerate launch --multi_gpu -m unproject depth DIR`.

The launcher tells each process its number (RANK of WORLD_SIZE, LOCAL_RANK on its machine). Item i falls to process
i mod WORLD_SIZE; what they have to tell each other at the end goes through accelerate, over the processors (gloo).
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Share:
    """Process `rank` of `count`; the first one tells and records."""

    rank: int = 0
    count: int = 1
    local: int = 0  # its number on this machine

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> list[T]:
        """What falls to this process."""
        return list(items[self.rank :: self.count])

    def beside(self, record: Path) -> Path:
        """Where this process keeps its record while it works: NAME.run.json, of others NAME.rank1.run.json ..."""
        return record if self.first else rank_records(record, str(self.rank))

    def gathered(self, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What every process gives, in their order; waits for all of them."""
        if self.count == 1:
            return [dict(facts)]
        from accelerate import PartialState  # heavy
        from accelerate.utils import gather_object

        PartialState(cpu=True)  # texts and numbers, whatever card the work is done on
        found: list[dict[str, Any]] = gather_object([dict(facts)])
        return found


def share() -> Share:
    """The share of this process; of one that no launcher started everything."""
    rank, count, local = (os.environ.get(name, "") for name in LAUNCHED)
    if not (rank.isdecimal() and count.isdecimal() and int(count) > 1):
        return Share()
    return Share(int(rank), int(count), int(local) if local.isdecimal() else 0)


def alone() -> dict[str, str]:
    """The environment of a process that this one starts: it shares with nobody, and sees this one's card only."""
    mine = share()
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    if mine.count > 1:
        cards = [card for card in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
        environment["CUDA_VISIBLE_DEVICES"] = cards[mine.local % len(cards)] if cards else str(mine.local)
    return environment


def records_of_others(record: Path) -> list[Path]:
    """Records of other processes than the first that are there."""
    pattern = rank_records(Path(glob.escape(record.name))).name
    return [record.parent / name for name in sorted(glob.glob(pattern, root_dir=record.parent))]


def rank_records(record: Path, rank: str = "*") -> Path:
    """The record of another process than the first, or the pattern of all of them."""
    return record.with_name(f"{record.name.removesuffix('.run.json')}.rank{rank}.run.json")
