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
from .intervals import bootstrapped, share
from .runner import Context
from .toy_latents import Renders, decoded, encoded, renders

PLAIN = 1.0  # guidance of the runs that are inverted without it


@dataclass(frozen=True)
class EdictBench:
    """Sizes of the experiment."""

    images: int = 16
    """of the round trips"""
    steps: int = 50
    guidances: tuple[float, ...] = (1.0, 3.0, 7.0)
    dtypes: tuple[str, ...] = ("float32", "float64")
    edit_images: int = 32
    """edited in float32, whose round trips are exact enough for it"""
    strengths: tuple[float, ...] = (0.6, 0.8, 0.9)
    edit_guidance: float = 3.0
    batch: int = 32


QUICK = EdictBench(2, 4, (1.0, 3.0), ("float64",), 2, (0.8,), 3.0, 2)


def run(context: Context) -> dict[str, Any]:
    """Round trips, then edits of the colour word: success against change of the background."""
    config = QUICK if context.quick else EdictBench()
    judge = Judge.from_pretrained()
    shown = renders("test", max(config.images, config.edit_images), views=1)
    few = Renders(shown.images[: config.images], shown.meanings[: config.images])
    table: list[dict[str, Any]] = []
    for name in config.dtypes:
        prior = load_prior(context.prior).to(dtype=getattr(torch, name))
        latents = encoded(prior, few.images.to(prior.dtype)).to(prior.dtype)
        table.append(_row(prior, latents, latents, few, "codec"))
        table.append(_round_trip(prior, latents, few, "ddim, no prompt", PLAIN, config))
        for guidance in config.guidances:
            table += [_round_trip(prior, latents, few, method, guidance, config) for method in ("ddim", "edict")]
    many = Renders(shown.images[: config.edit_images], shown.meanings[: config.edit_images])
    prior = load_prior(context.prior)
    edits = [row for strength in config.strengths for row in _edits(prior, judge, many, strength, config)]
    return {"config": asdict(config), "seeds": [context.seed], "table": table, "edits": edits}


@torch.no_grad()
def _round_trip(
    prior: Prior, latents: Tensor, shown: Renders, method: str, guidance: float, config: EdictBench
) -> dict[str, Any]:
    """The row of one method, inverted and regenerated under the same prompt (or none) and guidance."""
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(config.steps)
    prompts = [""] * len(latents) if method.endswith("no prompt") else shown.prompts
    parts = []
    for start in range(0, len(latents), config.batch):
        rows = slice(start, start + config.batch)
        denoiser = Denoiser(prior, prior.encode_text(prompts[rows]), guidance)
        if method == "edict":
            parts.append(regenerate(denoiser, invert(denoiser, latents[rows], levels)))
        else:
            parts.append(Sampler(DDIM()).run(denoiser, ddim_invert(denoiser, latents[rows], levels), levels))
    return _row(prior, torch.cat(parts), latents, shown, method) | {"guidance": guidance, "steps": config.steps}


def _row(prior: Prior, back: Tensor, latents: Tensor, shown: Renders, method: str) -> dict[str, Any]:
    """Latent and pixel errors of what came back."""
    pixels = (decoded(prior, back) - shown.images).square().mean((1, 2, 3)).numpy()
    latent = (back - latents).square().mean((1, 2, 3)).numpy()
    dtype = str(prior.dtype).removeprefix("torch.")
    return {"dtype": dtype, "method": method, "latent_mse": bootstrapped(latent), "pixel_mse": bootstrapped(pixels)}


@torch.no_grad()
def _edits(prior: Prior, judge: Judge, shown: Renders, strength: float, config: EdictBench) -> list[dict[str, Any]]:
    """Another colour word: how often the judge sees it, and how much the background (nearest to its mode) moved."""
    wanted = [_recoloured(meaning) for meaning in shown.meanings]
    sentences = [say(meaning) for meaning in wanted]
    levels = truncated(NoiseSchedule.from_config(prior.scheduler_config).grid(config.steps), strength)
    results: dict[str, list[Tensor]] = {"ddim": [], "ddim, inverted unguided": [], "edict": []}
    for start in range(0, len(shown.images), config.batch):
        rows = slice(start, start + config.batch)
        latents, source = encoded(prior, shown.images[rows]), prior.encode_text(shown.prompts[rows])
        after = Denoiser(prior, prior.encode_text(sentences[rows]), config.edit_guidance)
        before, plain = Denoiser(prior, source, config.edit_guidance), Denoiser(prior, source, PLAIN)
        results["edict"].append(regenerate(after, invert(before, latents, levels)))
        for name, denoiser in (("ddim", before), ("ddim, inverted unguided", plain)):
            results[name].append(Sampler(DDIM()).run(after, ddim_invert(denoiser, latents, levels), levels))
    table = []
    outside = _background(shown.images)
    for name, parts in results.items():
        images = decoded(prior, torch.cat(parts))
        moved = ((images - shown.images).square() * outside).sum((1, 2, 3)) / (3 * outside.sum((1, 2, 3)))
        row = {"method": name, "strength": strength, "colour_changed": share(judge(images).agrees(wanted)["colour"])}
        table.append(row | {"background_mse": bootstrapped(moved.numpy())})
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
