"""What the experiments on sampling share: rendered images with captions, their latents, runs, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Condition, Prior
from ..core.sampling import Denoiser, Level, Sampler, Solver, make_solver
from ..core.sampling.denoiser import Control, Remap
from ..core.sampling.init import Init, NoiseInit, sample_from
from ..toybox.captions import Meaning, say
from ..toybox.dataset import RenderJob, render_group
from ..toybox.judge import Judge
from ..toybox.samples import plain_meaning
from ..utils.seeds import generator, sample_noise
from .distances import Features, Yardstick
from .intervals import bootstrapped, share


@dataclass(frozen=True)
class Renders:
    """Rendered objects and what a short sentence says of them."""

    images: Tensor  # (N, 3, H, W) in [0, 1]
    meanings: list[Meaning]

    @property
    def prompts(self) -> list[str]:
        """One sentence an image."""
        return [say(meaning) for meaning in self.meanings]


def renders(split: str, groups: int, size: int = 64, views: int = 4, first: int = 0) -> Renders:
    """`views` (up to 4) images of each of `groups` objects of a split."""
    job = RenderJob("object", split, first + groups, size)
    images, meanings = [], []
    for index in range(first, first + groups):
        images.append(render_group(job, index, views)["rgb"])
        meanings += [plain_meaning(split, index)] * views
    stacked = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).float() / 255
    return Renders(stacked, meanings)


@torch.no_grad()
def encoded(prior: Prior, images: Tensor, batch: int = 64) -> Tensor:
    """Scaled latents (N, C, h, w)."""
    return torch.cat([prior.encode(part) for part in images.split(batch)])


@torch.no_grad()
def decoded(prior: Prior, latents: Tensor, batch: int = 64) -> Tensor:
    """Images (N, 3, H, W) in [0, 1]."""
    return torch.cat([prior.decode(part) for part in latents.split(batch)])


def seeded_noise(shape: Sequence[int], count: int, seed: int) -> Tensor:
    """Unit noise (count, *shape), one seed a row."""
    return sample_noise(shape, [generator(seed + i) for i in range(count)], count)


@torch.no_grad()
def run_sampler(
    prior: Prior,
    condition: Condition,
    noise: Tensor,
    levels: Sequence[Level],
    guidance: float,
    solver: str | Solver = "ddim",
    init: Init | None = None,
    time_remap: Remap | None = None,
    controls: Sequence[Control] = (),
    batch: int = 50,
) -> Tensor:
    """Final latents (N, C, h, w) of N condition rows."""
    parts = []
    for start in range(0, noise.shape[0], batch):
        rows = slice(start, start + batch)
        denoiser = Denoiser(prior, condition.index(rows), guidance, time_remap, controls)
        method = solver
        if isinstance(method, str):
            method = make_solver(method, denoiser.schedule.flow, prior.prediction_type)
        parts.append(sample_from(init or NoiseInit(), Sampler(method), denoiser, noise[rows], levels))
    return torch.cat(parts)


def features(judge: Judge, images: Tensor) -> Tensor:
    """Judge features (N, D)."""
    return torch.cat([judge.features(part) for part in images.split(100)])


def agreement(judge: Judge, images: Tensor, meanings: Sequence[Meaning], pairs: bool = False) -> dict[str, np.ndarray]:
    """Flags (N,) by question: what the images show of what their sentences say; `pairs` as in Judge."""
    parts = [judge(images[i : i + 100], pairs).agrees(meanings[i : i + 100]) for i in range(0, len(images), 100)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def yardstick(judge: Judge, pictures: int, groups: int, first: int, size: int = 64, views: int = 4) -> Yardstick:
    """Features of the test objects from number `first` on: `groups` in so many views each, and as many others in one
    view each as there are `pictures` drawn."""
    reference = renders("test", groups, size, views, first)
    others = renders("test", pictures, size, 1, first + groups)
    return Yardstick(Features.of(features(judge, reference.images), views), Features.of(features(judge, others.images)))


def scores(
    judge: Judge, images: Tensor, meanings: Sequence[Meaning], yard: Yardstick, plain: Tensor | None = None
) -> dict[str, Any]:
    """Share of images, of one object each, that show what their sentence says, and their distances from renders.

    plain: judge features (N, D) of drawings of the same sentences from the same noises.
    """
    row = {"accuracy": share(agreement(judge, images, meanings)["all"])}
    seen = Features.of(features(judge, images))
    return row | yard.row(seen, None if plain is None else Features.of(plain))


def paired_mse(a: Tensor, b: Tensor) -> dict[str, float]:
    """Mean squared difference of latents (N, C, h, w) drawn from the same noise, with its interval."""
    return bootstrapped((a.double() - b.double()).square().flatten(1).mean(1).numpy())
