"""A starting noise chosen on reference images: does it serve images it was not chosen for?

The task has a truth: a text-conditional prior is asked for the picture of a rendered object from a noised, reduced
version of it (the image carries what survives at the starting level), and the loss is the distance to the render in the
judge's features or in latents.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling import Level, NoiseSchedule
from ..core.sampling.boundary import BoundarySearch, candidates, search_boundary, variance_shares
from ..core.sampling.init import ImageInit
from ..core.sampling.operators import Operator, super_resolution
from ..tasks.metrics import spearman
from ..toybox.judge import Judge
from .runner import Context, spread
from .toy_latents import Renders, decoded, encoded, features, renders, run_sampler


@dataclass(frozen=True)
class BoundaryBench:
    """Sizes of the experiment."""

    candidates: int = 64
    references: int = 32
    heldout: int = 256
    random: int = 8
    """noises the chosen one is compared with on held-out images"""
    steps: tuple[int, ...] = (5, 10)
    long_steps: int = 20
    strength: float = 0.8
    factor: int = 4
    guidance: float = 3.0
    distances: tuple[str, ...] = ("features", "latents")


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

    def levels(self, steps: int) -> list[Level]:
        """A grid of which `strength` leaves the wanted number of steps."""
        return self.schedule.grid(max(round(steps / self.config.strength), steps))

    def losses(self, noise: Tensor, rows: list[int], steps: int, distance: str) -> Tensor:
        """(n,) distances of what noises (n, C, h, w) make of images `rows`."""
        condition = self.condition.index(rows)
        init = ImageInit(self.start[rows], self.config.strength)
        levels = self.levels(steps)
        final = run_sampler(self.prior, condition, noise, levels, self.config.guidance, init=init, batch=len(rows))
        if distance == "latents":
            return (final - self.truth[rows]).square().mean((1, 2, 3))
        return (features(self.judge, decoded(self.prior, final)) - self.seen[rows]).square().mean(1)

    def mean(self, noise: Tensor, steps: int, distance: str, batch: int = 64) -> float:
        """Mean loss of one noise (C, h, w) over all images."""
        parts = []
        for start in range(0, len(self.truth), batch):
            rows = list(range(start, min(start + batch, len(self.truth))))
            parts.append(self.losses(noise.expand(len(rows), *noise.shape), rows, steps, distance))
        return float(torch.cat(parts).mean())


def run(context: Context) -> dict[str, Any]:
    """For each distance and step count: chosen against random noises on held-out images, and how losses vary."""
    config = QUICK if context.quick else BoundaryBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    groups = config.references + config.references
    chosen_on = Task(prior, judge, renders("train", groups, views=1), config)
    heldout = Task(prior, judge, renders("test", config.heldout, views=1), config)
    seeds = [context.seed + i for i in range(config.candidates)]
    noises = candidates(prior.latent_shape, seeds)
    others = candidates(prior.latent_shape, [context.seed + 90_000 + i for i in range(config.random)])
    table: list[dict[str, Any]] = []
    for distance in config.distances:
        longest = [heldout.mean(noise, config.long_steps, distance) for noise in others]
        table.append({"noise": "random", "distance": distance, "steps": config.long_steps, "loss": spread(longest)})
        for steps in config.steps:
            found, second = (
                search_boundary(_loss(chosen_on, steps, distance, offset), noises, config.references)
                for offset in (0, config.references)
            )
            table += _rows(heldout, found, second, noises, others, steps, distance)
    return {"config": asdict(config), "seeds": [context.seed], "table": table}


def _loss(task: Task, steps: int, distance: str, offset: int) -> Any:
    return lambda noise, rows: task.losses(noise, [offset + i for i in rows], steps, distance)


def _rows(
    heldout: Task,
    found: BoundarySearch,
    second: BoundarySearch,
    noises: Tensor,
    others: Tensor,
    steps: int,
    distance: str,
) -> list[dict[str, Any]]:
    """Random noises, then the chosen one with the evidence about its choice."""
    random = [heldout.mean(noise, steps, distance) for noise in others]
    chosen = heldout.mean(noises[found.best], steps, distance)
    shares = variance_shares(found.losses)
    gain = (float(np.mean(random)) - chosen) / max(float(np.std(random)), 1e-12)
    same = {"distance": distance, "steps": steps}
    return [
        {"noise": "random", **same, "loss": spread(random)},
        {
            "noise": "chosen",
            **same,
            "loss": round(chosen, 6),
            "reference_loss": round(float(found.means[found.best]), 6),
            "gain_in_std": round(gain, 3),
            "rank_correlation_of_two_sets": round(spearman(found.means, second.means), 3),
            "variance_of_noise": shares.noise,
            "variance_of_interaction": shares.interaction,
            "transfer": round(shares.transfer, 3),
        },
    ]
