"""Momentum at high guidance and few steps: divergence, Frechet distance, and what damping costs in accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import DDIM, NoiseSchedule, Solver, make_solver
from ..core.sampling.divergence import magnitude_score
from ..core.sampling.solvers import HeavyBall, LinearMultistep
from ..toybox.judge import Judge
from .intervals import bootstrapped, digits
from .runner import Context
from .toy_latents import decoded, encoded, features, renders, run_sampler, scores, seeded_noise, yardstick

BASELINE = "plms 4"


@dataclass(frozen=True)
class MomentumBench:
    """Sizes of the experiment."""

    seeds: int = 3
    """repetitions, each with prompts and noises of its own"""
    images: int = 70
    """of each repetition"""
    reference_groups: int = 200
    steps: tuple[int, ...] = (6, 8, 20)
    guidance: float = 10.0
    exact_images: int = 16
    exact_guidance: float = 3.0
    exact_steps: tuple[int, ...] = (10, 20)
    long_steps: int = 200
    """of the reference of the accuracy part"""
    batch: int = 35


QUICK = MomentumBench(2, 2, 2, (6,), 7.5, 2, 1.5, (4,), 12, 4)
SEED_STEP = 10_000  # between the repetitions


def solvers(prior: Prior) -> dict[str, Callable[[], Solver]]:
    """What is compared; the baselines come first, and BASELINE before what is compared with it."""
    flow, kind = NoiseSchedule.from_config(prior.scheduler_config).flow, prior.prediction_type
    return {
        "ddim": DDIM,
        "dpm++ 2M": lambda: make_solver("dpm++", flow, kind),
        BASELINE: lambda: LinearMultistep(4),
        "plms 4, hb 0.9": lambda: HeavyBall(LinearMultistep(4), 0.9),
        "plms 4, hb 0.8": lambda: HeavyBall(LinearMultistep(4), 0.8),
        "ghvb 3.9": lambda: LinearMultistep(4, 0.9),
        "ghvb 3.8": lambda: LinearMultistep(4, 0.8),
        "ghvb 3.5": lambda: LinearMultistep(4, 0.5),
    }


def run(context: Context) -> dict[str, Any]:
    """Magnitude score, accuracy and toy-FID of every solver; distance of GHVB 1.1 to 1.9 to a long run."""
    config = QUICK if context.quick else MomentumBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    count = config.seeds * config.images
    test, real = renders("test", count, views=1), renders("test", config.reference_groups, views=4, first=count)
    yard, latents = yardstick(judge, count, config.reference_groups, first=count), encoded(prior, real.images)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    condition = prior.encode_text(test.prompts)
    seeds = [context.seed + k * SEED_STEP for k in range(config.seeds)]
    noise = torch.cat([seeded_noise(prior.latent_shape, config.images, seed) for seed in seeds])
    table: list[dict[str, Any]] = []
    for steps in config.steps:
        plain: Tensor | None = None
        for name, build in solvers(prior).items():
            began, rows = time.perf_counter(), prior.nfe
            final = sampled(prior, condition, noise, config.guidance, build(), steps, config.batch)
            row: dict[str, Any] = {"solver": name, "guidance": config.guidance, "steps": steps}
            row |= {"nfe_rows": prior.nfe - rows, "seconds": round(time.perf_counter() - began, 1)}
            magnitude = magnitude_score(final, mean, std)
            for key, values in (("magnitude", magnitude.score), ("diverged", magnitude.share)):
                row[key] = bootstrapped(values.numpy())
                row[f"{key}_by_seed"] = [digits(part.mean()) for part in values.split(config.images)]
            images = decoded(prior, final)
            table.append(row | scores(judge, images, test.meanings, yard, plain))
            plain = features(judge, images) if name == BASELINE else plain
    real_score = magnitude_score(latents, mean, std)
    return {
        "config": asdict(config),
        "seeds": seeds,
        "table": table,
        "magnitude_of_renders": bootstrapped(real_score.score.numpy()),
        "accuracy": accuracy(prior, condition.index(range(config.exact_images)), config, context.seed),
    }


def sampled(
    prior: Prior, condition: Condition, noise: Tensor, guidance: float, solver: Solver, steps: int, batch: int
) -> Tensor:
    """Final latents (N, C, h, w) on the prior's own grid."""
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(steps, tokens=prior.tokens(noise))
    return run_sampler(prior, condition, noise, levels, guidance, solver, batch=batch)


def accuracy(prior: Prior, condition: Condition, config: MomentumBench, seed: int) -> list[dict[str, Any]]:
    """Mean squared distance to a long DPM-Solver++ run from the same noise, between DDIM and PLMS of order 2."""
    noise = seeded_noise(prior.latent_shape, config.exact_images, seed)
    guidance, batch = config.exact_guidance, config.batch
    long = make_solver("dpm++", NoiseSchedule.from_config(prior.scheduler_config).flow, prior.prediction_type)
    reference = sampled(prior, condition, noise, guidance, long, config.long_steps, batch)
    chosen: dict[str, Solver] = {"ddim": DDIM(), "plms 2": LinearMultistep(2)}
    chosen |= {f"ghvb 1.{k}": LinearMultistep(2, k / 10) for k in (1, 3, 5, 7, 9)}
    rows = []
    for steps in config.exact_steps:
        for name, solver in chosen.items():
            final = sampled(prior, condition, noise, guidance, solver, steps, batch)
            error = (final.double() - reference.double()).square().flatten(1).mean(1)
            rows.append({"solver": name, "steps": steps, "mse": bootstrapped(error.numpy())})
    return rows
