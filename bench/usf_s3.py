"""Searched solver schedules against fixed solvers tuned over their own grids, judged on noise and prompts held out.

Searched schedules may take v3 steps, so their files run as `--solver usf:FILE --statistics FILE` with the statistics
that are left beside them; starts from the mean latent are left out, since no file holds it.
"""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from ..core.priors import load_prior
from ..core.sampling.calibration import fingerprint
from ..core.sampling.paired_error import PairedError
from ..core.sampling.solvers import SolverSchedule, UnifiedSolver
from ..core.sampling.usf_search import Fitness, SearchResult, SearchSpace, Strategy, search_schedule
from ..pipelines.calibrations import known_solvers
from ..toybox.samples import object_prompts
from .dpm_solver_v3 import measured
from .intervals import bootstrapped, digits, ratio
from .runner import Context
from .toy_latents import seeded_noise

HELDOUT_SEED = 300_000
FIRST_STEPS = ("none", "zero_x0")


@dataclass(frozen=True)
class USFBench:
    """Sizes of the experiment."""

    nfes: tuple[int, ...] = (5,)
    compared_at: int = 5
    """number of calls at which the search strategies are compared"""
    search_seeds: int = 1
    """repetitions of each search that is compared"""
    search_images: int = 40
    heldout_images: int = 96
    budget: int = 120
    guidance: float = 3.0
    reference_steps: int = 100
    samples: int = 48
    cells: int = 32
    sample_steps: int = 20
    batch: int = 48


QUICK = USFBench((3,), 3, 1, 2, 2, 12, 1.5, 8, 3, 2, 3, 4)


def run(context: Context) -> dict[str, Any]:
    """Held-out error of the searched schedule and of every fixed solver; strategies at equal budget; the schedules."""
    config = QUICK if context.quick else USFBench()
    prior = load_prior(context.prior)
    sizes = (config.samples, config.cells, config.sample_steps, config.batch)
    statistics = measured(prior, config.guidance, *sizes, context.seed)
    statistics.save(context.out / f"{context.name}-statistics.safetensors")

    def problem(split: str, count: int, seed: int) -> PairedError:
        noise = seeded_noise(prior.latent_shape, count, seed)
        condition = prior.encode_text(object_prompts(split, count))
        settings: dict[str, Any] = {"steps": config.reference_steps, "final": "index0", "batch": config.batch}
        return PairedError(prior, condition, noise, config.guidance, statistics=statistics, **settings)

    search = problem("train", config.search_images, context.seed)
    heldout = problem("test", config.heldout_images, context.seed + HELDOUT_SEED)
    table, gains, schedules, curves = [], [], {}, {}
    for nfe in config.nfes:
        errors = _Calls(search, heldout, nfe)
        fixed = {name: errors.row(name, schedule) for name, schedule in errors.fixed.items()}
        strategies: tuple[Strategy, ...] = get_args(Strategy) if nfe == config.compared_at else ("surrogate",)
        searched = []
        for number in range(config.search_seeds if nfe == config.compared_at else 1):
            for strategy in strategies:
                found, row = errors.searched(strategy, config.budget, context.seed + number)
                searched.append(row)
                curves[f"{strategy}-{nfe}-{context.seed + number}"] = [digits(value) for value in found.curve()]
                if number == 0 and strategy == "surrogate":
                    chosen = found
        table += [*fixed.values(), *searched]
        gains.append(_gain(errors, chosen.best))
        schedules[str(nfe)] = chosen.best.to_dict()
        mark = fingerprint(prior, guidance=config.guidance)
        made = context.out / f"{context.name}-{nfe}.safetensors"
        chosen.best.save(made, mark, {"score": chosen.score, "nfe": nfe})
    table.sort(key=lambda row: row["schedule"].startswith("searched"))
    result = {"config": asdict(config), "seeds": [context.seed], "table": table}
    return result | {"schedules": schedules, "curves": curves, "gains": gains}


class _Calls:
    """Both problems at one number of calls, each schedule run once on each."""

    def __init__(self, search: PairedError, heldout: PairedError, nfe: int) -> None:
        self.fitness: Fitness = functools.cache(search)
        self.heldout = functools.cache(functools.partial(paired_errors, heldout))
        self.space = SearchSpace(nfe, first_steps=FIRST_STEPS)
        self.fixed = tuned(self.fitness, known_solvers(self.space, search.schedule))

    def row(self, name: str, schedule: SolverSchedule) -> dict[str, Any]:
        """Errors on the search set and held out."""
        row: dict[str, Any] = {"nfe": self.space.nfe, "schedule": name, "search_mse": digits(self.fitness(schedule))}
        return row | {"heldout_mse": bootstrapped(self.heldout(schedule))}

    def searched(self, strategy: Strategy, budget: int, seed: int) -> tuple[SearchResult, dict[str, Any]]:
        """A search that begins with the tuned solvers, and the row of its winner."""
        start, began = list(self.fixed.values()), time.perf_counter()
        found = search_schedule(self.fitness, self.space, start, budget=budget, strategy=strategy, seed=seed)
        took = round(time.perf_counter() - began, 1)
        return found, {**self.row(f"searched, {strategy}", found.best), "seed": seed, "search_seconds": took}


def paired_errors(problem: PairedError, schedule: SolverSchedule) -> np.ndarray:
    """The error (N,) of a schedule for each noise, on its own levels."""
    levels = schedule.levels(problem.schedule)
    assert levels is not None
    states = problem.run(UnifiedSolver(schedule, problem.statistics), [*levels[:-1], problem.end])
    return problem.errors(states).numpy()


def tuned(fitness: Fitness, known: dict[str, SolverSchedule]) -> dict[str, SolverSchedule]:
    """Of solvers called "NAME, SPACING", those of each name on the spacing that suits them best, by name."""
    best: dict[str, SolverSchedule] = {}
    for label, schedule in sorted(known.items(), key=lambda item: fitness(item[1])):
        best.setdefault(label.split(", ")[0], schedule)
    return best


def _gain(errors: _Calls, searched: SolverSchedule) -> dict[str, Any]:
    """The searched schedule over the fixed solver that is best held out, and over the one best on the search set."""
    held = {name: errors.heldout(schedule) for name, schedule in errors.fixed.items()}
    best = min(held, key=lambda name: float(held[name].mean()))
    chosen = min(errors.fixed, key=lambda name: errors.fitness(errors.fixed[name]))
    mine = errors.heldout(searched)
    return {
        "nfe": errors.space.nfe,
        "over_best_held_out": {"fixed": best, **ratio(mine, held[best])},
        "over_best_on_search_set": {"fixed": chosen, **ratio(mine, held[chosen])},
    }
