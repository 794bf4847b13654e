"""Text to image: the plainest use of a prior, and the base of every check of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..core.priors import Condition
from ..core.sampling import (
    AttentionCost,
    Denoiser,
    Guidance,
    Level,
    NoiseInit,
    NoiseSchedule,
    Sampler,
    Solver,
    make_solver,
)
from ..core.sampling.caches import CacheConfig, caching, parse_cache
from ..core.sampling.denoiser import Control, Remap
from ..core.sampling.dpm_v3_statistics import ModelStatistics
from ..core.sampling.grids import Spacing
from ..core.sampling.guidance import guided
from ..core.sampling.init import Init
from ..core.sampling.sampler import StepCallback
from ..core.sampling.solvers import CALIBRATED
from ..utils.errors import InputError, UnprojectError
from ..utils.progress import Progress
from ..utils.seeds import sample_noise
from .base import PriorPipeline
from .prompts import warn_about
from .sampling_parts import (
    Generators,
    StepEnd,
    check_output_type,
    delivered,
    latent_shape,
    mark,
    randomness,
    watched,
)

REAL_BACKBONES = "sd15, sdxl, sd3 or flux-dev"


@dataclass
class TextToImageOutput(BaseOutput):
    """Images, and what made them."""

    images: list[Image.Image] | np.ndarray | Tensor  # pil; np (B, H, W, 3); pt (B, 3, H, W), in [0, 1]; or latents
    latents: Tensor  # (B, C, h, w) scaled
    seeds: list[int] | None  # one per image (or object seen from several cameras); None when generators were given
    nfe: int  # network rows spent


class TextToImage(PriorPipeline):
    """Images from prompts with any prior and solver.

    >>> pipe = TextToImage.from_pretrained("toybox")
    >>> pipe("a red chair", seed=1).images[0].save("chair.png")
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        solver: str | Solver | None = None,
        eta: float = 0.0,
        spacing: Spacing | None = None,
        statistics: ModelStatistics | str | Path | None = None,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        cameras: Tensor | None = None,
        init: Init | None = None,
        time_remap: Remap | None = None,
        controls: Sequence[Control] = (),
        cache: CacheConfig | str | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
    ) -> TextToImageOutput | tuple[Any, ...]:
        """Draws images.

        Args:
            prompt: one or several prompts; words or endings the prior cannot see raise a warning that names them.
            negative_prompt: what to move away from; one for all prompts or one each.
            num_inference_steps: solver steps; None: those of the pipeline's quality.
            guidance_scale: classifier-free guidance; 1 switches it off; None: what suits the prior.
            guidance_rescale: [0, 1], against over-saturation at high guidance.
            num_images_per_prompt: images per prompt, adjacent in the output.
            height: px, multiple of the latent cell; None: the prior's own size. Likewise `width`.
            solver: a name of `core.sampling.SOLVERS` (ddim, dpm++, unipc, euler, heun, ghvb:2,0.5 ...), "dpm-v3:2",
                "usf:FILE" or a Solver; None: that of the pipeline's quality.
            eta: randomness of ddim, [0, 1].
            spacing: trailing, leading, linspace, logsnr or karras; None: that of the pipeline's quality.
            statistics: model statistics, or their file, for dpm-v3 and for schedules with v3 steps.
            seed: image i uses seed + i, so a batch equals its images drawn one by one; None: a fresh one (reported).
            generator: one for the whole batch or one per image, instead of seeds. With cameras an image is an object,
                whose views draw from its generator in turn.
            latents: starting noise (B, C, h, w) instead of drawing it.
            cameras: (F, 16) for multi-view priors: F views per image, adjacent in the output.
            init: where the run begins (`TeleportInit`, `FixedNoiseInit`); None: at the noise.
            time_remap: what the network is told instead of its own times (`TimeRemap`).
            controls: change each guided prediction (`VelocityControl`).
            cache: what is not computed anew at every step, a config or "deep:3", "inherit", "regions:0.5".
            batch_size: images drawn and decoded at once; None: all.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns (images,).
            callback_on_step_end: called with (pipe, call, timestep, {"latents": ...}) after every network call, two a
                step for heun and edict; may return {"latents": ...}. The calls of each `batch_size` count from 0.
        """
        prompts = self._checked_prompts(prompt)
        scale = self.settings.guidance if guidance_scale is None else guidance_scale
        self._check(scale, num_images_per_prompt, output_type, batch_size)
        _check_cache(cache, controls)
        condition = self.prior.encode_text(prompts, negative_prompt).repeat(num_images_per_prompt)
        guidance, condition = guided(self.prior, condition, scale, guidance_rescale)
        if cameras is not None:
            condition = condition.with_views(cameras, cameras.shape[0])
        shape = latent_shape(self.prior, height, width)
        seeds, generators = randomness(seed, generator, condition.rows // condition.frames)
        if not isinstance(generators, torch.Generator):
            generators = [one for one in generators for _ in range(condition.frames)]
        noise = self._noise(latents, shape, generators, condition.rows)
        method = self.method(solver, statistics, eta, noise.shape[1:], scale, guidance_rescale, negative_prompt)
        levels = self.levels(method, noise.shape[1:], num_inference_steps, spacing)
        start = (init or NoiseInit())(noise, levels)
        left = len(start.levels) - 1
        chunk = condition.rows if batch_size is None else max(batch_size // condition.frames, 1) * condition.frames
        chunks = range(0, condition.rows, chunk)
        nfe_before = self.prior.nfe
        parts = []
        with (
            Progress(total=len(chunks) * method.calls(left), label="sampling") as bar,
            caching(self.prior, cache, steps=left, solver=method),
        ):
            watch = watched(self, bar, callback_on_step_end)
            run = _Run(self, guidance, method, start.levels, time_remap, tuple(controls), watch)
            for rows in (slice(first, first + chunk) for first in chunks):
                own = generators if isinstance(generators, torch.Generator) else generators[rows]
                parts.append(run(condition.index(rows), start.x[rows], own))
        final = torch.cat(parts)
        if not bool(torch.isfinite(final).all()):
            raise UnprojectError("sampling produced values that are not finite; use dtype float32 or lower guidance")
        if output_type == "latent":
            images: Any = final
        else:
            images = delivered(torch.cat([self.prior.decode(part) for part in final.split(chunk)]), output_type)
        if not return_dict:
            return (images,)
        return TextToImageOutput(images=images, latents=final, seeds=seeds, nfe=self.prior.nfe - nfe_before)

    def method(
        self,
        solver: str | Solver | None = None,
        statistics: ModelStatistics | str | Path | None = None,
        eta: float = 0.0,
        shape: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str | Sequence[str] | None = None,
    ) -> Solver:
        """The solver of a call with these arguments; files are compared with the latent shape (C, h, w) and guidance.

        Raises InputError for an unknown solver, for statistics it has no use for or lacks, and for foreign files.
        """
        chosen = solver or self.settings.solver
        from_file = isinstance(chosen, str) and chosen.partition(":")[0] in CALIBRATED
        if statistics is not None and not from_file:
            raise InputError(f"statistics= serve dpm-v3 and usf:FILE, not the solver {chosen}; leave them out")
        if isinstance(chosen, Solver):
            return chosen
        scale = self.settings.guidance if guidance_scale is None else guidance_scale
        expected = None
        if from_file:
            expected = mark(self.prior, shape or self.prior.latent_shape, scale, guidance_rescale, negative_prompt)
        flow = NoiseSchedule.from_config(self.prior.scheduler_config).flow
        return make_solver(chosen, flow, self.prior.prediction_type, eta, statistics, expected)

    def levels(
        self, method: Solver, shape: Sequence[int], steps: int | None = None, spacing: Spacing | None = None
    ) -> list[Level]:
        """The levels of a call: the solver's own, or what suits the prior where nothing else is said.

        Raises InputError for a spacing or another number of steps beside a solver that brings its own levels.
        """
        schedule, settings = NoiseSchedule.from_config(self.prior.scheduler_config), self.settings
        own = method.own_grid(schedule)
        if own is not None and spacing is not None:
            raise InputError(f"spacing={spacing}: this solver brings levels of its own; leave the spacing out")
        if own is not None and steps not in (None, len(own) - 1):
            raise InputError(f"{steps} steps: this solver was made for {len(own) - 1}; leave the number out")
        if own is not None:
            return own
        tokens = self.prior.tokens(torch.empty(1, *shape))
        return schedule.grid(settings.steps if steps is None else steps, spacing or settings.spacing, tokens=tokens)

    def _checked_prompts(self, prompt: str | Sequence[str]) -> list[str]:
        """The prompts as a list; warns of everything the prior will not see."""
        listed = [prompt] if isinstance(prompt, str) else prompt
        prompts = list(listed) if isinstance(listed, Sequence) else []
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise InputError(f"prompt={prompt!r} must be text or a non-empty list of texts")
        for text in dict.fromkeys(prompts):
            warn_about(self.prior, text, REAL_BACKBONES)
        return prompts

    def _check(self, scale: float, images: int, output_type: str, batch_size: int | None) -> None:
        if not math.isfinite(scale):
            raise InputError(f"guidance_scale={scale} must be a finite number")
        if images < 1:
            raise InputError(f"num_images_per_prompt={images} must be at least 1")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        check_output_type(output_type)

    def _noise(
        self,
        latents: Tensor | None,
        shape: tuple[int, int, int],
        generators: Generators,
        rows: int,
    ) -> Tensor:
        dtype = torch.promote_types(self.prior.dtype, torch.float32)
        if latents is None:
            return sample_noise(shape, generators, rows, self.prior.device, dtype)
        if latents.ndim != 4 or latents.shape[:2] != (rows, shape[0]):
            raise InputError(f"latents have shape {tuple(latents.shape)}, expected {(rows, *shape)}")
        return latents.to(self.prior.device, dtype)


@dataclass(frozen=True)
class _Run:
    """Sampling with fixed settings."""

    pipe: TextToImage
    guidance: Guidance
    solver: Solver
    levels: Sequence[Level]
    time_remap: Remap | None
    controls: tuple[Control, ...]
    watch: StepCallback

    def __call__(self, condition: Condition, x: Tensor, generators: Generators) -> Tensor:
        """Final latents (b, C, h, w) of some rows that begin at x."""
        if len(self.levels) < 2:
            return x
        denoiser = Denoiser(self.pipe.prior, condition, self.guidance, self.time_remap, self.controls)
        return Sampler(self.solver).run(denoiser, x, self.levels, generator=generators, callback=self.watch)


def _check_cache(cache: CacheConfig | str | None, controls: Sequence[Control]) -> None:
    """Raises InputError for a cache under a control that reads attention, whose own call would count as a step."""
    chosen = parse_cache(cache) if isinstance(cache, str) else cache
    if chosen is not None and any(isinstance(getattr(control, "cost", None), AttentionCost) for control in controls):
        raise InputError(
            f"cache={cache!r} does not go with an AttentionCost control, which calls the network once more at every "
            "step: the cache would take that call for a step; leave one of them out"
        )
