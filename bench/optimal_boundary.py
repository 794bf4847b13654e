"""A starting noise chosen on reference images: does it serve images it was not chosen for?

The task has a truth: a text-conditional prior is asked, without guidance, for the picture of a rendered object from a
noised, reduced version of it (the image carries what survives at the starting level), and the loss is the distance to
the render in the judge's features or in latents, both of the same samples. Every candidate is run on the held-out
images too, so that what the choice gains is measured against the spread of all of them and against the best possible.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling import Level, NoiseSchedule
from ..core.sampling.init import ImageInit
from ..core.sampling.operators import Operator, super_resolution
from ..core.sampling.optimal_boundary import candidates, variance_shares
from ..tasks.metrics import spearman
from ..toybox.judge import Judge
from .intervals import bootstrapped, digits, resamples
from .runner import Context
from .toy_latents import Renders, decoded, encoded, features, renders, run_sampler

DISTANCES = ("features", "latents")


@dataclass(frozen=True)
class BoundaryBench:
    """Sizes of the experiment."""

    candidates: int = 64
    references: int = 32
    heldout: int = 64
    random: int = 8
    """candidates that are run for long too"""
    steps: tuple[int, ...] = (5, 10)
    long_steps: int = 20
    strength: float = 0.8
    factor: int = 4
    guidance: float = 1.0


QUICK = BoundaryBench(3, 4, 6, 2, (3,), 4)


class Task:
    """Restoring rendered objects from a starting noise; losses against the truth."""

    def __init__(self, prior: Prior, judge: Judge, shown: Renders, config: BoundaryBench) -> None:
        self.prior, self.judge, self.config = prior, judge, config
        size = shown.images.shape[-1]
        operator: Operator = super_resolution(config.factor, size, size)
        blurred = operator.pseudo_inverse(operator.forward(shown.images)).clamp(0, 1)
        self.start, self.truth = encoded(prior, blurred), encoded(prior, shown.images)
        self.seen = features(judge, shown.images)
        self.condition = prior.encode_text(shown.prompts)
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)

    def losses(self, noises: Tensor, steps: int) -> dict[str, Tensor]:
        """By distance, losses (K, R) of what noises (K, C, h, w) make of every image."""
        rows = [self._losses(noise.expand_as(self.start), steps) for noise in noises]
        return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(DISTANCES)}

    def _losses(self, noise: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """(R,) distances in features and in latents."""
        init = ImageInit(self.start, self.config.strength)
        grid = levels(self.schedule, steps, self.config.strength)
        final = run_sampler(self.prior, self.condition, noise, grid, self.config.guidance, init=init, batch=len(noise))
        seen = features(self.judge, decoded(self.prior, final))
        return (seen - self.seen).square().mean(1), (final - self.truth).square().mean((1, 2, 3))


def levels(schedule: NoiseSchedule, steps: int, strength: float) -> list[Level]:
    """The shortest grid of which `strength` leaves exactly `steps` steps."""
    count = next(n for n in range(steps, schedule.steps + 1) if int(n * strength) >= steps)
    assert int(count * strength) == steps
    return schedule.grid(count)


def run(context: Context) -> dict[str, Any]:
    """For each distance and step count: random, chosen and best noises on held-out images, and how losses vary."""
    config = QUICK if context.quick else BoundaryBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    references = Task(prior, judge, renders("train", config.references, views=1), config)
    heldout = Task(prior, judge, renders("test", config.heldout, views=1), config)
    noises = candidates(prior.latent_shape, range(context.seed, context.seed + config.candidates))
    long = heldout.losses(noises[: config.random], config.long_steps)
    table: list[dict[str, Any]] = [
        {"noise": "random", "distance": name, "steps": config.long_steps, "loss": _over_noises(long[name])}
        for name in DISTANCES
    ]
    for steps in config.steps:
        known, new = references.losses(noises, steps), heldout.losses(noises, steps)
        for name in DISTANCES:
            rows = compared(known[name], new[name])
            table += [{"noise": row.pop("noise"), "distance": name, "steps": steps, **row} for row in rows]
    return {"config": asdict(config), "seeds": [context.seed], "table": table}


def compared(known: Tensor, new: Tensor) -> list[dict[str, Any]]:
    """Rows of the random, the chosen and the best noises, from losses (K, R) on references and (K, H) held out.

    `gain_in_std` is what the choice gains over the mean noise, in deviations between the noises' held-out means.
    """
    known, new = known.double(), new.double()
    means, shares = known.mean(1), variance_shares(known)
    best = int(means.argmin())
    drawn = new[:, torch.from_numpy(resamples(new.shape[1], 200))].mean(-1)  # (K, draws)
    low, high = np.quantile(_gain(drawn, best).numpy(), (0.025, 0.975))
    return [
        {"noise": "random", "loss": _over_noises(new)},
        {
            "noise": "chosen",
            "loss": bootstrapped(new[best].numpy()),
            "reference_loss": digits(means[best]),
            "gain_in_std": {
                "gain": round(float(_gain(new.mean(1), best)), 3),
                "low": round(float(low), 3),
                "high": round(float(high), 3),
            },
            "rank_correlation_of_two_sets": round(spearman(means, new.mean(1)), 3),
            "variance_of_noise": digits(shares.noise),
            "variance_of_interaction": digits(shares.interaction),
            "transfer": round(shares.transfer, 3),
        },
        {"noise": "best of all for all images", "loss": bootstrapped(new[int(new.mean(1).argmin())].numpy())},
        {"noise": "best of all for each image", "loss": bootstrapped(new.amin(0).numpy())},
    ]


def _gain(means: Tensor, best: int) -> Tensor:
    """(mean over the noises - that of the chosen one) / deviation between noises, of means (K, ...)."""
    return (means.mean(0) - means[best]) / means.std(0).clamp_min(1e-12)


def _over_noises(losses: Tensor) -> dict[str, float]:
    """Mean and deviation between noises of their mean losses, (K, R)."""
    means = losses.double().mean(1)
    return {"mean": digits(means.mean()), "std": digits(means.std()), "n": len(means)}
