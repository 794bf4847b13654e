"""Every solver on one backbone at two guidances and seven budgets: one table, two pictures.

Quality is the paired squared distance of the final latents to a long reference from the same noise; at some budgets
more pictures are drawn, and the judge's accuracy and the toy-FID say what that is worth. Runs that cost more network
calls than the budget are left out. Seconds are those of a call, of all solvers in turn, times the budget. `sampling`
measures the U-Net, `sampling-dit` the transformer.
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

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import NoiseSchedule, Solver, make_solver
from ..core.sampling.paired_error import PairedError
from ..core.sampling.solvers import DPMSolverV3
from ..core.sampling.statistics import ModelStatistics
from ..toybox.judge import Judge
from ..utils.files import atomic_path
from .dpm_solver_v3 import measured
from .runner import Context, bootstrapped, digits, interleaved
from .toy_latents import decoded, features, renders, run_sampler, scores, seeded_noise


@dataclass(frozen=True)
class SamplingBench:
    """Sizes of the experiment."""

    images: int = 28
    """compared with the reference"""
    reference_groups: int = 150
    reference_steps: int = 200
    budgets: tuple[int, ...] = (3, 5, 6, 8, 10, 20, 50)
    guidances: tuple[float, ...] = (1.5, 5.0)
    judged: tuple[int, ...] = (5, 10)
    """budgets at which accuracy and toy-FID are measured too"""
    judged_images: int = 200
    statistics_images: int = 80
    cells: int = 40
    statistics_steps: int = 20
    batch: int = 32
    workers: int = 2
    """processes of one thread each, a guidance at a time"""
    clocked: tuple[int, int, int] = (8, 10, 3)
    """images, calls and rounds of the runs that are timed"""


QUICK = SamplingBench(4, 2, 12, (3, 5), (1.5,), (5,), 6, 8, 3, 2, 4, clocked=(2, 3, 1))


def solvers(prior: Prior, statistics: ModelStatistics) -> dict[str, Callable[[], Solver]]:
    """What is compared; those of diffusers come first."""
    flow, kind = NoiseSchedule.from_config(prior.scheduler_config).flow, prior.prediction_type
    named = ("ddim", "euler", "heun", "dpm++", "dpm++3m", "unipc", "ghvb:2,0.5", "ghvb:4,0.8", "hb:dpm++,0.9")
    found: dict[str, Callable[[], Solver]] = {n: partial(make_solver, n, flow, kind) for n in named}
    del found["ddim" if flow else "euler"]  # equal there, as tests show
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
    """The table of the backbone, what each guidance cost, and two pictures."""
    config = QUICK if context.quick else SamplingBench()
    with ProcessPoolExecutor(min(config.workers, len(config.guidances)), mp_context=get_context("spawn")) as pool:
        panels = list(pool.map(partial(panel, context.prior, config=config, seed=context.seed), config.guidances))
    table = [row for rows, _ in panels for row in rows]
    _plot(table, "nfe", "network calls per image and branch", context.picture("-nfe"))
    _plot(table, "seconds_per_image", "seconds per image", context.picture("-seconds"))
    made = {"config": asdict(config), "seeds": [context.seed], "table": table}
    return made | {"panels": [facts for _, facts in panels]}


def panel(name: str, guidance: float, config: SamplingBench, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of one backbone at one guidance, in one thread, and what they cost."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    prior, judge = load_prior(name), Judge.from_pretrained()
    count, most = config.images, max(config.images, config.judged_images)
    test = renders("test", most, views=1)
    reference = features(judge, renders("test", config.reference_groups, first=most).images)
    condition, noise = prior.encode_text(test.prompts), seeded_noise(prior.latent_shape, most, seed)
    steps, batch = config.reference_steps, config.batch
    few = (condition.index(range(count)), noise[:count])
    problem = PairedError(prior, *few, guidance, steps=steps, final="index0", batch=batch)
    sizes = (config.statistics_images, config.cells, config.statistics_steps, batch)
    statistics = measured(prior, guidance, *sizes, seed)
    rows, compared = [], solvers(prior, statistics)
    pace = _pace(prior, condition, noise, guidance, compared, config)
    for label, build in compared.items():
        for budget in config.budgets:
            calls = steps_for(build(), budget)
            if calls is None:
                continue
            drawn = most if budget in config.judged else count
            levels = problem.schedule.grid(calls, "logsnr", "index0")
            part = (condition.index(range(drawn)), noise[:drawn], levels, guidance)
            states = run_sampler(prior, *part, build(), batch=batch)
            row: dict[str, Any] = {"backbone": name, "guidance": guidance, "solver": label, "nfe": budget}
            row |= {
                "mse": bootstrapped(problem.errors(states[:count]).numpy()),
                "seconds_per_image": digits(budget * pace[label], 3),
            }
            if budget in config.judged:
                row |= scores(judge, decoded(prior, states), test.meanings, reference)
            rows.append(row)
    memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    facts = {"backbone": name, "guidance": guidance, "nfe_rows": prior.nfe, "peak_memory_mb": memory}
    return rows, {**facts, "seconds": round(time.perf_counter() - began, 1)}


def _pace(
    prior: Prior,
    condition: Condition,
    noise: Tensor,
    guidance: float,
    compared: dict[str, Callable[[], Solver]],
    config: SamplingBench,
) -> dict[str, float]:
    """Median seconds of an image and network call with each solver; they take turns."""
    images, calls, rounds = config.clocked
    part = (condition.index(range(images)), noise[:images])
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    jobs: dict[str, Callable[[], object]] = {}
    counts: dict[str, int] = {}
    for label, build in compared.items():
        steps = next(n for n in range(calls, 0, -1) if build().calls(n) <= calls)
        counts[label] = build().calls(steps)
        grid = schedule.grid(steps, "logsnr", "index0")
        jobs[label] = partial(lambda build, grid: run_sampler(prior, *part, grid, guidance, build()), build, grid)
    times = interleaved(jobs, rounds)
    return {label: float(np.median(times[label])) / (counts[label] * images) for label in compared}


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
        if key == "nfe":
            axes.set_xticks(sorted({row[key] for row in rows}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("squared distance to the reference")
    figure.axes[-1].legend(fontsize=7)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
