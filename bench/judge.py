"""How often the judge is right on test renders and on held-out combinations, and what it confuses."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..toybox.judge import Judge
from ..toybox.judge_eval import evaluate_judge
from .runner import Context, share


@dataclass(frozen=True)
class JudgeBench:
    """How much is rendered."""

    groups: int = 400
    """groups of objects (4 views) and of scenes (2 views) for each split"""


def run(context: Context) -> dict[str, Any]:
    """Accuracy for each question with confidence intervals, confusions, and the cost of a verdict."""
    config = JudgeBench(12) if context.quick else JudgeBench()
    judge = Judge.from_pretrained()
    results = {split: evaluate_judge(judge, split, config.groups) for split in ("test", "heldout")}
    table: list[dict[str, Any]] = []
    for split, result in results.items():
        for question, accuracy in result["accuracy"].items():
            count = result["counts"][question]
            hits = [True] * round(accuracy * count) + [False] * (count - round(accuracy * count))
            table.append({"split": split, "question": question, "accuracy": share(hits)})
        table.append({"split": split, "question": "azimuth", "median_error_deg": result["azimuth_median_deg"]})
    details = {split: {k: result[k] for k in ("views", "confusions", "errors")} for split, result in results.items()}
    return {"config": asdict(config), "seeds": [], "table": table, **details, "ms_per_picture": _speed(judge)}


def _speed(judge: Judge, batch: int = 64, repeats: int = 5) -> float:
    """Milliseconds a picture in batches, the fastest of some repeats."""
    images = torch.rand((batch, 3, judge.size, judge.size), generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        judge(images)
        times.append(time.perf_counter() - began)
    return round(min(times) / batch * 1e3, 3)
