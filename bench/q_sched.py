"""Q-Sched on a few-step run of a quantised prior: how much of the quantisation loss two factors bring back."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import DDIM, Denoiser, Level, NoiseSchedule, Sampler
from ..core.sampling.caches import network_of
from ..core.sampling.quantise import fake_quantized
from ..core.sampling.rescale import Calibrated, Coefficients, RescaledDenoiser, Score, calibrate, jaq
from ..toybox.captions import Meaning
from ..toybox.judge import Judge
from ..utils.seeds import generator
from .runner import Context
from .toy_latents import decoded, features, paired_mse, renders, scores, seeded_noise


@dataclass(frozen=True)
class QSchedBench:
    """Sizes of the experiment."""

    prompts: int = 20
    """for the search"""
    images: int = 512
    """on other prompts, for the result"""
    reference_groups: int = 250
    steps: int = 4
    guidance: float = 3.0
    weight_bits: tuple[int, ...] = (4, 3)
    activation_bits: int = 8
    grid: int = 10
    low: float = 0.8
    high: float = 1.1
    quality_weight: float = 2.0
    random_pairs: int = 3
    batch: int = 64


QUICK = QSchedBench(4, 8, 4, 3, weight_bits=(4,), grid=2, random_pairs=1, batch=8)
KEPT = ("conv_in", "conv_out", "pos_embed", "x_embedder", "proj_out")


@dataclass(frozen=True)
class _Lab:
    """Everything that stays the same between rows."""

    prior: Prior
    judge: Judge
    config: QSchedBench
    levels: list[Level]
    reference: Tensor  # judge features (M, D) of test renders

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
        """JAQ: probability of the noun and the colour asked for, and closeness to the features of renders."""
        mean = self.reference.double().mean(0)
        spread = torch.cov(self.reference.double().mT)
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
    groups = config.prompts + config.images
    small = renders("test", config.prompts, views=1)
    test = renders("test", config.images, views=1, first=config.prompts)
    reference = features(judge, renders("test", config.reference_groups, first=groups).images)
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(config.steps, "trailing")
    lab = _Lab(prior, judge, config, levels, reference)
    search = (prior.encode_text(small.prompts), seeded_noise(prior.latent_shape, config.prompts, context.seed))
    held = (prior.encode_text(test.prompts), seeded_noise(prior.latent_shape, config.images, context.seed + 10_000))
    full = lab.draw(*held, Coefficients.constant(config.steps))
    table: list[dict[str, Any]] = []
    landscapes: dict[str, Any] = {}
    for bits in (None, *config.weight_bits):
        name = "full precision" if bits is None else f"W{bits}A{config.activation_bits}"
        probes = _outputs(lab, *search)
        with _rounded(lab, bits):
            found = _search(lab, *search, small.meanings)
            landscapes[name] = _landscape(found)
            for setting, pair in _pairs(lab, found, probes, search, context.seed).items():
                latents = lab.draw(*held, pair)
                row = {"network": name, "factors": setting, "c_e": pair.output[0], "c_x": pair.state[0]}
                row |= {"mse_to_full": paired_mse(latents, full)}
                table.append(row | scores(judge, decoded(prior, latents), test.meanings, reference))
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "recovered": _recovered(table),
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
    lab: _Lab, found: Calibrated, probes: list[Tensor], search: tuple[Condition, Tensor], seed: int
) -> dict[str, Coefficients]:
    """The factors compared: none, the searched ones, chance, and a regression of the output on full precision."""
    steps, rng = lab.config.steps, generator(seed)
    pairs = {"plain": Coefficients.constant(steps), "searched": found.coefficients}
    for k in range(lab.config.random_pairs):
        m, q = (lab.config.low + (lab.config.high - lab.config.low) * torch.rand(2, generator=rng)).tolist()
        pairs[f"random {k}"] = Coefficients.profile(steps, m, q)
    slopes = [float((a * b).sum() / (b * b).sum()) for a, b in zip(probes, _outputs(lab, *search))]
    pairs["linear correction"] = Coefficients(tuple(slopes), (1.0,) * steps)
    return pairs


@torch.no_grad()
def _outputs(lab: _Lab, condition: Condition, noise: Tensor) -> list[Tensor]:
    """Network outputs at every level on states of renders' noise, the same for every network."""
    denoiser = Denoiser(lab.prior, condition, lab.config.guidance)
    clean = lab.prior.encode(renders("test", len(noise), lab.prior.image_size, views=1).images)
    return [denoiser(denoiser.schedule.add_noise(clean, noise, level), level).raw for level in lab.levels[:-1]]


def _recovered(table: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Part of the Frechet distance lost by quantisation that each choice of factors brings back."""
    plain = {row["network"]: row["toy_fid"] for row in table if row["factors"] == "plain"}
    ideal = plain["full precision"]
    return {
        name: {
            row["factors"]: round((plain[name] - row["toy_fid"]) / (plain[name] - ideal), 4)
            for row in table
            if row["network"] == name and plain[name] != ideal
        }
        for name in plain
        if name != "full precision"
    }
