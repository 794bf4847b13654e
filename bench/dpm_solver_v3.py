"""DPM-Solver-v3 against DDIM, DPM-Solver++ and UniPC: distance to a long run from the same noise, few steps.

Two guidances, and at each both kinds of states the statistics can be measured on; `sampling` has v3 over more budgets
and spacings. Ratios carry intervals over the pairs of prompt and noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np

from ..core.priors import Prior, load_prior
from ..core.sampling import DDIM, NoiseSchedule, Solver, make_solver
from ..core.sampling.dpm_v3_estimation import States
from ..core.sampling.dpm_v3_statistics import ModelStatistics
from ..core.sampling.paired_error import PairedError
from ..core.sampling.solvers import DPMSolverV3
from ..pipelines.calibrations import Sizes, measure_statistics, usual_states
from ..pipelines.text_to_image import TextToImage
from ..toybox.samples import object_prompts
from .intervals import bootstrapped, ratio
from .runner import Context, by_guidance
from .toy_latents import seeded_noise

CALIBRATION_SEED = 500_000  # far from the seeds that are measured


@dataclass(frozen=True)
class DPMSolverV3Bench:
    """Sizes of the experiment."""

    images: int = 64
    nfes: tuple[int, ...] = (5, 6, 8, 10, 20)
    guidances: tuple[float, ...] = (1.5, 5.0)
    reference_steps: int = 200
    samples: int = 40
    """latents the statistics are measured on"""
    fewer_samples: int = 10
    """the smaller set, at the fewest calls"""
    cells: int = 100
    """of the lambda grid; every second one is left out for comparison, at the fewest calls"""
    sample_steps: int = 20
    """of the latents the statistics are measured on"""
    batch: int = 32
    workers: int = 2
    """processes of one thread each, a guidance at a time"""


QUICK = DPMSolverV3Bench(4, (5,), (1.5,), 12, 4, 2, 4, 4, 4)


def measured(
    prior: Prior,
    guidance: float,
    samples: int,
    cells: int,
    steps: int,
    batch: int,
    seed: int,
    states: States | None = None,
) -> ModelStatistics:
    """Model statistics from the prior's own samples of training prompts."""
    sizes = Sizes(guidance, steps=steps, batch=batch, seed=seed + CALIBRATION_SEED)
    return measure_statistics(TextToImage(prior), object_prompts("train", samples), sizes, cells, states=states)


def solvers(prior: Prior, statistics: ModelStatistics) -> dict[str, Callable[[], Solver]]:
    """What is compared; the baselines come first."""
    flow, kind = NoiseSchedule.from_config(prior.scheduler_config).flow, prior.prediction_type
    return {
        "ddim": DDIM,
        "dpm++ 2M": lambda: make_solver("dpm++", flow, kind),
        "dpm++ 3M": lambda: make_solver("dpm++3m", flow, kind),
        "unipc": lambda: make_solver("unipc", flow, kind),
        "v3 order 1": lambda: DPMSolverV3(statistics, 1),
        "v3 order 2": lambda: DPMSolverV3(statistics, 2, "none"),
        "v3 order 2, corrector": lambda: DPMSolverV3(statistics, 2, "pseudo"),
        "v3 order 3, corrector": lambda: DPMSolverV3(statistics, 3, "pseudo"),
    }


def run(context: Context) -> dict[str, Any]:
    """Paired error of every solver and number of calls; the statistics' states and sizes; what holds."""
    config = QUICK if context.quick else DPMSolverV3Bench()
    made = by_guidance(
        partial(panel, context.prior, config=config, seed=context.seed), config.guidances, config.workers
    )
    parts = ("table", "calibration", "ratios")
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        **{part: [row for panel in made for row in panel[part]] for part in parts},
    }


def panel(name: str, guidance: float, config: DPMSolverV3Bench, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows, costs and ratios of one guidance, in one thread."""
    prior = load_prior(name)
    condition = prior.encode_text(object_prompts("test", config.images))
    noise = seeded_noise(prior.latent_shape, config.images, seed)
    settings: dict[str, Any] = {"steps": config.reference_steps, "final": "index0", "batch": config.batch}
    trial = Trial(PairedError(prior, condition, noise, guidance, **settings), guidance, {})
    usual = usual_states(guidance)
    sets = [(states, config.samples) for states in get_args(States)] + [(usual, config.fewer_samples)]
    table, costs = [], []
    few = config.nfes[:1]
    for states, samples in sets:
        began, rows = time.perf_counter(), prior.nfe
        statistics = measured(prior, guidance, samples, config.cells, config.sample_steps, config.batch, seed, states)
        cost = {"guidance": guidance, "states": states, "samples": samples, "nfe_rows": prior.nfe - rows}
        costs.append(cost | {"seconds": round(time.perf_counter() - began, 1)})
        table += trial.rows(statistics, config.nfes if samples == config.samples else few)
        if states == usual and samples == config.samples:
            table += trial.rows(thinned(statistics), few)
    cells = config.cells
    ratios = [
        {"guidance": guidance, "states": states, "nfe": nfe}
        | ratios_of(trial.errors, states, config.samples, cells, nfe)
        for states in get_args(States)
        for nfe in config.nfes
    ]
    return {"table": table, "calibration": costs, "ratios": ratios}


def thinned(statistics: ModelStatistics) -> ModelStatistics:
    """Every second row of the tables, the last one kept: what half the cells would have measured."""
    rows = [*range(0, len(statistics.lambdas) - 1, 2), len(statistics.lambdas) - 1]
    lambdas, ell, s, b = (values[rows] for values in (statistics.lambdas, statistics.ell, statistics.s, statistics.b))
    return replace(statistics, lambdas=lambdas, ell=ell, s=s, b=b)


class Key(NamedTuple):
    """What an error was measured of; baselines have no statistics."""

    solver: str
    nfe: int
    states: str = ""
    samples: int = 0
    cells: int = 0


@dataclass
class Trial:
    """The pairs of one guidance, and all errors (N,) measured on them so far."""

    problem: PairedError
    guidance: float
    errors: dict[Key, np.ndarray]

    def rows(self, statistics: ModelStatistics, nfes: tuple[int, ...]) -> list[dict[str, Any]]:
        """A row for each solver and budget; baselines once."""
        made = statistics.settings
        own = Key("", 0, str(made["states"]), int(made["samples"]), len(statistics.lambdas) - 1)
        table = []
        for name, build in solvers(self.problem.prior, statistics).items():
            for nfe in nfes:
                key = own._replace(solver=name, nfe=nfe) if name.startswith("v3") else Key(name, nfe)
                if key not in self.errors:
                    self.errors[key], took = self._errors(build(), nfe)
                    facts = {about: value for about, value in key._asdict().items() if value}
                    row = {"guidance": self.guidance, **facts, "mse": bootstrapped(self.errors[key]), "seconds": took}
                    table.append(row)
        return table

    def _errors(self, solver: Solver, nfe: int) -> tuple[np.ndarray, float]:
        """Paired errors (N,) on a grid uniform in time, and seconds."""
        problem = self.problem
        levels = problem.schedule.grid(nfe, "trailing", "index0", tokens=problem.prior.tokens(problem.noise))
        began = time.perf_counter()
        errors = problem.errors(problem.run(solver, levels)).numpy()
        return errors, round(time.perf_counter() - began, 2)


def ratios_of(errors: dict[Key, np.ndarray], states: str, samples: int, cells: int, nfe: int) -> dict[str, Any]:
    """v3 of order 1 over DDIM, and the best v3 over the best baseline, with intervals over the pairs."""
    others = {key.solver: found for key, found in errors.items() if key == Key(key.solver, nfe)}
    here = {key.solver: found for key, found in errors.items() if key == Key(key.solver, nfe, states, samples, cells)}
    ours, other = (min(group, key=lambda name: float(group[name].mean())) for group in (here, others))
    return {
        "order_1_over_ddim": ratio(here["v3 order 1"], others["ddim"]),
        "best_over_best_baseline": {"solvers": [ours, other], **ratio(here[ours], others[other])},
    }
