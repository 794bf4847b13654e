"""What solvers draw, at the budgets at which `sampling` measures only their error: accuracy and toy-FID.

All run on the spacing of diffusers' users. `sampling-judged` asks the U-Net, `sampling-judged-dit` the transformer; 50
calls cost as much as all other budgets together and are experiments of their own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ..core.priors import load_prior
from ..core.sampling import NoiseSchedule
from .dpm_solver_v3 import measured
from .runner import Context, by_guidance
from .sampling import USUAL, Questions, solvers, steps_for
from .toy_latents import run_sampler


@dataclass(frozen=True)
class JudgedBench:
    """Sizes of the experiment."""

    images: int = 200
    reference_groups: int = 150
    budgets: tuple[int, ...] = (3, 6, 10, 20)
    guidances: tuple[float, ...] = (1.5, 5.0)
    statistics: tuple[int, int, int] = (32, 100, 20)
    """images, cells and steps of the calibration"""
    batch: int = 32
    workers: int = 2
    """processes of one thread each, a guidance at a time"""


QUICK = JudgedBench(6, 2, (3,), (1.5,), (3, 4, 2))


def run(context: Context) -> dict[str, Any]:
    """A row for each solver, guidance and budget up to 20 calls."""
    return judged(context, QUICK if context.quick else JudgedBench())


def run_long(context: Context) -> dict[str, Any]:
    """The same in 50 calls."""
    return judged(context, replace(QUICK, budgets=(4,)) if context.quick else JudgedBench(budgets=(50,)))


def judged(context: Context, config: JudgedBench) -> dict[str, Any]:
    """The rows of all guidances, two at a time."""
    panels = by_guidance(
        partial(panel, context.prior, config=config, seed=context.seed), config.guidances, config.workers
    )
    return {"config": asdict(config), "seeds": [context.seed], "table": [row for rows in panels for row in rows]}


def panel(name: str, guidance: float, config: JudgedBench, seed: int) -> list[dict[str, Any]]:
    """The rows of one guidance, in one thread."""
    prior = load_prior(name)
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    questions = Questions.of(prior, config.images, config.reference_groups, seed)
    rows = []
    for label, build in solvers(prior, measured(prior, guidance, *config.statistics, config.batch, seed)).items():
        for budget in config.budgets:
            steps = steps_for(build(), budget)
            if steps is None:
                continue
            levels = schedule.grid(steps, USUAL)
            part = (questions.condition, questions.noise, levels, guidance)
            states = run_sampler(prior, *part, build(), batch=config.batch)
            row = {"backbone": name, "guidance": guidance, "solver": label, "spacing": USUAL, "nfe": budget}
            rows.append(row | questions.scores(prior, states))
    return rows
