"""What the sampling loop costs beyond its network calls, beside the stock diffusers pipeline doing the same steps.

The network's inputs of one run are recorded and replayed bare. Loop, pipelines and bare calls then take turns in one
process, so that a slow moment of the machine meets all of them; ratios are taken within a round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from ..core.priors import load_prior
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling import NoiseSchedule
from ..pipelines.text_to_image import TextToImage
from ..toybox.samples import object_prompts
from ..utils.errors import InputError
from .intervals import digits
from .runner import Context, interleaved
from .toy_latents import run_sampler, seeded_noise

Jobs = dict[str, Callable[[], object]]
BARE, STOCK = "bare network calls", "diffusers' pipeline"


@dataclass(frozen=True)
class OverheadBench:
    """Sizes of the experiment."""

    steps: int = 20
    images: tuple[int, ...] = (1, 8)
    guidance: float = 3.0
    rounds: int = 25


QUICK = OverheadBench(3, (1,), 3.0, 2)


def run(context: Context) -> dict[str, Any]:
    """Seconds of each job, and their ratio to the bare calls and to the stock pipeline."""
    config = QUICK if context.quick else OverheadBench()
    prior = load_prior(context.prior)
    if not isinstance(prior, DiffusersPrior):
        raise InputError(f"--prior {context.prior} has no diffusers pipeline to be compared with; use toybox")
    table = []
    for images in config.images:
        table += timed(jobs(prior, images, config, context.seed), config.rounds, images)
    return {"config": asdict(config), "seeds": [context.seed], "table": table}


@torch.no_grad()
def jobs(prior: DiffusersPrior, images: int, config: OverheadBench, seed: int) -> Jobs:
    """What is timed, by name; all make the same network calls."""
    prompts, noise = object_prompts("test", images), seeded_noise(prior.latent_shape, images, seed)
    condition, schedule = prior.encode_text(prompts), NoiseSchedule.from_config(prior.scheduler_config)
    solver = "euler" if schedule.flow else "dpm++"
    levels = schedule.grid(config.steps, tokens=prior.tokens(noise))

    def loop() -> object:
        return run_sampler(prior, condition, noise, levels, config.guidance, solver, batch=images)

    calls = recorded(prior.network, loop)

    @torch.no_grad()
    def bare() -> None:
        for args, kwargs in calls:
            prior.network(*args, **kwargs)

    draw: dict[str, Any] = {"guidance_scale": config.guidance, "num_inference_steps": config.steps, "latents": noise}
    draw["output_type"] = "latent"
    ours = TextToImage(prior, quality="native")
    scheduler = FlowMatchEulerDiscreteScheduler if schedule.flow else DPMSolverMultistepScheduler
    theirs = copy.copy(prior.pipe)
    theirs.register_modules(scheduler=scheduler.from_config(prior.pipe.scheduler.config))
    theirs.set_progress_bar_config(disable=True)
    return {
        BARE: bare,
        STOCK: lambda: theirs(prompts, **draw),
        "our loop": loop,
        "TextToImage": lambda: ours(prompts, solver=solver, seed=seed, **draw),
    }


def recorded(network: torch.nn.Module, work: Callable[[], object]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of every call of the network while `work` runs."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = network.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        work()
    finally:
        hook.remove()
    return calls


def timed(work: Jobs, rounds: int, images: int) -> list[dict[str, Any]]:
    """A row for each job: median seconds, and quartiles of its ratios to the bare calls and the stock pipeline."""
    kept = {name: seconds[1:] for name, seconds in interleaved(work, rounds + 1).items()}  # the first round warms up
    return [
        {
            "images": images,
            "what": name,
            "seconds": digits(np.median(values)),
            "over_bare": quartiles(values / kept[BARE]),
            "over_diffusers": quartiles(values / kept[STOCK]),
        }
        for name, values in kept.items()
    ]


def quartiles(ratios: np.ndarray) -> dict[str, float]:
    """Median ratio between its quartiles."""
    low, middle, high = (digits(v) for v in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return {"ratio": middle, "low": low, "high": high}
