"""What the distances of drawings from renders are for true renders: of how many objects, in how many views of each.

Sets of renders of test objects that are not in the reference stand in for drawings. `toy_fid` of such a set is the
floor of as many drawings of as many objects; the unbiased `toy_kid` should not differ from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    asked = USED | VIEWS
    table = [_row(judge, name, asked[name], config) for name in progress(asked, label="floors")]
    return {"config": asdict(config), "seeds": [], "table": table}


def _row(judge: Judge, name: str, asked: Asked, config: FloorBench) -> dict[str, Any]:
    """Mean and deviation of the Frechet distances of several sets of renders, and the first kernel distance."""
    pictures, objects = (max(int(n * config.share), 9) for n in (asked.pictures, asked.reference_objects))
    each, start = -(-pictures // asked.views), pictures if asked.apart else 0
    behind = max(start + objects, pictures)
    numbers = _numbers(asked.kind, behind + config.sets * each)
    reference = _seen(judge, asked, numbers[start : start + objects], asked.reference_views)
    sets = [
        _seen(judge, asked, numbers[first : first + each], asked.views).first(pictures)
        for first in range(behind, behind + config.sets * each, each)
    ]
    found = [frechet(reference.values, part.values) for part in sets]
    kid = kernel_draws(sets[0], reference)
    low, high = np.quantile(kid[1:], (0.025, 0.975))
    return {
        "like": name,
        "pictures": pictures,
        "objects": each,
        "views": asked.views,
        "reference_objects": objects,
        "reference_views": asked.reference_views,
        "size_px": asked.size_px,
        "toy_fid": {"mean": digits(np.mean(found)), "std": digits(np.std(found, ddof=1), 3), "n": len(found)},
        "toy_kid": {"kid": digits(kid[0]), "low": digits(low), "high": digits(high)},
    }


def _numbers(kind: str, count: int) -> Sequence[int]:
    """Numbers of the first test objects, or test scenes with a relation."""
    return relations(count)[1] if kind == "scene" else range(count)


def _seen(judge: Judge, asked: Asked, numbers: Sequence[int], views: int) -> Features:
    """Features of renders of these objects or scenes, in the first so many views of each."""
    job = RenderJob(asked.kind, "test", size=asked.size_px)
    images = np.concatenate([render_group(job, number, views)["rgb"] for number in numbers])
    return Features.of(features(judge, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255), views)
