"""A Stable Diffusion 1.5 of full size with random weights: agrees with stock diffusers, and distils in bounded memory.

What holds for weights of any value, at the size that people use: two steps of DDIM with guidance beside the stock
pipeline's from one noise, and the most memory of the process in two steps of score distillation on four renders, whose
parts are those that `StepMemory` chooses. `python -m unproject.scripts.full_size FOLDER` measures a folder's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.distillation.score import ScoreConfig, ScoreDistillation
from ..core.priors.build import from_pipeline
from ..core.priors.diffusers import DiffusersPrior
from ..generate.step_memory import BUDGET_GB
from ..pipelines.text_to_image import TextToImage
from ..scripts.random_backbones import FULL, TINY
from ..utils.configs import to_dict
from ..utils.seeds import generator
from .runner import Context


@dataclass(frozen=True)
class FullSize:
    """Sizes of the experiment."""

    px: int = 512
    views: int = 4
    steps: int = 2
    budget_gb: float = BUDGET_GB


def run(context: Context) -> dict[str, Any]:
    """Both measurements; a quick run takes a tiny network."""
    config = FullSize(px=32) if context.quick else FullSize()
    prior = from_pipeline((TINY if context.quick else FULL)["sd15"]())
    facts = {"millions": round(sum(p.numel() for p in prior.parameters()) / 1e6, 1), "dtype": str(prior.dtype)}
    return {"config": {**to_dict(config), **facts}, "seeds": [0, 1], "table": list(rows(prior, config))}


def rows(prior: DiffusersPrior, config: FullSize) -> Iterator[dict[str, Any]]:
    """The rows of the table, each as soon as it is measured."""
    yield from distillation(prior, config)
    yield agreement(prior, config)


def agreement(prior: DiffusersPrior, config: FullSize) -> dict[str, Any]:
    """The largest difference of latents from the stock pipeline's, relative to the largest of those."""
    began = time.perf_counter()
    side = config.px // prior.vae_factor
    noise = torch.randn(1, prior.latent_shape[0], side, side, generator=generator(0))
    options: dict[str, Any] = {"num_inference_steps": config.steps, "guidance_scale": 7.5, "output_type": "latent"}
    options |= {"height": config.px, "width": config.px}
    prior.pipe.set_progress_bar_config(disable=True)
    stock = prior.pipe("a red chair", latents=noise, **options).images
    ours: Any = TextToImage(prior, "native")("a red chair", latents=noise, solver="ddim", **options)
    worst = float((ours.images - stock).abs().max() / stock.abs().max())
    return {
        "what": "DDIM beside stock diffusers",
        "pictures": 1,
        "px": config.px,
        "steps": config.steps,
        "largest_difference": worst,
        "seconds": round(time.perf_counter() - began, 1),
    }


def distillation(prior: DiffusersPrior, config: FullSize) -> Iterator[dict[str, Any]]:
    """After each step of SDS on renders the peak resident memory; what is no number is refused there."""
    rule = ScoreConfig(form="score", guidance=100.0, rescale=0.0, weight="sigma2")
    score = ScoreDistillation(rule, prior, prior.encode_text(["a red chair"]))
    budget, px = config.budget_gb * 1e9, config.px
    prior.encode_by_block(prior.encode_bytes(px, px) > budget)
    score.images_at_once = 1
    prior.rows_at_once = max(1, int(budget // prior.row_bytes(px, px)))
    renders = torch.rand(config.views, 3, px, px, generator=generator(1)).requires_grad_()
    _forget_peak()
    began, before = time.perf_counter(), prior.nfe
    for step in range(1, config.steps + 1):
        renders.grad = None
        score(renders, 0.5, generator(step)).loss.backward()
        yield {
            "what": "score distillation",
            "pictures": config.views,
            "px": px,
            "steps": step,
            "peak_gb": round(_peak_bytes() / 1e9, 2),
            "network_rows": prior.nfe - before,
            "seconds": round(time.perf_counter() - began, 1),
        }
    prior.rows_at_once = None
    prior.encode_by_block(False)


def _forget_peak() -> None:
    """Lets the kernel (Linux) count the largest resident memory of this process from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
