"""Q-Sched on a few-step run of a quantised prior: how much of the quantisation loss two factors bring back.

The embedded prior is not distilled: its four steps are plain DDIM, far from what many steps draw, so factors may help
the full-precision network as well. What counts is how much more they help a quantised one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import DDIM, Denoiser, Level, NoiseSchedule, Sampler
from ..core.sampling.caches import network_of
from ..core.sampling.q_sched import Calibrated, Coefficients, RescaledDenoiser, Score, calibrate, jaq
from ..core.sampling.quantise import fake_quantized
from ..toybox.captions import Meaning
from ..toybox.judge import Judge
from ..utils.seeds import generator
from .distances import FRECHET_PICTURES, Features, frechet_draws
from .intervals import digits
from .runner import Context
from .toy_latents import decoded, features, paired_mse, renders, scores, seeded_noise, yardstick


@dataclass(frozen=True)
class QSchedBench:
    """Sizes of the experiment."""

    prompts: int = 20
    """for the search"""
    images: int = 320
    """on other prompts, for the result"""
    known_groups: int = 150
    """training objects whose renders say what a good picture is, four views each"""
    reference_groups: int = 250
    steps: int = 4
    guidance: float = 3.0
    weight_bits: tuple[int, ...] = (4, 3)
    activation_bits: int = 8
    grid: int = 10
    low: float = 0.8
    high: float = 1.1
    quality_weight: float = 2.0
    random_pairs: int = 2
    batch: int = 64


QUICK = QSchedBench(4, 8, 3, 4, 3, weight_bits=(4,), grid=2, random_pairs=1, batch=8)
FULL = "full precision"
SEARCH_SEED = 40_000
KEPT = ("conv_in", "conv_out", "pos_embed", "x_embedder", "proj_out")


@dataclass(frozen=True)
class _Lab:
    """Everything that stays the same between rows."""

    prior: Prior
    judge: Judge
    config: QSchedBench
    levels: list[Level]
    known: Tensor  # judge features (M, D) of training renders

    @torch.no_grad()
    def draw(self, condition: Condition, noise: Tensor, pair: Coefficients) -> Tensor:
        """Latents (N, C, h, w) with these factors."""
        parts = []
        for start in range(0, len(noise), self.config.batch):
            rows = slice(start, start + self.config.batch)
            denoiser = Denoiser(self.prior, condition.index(rows), self.config.guidance)
            rescaled = RescaledDenoiser(denoiser, pair, self.levels)
            parts.append(Sampler(DDIM()).run(rescaled, noise[rows], self.levels))
        return torch.cat(parts)

    def score(self, meanings: Sequence[Meaning]) -> Score:
        """JAQ: probability of the noun and the colour asked for, and closeness to the features of training renders."""
        mean = self.known.double().mean(0)
        spread = torch.cov(self.known.double().mT)
        width = len(mean)
        inverse = torch.linalg.inv(spread + 1e-3 * spread.trace() / width * torch.eye(width, dtype=torch.float64))

        def compatibility(images: Tensor) -> Tensor:
            verdict = self.judge(images)
            found = [
                verdict.noun_probs[i, verdict.answers["noun"].index(meaning.phrases[0].noun)]
                * verdict.colour_probs[i, verdict.answers["colour"].index(meaning.phrases[0].colour)]
                for i, meaning in enumerate(meanings)
            ]
            return torch.stack(found)

        def quality(images: Tensor) -> Tensor:
            away = features(self.judge, images).double() - mean
            return torch.exp(-0.5 * ((away @ inverse) * away).sum(1) / width)

        return jaq(compatibility, quality, self.config.quality_weight)


def run(context: Context) -> dict[str, Any]:
    """For the full-precision and each quantised network: plain, searched, random and linearly corrected factors."""
    config = QUICK if context.quick else QSchedBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    small = renders("train", config.prompts, views=1)
    known = features(judge, renders("train", config.known_groups, first=config.prompts).images)
    test = renders("test", config.images, views=1)
    yard = yardstick(judge, config.images, config.reference_groups, first=config.images)
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(config.steps, "trailing")
    lab = _Lab(prior, judge, config, levels, known)
    seed = context.seed + SEARCH_SEED
    search = (prior.encode_text(small.prompts), seeded_noise(prior.latent_shape, config.prompts, seed))
    held = (prior.encode_text(test.prompts), seeded_noise(prior.latent_shape, config.images, context.seed))
    full = lab.draw(*held, Coefficients.constant(config.steps))
    probes = _outputs(lab, *search, small.images)
    table: list[dict[str, Any]] = []
    landscapes: dict[str, Any] = {}
    seen: dict[tuple[str, str], Tensor] = {}
    for bits in (None, *config.weight_bits):
        name = FULL if bits is None else f"W{bits}A{config.activation_bits}"
        with _rounded(lab, bits):
            found = _search(lab, *search, small.meanings)
            landscapes[name] = _landscape(found)
            ours = _outputs(lab, *search, small.images)
            for setting, pair in _pairs(lab, found, probes, ours, context.seed).items():
                latents = lab.draw(*held, pair)
                row = {"network": name, "factors": setting, "c_e": pair.output[0], "c_x": pair.state[0]}
                row |= {"mse_to_full": paired_mse(latents, full)}
                images = decoded(prior, latents)
                seen[name, setting] = features(judge, images)
                table.append(row | scores(judge, images, test.meanings, yard, seen[name, "plain"]))
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "gains": gains(seen, yard.reference),
        "landscapes": landscapes,
    }


def _rounded(lab: _Lab, bits: int | None) -> contextlib.AbstractContextManager[Any]:
    if bits is None:
        return contextlib.nullcontext()
    return fake_quantized(network_of(lab.prior), bits, lab.config.activation_bits, KEPT)


def _search(lab: _Lab, condition: Condition, noise: Tensor, meanings: list[Meaning]) -> Calibrated:
    grid = torch.linspace(lab.config.low, lab.config.high, lab.config.grid, dtype=torch.float64)
    score = lab.score(meanings)
    return calibrate(
        lambda pair: decoded(lab.prior, lab.draw(condition, noise, pair)), score, lab.config.steps, grid, grid
    )


def _landscape(found: Calibrated) -> dict[str, Any]:
    return {"scores": found.scores.tolist(), "plain": found.plain, "gain": found.gain, "flatness": found.flatness()}


def _pairs(
    lab: _Lab, found: Calibrated, probes: list[Tensor], ours: list[Tensor], seed: int
) -> dict[str, Coefficients]:
    """The factors compared: none, the searched ones, chance, and a regression of the output on full precision."""
    steps, rng = lab.config.steps, generator(seed)
    pairs = {"plain": Coefficients.constant(steps), "searched": found.coefficients}
    for k in range(lab.config.random_pairs):
        m, q = (lab.config.low + (lab.config.high - lab.config.low) * torch.rand(2, generator=rng)).tolist()
        pairs[f"random {k}"] = Coefficients.profile(steps, m, q)
    slopes = [float((a * b).sum() / (b * b).sum()) for a, b in zip(probes, ours)]
    pairs["linear correction"] = Coefficients(tuple(slopes), (1.0,) * steps)
    return pairs


@torch.no_grad()
def _outputs(lab: _Lab, condition: Condition, noise: Tensor, images: Tensor) -> list[Tensor]:
    """Network outputs at every level on noised renders (N, 3, H, W), the same for every network."""
    denoiser = Denoiser(lab.prior, condition, lab.config.guidance)
    clean = lab.prior.encode(images)
    return [denoiser(denoiser.schedule.add_noise(clean, noise, level), level).raw for level in lab.levels[:-1]]


def gains(seen: dict[tuple[str, str], Tensor], reference: Features) -> dict[str, dict[str, Any]]:
    """What the searched factors take off the Frechet distance of each network, from features by (network, factors).

    `beyond_full_precision` is that gain less the one of the full-precision network, the rest being tuning of the
    schedule; `recovered` the gain's part of what quantisation cost, where that is above its noise. In all of them the
    floor cancels. Deviations are over resampled pictures, the same ones for all. Empty for fewer than FRECHET_PICTURES
    pictures.
    """
    networks = list(dict.fromkeys(name for name, _ in seen))
    if min(len(reference), len(seen[FULL, "plain"])) < FRECHET_PICTURES:
        return {}
    plain, tuned = (
        {name: frechet_draws(Features.of(seen[name, factors]), reference) for name in networks}
        for factors in ("plain", "searched")
    )
    found: dict[str, dict[str, Any]] = {}
    for name in networks:
        gain = plain[name] - tuned[name]
        found[name] = {"gain": _told(gain)}
        if name != FULL:
            cost = plain[name] - plain[FULL]
            found[name]["beyond_full_precision"] = _told(gain - (plain[FULL] - tuned[FULL]))
            found[name]["cost_of_quantisation"] = _told(cost)
            if cost[0] > 2 * cost[1:].std(ddof=1):
                found[name]["recovered"] = digits(gain[0] / cost[0])
    return found


def _told(values: np.ndarray) -> dict[str, float]:
    """The value, first of the array, and the deviation of its resamplings."""
    return {"value": digits(values[0]), "std": digits(values[1:].std(ddof=1))}
