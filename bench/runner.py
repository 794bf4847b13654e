"""The experiments by name, and what they share: timing, peak memory, versions and the JSON they leave behind.

An experiment is a module with `run(context) -> dict` that returns at least {"config", "seeds", "table"}: table is a
list of rows (dicts of plain values), the first of which are the baselines.
"""

from __future__ import annotations

import importlib
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

import numpy as np

from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.runs import machine, versions

DIT = "toybox-dit"
T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """A named experiment; `module` holds its `run`."""

    title: str
    module: str
    prior: str = "toybox"
    """measured unless another one is asked for"""
    entry: str = "run"
    """the function of the module"""


EXPERIMENTS: dict[str, Experiment] = {
    "embedded-prior": Experiment("What the embedded prior draws: accuracy, toy-FID, sweeps", "embedded_prior"),
    "text-to-mesh": Experiment("Text to mesh by score distillation: judged views, mesh health, cost", "text_to_mesh"),
    "geometry-heads": Experiment("Depth and normals against simple baselines", "geometry_heads"),
    "sampling": Experiment("Every solver on the U-Net: quality against calls and seconds", "sampling"),
    "overhead": Experiment("What the sampling loop costs beyond its network calls", "overhead"),
    "codec": Experiment("What the codec loses of pictures and maps, and what limits drawings", "codec"),
    "judge": Experiment("The judge's own accuracy on test renders", "judge"),
    "dpm-solver-v3": Experiment("DPM-Solver-v3 against DDIM, DPM-Solver++ and UniPC at few calls", "dpm_solver_v3"),
    "usf-s3": Experiment("Searched solver schedules against fixed solvers, on held-out noise and prompts", "usf_s3"),
    "ghvb-momentum": Experiment("Momentum at high guidance and few steps: divergence, toy-FID", "ghvb_momentum"),
    "painters-gaussian": Experiment("First steps in closed form: what skipping them costs", "painters_gaussian"),
    "optimal-boundary": Experiment("A starting noise chosen on references, on other images", "optimal_boundary"),
    "noiseshift": Experiment("Recalibrated times at sizes the prior was not trained at", "noiseshift"),
    "edict": Experiment("Exact inversion against DDIM: round trips and edits of one word", "edict"),
    "deepcache": Experiment("DeepCache: quality and cost against interval, branch and fewer steps", "deepcache"),
    "feature-inheritance": Experiment("Inherited features and switched networks at equal cost", "feature_inheritance"),
    "regions": Experiment("Region-adaptive sampling of a transformer at equal cost", "regions", DIT),
    "q-sched": Experiment("Two factors per step for a quantised few-step run", "q_sched"),
    "focus": Experiment("Sentences with two objects under control of the attention", "focus"),
    "flair": Experiment("Inpainting, super-resolution and deblurring with a frozen prior", "flair"),
    "embedded-dit": Experiment("What the embedded transformer draws: accuracy, toy-FID, sweeps", "embedded_prior", DIT),
    "noiseshift-dit": Experiment("Recalibrated times of the transformer at its three sizes", "noiseshift", DIT),
    "sampling-dit": Experiment("Every solver on the transformer: quality against calls and seconds", "sampling", DIT),
    "sampling-judged": Experiment("What solvers draw in 3 to 20 calls: accuracy, toy-FID", "sampling_judged"),
    "sampling-judged-dit": Experiment("The same of the transformer", "sampling_judged", DIT),
    "sampling-judged-50": Experiment("The same in 50 calls", "sampling_judged", entry="run_long"),
    "sampling-judged-50-dit": Experiment("In 50 calls of the transformer", "sampling_judged", DIT, "run_long"),
}


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
    name: str, out: str | Path = "docs/results", prior: str | None = None, seed: int = 0, quick: bool = False
) -> dict[str, Any]:
    """Runs one experiment on a prior (None: its own) and writes out/NAME.json. Raises InputError for unknown names."""
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}; have {', '.join(EXPERIMENTS)}")
    module = importlib.import_module(f".{EXPERIMENTS[name].module}", __package__)
    context = Context(name, prior or EXPERIMENTS[name].prior, seed, quick, Path(out))
    began = time.perf_counter()
    result = getattr(module, EXPERIMENTS[name].entry)(context)
    record = {
        "experiment": name,
        "title": EXPERIMENTS[name].title,
        "quick": quick,
        "prior": context.prior,
        **result,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": versions(),
        "machine": machine(),
    }
    write_json(context.out / f"{name}.json", record)
    return record


def by_guidance(make: Callable[[float], T], guidances: Sequence[float], workers: int) -> list[T]:
    """What `make` returns for each guidance, from processes of their own."""
    with ProcessPoolExecutor(min(workers, len(guidances)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(make, guidances))


def interleaved(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds (rounds,) of each job; all take turns, so that a slow moment of the machine meets every one of them."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - began)
    return {name: np.asarray(values) for name, values in times.items()}


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), 95 % by default."""
    if trials < 1:
        raise InputError(f"trials={trials}: a proportion needs at least one")
    p, z2 = successes / trials, z * z / trials
    centre, half = (p + z2 / 2) / (1 + z2), z * np.sqrt(p * (1 - p) / trials + z2 / (4 * trials)) / (1 + z2)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def share(flags: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """A proportion with its 95 % interval and count, rounded for reading."""
    hits, total = int(np.sum(flags)), len(flags)
    low, high = wilson(hits, total)
    return {"value": round(hits / total, 4), "low": round(low, 4), "high": round(high, 4), "n": total}


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, median and count."""
    array = np.asarray(values, float)
    return {
        "mean": round(float(array.mean()), 5),
        "std": round(float(array.std()), 5),
        "median": round(float(np.median(array)), 5),
        "n": len(array),
    }


def resamples(count: int, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Rows (draws, count) drawn with replacement, the same for the same count, so that differences stay paired."""
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def bootstrapped(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean with its 95 % bootstrap interval, standard deviation, median and count, to five digits."""
    array = np.asarray(values, float)
    low, high = np.quantile(array[resamples(len(array))].mean(1), (0.025, 0.975))
    found = {"mean": array.mean(), "low": low, "high": high, "std": array.std(), "median": np.median(array)}
    return {**{name: digits(value) for name, value in found.items()}, "n": len(array)}


def ratio(values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Ratio of the means of two paired sets of errors (n,) with its 95 % bootstrap interval over the pairs."""
    a, b = (np.asarray(v, float) for v in (values, others))
    rows = resamples(len(a))
    low, high = np.quantile(a[rows].mean(1) / np.maximum(b[rows].mean(1), 1e-300), (0.025, 0.975))
    return {"ratio": digits(a.mean() / max(b.mean(), 1e-300)), "low": digits(low), "high": digits(high)}


def digits(value: SupportsFloat, count: int = 5) -> float:
    """The value to so many significant digits."""
    return float(f"{float(value):.{count}g}")
