"""What asynchronous score distillation rests on: the prior finds the noise the better the more there is.

e(t) = E |eps_c(x_t, t) - n|^2 over toybox renders falls with t, so a look a little further in the noise stands in
for a trained one. Pulls: variance over draws of noise in shares of |mean|^2, with the published shift and others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from ..core.distillation.rules import RuleConfig
from ..core.distillation.rules.asd import ASD
from ..core.distillation.score import ScoreConfig, ScoreDistillation
from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import Denoiser
from ..utils.seeds import generator
from .intervals import bootstrapped
from .runner import Context
from .toy_latents import Renders, encoded, renders, seeded_noise

SCORE = ScoreConfig(form="score", guidance=7.5, rescale=0.0, weight="sigma2")
RULES = {
    "sds": (RuleConfig(), 7.5),
    "sds, guidance 100": (RuleConfig(), 100.0),
    "sds, no guidance": (RuleConfig(), 1.0),
    "asd, no guidance": (RuleConfig("asd"), 1.0),
    "csd": (RuleConfig("asd", asd=ASD(shift=0.0)), 7.5),  # times s - 1
    "asd": (RuleConfig("asd"), 7.5),
    "asd, three times the shift": (RuleConfig("asd", asd=ASD(shift=0.3)), 7.5),
}


@dataclass(frozen=True)
class AsdBench:
    """Sizes of the experiment."""

    renders: int = 256
    levels: int = 20
    pulled: int = 16  # renders whose pull is looked at
    draws: int = 8  # of noise
    times: tuple[float, ...] = (0.25, 0.5, 0.75)


@torch.no_grad()
def noise_error(prior: Prior, latents: Tensor, condition: Condition, index: float, seed: int) -> Tensor:
    """e at a train index for each latent (N,), a mean over elements."""
    denoiser = Denoiser(prior, condition)
    level, noise = denoiser.schedule.at_index(index), seeded_noise(latents.shape[1:], len(latents), seed)
    found = []
    for rows in torch.arange(len(latents)).split(64):
        state = denoiser.schedule.add_noise(latents[rows], noise[rows], level)
        eps = denoiser.with_condition(condition.index(rows))(state, level).eps
        found.append((eps - noise[rows]).square().flatten(1).mean(1))
    return torch.cat(found)


def premise(prior: Prior, given: Renders, levels: int, seed: int) -> tuple[list[dict[str, Any]], float]:
    """(e at so many times, Spearman's correlation of its mean with time)."""
    latents, condition = encoded(prior, given.images), prior.encode_text(given.prompts)
    times = [0.02 + 0.96 * i / (levels - 1) for i in range(levels)]
    errors = [bootstrapped(noise_error(prior, latents, condition, t * 999, seed).numpy()) for t in times]
    curve = [{"t": round(t, 3), "error": error} for t, error in zip(times, errors, strict=True)]
    return curve, float(stats.spearmanr(times, [error["mean"] for error in errors]).statistic)


def variance(prior: Prior, given: Renders, name: str, time: float, config: AsdBench) -> list[float]:
    """Variance of the pull at each render over draws of noise, in shares of the squared mean."""
    rule, guidance = RULES[name]
    images, condition = given.images[: config.pulled], prior.encode_text(given.prompts[: config.pulled])
    score = ScoreDistillation(replace(SCORE, rule=rule, guidance=guidance), prior, condition)
    index = torch.full((len(images),), round(time * (score.schedule.steps - 1)))
    pulls = []
    for seed in range(config.draws):
        with torch.no_grad():
            x = prior.encode(images)
        noise = seeded_noise(x.shape[1:], len(x), 1000 * seed)
        out = score(images, 0.5, generator(seed), condition, noise, index)
        pulls.append(x - out.x0_hat)
    stacked = torch.stack(pulls).flatten(2).double()  # (draws, B, N)
    return list((stacked.var(0).sum(-1) / stacked.mean(0).square().sum(-1).clamp_min(1e-20)).tolist())


def run(context: Context) -> dict[str, Any]:
    """Rows of pulls, and the curve e(t) with its rank correlation."""
    config = AsdBench(16, 5, 4, 3, (0.5,)) if context.quick else AsdBench()
    prior = load_prior(context.prior)
    given = renders("test", (config.renders + 3) // 4)
    curve, rank = premise(prior, given, config.levels, context.seed)
    rows = [
        {"quantity": name, "t": time, "variance": bootstrapped(variance(prior, given, name, time, config))}
        for time in config.times
        for name in RULES
    ]
    return {"config": asdict(config), "seeds": [context.seed], "table": rows, "noise_error": curve, "spearman": rank}
