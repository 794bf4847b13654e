"""How often the judge is right on fresh renders, and what it takes for what."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from ..utils.progress import progress
from .dataset import RenderJob, program_from_json, render_group
from .judge import ABSENT, Judge, Verdict, labels_of
from .programs import ObjectProgram


def evaluate_judge(
    judge: Judge, split: str = "test", groups: int = 250, first: int = 0, kinds: tuple[str, ...] = ("object", "scene")
) -> dict[str, Any]:
    """Renders `groups` groups of each kind of a split and judges them.

    Returns {"accuracy": question -> share, "counts": question -> pictures, "azimuth_median_deg", "views",
    "confusions": question -> [[true, said, times], ...] most frequent first, "errors": [one record each]}.
    "both_nouns" and "both", nouns and colours, are about two objects in a relation, which kind "pair" reads from near.
    "front" counts views within 45 degrees of straight front or back and below 60 degrees of elevation.
    """
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        job = RenderJob(kind, split, groups, judge.size, first=first)
        for index in progress(range(first, first + groups), label=f"judging {kind} {split}"):
            group = render_group(job, index)
            images = torch.from_numpy(group["rgb"]).permute(0, 3, 1, 2).float() / 255
            verdict = judge(images, pairs=kind == "pair")
            for view, record in enumerate(group["records"]):
                rows += _answers(judge, verdict, view, record, kind)
    return {"split": split, "groups": groups, "kinds": list(kinds), **_summary(rows)}


def _answers(judge: Judge, verdict: Verdict, view: int, record: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """One record for each question the view answers."""
    program = program_from_json(record["program"])
    place = {"kind": kind, "group": record["group"], "view": view}
    rows = []
    for question, label in labels_of(program).items():
        if label != ABSENT:
            words = judge.answers[question]
            said = words[int(verdict.probs[question][view].argmax())]
            rows.append({**place, "question": question, "true": words[label], "said": said})
    both = {row["question"]: row for row in rows}
    if "second_noun" in both:
        asked = {"both_nouns": ("noun", "second_noun"), "both": ("noun", "colour", "second_noun", "second_colour")}
        for question, parts in asked.items():
            true, said = (", ".join(both[part][side] for part in parts) for side in ("true", "said"))
            rows.append({**place, "question": question, "true": true, "said": said})
    if isinstance(program, ObjectProgram):
        turned = abs((record["azimuth_deg"] + 180) % 360 - 180)
        off = abs((float(verdict.azimuth_deg[view]) - record["azimuth_deg"] + 180) % 360 - 180)
        rows.append({**place, "question": "azimuth", "off_deg": off})
        if (turned <= 45 or turned >= 135) and record["elevation_deg"] <= 60:
            said = "front" if verdict.front_visible[view] > 0.5 else "back"
            true = "front" if turned < 90 else "back"
            rows.append({**place, "question": "front", "true": true, "said": said, "noun": program.noun})
    return rows


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    chosen = [row for row in rows if "true" in row]
    questions = list(dict.fromkeys(row["question"] for row in chosen))
    wrong = [row for row in chosen if row["true"] != row["said"]]
    counts = Counter(row["question"] for row in chosen)
    misses = Counter(row["question"] for row in wrong)
    pairs = {q: Counter((r["true"], r["said"]) for r in wrong if r["question"] == q) for q in questions}
    offs = [row["off_deg"] for row in rows if "off_deg" in row]
    return {
        "views": len({(row["kind"], row["group"], row["view"]) for row in rows}),
        "accuracy": {q: round(1 - misses[q] / counts[q], 5) for q in questions},
        "counts": {q: counts[q] for q in questions},
        "azimuth_median_deg": round(float(np.median(offs)), 2) if offs else None,
        "confusions": {q: [[t, s, n] for (t, s), n in pairs[q].most_common(20)] for q in questions if pairs[q]},
        "errors": wrong[:200],
    }
