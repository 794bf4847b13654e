"""Text to image: the plainest use of a prior, and the base of every check of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..core.sampling.caches import caching
from ..core.sampling.drawing import Drawing, drawing
from ..core.sampling.init import Start
from ..core.sampling.plan import SamplingPlan
from ..utils.errors import InputError, UnprojectError
from ..utils.progress import Progress
from ..utils.seeds import sample_noise
from .base import SamplingPipeline
from .prompts import warn_about
from .sampling_parts import Generators, StepEnd, check_output_type, delivered, latent_shape, randomness, watched

REAL_BACKBONES = "sd15, sdxl, sd3 or flux-dev"


@dataclass
class TextToImageOutput(BaseOutput):
    """Images, and what made them."""

    images: list[Image.Image] | np.ndarray | Tensor  # pil; np (B, H, W, 3); pt (B, 3, H, W), in [0, 1]; or latents
    latents: Tensor  # (B, C, h, w) scaled
    seeds: list[int] | None  # one per image (or object seen from several cameras); None when generators were given
    nfe: int  # network rows spent
    plan: SamplingPlan  # as it was carried out


class TextToImage(SamplingPipeline):
    """Images from prompts with any prior and solver.

    >>> pipe = TextToImage.from_pretrained("toybox")
    >>> pipe("a red chair", seed=1).images[0].save("chair.png")
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        plan: SamplingPlan | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        cameras: Tensor | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        **settings: Any,
    ) -> TextToImageOutput | tuple[Any, ...]:
        """Draws images.

        Args:
            prompt: one or several prompts; words or endings the prior cannot see raise a warning that names them.
            negative_prompt: what to move away from; one for all prompts or one each.
            plan: how to draw (`SamplingPlan`); what it leaves open is that of the pipeline's quality.
            num_inference_steps: `steps` of the plan.
            guidance_scale: `guidance` of the plan.
            num_images_per_prompt: images per prompt, adjacent in the output.
            height: px, multiple of the latent cell; None: the prior's own size. Likewise `width`.
            seed: image i uses seed + i, so a batch equals its images drawn one by one; None: a fresh one (reported).
            generator: one for the whole batch or one per image, instead of seeds. With cameras an image is an object,
                whose views draw from its generator in turn.
            latents: starting noise (B, C, h, w) instead of drawing it.
            cameras: (F, 16) for multi-view priors: F views per image, adjacent in the output.
            batch_size: images drawn and decoded at once; None: all.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns (images,).
            callback_on_step_end: called with (pipe, call, timestep, {"latents": ...}) after every network call, two a
                step for heun and edict; may return {"latents": ...}. The calls of each `batch_size` count from 0.
            settings: any other field of `SamplingPlan` (solver, spacing, eta, guidance_rescale, cache, init ...).
        """
        prompts = self._checked_prompts(prompt)
        check_counts(num_images_per_prompt, batch_size)
        check_output_type(output_type)
        asked = (plan or SamplingPlan()).changed(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, **settings
        )
        condition = self.prior.encode_text(prompts, negative_prompt).repeat(num_images_per_prompt)
        if cameras is not None:
            condition = condition.with_views(cameras, cameras.shape[0])
        shape = latent_shape(self.prior, height, width)
        seeds, generators = randomness(seed, generator, condition.rows // condition.frames)
        if not isinstance(generators, torch.Generator):
            generators = [one for one in generators for _ in range(condition.frames)]
        noise = self._noise(latents, shape, generators, condition.rows)
        draw = self.drawing(asked, noise.shape[1:], negative_prompt)
        remap, controls, start = draw.remap(), draw.controls(prompts), draw.started(noise)
        left = len(start.levels) - 1
        chunk = condition.rows if batch_size is None else max(batch_size // condition.frames, 1) * condition.frames
        chunks = range(0, condition.rows, chunk)
        nfe_before = draw.prior.nfe
        parts = []
        with (
            Progress(total=len(chunks) * draw.solver.calls(left), label="sampling") as bar,
            caching(draw.prior, draw.plan.cache, steps=left, solver=draw.solver),
        ):
            watch = watched(self, bar, callback_on_step_end)
            for rows in (slice(first, first + chunk) for first in chunks):
                own = generators if isinstance(generators, torch.Generator) else generators[rows]
                part = Start(start.x[rows], start.levels)
                parts.append(draw.run(condition.index(rows), part, own, remap, controls, watch))
        final = torch.cat(parts)
        if not bool(torch.isfinite(final).all()):
            raise UnprojectError("sampling produced values that are not finite; use dtype float32 or lower guidance")
        if output_type == "latent":
            images: Any = final
        else:
            images = delivered(torch.cat([self.prior.decode(part) for part in final.split(chunk)]), output_type)
        if not return_dict:
            return (images,)
        return TextToImageOutput(images, final, seeds, draw.prior.nfe - nfe_before, draw.plan)

    def drawing(
        self,
        plan: SamplingPlan | None = None,
        shape: Sequence[int] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
    ) -> Drawing:
        """Solver, levels and start of a call with this plan, at a latent shape (C, h, w); None: the prior's own.

        Raises InputError for settings that do not go together and for files made for something else.
        """
        return drawing(plan or SamplingPlan(), self.prior, shape, negative_prompt, self.settings)

    def _checked_prompts(self, prompt: str | Sequence[str]) -> list[str]:
        """The prompts as a list; warns of everything the prior will not see."""
        listed = [prompt] if isinstance(prompt, str) else prompt
        prompts = list(listed) if isinstance(listed, Sequence) else []
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise InputError(f"prompt={prompt!r} must be text or a non-empty list of texts")
        for text in dict.fromkeys(prompts):
            warn_about(self.prior, text, REAL_BACKBONES)
        return prompts

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


def check_counts(images: int, batch_size: int | None) -> None:
    """Raises InputError for numbers of images that make no sense."""
    if images < 1:
        raise InputError(f"num_images_per_prompt={images} must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
