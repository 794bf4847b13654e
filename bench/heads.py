"""All heads in one table: on the embedded prior, on random weights, and from colours alone, at equal budgets.

Whatever learns gets the same updates, batches, pictures and rate from the same seeds; rooms, surfaces, balls and
measurements are rendered once and shared, and what a frozen network says of a picture is computed once. Every trial is
kept under runs/bench, so that an interrupted run goes on with the next one. Errors are means over held-out pictures
(lower is better); beside them how many times larger they are in fog, under noise and in light of another colour, the
network rows and processor seconds of a picture, and what each card claims, by these numbers. The budget is small: the
experiments of the single heads measure more.

All of it takes about 25 minutes of one core.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..core.priors import StableDiffusionPrior, load_prior
from ..utils.errors import InputError, UnprojectError
from ..utils.files import read_json, write_json
from ..utils.pictures import load_image, save_image
from ..utils.progress import progress
from .fingerprints import fingerprints
from .head_claims import claims
from .head_lab import COLOURS, DAMAGED, PICTURES, QUICK, SOURCES, TRUTH, HeadsBench, Lab, Record
from .head_trials import DEPTH, MAPPED, MEASURES, ONE_STEP, REFINED
from .head_trials_drawn import DRAWN, OTHER_MEASURES
from .intervals import digits, spread
from .preimage_depth import DAMAGES
from .runner import Context

Trial = Callable[[Lab, str, int], Mapping[str, Record]]
TRIALS: dict[str, Trial] = {**MAPPED, **DRAWN}
ENLARGED = 3  # px of the sheets for one of a room


def run(context: Context) -> dict[str, Any]:
    """Every trial that is not kept yet, the table, the claims and two sheets."""
    config = QUICK if context.quick else HeadsBench()
    given = load_prior(context.prior)
    if not isinstance(given, StableDiffusionPrior):
        raise InputError(f"prior {context.prior!r} is not a Stable Diffusion prior, which the heads begin with")
    lab = Lab(config, given, place_of(context, config))
    records = tried(lab, TRIALS)
    sheets(lab, context)
    return {
        "config": asdict(config),
        "seeds": list(config.seeds),
        "table": table(records),
        "claims": claims(records),
        "trials": records,
    }


def place_of(context: Context, config: HeadsBench) -> Path:
    """The folder of trials of this code, these weights and sizes; others are never taken for them."""
    described = [fingerprints(context.name, context.prior), asdict(config)]
    return Path(config.work) / hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def tried(lab: Lab, trials: Mapping[str, Trial]) -> list[Record]:
    """The records of all trials on all sources with all seeds, each made unless it is kept."""
    asked = [(seed, name, source) for seed in lab.config.seeds for name in trials for source in SOURCES]
    found: list[Record] = []
    for seed, name, source in progress(asked, label="heads"):
        path = lab.place / f"{name}-{SOURCES.index(source)}-{seed}.json"
        if not path.exists():
            lab.sheets = seed == lab.config.seeds[0]
            made = [{"head": head, "source": source, "seed": seed, **record}
                    for head, record in trials[name](lab, source, seed).items()]  # fmt: skip
            write_json(path, {"records": made})
        found += read_json(path)["records"]
    return found


def table(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each head and source: means and deviations over the seeds.

    Raises UnprojectError where what learnt did not have the same budget everywhere.
    """
    budgets = {(record["updates"], record["batch"]) for record in records if "updates" in record}
    if len(budgets) > 1:
        raise UnprojectError(f"heads had different budgets (updates, batch): {sorted(budgets)}; remove the kept trials")
    rows = []
    measures = MEASURES | OTHER_MEASURES
    for head in dict.fromkeys(record["head"] for record in records):
        for source in SOURCES:
            same = [r for r in records if (r["head"], r["source"]) == (head, source)]
            row: dict[str, Any] = {"head": head, "source": source, "measure": measures[head]}
            for key in ("error", *DAMAGES):
                if all(key in record for record in same):
                    row[key] = spread([record[key] for record in same])
            row |= {key: same[0].get(key, 0) for key in ("updates", "batch")}
            row |= {
                key: digits(np.mean([r.get(key, 0.0) for r in same]), 3) for key in ("calls", "train_s", "picture_s")
            }
            rows.append(row)
    return rows


def sheets(lab: Lab, context: Context) -> None:
    """Depth and normals of a few test rooms from every source, and of one room that is damaged: picture, truth, then a
    row for each source."""
    normals = [f"{ONE_STEP if source == COLOURS else REFINED}, {source}" for source in SOURCES]
    depths = [f"{DEPTH}, {source}" for source in SOURCES]
    whole = [PICTURES, f"{DEPTH}, {TRUTH}", *depths, f"{ONE_STEP}, {TRUTH}", *normals]
    damaged = [f"{name}, {DAMAGED}" for name in (PICTURES, *depths, *normals)]
    for rows, suffix in ((whole, ""), (damaged, "-damaged")):
        strips = [load_image(lab.place / f"{name}.png") for name in rows]
        save_image(context.picture(suffix), np.concatenate(strips).repeat(ENLARGED, 0).repeat(ENLARGED, 1))
