"""Searched solver schedules against fixed solvers tuned over their own grids, judged on noise and prompts held out."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..core.priors import Prior, load_prior
from ..core.sampling.calibration import fingerprint
from ..core.sampling.grids import SPACINGS
from ..core.sampling.paired_error import PairedError
from ..core.sampling.schedule_search import SearchResult, SearchSpace, Strategy, baselines, search_schedule
from ..core.sampling.solvers import SolverSchedule
from ..core.sampling.solvers.decisions import times_of
from ..core.sampling.statistics import ModelStatistics
from ..utils.errors import InputError
from .dpm_solver_v3 import measured, object_prompts
from .runner import Context
from .toy_latents import seeded_noise

HELDOUT_SEED = 300_000


@dataclass(frozen=True)
class USFBench:
    """Sizes of the experiment."""

    nfes: tuple[int, ...] = (4, 5, 6)
    compared_at: int = 5
    """number of calls at which the search strategies are compared"""
    search_images: int = 48
    heldout_images: int = 192
    budget: int = 150
    guidance: float = 3.0
    reference_steps: int = 200
    samples: int = 256
    cells: int = 30
    sample_steps: int = 30
    batch: int = 48


QUICK = USFBench((3,), 3, 2, 2, 14, 1.5, 8, 3, 2, 3, 4)


def run(context: Context) -> dict[str, Any]:
    """Held-out error of the searched schedule and of every fixed solver; strategies at equal budget; the schedules."""
    config = QUICK if context.quick else USFBench()
    prior = load_prior(context.prior)
    statistics, latents = measured(
        prior, config.guidance, config.samples, config.cells, config.sample_steps, config.batch, context.seed
    )
    mean = latents.mean(0)
    search = problem(prior, "train", config.search_images, context.seed, config, statistics, mean)
    heldout = problem(prior, "test", config.heldout_images, context.seed + HELDOUT_SEED, config, statistics, mean)
    table: list[dict[str, Any]] = []
    schedules: dict[str, Any] = {}
    curves: dict[str, list[float]] = {}
    for nfe in config.nfes:
        space = SearchSpace(nfe)
        fixed = tuned(search, space)
        for name, schedule in fixed.items():
            table.append({"nfe": nfe, "schedule": name} | measured_row(search, heldout, schedule))
        start = list(fixed.values())
        strategies: tuple[Strategy, ...] = ("surrogate",)
        if nfe == config.compared_at:
            strategies = ("random", "evolution", "surrogate")
        for strategy in strategies:
            began = time.perf_counter()
            found = search_schedule(search, space, start, budget=config.budget, strategy=strategy, seed=context.seed)
            took = round(time.perf_counter() - began, 1)
            row = {"nfe": nfe, "schedule": f"searched, {strategy}"} | measured_row(search, heldout, found.best)
            table.append(row | {"search_seconds": took})
            curves[f"{strategy}-{nfe}"] = [round(value, 6) for value in found.curve()]
        schedules[str(nfe)] = found.best.to_dict()
        save(found, prior, nfe, config, context)
    table.sort(key=lambda row: row["schedule"].startswith("searched"))
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "schedules": schedules,
        "curves": curves,
        "gains": gains(table, config),
    }


def problem(
    prior: Prior,
    split: str,
    count: int,
    seed: int,
    config: USFBench,
    statistics: ModelStatistics,
    mean: torch.Tensor,
) -> PairedError:
    """Prompts of a split with their own noise and reference."""
    return PairedError(
        prior,
        prior.encode_text(object_prompts(split, count)),
        seeded_noise(prior.latent_shape, count, seed),
        config.guidance,
        steps=config.reference_steps,
        final="index0",
        statistics=statistics,
        mean=mean,
        batch=config.batch,
    )


def tuned(search: PairedError, space: SearchSpace) -> dict[str, SolverSchedule]:
    """Every fixed solver on the spacing that suits it best on the search set, by its decisions and spacing."""
    best: dict[str, tuple[float, SolverSchedule]] = {}
    for spacing in SPACINGS:
        levels = search.schedule.grid(space.nfe, spacing, "index0")
        times = times_of(levels, search.schedule)
        try:
            candidates = baselines(space, lambda n, times=times: times)  # type: ignore[misc]
        except InputError:  # a spacing that visits its last level twice
            continue
        for name, schedule in candidates.items():
            score = search(schedule)
            if name not in best or score < best[name][0]:
                best[name] = (score, schedule)
    return {name: schedule for name, (_, schedule) in best.items()}


def measured_row(search: PairedError, heldout: PairedError, schedule: SolverSchedule) -> dict[str, Any]:
    """Errors on the search set and held out."""
    return {"search_mse": round(search(schedule), 6), "heldout_mse": round(heldout(schedule), 6)}


def gains(table: list[dict[str, Any]], config: USFBench) -> list[dict[str, Any]]:
    """1 - searched / best fixed, held out, for each number of calls."""
    found = []
    for nfe in config.nfes:
        here = [row for row in table if row["nfe"] == nfe]
        fixed = min(row["heldout_mse"] for row in here if not row["schedule"].startswith("searched"))
        searched = next(row["heldout_mse"] for row in here if row["schedule"] == "searched, surrogate")
        found.append({"nfe": nfe, "best_fixed": fixed, "searched": searched, "gain": round(1 - searched / fixed, 4)})
    return found


def save(found: SearchResult, prior: Prior, nfe: int, config: USFBench, context: Context) -> None:
    """Leaves the schedule beside the results, ready for `usf:FILE`."""
    mark = fingerprint(prior, guidance=config.guidance)
    found.best.save(context.out / f"{context.name}-{nfe}.safetensors", mark, {"score": found.score, "nfe": nfe})
