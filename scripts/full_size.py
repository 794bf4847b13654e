"""A Stable Diffusion 1.5 of full size with random weights: agrees with stock diffusers, and distils in bounded memory.

    python -m unproject.scripts.random_backbones sd15 --full --out runs/random-sd15    (3.4 GB, once)
    python -m unproject.scripts.full_size runs/random-sd15

Takes about ten minutes of one processor core and 8 GB; the folder can be deleted afterwards.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..core.distillation.score import ScoreConfig, ScoreDistillation
from ..core.priors.diffusers import DiffusersPrior
from ..core.priors.registry import load_prior
from ..generate.step_memory import BUDGET_GB
from ..pipelines.text_to_image import TextToImage
from ..utils.files import write_json
from ..utils.runs import machine, versions
from ..utils.seeds import generator

SIDE_PX, VIEWS, STEPS = 512, 4, 2


def agreement(prior: DiffusersPrior) -> Iterator[dict[str, Any]]:
    """Largest difference of latents from the stock pipeline's, of two DDIM steps with guidance from one noise."""
    began = time.perf_counter()
    noise = torch.randn(1, *prior.latent_shape, generator=generator(0))
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 7.5, "output_type": "latent"}
    prior.pipe.set_progress_bar_config(disable=True)
    stock = prior.pipe("a red chair", latents=noise, **options).images
    ours: Any = TextToImage(prior)("a red chair", latents=noise, solver="ddim", **options)
    worst = float((ours.images - stock).abs().max() / stock.abs().max())
    yield {"steps": STEPS, "largest_difference": worst, "seconds": round(time.perf_counter() - began, 1)}


def distillation(prior: DiffusersPrior) -> Iterator[dict[str, Any]]:
    """After each step of SDS on four renders the peak resident memory, in parts as `StepMemory` chooses them."""
    config = ScoreConfig(form="score", guidance=100.0, rescale=0.0, weight="sigma2")
    score = ScoreDistillation(config, prior, prior.encode_text(["a red chair"]))
    budget = BUDGET_GB * 1e9
    prior.encode_by_block(prior.encode_bytes(SIDE_PX, SIDE_PX) > budget)
    score.images_at_once = 1
    prior.rows_at_once = max(1, int(budget // prior.row_bytes(SIDE_PX, SIDE_PX)))
    renders = torch.rand(VIEWS, 3, SIDE_PX, SIDE_PX, generator=generator(1)).requires_grad_()
    _forget_peak()
    began = time.perf_counter()
    for step in range(1, STEPS + 1):
        renders.grad = None
        score(renders, 0.5, generator(step)).loss.backward()
        assert renders.grad is not None
        yield {
            "views": VIEWS,
            "px": SIDE_PX,
            "steps": step,
            "peak_gb": round(_peak_bytes() / 1e9, 2),
            "network_rows": prior.nfe,
            "finite": bool(torch.isfinite(renders.grad).all()),
            "seconds": round(time.perf_counter() - began, 1),
        }


def _forget_peak() -> None:
    """Lets the kernel count the largest resident memory of this process from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="full_size", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outputs/full-size.json"))
    options = parser.parse_args(arguments)
    prior = load_prior(options.folder)
    millions = sum(p.numel() for p in prior.parameters()) / 1e6
    facts: dict[str, Any] = {"model": "Stable Diffusion 1.5, random weights, float32", "millions": round(millions, 1)}
    facts |= {"versions": versions(), "machine": machine()}
    for name, measure in (("distillation", distillation), ("agreement", agreement)):
        for facts[name] in measure(prior):
            print(write_json(options.out, facts), facts[name], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
