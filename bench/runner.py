"""Runs experiments: what they get, the threads they run in, and the JSON they leave behind.

An experiment is a module with `run(context) -> dict` that returns at least {"config", "seeds", "table"}: table is a
list of rows (dicts of plain values), the first of which are the baselines.
"""

from __future__ import annotations

import importlib
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..utils.errors import InputError
from ..utils.files import read_json, write_json
from ..utils.processes import follow
from ..utils.progress import under_way
from ..utils.runs import machine, versions
from ..utils.threads import pin
from .fingerprints import fingerprints
from .records import refuse_vacuous
from .registry import experiment

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What an experiment gets."""

    name: str
    prior: str = "toybox"
    seed: int = 0
    quick: bool = False
    out: Path = Path("docs/results")

    def picture(self, suffix: str = "") -> Path:
        """Where the experiment's picture goes."""
        return self.out / f"{self.name}{suffix}.png"


def run_experiment(
    name: str,
    out: str | Path = "docs/results",
    prior: str | None = None,
    seed: int = 0,
    quick: bool = False,
    threads: int = 1,
) -> dict[str, Any]:
    """Runs one experiment on a prior (None: its own) in so many threads and writes out/NAME.json.

    The record names what it rests on, as it was at the beginning. Raises InputError for unknown names, UnprojectError
    for a result that says nothing.
    """
    made = experiment(name)
    module = importlib.import_module(f".{made.module}", __package__)
    context = Context(name, prior or made.prior, seed, quick, Path(out))
    path = context.out / f"{name}.json"
    rests_on = fingerprints(name, context.prior)
    pinned, began = pin(threads), time.perf_counter()
    with under_way(name, usual_seconds(path, quick)):
        result = getattr(module, made.entry)(context)
    record = {
        "experiment": name,
        "title": made.title,
        "quick": quick,
        "prior": context.prior,
        **result,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": pinned,
        "versions": versions(),
        "machine": machine(),
        "rests_on": rests_on,
    }
    refuse_vacuous(record, made)
    write_json(path, record)
    return record


def usual_seconds(path: Path, quick: bool) -> float | None:
    """What the experiment took when it was last run in the same way."""
    try:
        record = read_json(path)
        return float(record["seconds"]) if record["quick"] == quick else None
    except (InputError, KeyError):
        return None


def by_guidance(make: Callable[[float], T], guidances: Sequence[float], workers: int) -> list[T]:
    """What `make` returns for each guidance, from processes of their own with one thread each."""
    pool = ProcessPoolExecutor(
        min(workers, len(guidances)), mp_context=get_context("spawn"), initializer=helper, initargs=(os.getpid(),)
    )
    with pool:
        return list(pool.map(make, guidances))


def helper(parent: int) -> None:
    """One thread, and no life after the process that asked for it."""
    pin(1)
    follow(parent)


def interleaved(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds (rounds,) of each job; all take turns, so that a slow moment of the machine meets every one of them."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - began)
    return {name: np.asarray(values) for name, values in times.items()}
