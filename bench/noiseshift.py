"""NoiseShift: tables per resolution, what they buy at sizes the prior was not trained at, and controls.

Controls: the table of another size, the closed-form rule, and the usual shift of the sampling levels themselves with
the time told as it is. At the trained size the table should be the identity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling import Level, NoiseSchedule
from ..core.sampling.noiseshift import RemapFit, RemapSearch, TimeRemap, calibrate_time_remap, resolution_rule
from ..toybox.judge import Judge
from .experiment import DIT
from .runner import Context
from .toy_latents import decoded, encoded, features, renders, run_sampler, scores, seeded_noise, yardstick

CALIBRATION_SEED = 500_000  # far from the seeds that are measured


@dataclass(frozen=True)
class NoiseShiftBench:
    """Sizes of the experiment."""

    sizes: tuple[int, ...] = (32, 48, 64)
    trained: int = 64
    calibration_groups: int = 128
    """one view each"""
    images: int = 256
    steps: int = 20
    guidance: float = 3.0
    search: RemapSearch = field(default_factory=lambda: RemapSearch(levels=12))


QUICK = NoiseShiftBench((32, 64), 64, 4, 6, 3, 3.0, RemapSearch(levels=4, cells=(0.1,)))
FULL = {DIT: NoiseShiftBench((32, 64, 96))}  # trained at all three, mostly at 64


class Way(NamedTuple):
    """How a size is sampled."""

    remap: TimeRemap | None  # what the network is told
    levels: Sequence[Level]


def run(context: Context) -> dict[str, Any]:
    """Per size: plain, calibrated, and the controls."""
    config = QUICK if context.quick else FULL.get(context.prior, NoiseShiftBench())
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    fits = {size: _calibrated(prior, size, config, context.seed + CALIBRATION_SEED) for size in config.sizes}
    table: list[dict[str, Any]] = []
    for place, size in enumerate(config.sizes):
        other = config.sizes[(place + 1) % len(config.sizes)]
        table += _measured(prior, judge, size, fits[size].remap, (other, fits[other].remap), config, context.seed)
    curves = {str(size): _curve(fit) for size, fit in fits.items()}
    return {"config": asdict(config), "seeds": [context.seed], "table": table, "curves": curves}


def _calibrated(prior: Prior, size: int, config: NoiseShiftBench, seed: int) -> RemapFit:
    shown = renders("train", config.calibration_groups, size, views=1)
    latents = encoded(prior, shown.images)
    return calibrate_time_remap(prior, latents, prior.encode_text(shown.prompts), config.search, seed)


def _measured(
    prior: Prior,
    judge: Judge,
    size: int,
    own: TimeRemap,
    other: tuple[int, TimeRemap],
    config: NoiseShiftBench,
    seed: int,
) -> list[dict[str, Any]]:
    """Accuracy and distances to true renders of the same size, all from the same noise."""
    shown = renders("test", config.images, size, views=1)
    yard = yardstick(judge, config.images, config.images, config.images, size, views=1)
    condition = prior.encode_text(shown.prompts)
    channels, side = prior.latent_shape[0], size // prior.vae_factor
    noise = seeded_noise((channels, side, side), config.images, seed)
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    levels = schedule.grid(config.steps, tokens=prior.tokens(noise))
    ways = {"plain": Way(None, levels), "calibrated": Way(own, levels)}
    if size != config.trained:
        ways["closed-form rule"] = Way(resolution_rule(schedule, size**2, config.trained**2), levels)
        ways["shifted levels"] = Way(None, shifted(schedule, levels, math.log(config.trained / size)))
        ways[f"table of {other[0]} px"] = Way(other[1], levels)
    rows: list[dict[str, Any]] = []
    plain: Tensor | None = None
    for name, (remap, grid) in ways.items():
        images = decoded(prior, run_sampler(prior, condition, noise, grid, config.guidance, time_remap=remap))
        shift = 0.0 if remap is None else remap.shift
        row = {"size_px": size, "table": name, "shift": round(shift, 4), "steps": config.steps}
        rows.append(row | scores(judge, images, shown.meanings, yard, plain))
        plain = features(judge, images) if plain is None else plain
    return rows


def shifted(schedule: NoiseSchedule, levels: Sequence[Level], shift: float) -> list[Level]:
    """The levels with lambda raised by `shift`, both ends kept: the shift of flow models at another resolution.

    A smaller picture is sampled at less noise, and the network is told so.
    """
    top = float(schedule.at_index(0).lam) if not schedule.flow else math.inf
    moved = [schedule.at_lambda(float(level.lam) + shift) for level in levels[1:-1] if float(level.lam) + shift < top]
    return [levels[0], *moved, levels[-1]]


def _curve(fit: RemapFit) -> list[dict[str, float]]:
    columns = (fit.remap.times, fit.remap.told, fit.raw, fit.plain, fit.best)
    names = ("time", "told", "unsmoothed", "error_plain", "error_best")
    return [dict(zip(names, (round(float(v), 5) for v in row))) for row in zip(*columns)]
