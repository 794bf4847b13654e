"""EDICT against DDIM: round trips of real renders at several guidances, and edits of one word."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from ..core.sampling.inversion import ddim_invert, invert, regenerate, truncated
from ..toybox.captions import Meaning, say
from ..toybox.judge import Judge
from ..toybox.materials import COLOURS_SRGB
from .runner import Context, share
from .toy_latents import Renders, decoded, encoded, renders


@dataclass(frozen=True)
class EdictBench:
    """Sizes of the experiment."""

    images: int = 64
    steps: int = 50
    guidances: tuple[float, ...] = (1.0, 3.0, 7.0)
    dtypes: tuple[str, ...] = ("float32", "float64")
    strengths: tuple[float, ...] = (0.6, 0.8, 0.9)
    edit_guidance: float = 3.0
    batch: int = 32


QUICK = EdictBench(2, 4, (1.0, 3.0), ("float64",), (0.8,), 3.0, 2)


def run(context: Context) -> dict[str, Any]:
    """Round trips, then edits of the colour word: success against change of the background."""
    config = QUICK if context.quick else EdictBench()
    judge = Judge.from_pretrained()
    shown = renders("test", config.images, views=1)
    table: list[dict[str, Any]] = []
    for name in config.dtypes:
        prior = load_prior(context.prior).to(dtype=getattr(torch, name))
        latents = encoded(prior, shown.images.to(prior.dtype)).to(prior.dtype)
        table += [_round_trip(prior, latents, shown, guidance, name, config) for guidance in config.guidances]
    edits = [row for strength in config.strengths for row in _edits(prior, judge, latents, shown, strength, config)]
    return {"config": asdict(config), "seeds": [context.seed], "table": table, "edits": edits}


@torch.no_grad()
def _round_trip(
    prior: Prior, latents: Tensor, shown: Renders, guidance: float, dtype: str, config: EdictBench
) -> dict[str, Any]:
    """Latent and pixel error of both methods and of the codec alone."""
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(config.steps)
    exact, walked = [], []
    for start in range(0, len(latents), config.batch):
        rows = slice(start, start + config.batch)
        denoiser = Denoiser(prior, prior.encode_text(shown.prompts[rows]), guidance)
        exact.append(regenerate(denoiser, invert(denoiser, latents[rows], levels)))
        walked.append(Sampler(DDIM()).run(denoiser, ddim_invert(denoiser, latents[rows], levels), levels))
    row: dict[str, Any] = {"dtype": dtype, "guidance": guidance, "steps": config.steps}
    for name, back in (("edict", torch.cat(exact)), ("ddim", torch.cat(walked)), ("codec", latents)):
        pixels = (decoded(prior, back) - shown.images).square().mean()
        row[name] = {"latent_mse": float((back - latents).square().mean()), "pixel_mse": round(float(pixels), 6)}
    return row


def _edits(
    prior: Prior, judge: Judge, latents: Tensor, shown: Renders, strength: float, config: EdictBench
) -> list[dict[str, Any]]:
    """Another colour word: how often the judge sees it, and how much the background (nearest to its mode) moved."""
    wanted = [_recoloured(meaning) for meaning in shown.meanings]
    levels = truncated(NoiseSchedule.from_config(prior.scheduler_config).grid(config.steps), strength)
    results: dict[str, list[Tensor]] = {"edict": [], "ddim": []}
    with torch.no_grad():
        for start in range(0, len(latents), config.batch):
            rows = slice(start, start + config.batch)
            sentences = [say(meaning) for meaning in wanted[rows]]
            before = Denoiser(prior, prior.encode_text(shown.prompts[rows]), config.edit_guidance)
            after = Denoiser(prior, prior.encode_text(sentences), config.edit_guidance)
            results["edict"].append(regenerate(after, invert(before, latents[rows], levels)))
            noise = ddim_invert(before, latents[rows], levels)
            results["ddim"].append(Sampler(DDIM()).run(after, noise, levels))
    table = []
    outside = _background(shown.images)
    for name, parts in results.items():
        images = decoded(prior, torch.cat(parts)).float()
        agree = judge(images).agrees(wanted)["colour"]
        moved = ((images - shown.images).square() * outside).sum() / (3 * outside.sum())
        row = {"method": name, "strength": strength, "colour_changed": share(agree)}
        table.append(row | {"background_mse": round(float(moved), 6)})
    return table


def _recoloured(meaning: Meaning) -> Meaning:
    """The same object in the colour six places on."""
    colours = list(COLOURS_SRGB)
    phrase = meaning.phrases[0]
    other = colours[(colours.index(phrase.colour or colours[0]) + 6) % len(colours)]
    return replace(meaning, phrases=(replace(phrase, colour=other),))


def _background(images: Tensor) -> Tensor:
    """(N, 1, H, W) of pixels within 0.08 of the image's border colour."""
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]], -1)
    colour = border.median(-1).values[..., None, None]
    return ((images - colour).abs().amax(1, keepdim=True) < 0.08).to(images)
