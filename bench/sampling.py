"""Every solver on every embedded backbone at two guidances and seven budgets: one table, two pictures.

Quality is the paired squared distance of the final latents to a long reference from the same noise; the judge's
accuracy and the toy-FID say what that is worth. Runs that cost more network calls than the budget are left out.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ..core.priors import Prior, load_prior, weights_root
from ..core.sampling import NoiseSchedule, Solver, make_solver
from ..core.sampling.paired_error import PairedError
from ..core.sampling.solvers import DPMSolverV3
from ..core.sampling.statistics import ModelStatistics
from ..toybox.judge import Judge
from ..utils.files import atomic_path
from .dpm_solver_v3 import measured
from .runner import Context, spread
from .toy_latents import decoded, features, renders, scores, seeded_noise

SIBLINGS = {"toybox": "toybox-dit"}  # measured too when its weights are there


@dataclass(frozen=True)
class SamplingBench:
    """Sizes of the experiment."""

    images: int = 32
    reference_groups: int = 150
    reference_steps: int = 500
    budgets: tuple[int, ...] = (3, 5, 6, 8, 10, 20, 50)
    guidances: tuple[float, ...] = (1.5, 5.0)
    judged: tuple[int, ...] = (5, 10, 20, 50)
    """budgets at which accuracy and toy-FID are measured too"""
    statistics_images: int = 256
    cells: int = 30
    statistics_steps: int = 30
    batch: int = 32
    workers: int = 2
    """processes of one thread each, a backbone at a guidance at a time"""


QUICK = SamplingBench(4, 2, 12, (3, 5), (1.5,), (5,), 8, 3, 2, 4)


def solvers(prior: Prior, statistics: ModelStatistics) -> dict[str, Callable[[], Solver]]:
    """What is compared; those of diffusers come first."""
    flow, kind = NoiseSchedule.from_config(prior.scheduler_config).flow, prior.prediction_type
    named = ("ddim", "euler", "heun", "dpm++", "dpm++3m", "unipc", "ghvb:2,0.5", "ghvb:4,0.8", "hb:dpm++,0.9")
    found: dict[str, Callable[[], Solver]] = {n: partial(make_solver, n, flow, kind) for n in named}
    if flow:
        del found["ddim"]  # it is Euler there
    return {
        **found,
        "dpm-v3:1": lambda: DPMSolverV3(statistics, 1, "none"),
        "dpm-v3:2": lambda: DPMSolverV3(statistics, 2),
        "dpm-v3:3": lambda: DPMSolverV3(statistics, 3),
    }


def steps_for(solver: Solver, calls: int) -> int | None:
    """Steps that cost exactly `calls` network calls; None when no number of steps does."""
    for steps in range(calls, 0, -1):
        if solver.calls(steps) == calls:
            return steps
    return None


def run(context: Context) -> dict[str, Any]:
    """The table of all backbones, and two pictures."""
    config = QUICK if context.quick else SamplingBench()
    names = [context.prior]
    sibling = SIBLINGS.get(context.prior)
    if sibling and (weights_root() / sibling).is_dir():
        names.append(sibling)
    panels = [(name, guidance) for name in names for guidance in config.guidances]
    with ProcessPoolExecutor(min(config.workers, len(panels)), mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(partial(panel, config=config, seed=context.seed), *zip(*panels, strict=True)))
    table = [row for part in rows for row in part]
    _plot(table, "nfe", "network calls per image and branch", context.picture("-nfe"))
    _plot(table, "seconds_per_image", "seconds per image", context.picture("-seconds"))
    return {"config": asdict(config), "seeds": [context.seed], "backbones": names, "table": table}


def panel(name: str, guidance: float, config: SamplingBench, seed: int) -> list[dict[str, Any]]:
    """The rows of one backbone at one guidance, in one thread."""
    torch.set_num_threads(1)
    prior, judge = load_prior(name), Judge.from_pretrained()
    test = renders("test", config.images, views=1)
    reference = features(judge, renders("test", config.reference_groups, first=config.images).images)
    condition = prior.encode_text(test.prompts)
    noise = seeded_noise(prior.latent_shape, config.images, seed)
    problem = PairedError(
        prior, condition, noise, guidance, steps=config.reference_steps, final="index0", batch=config.batch
    )
    statistics, _ = measured(
        prior, guidance, config.statistics_images, config.cells, config.statistics_steps, config.batch, seed
    )
    rows = []
    for label, build in solvers(prior, statistics).items():
        for budget in config.budgets:
            steps = steps_for(build(), budget)
            if steps is None:
                continue
            levels = problem.schedule.grid(steps, "logsnr", "index0")
            began = time.perf_counter()
            states = problem.run(build(), levels)
            took = time.perf_counter() - began
            row = {"backbone": name, "guidance": guidance, "solver": label, "nfe": budget}
            row |= {"mse": spread(problem.errors(states).tolist()), "seconds_per_image": took / config.images}
            row["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            if budget in config.judged:
                row |= scores(judge, decoded(prior, states), test.meanings, reference)
            rows.append(row)
    return rows


def _plot(table: list[dict[str, Any]], key: str, label: str, path: Path) -> None:
    """Median paired error against a cost, a panel for each backbone and guidance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row["backbone"], row["guidance"]) for row in table))
    figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rows = [row for row in table if (row["backbone"], row["guidance"]) == panel]
        for solver in dict.fromkeys(row["solver"] for row in rows):
            line = [(row[key], row["mse"]["median"]) for row in rows if row["solver"] == solver]
            style = "-" if ":" in solver else "--"
            axes.plot(*zip(*line, strict=True), style, marker="o", markersize=3, linewidth=1, label=solver)
        axes.set(xscale="log", yscale="log", xlabel=label, title=f"{panel[0]}, guidance {panel[1]:g}")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("squared distance to the reference")
    figure.axes[-1].legend(fontsize=7)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
