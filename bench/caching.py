"""What the experiments on caches share: runs from the same noise with and without a cache, their quality and cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import NoiseSchedule
from ..core.sampling.caches import CacheConfig, caching, count_macs
from ..toybox.captions import Meaning
from ..toybox.judge import Judge
from .distances import Yardstick
from .runner import interleaved
from .toy_latents import decoded, features, paired_mse, renders, run_sampler, scores, seeded_noise, yardstick

Options = dict[str, Any]
PROFILED = 4  # images of the runs that are looked into
CLOCKED = 8  # images of the runs that are timed against each other


@dataclass(frozen=True)
class CacheSetting:
    """Sizes that every experiment on caches has."""

    images: int = 200
    reference_groups: int = 200
    steps: int = 50
    guidance: float = 3.0
    solver: str = "ddim"
    batch: int = 50


@dataclass(frozen=True)
class Scene:
    """A prior, prompts, noise and features of renders, and a full run to compare with."""

    prior: Prior
    judge: Judge
    setting: CacheSetting
    condition: Condition
    meanings: list[Meaning]
    noise: Tensor
    yard: Yardstick
    full: Tensor  # latents of the plain run
    full_cost: Options  # its seconds and network rows
    full_macs: int  # of one image, one run
    full_features: Tensor  # of its images

    @classmethod
    def make(cls, prior_name: str, setting: CacheSetting, seed: int) -> Scene:
        """Loads and draws what a table needs."""
        prior, judge = load_prior(prior_name), Judge.from_pretrained()
        test = renders("test", setting.images, views=1)
        yard = yardstick(judge, setting.images, setting.reference_groups, first=setting.images)
        condition = prior.encode_text(test.prompts)
        noise = seeded_noise(prior.latent_shape, setting.images, seed)
        options = (setting.guidance, setting.solver)
        levels = grid_of(prior, setting.steps, noise)
        before, began = prior.nfe, time.perf_counter()
        full = run_sampler(prior, condition, noise, levels, *options, batch=setting.batch)
        cost = {"seconds": round(time.perf_counter() - began, 2), "nfe_rows": prior.nfe - before}
        macs = count_macs(lambda: run_sampler(prior, condition.index([0]), noise[:1], levels, *options))
        seen = features(judge, decoded(prior, full))
        return cls(prior, judge, setting, condition, test.meanings, noise, yard, full, cost, macs, seen)

    def plain(self) -> Options:
        """The line of the plain run."""
        quality = scores(self.judge, decoded(self.prior, self.full), self.meanings, self.yard)
        head = {"setting": "plain", "steps": self.setting.steps, "mse_to_full": paired_mse(self.full, self.full)}
        return {**head, **quality, "mac_ratio": 1.0, **self.full_cost, "cache_bytes": 0}

    def row(
        self, name: str, config: CacheConfig | None = None, steps: int | None = None, prior: Prior | None = None
    ) -> Options:
        """One line of a table: quality of a run (with a cache, other steps, another prior) and what it cost."""
        chosen, count = prior or self.prior, steps or self.setting.steps
        levels = grid_of(chosen, count, self.noise)

        def draw(rows: int) -> Tensor:
            part = (self.condition.index(slice(0, rows)), self.noise[:rows], levels)
            return run_sampler(chosen, *part, self.setting.guidance, self.setting.solver, batch=self.setting.batch)

        with caching(chosen, config, steps=count) as cache:
            macs = count_macs(lambda: draw(1))
            before, began = chosen.nfe, time.perf_counter()
            latents = draw(len(self.noise))
            took, nfe = time.perf_counter() - began, chosen.nfe - before
            held = 0 if cache is None else cache.peak_bytes
        images = decoded(chosen, latents)
        quality = scores(self.judge, images, self.meanings, self.yard, self.full_features)
        cost = {"mac_ratio": round(self.full_macs / macs, 3), "seconds": round(took, 2), "nfe_rows": nfe}
        error = {"mse_to_full": paired_mse(latents, self.full)}
        return {"setting": name, "steps": count, **error, **quality, **cost, "cache_bytes": held}

    def run_once(self) -> Callable[[], object]:
        """A plain run of a few images, for profiling."""
        levels, rows = grid_of(self.prior, self.setting.steps, self.noise), slice(0, PROFILED)
        part = (self.condition.index(rows), self.noise[rows], levels)
        return lambda: run_sampler(self.prior, *part, self.setting.guidance, self.setting.solver)

    def clock(self, configs: Sequence[CacheConfig], rounds: int = 3) -> list[dict[str, float]]:
        """Wall-clock speed-up of each config over the plain run of CLOCKED images: quartiles of interleaved rounds."""
        rows = slice(0, min(CLOCKED, len(self.noise)))
        levels = grid_of(self.prior, self.setting.steps, self.noise)
        part = (self.condition.index(rows), self.noise[rows], levels)

        def draw(config: CacheConfig | None) -> None:
            with caching(self.prior, config, steps=self.setting.steps):
                run_sampler(self.prior, *part, self.setting.guidance, self.setting.solver)

        runs = {str(i): partial(draw, config) for i, config in enumerate([None, *configs])}
        plain, *cached = interleaved(runs, rounds).values()
        ratios = [plain / seconds for seconds in cached]
        names = ("low", "median", "high")
        return [dict(zip(names, (round(float(v), 3) for v in np.quantile(r, (0.25, 0.5, 0.75))))) for r in ratios]


def grid_of(prior: Prior, steps: int, noise: Tensor) -> list[Any]:
    """The prior's own grid."""
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    return schedule.grid(steps, prior.recommended.spacing, tokens=prior.tokens(noise))


def equal_cost_steps(steps: int, mac_ratio: float) -> int:
    """Steps of a plain run that costs as much as a cached one."""
    return max(round(steps / mac_ratio), 1)
