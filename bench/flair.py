"""FLAIR: inpainting, super-resolution and deblurring of rendered objects, against what is simpler on the same prior."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling import Denoiser, Level, NoiseSchedule
from ..core.sampling.control import VelocityControl
from ..core.sampling.operators import Inpainting, Operator, gaussian_blur, super_resolution
from ..core.sampling.restore import ErrorCurve, RestoreConfig, error_curve, restore
from ..toybox.judge import Judge, frechet
from ..utils.pictures import grid, save_image
from .runner import Context
from .toy_latents import Renders, decoded, encoded, features, renders, run_sampler, seeded_noise


@dataclass(frozen=True)
class FlairBench:
    """Sizes of the experiment."""

    images: int = 128
    curve_groups: int = 64
    reference_groups: int = 128
    noise_std: float = 0.005
    restore: RestoreConfig = field(default_factory=RestoreConfig)
    guided_strengths: tuple[float, ...] = (0.1, 0.3, 1.0)
    """of the gradient baseline; the best by distance is the one to beat"""
    batch: int = 32


QUICK = FlairBench(4, 2, 2, 0.005, RestoreConfig(steps=3, data_steps=2), (0.3,), 4)


def run(context: Context) -> dict[str, Any]:
    """For each degradation: the start, the gradient baseline, the method and its ablations."""
    config = QUICK if context.quick else FlairBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    shown = renders("test", config.images, views=1)
    known = renders("train", config.curve_groups, views=1)
    curve = error_curve(prior, encoded(prior, known.images), prior.encode_text(""), config.restore.guidance)
    reference = features(judge, renders("test", config.reference_groups, views=1, first=config.images).images)
    side, table, shots = shown.images.shape[-1], [], [shown.images[:8]]
    operators = {
        "inpainting": Inpainting(_box(side)),
        "super-resolution x4": super_resolution(4, side, side),
        "blur": gaussian_blur(side / 32, side, side),
    }
    for name, operator in operators.items():
        y = _measured(operator, shown.images, config.noise_std, context.seed)
        for method, (images, cost) in _methods(prior, operator, y, curve, config, context.seed).items():
            row = {"degradation": name, "method": method, **cost}
            table.append(row | _quality(judge, operator, y, images, shown, reference, config))
            if method == "full":
                shots.append(images[:8])
    pictures = [image.permute(1, 2, 0).numpy() for part in shots for image in part]
    save_image(context.picture(), grid(pictures, columns=len(shots[0])))
    weights = [[round(float(t), 4), round(float(e), 5)] for t, e in zip(curve.times, curve.errors)]
    return {"config": asdict(config), "seeds": [context.seed], "table": table, "error_curve": weights}


def _box(side: int) -> Tensor:
    """Everything known but a centred box of a third of the side."""
    known = torch.ones(side, side, dtype=torch.bool)
    third = side // 3
    known[third : 2 * third, third : 2 * third] = False
    return known


def _measured(operator: Operator, images: Tensor, noise_std: float, seed: int) -> Tensor:
    y = operator.forward(images)
    y = y + noise_std * seeded_noise(y.shape[1:], len(y), seed + 70_000)
    return operator.forward(y) if isinstance(operator, Inpainting) else y


def _methods(
    prior: Prior, operator: Operator, y: Tensor, curve: ErrorCurve, config: FlairBench, seed: int
) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Images and cost by method; the simple ones first."""
    full = config.restore
    settings: dict[str, tuple[RestoreConfig, ErrorCurve | None]] = {
        "data term alone": (replace(full, regulariser=0.0), None),
        "fresh noise": (replace(full, steered=False), curve),
        "constant weight": (full, None),
        "full": (full, curve),
    }
    start = operator.pseudo_inverse(y).clamp(0, 1)
    found: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "start": (start, {}),
        "start through the codec": (decoded(prior, encoded(prior, start)), {}),
    }
    for strength in config.guided_strengths:
        found[f"gradient {strength}"] = _timed(prior, lambda s=strength: _guided(prior, operator, y, s, config, seed))
    for name, (chosen, weights) in settings.items():
        found[name] = _timed(prior, lambda c=chosen, w=weights: _restored(prior, operator, y, w, c, config, seed))
    return found


def _timed(prior: Prior, make: Any) -> tuple[Tensor, dict[str, Any]]:
    began, before = time.perf_counter(), prior.nfe
    images = make()
    return images, {"nfe_rows": prior.nfe - before, "seconds": round(time.perf_counter() - began, 1)}


def _restored(
    prior: Prior,
    operator: Operator,
    y: Tensor,
    curve: ErrorCurve | None,
    chosen: RestoreConfig,
    config: FlairBench,
    seed: int,
) -> Tensor:
    parts = [
        restore(part, operator, prior, curve=curve, noise_std=config.noise_std, config=chosen, seed=seed + start)
        for start, part in zip(range(0, len(y), config.batch), y.split(config.batch))
    ]
    return torch.cat([part.images for part in parts])


def _guided(prior: Prior, operator: Operator, y: Tensor, strength: float, config: FlairBench, seed: int) -> Tensor:
    """Sampling with the gradient of |A D(x0) - y| through the network (Chung et al. 2023)."""
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(config.restore.steps)
    noise, parts = seeded_noise(prior.latent_shape, len(y), seed), []
    for rows in (slice(start, start + config.batch) for start in range(0, len(y), config.batch)):

        def misfit(denoiser: Denoiser, x: Tensor, level: Level, rows: slice = rows) -> Tensor:
            images = prior.decode(denoiser.conditional(x, level).x0, clamp=False)
            return (operator.forward(images) - y[rows]).flatten(1).norm(dim=1)

        control = VelocityControl(misfit, strength, "linear")
        condition = prior.encode_text([""] * len(y[rows]))
        final = run_sampler(prior, condition, noise[rows], levels, 1.0, controls=(control,))
        parts.append(decoded(prior, final))
    return torch.cat(parts)


def _quality(
    judge: Judge,
    operator: Operator,
    y: Tensor,
    images: Tensor,
    shown: Renders,
    reference: Tensor,
    config: FlairBench,
) -> dict[str, Any]:
    """Misfit over the noise, distances to the truth (everywhere, where nothing was measured), distribution, meaning."""
    misfit = (operator.forward(images) - y).square().sum((1, 2, 3)) / operator.count(y)
    error = (images - shown.images).square()
    seen = features(judge, images)
    row = {
        "misfit_over_noise": round(float(misfit.mean()) / config.noise_std**2, 3),
        "psnr_db": round(float(-10 * error.mean((1, 2, 3)).log10().mean()), 2),
        "feature_distance": round(float((seen - features(judge, shown.images)).square().mean()), 5),
        "toy_fid": round(frechet(reference, seen), 3),
        "shows_the_object": round(float(judge(images).agrees(shown.meanings)["all"].mean()), 4),
    }
    if isinstance(operator, Inpainting):
        unknown = (~operator.known).to(error)
        row["unknown_mse"] = round(float((error * unknown).sum() / (3 * len(images) * unknown.sum())), 5)
    return row
