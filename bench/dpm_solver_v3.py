"""DPM-Solver-v3 against DDIM, DPM-Solver++ and UniPC: distance to a long run from the same noise, few steps.

One guidance; `sampling` has v3 at two, over more budgets. Ratios carry intervals over the pairs of prompt and noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..core.priors import Prior, load_prior
from ..core.sampling import DDIM, NoiseSchedule, Solver, make_solver
from ..core.sampling.paired_error import PairedError
from ..core.sampling.solvers import DPMSolverV3
from ..core.sampling.statistics import ModelStatistics
from ..pipelines.calibrations import Sizes, measure_statistics
from ..pipelines.text_to_image import TextToImage
from ..toybox.samples import object_prompts
from .runner import Context, bootstrapped, ratio
from .toy_latents import seeded_noise

CALIBRATION_SEED = 500_000  # far from the seeds that are measured


@dataclass(frozen=True)
class DPMSolverV3Bench:
    """Sizes of the experiment."""

    images: int = 64
    nfes: tuple[int, ...] = (5, 6, 8, 10, 20)
    guidance: float = 1.5
    reference_steps: int = 100
    samples: int = 128
    """latents the statistics are measured on"""
    fewer_samples: int = 32
    """the smaller set, at the fewest calls"""
    cells: int = 40
    """of the lambda grid; every second one is left out for comparison, at the fewest calls"""
    sample_steps: int = 20
    """of the latents the statistics are measured on"""
    batch: int = 32


QUICK = DPMSolverV3Bench(4, (5,), 1.5, 12, 4, 2, 4, 4, 4)


def measured(
    prior: Prior, guidance: float, samples: int, cells: int, steps: int, batch: int, seed: int
) -> ModelStatistics:
    """Model statistics from the prior's own samples of training prompts."""
    sizes = Sizes(guidance, steps=steps, batch=batch, seed=seed + CALIBRATION_SEED)
    return measure_statistics(TextToImage(prior), object_prompts("train", samples), sizes, cells)


def solvers(prior: Prior, statistics: ModelStatistics) -> dict[str, Callable[[], Solver]]:
    """What is compared; the baselines come first."""
    flow, kind = NoiseSchedule.from_config(prior.scheduler_config).flow, prior.prediction_type
    return {
        "ddim": DDIM,
        "dpm++ 2M": lambda: make_solver("dpm++", flow, kind),
        "dpm++ 3M": lambda: make_solver("dpm++3m", flow, kind),
        "unipc": lambda: make_solver("unipc", flow, kind),
        "v3 order 1": lambda: DPMSolverV3(statistics, 1, "none"),
        "v3 order 2": lambda: DPMSolverV3(statistics, 2, "none"),
        "v3 order 2, corrector": lambda: DPMSolverV3(statistics, 2),
        "v3 order 3, corrector": lambda: DPMSolverV3(statistics, 3),
    }


def run(context: Context) -> dict[str, Any]:
    """Paired error of every solver and number of calls; the statistics' sample size; what holds."""
    config = QUICK if context.quick else DPMSolverV3Bench()
    prior = load_prior(context.prior)
    condition = prior.encode_text(object_prompts("test", config.images))
    noise = seeded_noise(prior.latent_shape, config.images, context.seed)
    steps, batch = config.reference_steps, config.batch
    problem = PairedError(prior, condition, noise, config.guidance, steps=steps, final="index0", batch=batch)
    table: list[dict[str, Any]] = []
    calibration: list[dict[str, Any]] = []
    errors: dict[tuple[str, int], np.ndarray] = {}
    for samples in (config.samples, config.fewer_samples):
        began, rows = time.perf_counter(), prior.nfe
        statistics = measured(prior, config.guidance, samples, config.cells, config.sample_steps, batch, context.seed)
        cost = {"samples": samples, "nfe_rows": prior.nfe - rows}
        calibration.append(cost | {"seconds": round(time.perf_counter() - began, 1)})
        few = config.nfes[:1]
        if samples == config.samples:
            table += _rows(problem, statistics, config.nfes, errors)
            table += _rows(problem, thinned(statistics), few)
        else:
            table += _rows(problem, statistics, few)
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "calibration": calibration,
        "ratios": [ratios(errors, nfe) for nfe in config.nfes],
    }


def thinned(statistics: ModelStatistics) -> ModelStatistics:
    """Every second row of the tables, the last one kept: what half the cells would have measured."""
    rows = [*range(0, len(statistics.lambdas) - 1, 2), len(statistics.lambdas) - 1]
    lambdas, ell, s, b = (values[rows] for values in (statistics.lambdas, statistics.ell, statistics.s, statistics.b))
    return replace(statistics, lambdas=lambdas, ell=ell, s=s, b=b)


def _rows(
    problem: PairedError,
    statistics: ModelStatistics,
    nfes: tuple[int, ...],
    errors: dict[tuple[str, int], np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """A row for each solver and budget, the errors themselves into `errors`; without it v3 only."""
    facts = {"samples": statistics.settings["samples"], "cells": len(statistics.lambdas) - 1}
    table = []
    for name, build in solvers(problem.prior, statistics).items():
        if errors is None and not name.startswith("v3"):
            continue
        for nfe in nfes:
            found, took = _errors(problem, build(), nfe)
            row: dict[str, Any] = {"solver": name, "nfe": nfe} | (facts if name.startswith("v3") else {})
            table.append(row | {"mse": bootstrapped(found), "seconds": took})
            if errors is not None:
                errors[name, nfe] = found
    return table


def _errors(problem: PairedError, solver: Solver, nfe: int) -> tuple[np.ndarray, float]:
    """Paired errors (N,) on a grid uniform in time, and seconds."""
    levels = problem.schedule.grid(nfe, "trailing", "index0", tokens=problem.prior.tokens(problem.noise))
    began = time.perf_counter()
    errors = problem.errors(problem.run(solver, levels)).numpy()
    return errors, round(time.perf_counter() - began, 2)


def ratios(errors: dict[tuple[str, int], np.ndarray], nfe: int) -> dict[str, Any]:
    """v3 of order 1 over DDIM, and the best v3 over the best baseline, with intervals over the pairs."""
    here = {name: found for (name, calls), found in errors.items() if calls == nfe}
    ours = min((name for name in here if name.startswith("v3")), key=lambda name: float(here[name].mean()))
    other = min((name for name in here if not name.startswith("v3")), key=lambda name: float(here[name].mean()))
    return {
        "nfe": nfe,
        "order_1_over_ddim": ratio(here["v3 order 1"], here["ddim"]),
        "best_over_best_baseline": {"solvers": [ours, other], **ratio(here[ours], here[other])},
    }
