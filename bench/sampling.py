"""Every solver on one backbone at two guidances and seven budgets: a table, two pictures and the presets they choose.

Quality is the paired squared distance of the final latents to a long reference from the same noise; at some budgets
more pictures are drawn, and the judge's accuracy and the toy-FID say what that is worth. Runs that cost more network
calls than the budget are left out. Seconds are those of a call, of all solvers in turn, times the budget. The main
solvers run on three spacings, the others on the one of diffusers' users. `sampling` measures the U-Net, `sampling-dit`
the transformer.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import NoiseSchedule, Solver, make_solver
from ..core.sampling.dpm_v3_statistics import ModelStatistics
from ..core.sampling.grids import Spacing
from ..core.sampling.paired_error import PairedError
from ..core.sampling.solvers import DPMSolverV3
from ..toybox.judge import Judge
from ..utils.files import atomic_path
from .distances import Yardstick
from .dpm_solver_v3 import measured
from .intervals import bootstrapped, digits
from .runner import Context, by_guidance, interleaved
from .toy_latents import Renders, decoded, renders, run_sampler, scores, seeded_noise, yardstick


@dataclass(frozen=True)
class SamplingBench:
    """Sizes of the experiment."""

    images: int = 24
    """compared with the reference"""
    reference_groups: int = 150
    reference_steps: int = 500
    budgets: tuple[int, ...] = (3, 5, 6, 8, 10, 20, 50)
    guidances: tuple[float, ...] = (1.5, 5.0)
    judged: tuple[int, ...] = (5, 8)
    """budgets at which accuracy and toy-FID are measured too"""
    judged_images: int = 200
    statistics_images: int = 32
    cells: int = 100
    statistics_steps: int = 20
    batch: int = 32
    workers: int = 2
    """processes of one thread each, a guidance at a time"""
    clocked: tuple[int, int, int] = (8, 10, 3)
    """images, calls and rounds of the runs that are timed"""
    chosen: tuple[int, ...] = (8, 20, 50)
    """budgets of the presets"""


QUICK = SamplingBench(4, 2, 12, (3, 5), (1.5,), (5,), 6, 8, 3, 2, 4, clocked=(2, 3, 1), chosen=(3, 5))
USUAL: Spacing = "trailing"
SPACINGS: tuple[Spacing, ...] = (USUAL, "logsnr", "karras")
CALIBRATED = "dpm-v3"
SAFE_FROM = 10  # calls


@dataclass(frozen=True)
class Questions:
    """Sentences of the test split with a noise each, and the renders that what is drawn of them is compared with."""

    judge: Judge
    asked: Renders
    yard: Yardstick
    condition: Condition
    noise: Tensor  # (n, C, h, w)

    @classmethod
    def of(cls, prior: Prior, count: int, reference_groups: int, seed: int) -> Questions:
        """The first `count` sentences; the renders are of the objects behind them."""
        judge, asked = Judge.from_pretrained(), renders("test", count, views=1)
        yard = yardstick(judge, count, reference_groups, first=count)
        return cls(judge, asked, yard, prior.encode_text(asked.prompts), seeded_noise(prior.latent_shape, count, seed))

    def first(self, count: int) -> tuple[Condition, Tensor]:
        """Condition and noise of the first of them."""
        return self.condition.index(range(count)), self.noise[:count]

    def scores(self, prior: Prior, states: Tensor) -> dict[str, Any]:
        """Accuracy and toy-FID of the latents (n, C, h, w) drawn of all of them."""
        return scores(self.judge, decoded(prior, states), self.asked.meanings, self.yard)


def solvers(prior: Prior, statistics: ModelStatistics) -> dict[str, Callable[[], Solver]]:
    """What is compared; those of diffusers come first."""
    flow, kind = NoiseSchedule.from_config(prior.scheduler_config).flow, prior.prediction_type
    first_order = "euler" if flow else "ddim"  # equal there, as tests show
    named = (first_order, "heun", "dpm++", "dpm++3m", "unipc", "ghvb:2,0.5", "ghvb:4,0.8", "hb:dpm++,0.9")
    return {
        **{name: partial(make_solver, name, flow, kind) for name in named},
        f"{CALIBRATED}:1": lambda: DPMSolverV3(statistics, 1),
        f"{CALIBRATED}:2": lambda: DPMSolverV3(statistics, 2),
        f"{CALIBRATED}:3": lambda: DPMSolverV3(statistics, 3),
    }


def spacings(label: str) -> tuple[Spacing, ...]:
    """The spacings a solver is measured on."""
    return SPACINGS if label in ("ddim", "euler", "dpm++", "unipc", f"{CALIBRATED}:2") else (USUAL,)


def steps_for(solver: Solver, calls: int) -> int | None:
    """Steps that cost exactly `calls` network calls; None when no number of steps does."""
    for steps in range(calls, 0, -1):
        if solver.calls(steps) == calls:
            return steps
    return None


def run(context: Context) -> dict[str, Any]:
    """The table of the backbone, what each guidance cost, and two pictures."""
    config = QUICK if context.quick else SamplingBench()
    panels = by_guidance(
        partial(panel, context.prior, config=config, seed=context.seed), config.guidances, config.workers
    )
    table = [row for rows, _ in panels for row in rows]
    _plot(table, "nfe", "network calls per image and branch", context.picture("-nfe"))
    _plot(table, "seconds_per_image", "seconds per image", context.picture("-seconds"))
    made = {"config": asdict(config), "seeds": [context.seed], "table": table}
    flow = NoiseSchedule.from_config(load_prior(context.prior).scheduler_config).flow
    chosen = presets(table, config.chosen, (USUAL,) if flow else SPACINGS)
    return made | {"presets": chosen, "panels": [facts for _, facts in panels]}


def presets(table: list[dict[str, Any]], budgets: Sequence[int], allowed: Sequence[str]) -> dict[str, dict[str, Any]]:
    """At each budget, of what needs no calibration, the least geometric mean of the errors over the guidances.

    Nor may it lose to the first solver of the table, of order one, at any guidance from `SAFE_FROM` calls on: users
    keep a preset's solver and change its steps. Flows keep the usual spacing: those in lambda leave out the shift that
    many of them are trained with.
    """
    errors = {
        (row["solver"], row["spacing"], row["nfe"], row["guidance"]): row["mse"]["mean"]
        for row in table
        if row["spacing"] in allowed and not row["solver"].startswith(CALIBRATED)
    }
    guidances, calls = sorted({key[3] for key in errors}), sorted({key[2] for key in errors})
    ways = list(dict.fromkeys(key[:2] for key in errors))
    plain = ways[0]

    def safe(way: tuple[str, str]) -> bool:
        pairs = [(n, g) for n in calls if n >= SAFE_FROM for g in guidances if (*way, n, g) in errors]
        return all(errors[(*way, *pair)] <= errors[(*plain, *pair)] for pair in pairs)

    chosen: dict[str, dict[str, Any]] = {}
    for budget in budgets:
        able = [way for way in ways if safe(way) and all((*way, budget, g) in errors for g in guidances)]
        means = {way: math.exp(np.mean([math.log(errors[(*way, budget, g)]) for g in guidances])) for way in able}
        best = min(means, key=means.__getitem__)
        chosen[str(budget)] = {"solver": best[0], "spacing": best[1], "geometric_mean_mse": digits(means[best])}
    return chosen


def panel(name: str, guidance: float, config: SamplingBench, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of one backbone at one guidance, in one thread, and what they cost."""
    began = time.perf_counter()
    prior, most = load_prior(name), max(config.images, config.judged_images)
    questions = Questions.of(prior, most, config.reference_groups, seed)
    count, batch, final = config.images, config.batch, NoiseSchedule.from_config(prior.scheduler_config).final
    few = questions.first(count)
    problem = PairedError(prior, *few, guidance, steps=config.reference_steps, final=final, batch=batch)
    sizes = (config.statistics_images, config.cells, config.statistics_steps, batch)
    statistics = measured(prior, guidance, *sizes, seed)
    rows, compared = [], solvers(prior, statistics)
    pace = _pace(prior, *few, guidance, compared, config)
    for label, spacing, budget in product(compared, SPACINGS, config.budgets):
        build = compared[label]
        steps = steps_for(build(), budget)
        if steps is None or spacing not in spacings(label):
            continue
        drawn = most if budget in config.judged else count
        levels = problem.schedule.grid(steps, spacing)
        states = run_sampler(prior, *questions.first(drawn), levels, guidance, build(), batch=batch)
        row: dict[str, Any] = {"backbone": name, "guidance": guidance, "solver": label, "spacing": spacing}
        row |= {
            "nfe": budget,
            "mse": bootstrapped(problem.errors(states[:count]).numpy()),
            "seconds_per_image": digits(budget * pace[label], 3),
        }
        if budget in config.judged:
            row |= questions.scores(prior, states)
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
        grid = schedule.grid(steps, USUAL)
        jobs[label] = partial(lambda build, grid: run_sampler(prior, *part, grid, guidance, build()), build, grid)
    times = interleaved(jobs, rounds)
    return {label: float(np.median(times[label])) / (counts[label] * images) for label in compared}


def _plot(table: list[dict[str, Any]], key: str, label: str, path: Path) -> None:
    """Median paired error against a cost, a panel for each backbone and guidance."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row["backbone"], row["guidance"]) for row in table))
    figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rows = [row for row in table if (row["backbone"], row["guidance"]) == panel]
        names = list(dict.fromkeys(row["solver"] for row in rows))
        for solver, spacing in dict.fromkeys((row["solver"], row["spacing"]) for row in rows):
            line = [
                (row[key], row["mse"]["median"]) for row in rows if (row["solver"], row["spacing"]) == (solver, spacing)
            ]
            style = dict(zip(SPACINGS, ("-", ":", "--"), strict=True))[spacing]
            label_of = solver if spacing == USUAL else f"{solver}, {spacing}"
            colour = colormaps["tab20"](names.index(solver))
            axes.plot(*zip(*line, strict=True), style, color=colour, marker=".", linewidth=1, label=label_of)
        axes.set(xscale="log", yscale="log", xlabel=label, title=f"{panel[0]}, guidance {panel[1]:g}")
        if key == "nfe":
            axes.set_xticks(sorted({row[key] for row in rows}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("squared distance to the reference")
    figure.axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
