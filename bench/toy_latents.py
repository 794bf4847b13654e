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
from ..toybox.judge import Judge, frechet
from ..toybox.samples import plain_meaning
from ..utils.seeds import generator, sample_noise
from .runner import bootstrapped, digits, resamples, share

FID_IMAGES = 200  # features are 192 numbers: the covariance of fewer pictures is singular
FID_DRAWS = 40  # resamplings of the pictures


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
        images.append(render_group(job, index)["rgb"][:views])
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


def agreement(judge: Judge, images: Tensor, meanings: Sequence[Meaning]) -> dict[str, np.ndarray]:
    """Flags (N,) by question: what the images show of what their sentences say."""
    parts = [judge(images[i : i + 100]).agrees(meanings[i : i + 100]) for i in range(0, len(images), 100)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def scores(
    judge: Judge, images: Tensor, meanings: Sequence[Meaning], reference: Tensor, plain: Tensor | None = None
) -> dict[str, Any]:
    """Share of images that show what their sentence says, and `toy_fid`."""
    row = {"accuracy": share(agreement(judge, images, meanings)["all"])}
    return row | toy_fid(features(judge, images), reference, plain)


def toy_fid(seen: Tensor, reference: Tensor, plain: Tensor | None = None) -> dict[str, Any]:
    """Frechet distance of features (N, D) to those of renders, and its deviation over resampled pictures.

    With the features `plain` of the same N sentences and noises, also the ratio to their distance, the same pictures
    resampled in both: (ratio, 95 % interval). Nothing for fewer than FID_IMAGES pictures.
    """
    if min(len(seen), len(reference)) < FID_IMAGES:
        return {}
    value, *drawn = resampled_fid(seen, reference)
    row: dict[str, Any] = {"toy_fid": round(value, 3), "toy_fid_std": round(float(np.std(drawn, ddof=1)), 3)}
    if plain is not None:
        middle, *ratios = np.array([value, *drawn]) / resampled_fid(plain, reference)
        reach = np.exp(1.96 * np.log(ratios).std(ddof=1))
        row["toy_fid_ratio"] = {"ratio": digits(middle), "low": digits(middle / reach), "high": digits(middle * reach)}
    return row


def resampled_fid(seen: Tensor, reference: Tensor) -> list[float]:
    """Frechet distance of features (N, D) to those of renders, then of FID_DRAWS resamplings, alike for equal N."""
    return [frechet(reference, seen), *(frechet(reference, seen[rows]) for rows in resamples(len(seen), FID_DRAWS))]


def paired_mse(a: Tensor, b: Tensor) -> dict[str, float]:
    """Mean squared difference of latents (N, C, h, w) drawn from the same noise, with its interval."""
    return bootstrapped((a.double() - b.double()).square().flatten(1).mean(1).numpy())
