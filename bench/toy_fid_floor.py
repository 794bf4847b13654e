"""What the distances of drawings from renders are for true renders: of how many objects, in how many views of each.

Sets of renders of test objects that are not in the reference stand in for drawings. `toy_fid` of such a set is the
floor of as many drawings of as many objects; the unbiased `toy_kid` should not differ from 0. Rows share their renders:
each object is rendered once, in as many views as any row wants of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..toybox.dataset import RenderJob, render_group
from ..toybox.judge import Judge
from ..utils.progress import progress
from .distances import Features, frechet, kernel_draws
from .focus import relations
from .intervals import digits
from .runner import Context
from .toy_latents import features


@dataclass(frozen=True)
class Asked:
    """How an experiment compares its drawings with renders."""

    pictures: int
    """drawn, of one object each"""
    reference_objects: int
    reference_views: int = 4
    size_px: int = 64
    views: int = 1
    """of each object among the renders that stand in for drawings"""
    kind: str = "object"
    apart: bool = True
    """whether the reference begins behind the objects that are drawn"""


USED = {
    "embedded prior, all": Asked(1000, 250, apart=False),
    "embedded prior, sweeps": Asked(150, 250, apart=False),
    "sampling": Asked(200, 150),
    "caches": Asked(200, 200),
    "momentum": Asked(210, 200),
    "Gaussian start": Asked(256, 200),
    "Q-Sched": Asked(320, 250),
    "NoiseShift, 32 px": Asked(256, 256, 1, 32),
    "NoiseShift, 48 px": Asked(256, 256, 1, 48),
    "NoiseShift, 64 px": Asked(256, 256, 1, 64),
    "NoiseShift, 96 px": Asked(256, 256, 1, 96),
    "two objects": Asked(200, 120, 2, kind="scene"),
}
VIEWS = {
    "four views of each": Asked(150, 250, views=4, apart=False),
    "four views of each, more": Asked(1000, 250, views=4, apart=False),
    "one view of each in the reference too": Asked(1000, 1000, 1),
}


@dataclass(frozen=True)
class FloorBench:
    """Sizes of the experiment."""

    sets: int = 3
    """disjoint sets of renders for each row"""
    share: float = 1.0
    """of the numbers of pictures and objects that the experiments have"""


QUICK = FloorBench(2, 0.02)


def run(context: Context) -> dict[str, Any]:
    """A row for every way in which experiments compare, and some that show what several views of an object do."""
    config = QUICK if context.quick else FloorBench()
    judge = Judge.from_pretrained()
    plans = {name: Plan.of(asked, config) for name, asked in (USED | VIEWS).items()}
    seen = Renders(judge, plans.values())
    table = [_row(seen, name, plan) for name, plan in progress(plans.items(), label="floors")]
    return {"config": asdict(config), "seeds": [], "table": table}


@dataclass(frozen=True)
class Plan:
    """What a row compares: numbers of test objects or scenes."""

    asked: Asked
    pictures: int
    """of each set"""
    reference: Sequence[int]
    sets: tuple[Sequence[int], ...]
    """apart from each other and from the reference"""

    @classmethod
    def of(cls, asked: Asked, config: FloorBench) -> Plan:
        """The plan of a row at the sizes of the experiment."""
        pictures, objects = (max(int(n * config.share), 9) for n in (asked.pictures, asked.reference_objects))
        each, start = -(-pictures // asked.views), pictures if asked.apart else 0
        behind = max(start + objects, pictures)
        numbers = _numbers(asked.kind, behind + config.sets * each)
        firsts = range(behind, behind + config.sets * each, each)
        sets = tuple(numbers[first : first + each] for first in firsts)
        return cls(asked, pictures, numbers[start : start + objects], sets)

    def views(self) -> dict[int, int]:
        """How many views it wants of each object."""
        wanted = {number: self.asked.views for numbers in self.sets for number in numbers}
        return wanted | dict.fromkeys(self.reference, self.asked.reference_views)


class Renders:
    """Features of renders of objects or scenes, each rendered once in the most views that a plan wants of it."""

    def __init__(self, judge: Judge, plans: Iterable[Plan]) -> None:
        self.judge = judge
        self._known: dict[tuple[str, int], dict[int, torch.Tensor]] = {}
        self._wanted: dict[tuple[str, int], dict[int, int]] = {}
        for plan in plans:
            wanted = self._wanted.setdefault((plan.asked.kind, plan.asked.size_px), {})
            for number, views in plan.views().items():
                wanted[number] = max(views, wanted.get(number, 0))

    def features(self, asked: Asked, numbers: Sequence[int], views: int) -> Features:
        """Of renders of these objects or scenes, in the first so many views of each."""
        key = (asked.kind, asked.size_px)
        wanted, known = self._wanted[key], self._known.setdefault(key, {})
        job = RenderJob(asked.kind, "test", size=asked.size_px)
        missing = [number for number in numbers if number not in known]
        if missing:
            parts = [render_group(job, number, wanted[number])["rgb"] for number in missing]
            images = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).float() / 255
            each = features(self.judge, images).split([len(part) for part in parts])
            known |= dict(zip(missing, each, strict=True))
        return Features.of(torch.cat([known[number][:views] for number in numbers]), views)


def _row(seen: Renders, name: str, plan: Plan) -> dict[str, Any]:
    """Mean and deviation of the Frechet distances of several sets of renders, and the first kernel distance."""
    asked = plan.asked
    reference = seen.features(asked, plan.reference, asked.reference_views)
    sets = [seen.features(asked, numbers, asked.views).first(plan.pictures) for numbers in plan.sets]
    found = [frechet(reference.values, part.values) for part in sets]
    kid = kernel_draws(sets[0], reference)
    low, high = np.quantile(kid[1:], (0.025, 0.975))
    return {
        "like": name,
        "pictures": plan.pictures,
        "objects": len(plan.sets[0]),
        "views": asked.views,
        "reference_objects": len(plan.reference),
        "reference_views": asked.reference_views,
        "size_px": asked.size_px,
        "toy_fid": {"mean": digits(np.mean(found)), "std": digits(np.std(found, ddof=1), 3), "n": len(found)},
        "toy_kid": {"kid": digits(kid[0]), "low": digits(low), "high": digits(high)},
    }


def _numbers(kind: str, count: int) -> Sequence[int]:
    """Numbers of the first test objects, or test scenes with a relation."""
    return relations(count)[1] if kind == "scene" else range(count)
