"""FLAIR: inpainting, super-resolution and deblurring of rendered objects, against what is simpler on the same prior.

The prior is asked without text and without guidance. Every distance to the truth carries its interval, and that of
another method the difference to the whole method on the same images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling import DDIM, Denoiser, Level, NoiseSchedule, Prediction, Sampler
from ..core.sampling.flair import ErrorCurve, RestoreConfig, error_curve, flow_range, restore
from ..core.sampling.operators import Inpainting, Operator, gaussian_blur, super_resolution
from ..toybox.judge import Judge
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .intervals import bootstrapped, share
from .runner import Context
from .toy_latents import Renders, agreement, decoded, encoded, features, renders, seeded_noise

TUNING_SEED = 40_000


@dataclass(frozen=True)
class FlairBench:
    """Sizes of the experiment."""

    images: int = 32
    curve_groups: int = 64
    noise_std: float = 0.005
    restore: RestoreConfig = field(default_factory=lambda: RestoreConfig(steps=12, guidance=1.0))
    """fewer levels than the default, not fewer data steps: with less of them y is not met to its noise"""
    gradient_steps: int = 50
    """of the gradient baseline"""
    strengths: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    """of its steps; each degradation takes the best of them"""
    tuning_images: int = 6
    """training objects on which that one is chosen"""
    batch: int = 32


QUICK = FlairBench(4, 2, 0.005, RestoreConfig(steps=3, guidance=1.0, data_steps=2), 4, (0.3, 1.0), 2, 4)


def run(context: Context) -> dict[str, Any]:
    """For each degradation: the start, the gradient baseline, the method and its ablations."""
    config = QUICK if context.quick else FlairBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    shown = renders("test", config.images, views=1)
    known = renders("train", max(config.curve_groups, config.tuning_images), views=1)
    clean = encoded(prior, known.images[: config.curve_groups])
    curve = error_curve(prior, clean, prior.encode_text(""), config.restore.guidance)
    side = shown.images.shape[-1]
    table: list[dict[str, Any]] = []
    shots, sweeps = [shown.images[:8]], {}
    operators = {
        "inpainting": Inpainting(_box(side)),
        "super-resolution x4": super_resolution(4, side, side),
        "blur": gaussian_blur(side / 32, side, side),
    }
    for name, operator in operators.items():
        y = _measured(operator, shown.images, config.noise_std, context.seed)
        sweeps[name] = _sweep(prior, judge, operator, known.images[: config.tuning_images], config, context.seed)
        found = _methods(prior, operator, y, curve, sweeps[name]["best"], config, context.seed)
        table += _rows(judge, name, operator, y, found, shown, config)
        shots.append(found["full"][0][:8])
    pictures = [image.permute(1, 2, 0).numpy() for part in shots for image in part]
    save_image(context.picture(), grid(pictures, columns=len(shots[0])))
    weights = [[round(float(t), 4), round(float(e), 5)] for t, e in zip(curve.times, curve.errors)]
    made = {"config": asdict(config), "seeds": [context.seed], "table": table}
    return made | {"gradient_strengths": sweeps, "error_curve": weights}


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


def constant_weight(curve: ErrorCurve, schedule: NoiseSchedule, config: RestoreConfig) -> float:
    """The regulariser without a curve whose weight is the mean, over the times of a run, of the capped one with it."""
    times = torch.linspace(flow_range(schedule)[1], config.low, config.steps + 2, dtype=torch.float64)[1:-1]
    return float(np.mean([min(config.regulariser * curve.weight(time), 1.0) for time in times.tolist()]))


def _methods(
    prior: Prior, operator: Operator, y: Tensor, curve: ErrorCurve, strength: float, config: FlairBench, seed: int
) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Images and cost by method; the simple ones first."""
    full = config.restore
    constant = constant_weight(curve, NoiseSchedule.from_config(prior.scheduler_config), full)
    settings: dict[str, tuple[RestoreConfig, ErrorCurve | None]] = {
        "fresh noise": (replace(full, steered=False), curve),
        "constant weight": (replace(full, regulariser=constant), None),
        "full": (full, curve),
    }
    start = operator.pseudo_inverse(y).clamp(0, 1)
    found: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "start": (start, {}),
        "start through the codec": (decoded(prior, encoded(prior, start)), {}),
        "gradient": _timed(prior, lambda: _guided(prior, operator, y, strength, config, seed)),
    }
    for name, (chosen, weights) in settings.items():
        found[name] = _timed(prior, partial(_restored, prior, operator, y, weights, chosen, config, seed))
    return found


def _timed(prior: Prior, make: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Any]]:
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


class PosteriorSteps:
    """Ancestral sampling whose every step also moves by -strength grad |A D(x0(x)) - y| (Chung et al. 2023).

    The gradient is that of the norm, at the state before the step, through decoder and network.
    """

    def __init__(self, denoiser: Denoiser, operator: Operator, y: Tensor, strength: float) -> None:
        self.denoiser, self.operator, self.y, self.strength = denoiser, operator, y, strength
        self.slope = torch.zeros(())

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """The prediction; keeps the gradient for the step that follows."""
        with torch.enable_grad():
            free = x.detach().requires_grad_(True)
            prediction = self.denoiser.ask(free, level, ("cond",))["cond"]
            images = self.denoiser.prior.decode(prediction.x0, clamp=False)
            misfit = 2 * (self.operator.forward(images) - self.y).flatten(1).norm(dim=1)  # images in [-1, 1]
            self.slope = torch.autograd.grad(misfit.sum(), free)[0]
        return Prediction(x, level, prediction.raw.detach(), prediction.kind)

    def moved(self, call: int, level: Level, state: Tensor) -> Tensor:
        """The state after the step, moved."""
        return state - self.strength * self.slope


def _guided(prior: Prior, operator: Operator, y: Tensor, strength: float, config: FlairBench, seed: int) -> Tensor:
    """Images (N, 3, H, W) of the gradient baseline."""
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(config.gradient_steps)
    noise, parts = seeded_noise(prior.latent_shape, len(y), seed), []
    for start in range(0, len(y), config.batch):
        part = y[start : start + config.batch]
        steps = PosteriorSteps(Denoiser(prior, prior.encode_text([""] * len(part))), operator, part, strength)
        draws = [generator(seed + TUNING_SEED + start + i) for i in range(len(part))]
        with torch.no_grad():
            begin = noise[start : start + len(part)]
            final = Sampler(DDIM(eta=1.0)).run(steps, begin, levels, draws, steps.moved)
        parts.append(decoded(prior, final))
    return torch.cat(parts)


def _sweep(
    prior: Prior, judge: Judge, operator: Operator, images: Tensor, config: FlairBench, seed: int
) -> dict[str, Any]:
    """Feature distance to the truth on training objects by strength of the gradient baseline, and the best strength."""
    y = _measured(operator, images, config.noise_std, seed + TUNING_SEED)
    wanted, found = features(judge, images), {}
    for strength in config.strengths:
        made = _guided(prior, operator, y, strength, config, seed + TUNING_SEED).nan_to_num()
        found[strength] = round(float((features(judge, made) - wanted).square().mean()), 5)
    best = min(found, key=lambda strength: found[strength])
    interior = best not in (config.strengths[0], config.strengths[-1])
    return {"best": best, "interior": interior, "feature_distance": {f"{s:g}": d for s, d in found.items()}}


def _rows(
    judge: Judge,
    name: str,
    operator: Operator,
    y: Tensor,
    found: dict[str, tuple[Tensor, dict[str, Any]]],
    shown: Renders,
    config: FlairBench,
) -> list[dict[str, Any]]:
    """A row for each method, with the distances that it has beyond those of the whole method, image by image."""
    per_image = {method: _distances(judge, operator, images, shown) for method, (images, _) in found.items()}
    table = []
    for method, (images, cost) in found.items():
        misfit = (operator.forward(images) - y).square().sum((1, 2, 3)) / operator.count(y)
        row: dict[str, Any] = {"degradation": name, "method": method, **cost}
        row["misfit_over_noise"] = round(float(misfit.mean()) / config.noise_std**2, 3)
        row["shows_the_object"] = share(agreement(judge, images, shown.meanings)["all"])
        for key, values in per_image[method].items():
            row[key] = bootstrapped(values)
            if method != "full":
                row[f"{key}_beyond_full"] = bootstrapped(values - per_image["full"][key])
        table.append(row)
    return table


def _distances(judge: Judge, operator: Operator, images: Tensor, shown: Renders) -> dict[str, np.ndarray]:
    """Distances (N,) to the truth: PSNR, in the judge's features, and over what was not measured."""
    error = (images - shown.images).square()
    apart = (features(judge, images) - features(judge, shown.images)).square().mean(1)
    found = {"psnr_db": -10 * error.mean((1, 2, 3)).log10(), "feature_distance": apart}
    if isinstance(operator, Inpainting):
        unknown = (~operator.known).to(error)
        found["unknown_mse"] = (error * unknown).sum((1, 2, 3)) / (3 * unknown.sum())
    return {key: values.double().numpy() for key, values in found.items()}
