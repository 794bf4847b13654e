"""NoiseShift: tables per resolution, what they buy at sizes the prior was not trained at, and two controls."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..core.priors import Prior, load_prior
from ..core.sampling import NoiseSchedule
from ..core.sampling.time_remap import RemapFit, RemapSearch, TimeRemap, calibrate_time_remap, resolution_rule
from ..toybox.judge import Judge
from .runner import Context
from .toy_latents import decoded, encoded, features, renders, run_sampler, scores, seeded_noise


@dataclass(frozen=True)
class NoiseShiftBench:
    """Sizes of the experiment."""

    sizes: tuple[int, ...] = (32, 48, 64, 96)
    trained: int = 64
    calibration_groups: int = 256
    """one view each"""
    images: int = 1024
    steps: int = 20
    guidance: float = 3.0
    search: RemapSearch = field(default_factory=RemapSearch)


QUICK = NoiseShiftBench((32, 64), 64, 4, 6, 3, 3.0, RemapSearch(levels=4, cells=(0.1,)))


def run(context: Context) -> dict[str, Any]:
    """Per size: plain, calibrated, the closed-form rule, and the table of another size."""
    config = QUICK if context.quick else NoiseShiftBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    fits = {size: _calibrated(prior, size, config, context.seed) for size in config.sizes}
    table: list[dict[str, Any]] = []
    for place, size in enumerate(config.sizes):
        other = config.sizes[(place + 1) % len(config.sizes)]
        tables: dict[str, TimeRemap | None] = {
            "plain": None,
            "calibrated": fits[size].remap,
            "closed-form rule": resolution_rule(schedule, size**2, config.trained**2),
            f"table of {other} px": fits[other].remap,
        }
        table += _measured(prior, judge, size, tables, config, context.seed)
    curves = {str(size): _curve(fit) for size, fit in fits.items()}
    return {"config": asdict(config), "seeds": [context.seed], "table": table, "curves": curves}


def _calibrated(prior: Prior, size: int, config: NoiseShiftBench, seed: int) -> RemapFit:
    shown = renders("train", config.calibration_groups, size, views=1)
    latents = encoded(prior, shown.images)
    return calibrate_time_remap(prior, latents, prior.encode_text(shown.prompts), config.search, seed)


def _measured(
    prior: Prior, judge: Judge, size: int, tables: dict[str, TimeRemap | None], config: NoiseShiftBench, seed: int
) -> list[dict[str, Any]]:
    """Accuracy and Frechet distance to true renders of the same size, all from the same noise."""
    shown = renders("test", config.images, size, views=1)
    reference = features(judge, renders("test", config.images, size, views=1, first=config.images).images)
    condition = prior.encode_text(shown.prompts)
    channels, side = prior.latent_shape[0], size // prior.vae_factor
    noise = seeded_noise((channels, side, side), config.images, seed)
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(config.steps, tokens=prior.tokens(noise))
    rows = []
    for name, remap in tables.items():
        final = run_sampler(prior, condition, noise, levels, config.guidance, time_remap=remap)
        shift = 0.0 if remap is None else remap.shift
        row = {"size_px": size, "table": name, "shift": round(shift, 4), "steps": config.steps}
        rows.append(row | scores(judge, decoded(prior, final), shown.meanings, reference))
    return rows


def _curve(fit: RemapFit) -> list[dict[str, float]]:
    columns = (fit.remap.times, fit.remap.told, fit.raw, fit.plain, fit.best)
    names = ("time", "told", "unsmoothed", "error_plain", "error_best")
    return [dict(zip(names, (round(float(v), 5) for v in row))) for row in zip(*columns)]
