"""How often the judge is right on test renders and on held-out combinations, and what it confuses."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..toybox.judge import Judge
from ..toybox.judge_eval import evaluate_judge
from .intervals import share
from .runner import Context

KINDS = ("object", "scene")
PAIR = "pair"  # read from near, by a judge that can


@dataclass(frozen=True)
class JudgeBench:
    """How much is rendered."""

    groups: int = 400
    """groups of objects (4 views) and of scenes (2 views) for each split"""


def run(context: Context) -> dict[str, Any]:
    """Accuracy for each question with confidence intervals, confusions, and the cost of a verdict."""
    config = JudgeBench(12) if context.quick else JudgeBench()
    judge = Judge.from_pretrained()
    table: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    for split in ("test", "heldout"):
        kinds = KINDS if judge.pairs is None else (*KINDS, PAIR)
        results = {kind: evaluate_judge(judge, split, config.groups, kinds=(kind,)) for kind in kinds}
        table += rows_of(split, results)
        details[split] = {
            kind: {k: result[k] for k in ("views", "confusions", "errors")} for kind, result in results.items()
        }
    return {"config": asdict(config), "seeds": [], "table": table, **details, "ms_per_picture": _speed(judge)}


def rows_of(split: str, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each question: the share of right answers on objects, on scenes and on both together, and on pairs
    read from near."""
    rows: list[dict[str, Any]] = []
    for question in dict.fromkeys(q for result in results.values() for q in result["accuracy"]):
        row: dict[str, Any] = {"split": split, "question": question}
        right, asked = 0, 0
        for kind, result in results.items():
            count = result["counts"].get(question, 0)
            if count:
                hits = round(result["accuracy"][question] * count)
                row[f"{kind}s"] = share([True] * hits + [False] * (count - hits))
                right, asked = (right + hits, asked + count) if kind != PAIR else (right, asked)
        rows.append({**row, "together": share([True] * right + [False] * (asked - right))})
    error = results["object"]["azimuth_median_deg"]
    return [*rows, {"split": split, "question": "azimuth", "median_error_deg": error}]


def _speed(judge: Judge, batch: int = 64, repeats: int = 5) -> float:
    """Milliseconds a picture in batches, the fastest of some repeats."""
    images = torch.rand((batch, 3, judge.size, judge.size), generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        judge(images)
        times.append(time.perf_counter() - began)
    return round(min(times) / batch * 1e3, 3)
