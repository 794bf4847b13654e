"""DPM-Solver-v3 against DDIM, DPM-Solver++ and UniPC: distance to a long run from the same noise, few steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling import DDIM, NoiseSchedule, Solver, make_solver
from ..core.sampling.paired_error import PairedError
from ..core.sampling.solvers import DPMSolverV3
from ..core.sampling.statistics import ModelStatistics
from ..core.sampling.statistics_estimation import estimate_statistics
from ..toybox.captions import Meaning, Phrase, say
from ..toybox.programs import ObjectProgram, draw
from .runner import Context
from .toy_latents import run_sampler, seeded_noise

CALIBRATION_SEED = 500_000  # far from the seeds that are measured


@dataclass(frozen=True)
class DPMSolverV3Bench:
    """Sizes of the experiment."""

    images: int = 256
    nfes: tuple[int, ...] = (5, 6, 8, 10, 20)
    guidances: tuple[float, ...] = (1.5, 5.0)
    reference_steps: int = 200
    samples: int = 512
    """latents the statistics are measured on"""
    fewer_samples: tuple[int, ...] = (64, 256)
    """smaller sets, at the first guidance"""
    cells: int = 40
    """of the lambda grid"""
    sample_steps: int = 30
    """of the latents the statistics are measured on"""
    batch: int = 32


QUICK = DPMSolverV3Bench(4, (5,), (1.5,), 12, 4, (2,), 4, 4, 4)


def object_prompts(split: str, count: int) -> list[str]:
    """ "a red chair", one for each of the first `count` objects of a split."""
    found: list[str] = []
    index = 0
    while len(found) < count:
        program = draw(split, index)
        index += 1
        if isinstance(program, ObjectProgram):
            found.append(say(Meaning((Phrase(program.noun, program.colour),))))
    return found


def own_latents(prior: Prior, prompts: list[str], guidance: float, steps: int, batch: int, seed: int) -> Tensor:
    """The prior's own samples (N, C, h, w) at this guidance."""
    noise = seeded_noise(prior.latent_shape, len(prompts), seed)
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(steps, "logsnr", tokens=prior.tokens(noise))
    return run_sampler(prior, prior.encode_text(prompts), noise, levels, guidance, "dpm++", batch=batch)


def measured(
    prior: Prior, guidance: float, samples: int, cells: int, steps: int, batch: int, seed: int, ell: float | None = None
) -> tuple[ModelStatistics, Tensor]:
    """Model statistics from the prior's own samples of training prompts, and the samples."""
    prompts = object_prompts("train", samples)
    latents = own_latents(prior, prompts, guidance, steps, batch, seed + CALIBRATION_SEED)
    condition = prior.encode_text(prompts)
    statistics = estimate_statistics(prior, latents, condition, guidance, count=cells, chunk=batch, seed=seed, ell=ell)
    return statistics, latents


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
    """Paired error of every solver, guidance and number of calls; the statistics' sample size; what holds."""
    config = QUICK if context.quick else DPMSolverV3Bench()
    prior = load_prior(context.prior)
    condition = prior.encode_text(object_prompts("test", config.images))
    noise = seeded_noise(prior.latent_shape, config.images, context.seed)
    table: list[dict[str, Any]] = []
    calibration: list[dict[str, Any]] = []
    for guidance in config.guidances:
        problem = PairedError(
            prior, condition, noise, guidance, steps=config.reference_steps, final="index0", batch=config.batch
        )
        sizes = (*config.fewer_samples, config.samples) if guidance == config.guidances[0] else (config.samples,)
        for samples in sizes:
            began, rows = time.perf_counter(), prior.nfe
            statistics, _ = measured(
                prior, guidance, samples, config.cells, config.sample_steps, config.batch, context.seed
            )
            row = {"guidance": guidance, "samples": samples, "nfe_rows": prior.nfe - rows}
            calibration.append(row | {"seconds": round(time.perf_counter() - began, 1)})
            chosen = solvers(prior, statistics)
            if samples != config.samples:
                chosen = {name: build for name, build in chosen.items() if name.startswith("v3")}
            table += [
                {"solver": name, "guidance": guidance, "nfe": nfe, "samples": samples if "v3" in name else None}
                | error_row(problem, build(), nfe)
                for nfe in config.nfes
                for name, build in chosen.items()
            ]
    table.sort(key=lambda row: row["samples"] is not None)
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "calibration": calibration,
        "ratios": ratios(table, config),
    }


def error_row(problem: PairedError, solver: Solver, nfe: int) -> dict[str, Any]:
    """Mean and standard error of the paired error, and seconds, on a grid uniform in time."""
    levels = problem.schedule.grid(nfe, "trailing", "index0", tokens=problem.prior.tokens(problem.noise))
    began = time.perf_counter()
    errors = problem.errors(problem.run(solver, levels))
    took = time.perf_counter() - began
    spread = float(errors.std()) / max(len(errors), 1) ** 0.5 if len(errors) > 1 else 0.0
    return {"mse": round(float(errors.mean()), 6), "standard_error": round(spread, 6), "seconds": round(took, 2)}


def ratios(table: list[dict[str, Any]], config: DPMSolverV3Bench) -> list[dict[str, Any]]:
    """v3 of order 1 over DDIM, and the best v3 over the best baseline, for each guidance and number of calls."""
    found = []
    for guidance in config.guidances:
        for nfe in config.nfes:
            here = [row for row in table if row["guidance"] == guidance and row["nfe"] == nfe]
            ours = {row["solver"]: row["mse"] for row in here if row["samples"] == config.samples}
            others = {row["solver"]: row["mse"] for row in here if row["samples"] is None}
            found.append(
                {
                    "guidance": guidance,
                    "nfe": nfe,
                    "order_1_over_ddim": round(ours["v3 order 1"] / max(others["ddim"], 1e-12), 4),
                    "best_over_best_baseline": round(min(ours.values()) / max(min(others.values()), 1e-12), 4),
                }
            )
    return found
