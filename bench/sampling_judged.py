"""What solvers draw, at the budgets at which `sampling` measures only their error: accuracy and toy-FID.

Network calls are the whole cost, so the more of them, the fewer solvers: what most of them draw alike needs no table.
All run on the spacing of diffusers' users. `sampling-judged` asks the U-Net, `sampling-judged-dit` the transformer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from ..core.priors import load_prior
from ..core.sampling import NoiseSchedule
from .dpm_solver_v3 import measured
from .runner import Context
from .sampling import CALIBRATED, USUAL, Questions, by_guidance, solvers, steps_for
from .toy_latents import run_sampler

FIRST = ("ddim", "euler")
MAIN = (*FIRST, "dpm++", "unipc", "ghvb:2,0.5", f"{CALIBRATED}:2")


@dataclass(frozen=True)
class JudgedBench:
    """Sizes of the experiment."""

    images: int = 200
    reference_groups: int = 150
    budgets: tuple[int, ...] = (3, 6, 10, 20, 50)
    only: dict[int, tuple[str, ...]] = field(default_factory=lambda: {20: MAIN, 50: (*FIRST, "unipc")})
    """solvers of the larger budgets; the others have them all"""
    guidances: tuple[float, ...] = (1.5, 5.0)
    statistics: tuple[int, int, int] = (80, 40, 20)
    """images, cells and steps of the calibration"""
    batch: int = 32
    workers: int = 2
    """processes of one thread each, a guidance at a time"""


QUICK = JudgedBench(6, 2, (3, 4), {4: FIRST}, (1.5,), (3, 4, 2))


def run(context: Context) -> dict[str, Any]:
    """A row for each solver, guidance and budget."""
    config = QUICK if context.quick else JudgedBench()
    panels = by_guidance(
        partial(panel, context.prior, config=config, seed=context.seed), config.guidances, config.workers
    )
    return {"config": asdict(config), "seeds": [context.seed], "table": [row for rows in panels for row in rows]}


def panel(name: str, guidance: float, config: JudgedBench, seed: int) -> list[dict[str, Any]]:
    """The rows of one guidance, in one thread."""
    torch.set_num_threads(1)
    prior = load_prior(name)
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    questions = Questions.of(prior, config.images, config.reference_groups, seed)
    rows = []
    for label, build in solvers(prior, measured(prior, guidance, *config.statistics, config.batch, seed)).items():
        for budget in config.budgets:
            steps = steps_for(build(), budget)
            if steps is None or label not in config.only.get(budget, (label,)):
                continue
            levels = schedule.grid(steps, USUAL)
            part = (questions.condition, questions.noise, levels, guidance)
            states = run_sampler(prior, *part, build(), batch=config.batch)
            row = {"backbone": name, "guidance": guidance, "solver": label, "spacing": USUAL, "nfe": budget}
            rows.append(row | questions.scores(prior, states))
    return rows
