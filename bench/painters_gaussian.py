"""The Gaussian start: where the network's score is Gaussian, what skipping steps costs, which modes come first."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import DDIM, Denoiser, Level, NoiseSchedule, Sampler
from ..core.sampling.init import Init, NoiseInit, TeleportInit
from ..core.sampling.teleport import GaussianPrior
from ..pipelines.calibrations import Sizes, own_samples
from ..pipelines.text_to_image import TextToImage
from ..tasks.metrics import spearman
from ..toybox.judge import Judge
from ..toybox.samples import object_prompts
from .runner import Context
from .toy_latents import (
    decoded,
    encoded,
    features,
    paired_mse,
    renders,
    run_sampler,
    scores,
    seeded_noise,
    yardstick,
)

FIT_SEED = 500_000  # far from the seeds that are measured


@dataclass(frozen=True)
class PaintersBench:
    """Sizes of the experiment."""

    fit_groups: int = 1024
    """training objects, four views each"""
    fit_samples: int = 2048
    """the prior's own samples of training sentences, twice as many as a latent has numbers"""
    fit_steps: int = 10
    """of those samples (second-order DPM-Solver++)"""
    images: int = 256
    reference_groups: int = 200
    probes: int = 64
    """latents per level of the explained variance, and trajectories of the mode order"""
    steps: int = 20
    long_steps: int = 50
    guidances: tuple[float, ...] = (1.0, 3.0)
    """the own samples are drawn, and used, at the last one"""
    fractions: tuple[float, ...] = (0.15, 0.3, 0.5)
    modes: int = 64


QUICK = PaintersBench(8, 6, 3, 8, 4, 4, 6, 8, (3.0,), (0.3,), 4)


def run(context: Context) -> dict[str, Any]:
    """Explained variance per level, a table of skipped fractions, order of the modes, perturbations."""
    config = QUICK if context.quick else PaintersBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    train, own = encoded(prior, renders("train", config.fit_groups).images), _own(prior, config, context.seed)
    gaussian, guided = (GaussianPrior.fit(latents.split(256)) for latents in (train, own))
    table = _table(prior, judge, {"renders": gaussian, "own samples": guided}, config, context.seed)
    plain = prior.encode_text([""] * config.probes)
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": table,
        "ranks": {"renders": len(gaussian.variances), "own samples": len(guided.variances)},
        "explained_variance": explained(prior, plain, gaussian, train[: config.probes], schedule, context.seed),
        "mode_order": mode_order(prior, plain, gaussian, schedule, config, context.seed),
        "perturbation": perturbation(prior, plain, gaussian, schedule, config, context.seed),
    }


def _own(prior: Prior, config: PaintersBench, seed: int) -> Tensor:
    """The prior's own guided samples (N, C, h, w) of training sentences."""
    sizes = Sizes(config.guidances[-1], steps=config.fit_steps, batch=64, seed=seed + FIT_SEED)
    return own_samples(TextToImage(prior), object_prompts("train", config.fit_samples), sizes)


def _table(
    prior: Prior, judge: Judge, fits: dict[str, GaussianPrior], config: PaintersBench, seed: int
) -> list[dict[str, Any]]:
    """Per guidance: the whole run, half its steps, and every fit at every skipped fraction."""
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    test = renders("test", config.images, views=1)
    yard = yardstick(judge, config.images, config.reference_groups, first=config.images)
    condition, noise = prior.encode_text(test.prompts), seeded_noise(prior.latent_shape, config.images, seed)
    table: list[dict[str, Any]] = []
    for guidance in config.guidances:
        runs: list[tuple[str, int, Init]] = [
            ("none", steps, NoiseInit()) for steps in (config.steps, config.steps // 2)
        ]
        chosen = [name for name in fits if name == "renders" or guidance == config.guidances[-1]]
        runs += [(name, config.steps, TeleportInit(fits[name], f)) for name in chosen for f in config.fractions]
        full: Tensor | None = None
        seen: Tensor | None = None
        for name, steps, init in runs:
            began, before = time.perf_counter(), prior.nfe
            final = run_sampler(prior, condition, noise, schedule.grid(steps), guidance, init=init)
            skipped = init.skipped(steps) if isinstance(init, TeleportInit) else 0
            row: dict[str, Any] = {"fit": name, "guidance": guidance, "steps": steps, "skipped": skipped}
            row |= {"nfe_rows": prior.nfe - before, "seconds": round(time.perf_counter() - began, 1)}
            full, images = final if full is None else full, decoded(prior, final)
            row["mse_to_full"] = paired_mse(final, full)
            table.append(row | scores(judge, images, test.meanings, yard, seen))
            seen = features(judge, images) if seen is None else seen
    return table


@torch.no_grad()
def explained(
    prior: Prior, condition: Condition, gaussian: GaussianPrior, latents: Tensor, schedule: NoiseSchedule, seed: int
) -> list[dict[str, float]]:
    """1 - |s_net - s_Gauss|^2 / |s_net|^2 of the unconditional score at noised latents, by level."""
    noise, rows = seeded_noise(latents.shape[1:], len(latents), seed), []
    denoiser = Denoiser(prior, condition.index(slice(0, len(latents))))
    for index in torch.linspace(0, schedule.steps - 1, 16, dtype=torch.float64).tolist():
        level = schedule.at_index(index)
        x = schedule.add_noise(latents, noise, level)
        net, exact = denoiser(x, level).eps.double(), gaussian(x, level).eps.double()
        share = 1 - float((net - exact).square().sum() / net.square().sum())
        rows.append({"index": round(index, 1), "lambda": round(float(level.lam), 3), "explained": round(share, 4)})
    return rows


@torch.no_grad()
def mode_order(
    prior: Prior,
    condition: Condition,
    gaussian: GaussianPrior,
    schedule: NoiseSchedule,
    config: PaintersBench,
    seed: int,
) -> dict[str, float]:
    """Rank correlation of -log(v_k) / 2 with the lambda at which a mode of x0 reaches half its final size."""
    seen: list[Tensor] = []
    lambdas: list[float] = []
    denoiser = Denoiser(prior, condition)
    modes = gaussian.basis[: config.modes]

    def watched(x: Tensor, level: Level) -> Any:
        prediction = denoiser(x, level)
        coordinates = (prediction.x0.double().flatten(1) - gaussian.mean) @ modes.mT
        seen.append(coordinates.square().mean(0).sqrt())
        lambdas.append(float(level.lam))
        return prediction

    noise = seeded_noise(prior.latent_shape, config.probes, seed)
    Sampler(DDIM()).run(watched, noise, schedule.grid(config.long_steps))
    sizes = torch.stack(seen)  # (steps, modes)
    reached = (sizes >= 0.5 * sizes[-1]).int().argmax(0)
    born = torch.tensor(lambdas, dtype=torch.float64)[reached]
    wanted = gaussian.emergence()[: config.modes]
    return {"spearman": round(float(spearman(born, wanted)), 4), "modes": len(modes)}


@torch.no_grad()
def perturbation(
    prior: Prior,
    condition: Condition,
    gaussian: GaussianPrior,
    schedule: NoiseSchedule,
    config: PaintersBench,
    seed: int,
) -> list[dict[str, float]]:
    """Final change per unit of a push along the strongest mode, by the step in which it is given."""
    levels = schedule.grid(config.steps)
    noise, denoiser = seeded_noise(prior.latent_shape, config.probes, seed), Denoiser(prior, condition)
    plain = Sampler(DDIM()).run(denoiser, noise, levels)
    push = gaussian.basis[0].reshape(1, *gaussian.shape).to(noise)
    rows = []
    for step in range(0, config.steps, max(config.steps // 8, 1)):
        state = noise if step == 0 else Sampler(DDIM()).run(denoiser, noise, levels[: step + 1])
        size = float(levels[step].sigma)
        final = Sampler(DDIM()).run(denoiser, state + size * push, levels[step:])
        effect = float((final - plain).flatten(1).norm(dim=1).mean())
        variance, level = float(gaussian.variances[0]), levels[step]
        noisy = float(level.alpha) ** 2 * variance + size**2
        rows.append({"step": step, "change": round(effect, 4), "gaussian": round(size * (variance / noisy) ** 0.5, 4)})
    return rows
