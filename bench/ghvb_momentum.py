"""Momentum at high guidance and few steps: divergence, Frechet distance, and what damping costs in accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler, Solver, make_solver
from ..core.sampling.divergence import magnitude_score
from ..core.sampling.solvers import HeavyBall, LinearMultistep
from ..toybox.judge import Judge
from .runner import Context, spread
from .toy_latents import decoded, encoded, features, renders, scores, seeded_noise


@dataclass(frozen=True)
class MomentumBench:
    """Sizes of the experiment."""

    images: int = 128
    reference_groups: int = 200
    steps: tuple[int, ...] = (6, 8, 10, 15, 20)
    guidances: tuple[float, ...] = (7.5, 15.0)
    exact_images: int = 32
    exact_guidance: float = 3.0
    exact_steps: tuple[int, ...] = (10, 20, 40)
    long_steps: int = 500
    """of the reference of the accuracy part"""
    batch: int = 32


QUICK = MomentumBench(4, 2, (6,), (7.5,), 2, 1.5, (4,), 12, 4)


def solvers(prior: Prior) -> dict[str, Callable[[], Solver]]:
    """What is compared; the baselines come first."""
    flow, kind = NoiseSchedule.from_config(prior.scheduler_config).flow, prior.prediction_type
    return {
        "ddim": DDIM,
        "dpm++ 2M": lambda: make_solver("dpm++", flow, kind),
        "plms 4": lambda: LinearMultistep(4),
        "dpm++ 2M, hb 0.9": lambda: HeavyBall(make_solver("dpm++", flow, kind), 0.9),
        "dpm++ 2M, hb 0.8": lambda: HeavyBall(make_solver("dpm++", flow, kind), 0.8),
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
    test = renders("test", config.images, views=1)
    real = renders("test", config.reference_groups, views=4, first=config.images)
    reference, latents = features(judge, real.images), encoded(prior, real.images)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    condition = prior.encode_text(test.prompts)
    noise = seeded_noise(prior.latent_shape, config.images, context.seed)
    table: list[dict[str, Any]] = []
    for guidance in config.guidances:
        for steps in config.steps:
            for name, build in solvers(prior).items():
                began, rows = time.perf_counter(), prior.nfe
                final = sampled(prior, condition, noise, guidance, build(), steps, config.batch)
                row = {"solver": name, "guidance": guidance, "steps": steps, "nfe_rows": prior.nfe - rows}
                row["seconds"] = round(time.perf_counter() - began, 1)
                magnitude = magnitude_score(final, mean, std)
                row |= {"magnitude": spread(magnitude.score.tolist()), "diverged": spread(magnitude.share.tolist())}
                table.append(row | scores(judge, decoded(prior, final), test.meanings, reference))
    real_score = magnitude_score(latents, mean, std)
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": sorted(table, key=lambda row: row["solver"] not in ("ddim", "dpm++ 2M", "plms 4")),
        "magnitude_of_renders": spread(real_score.score.tolist()),
        "accuracy": accuracy(prior, condition.index(range(config.exact_images)), config, context.seed),
    }


@torch.no_grad()
def sampled(
    prior: Prior, condition: Condition, noise: Tensor, guidance: float, solver: Solver, steps: int, batch: int
) -> Tensor:
    """Final latents (N, C, h, w) on the prior's own grid."""
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(steps, tokens=prior.tokens(noise))
    parts = []
    for start in range(0, noise.shape[0], batch):
        rows = slice(start, start + batch)
        parts.append(Sampler(solver).run(Denoiser(prior, condition.index(rows), guidance), noise[rows], levels))
    return torch.cat(parts)


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
            rows.append({"solver": name, "steps": steps, "mse": spread(error.tolist())})
    return rows
