"""Text to image: the plainest use of a prior, and the base of every check of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..core.priors import Condition, Prior
from ..core.priors.rows import COND
from ..core.sampling.caches import caching
from ..core.sampling.drawing import Drawing, drawing
from ..core.sampling.init import Start
from ..core.sampling.plan import SamplingPlan
from ..utils.errors import InputError, UnprojectError
from ..utils.progress import Progress
from ..utils.seeds import sample_noise
from .base import SamplingPipeline
from .batches import Batches
from .picture_conditions import with_pictures
from .picture_inputs import PictureLike
from .prompts import check_guidance, check_texts, embedded, warn_about, warn_about_negatives, warn_about_px
from .sampling_parts import (
    TENSORS,
    Generators,
    StepEnd,
    check_output_type,
    check_tensors,
    delivered,
    latent_shape,
    randomness,
    watched,
    whole_number,
)

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
        prompt: str | Sequence[str] | None = None,
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
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        branches: Mapping[str, str | Sequence[str]] | None = None,
        cameras: Tensor | None = None,
        control_image: PictureLike | Sequence[PictureLike] | None = None,
        ip_adapter_image: PictureLike | Sequence[PictureLike] | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSORS,
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
            prompt_embeds: (B, L, D) in the place of `prompt`, as an encoder gave them; pooled_prompt_embeds (B, P) too
                where the prior has such. Likewise negative_prompt_embeds, negative_pooled_prompt_embeds.
            branches: prompts of further branches by name, one each or one for all, for a guidance that asks them.
            cameras: (F, 16) for multi-view priors: F views per image, adjacent in the output.
            control_image: what the prior's ControlNet or T2I-Adapter looks at, such as a map of edges, for all prompts
                or one each; with several controls a list of one such for each.
            ip_adapter_image: what its IP-Adapter looks at, for all prompts or one each.
            batch_size: images drawn and decoded at once, at most; None: all. Fewer where memory is short or runs out.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns (images,).
            callback_on_step_end: called with (pipe, call, timestep, {"latents": ...}) after every network call, two a
                step for heun and edict; may return {"latents": ...}. The calls of each `batch_size` count from 0.
            callback_on_step_end_tensor_inputs: what the callback is handed; there is "latents".
            settings: any other field of `SamplingPlan` (solver, spacing, eta, guidance_rescale, cache, init ...).
        """
        check_counts(num_images_per_prompt, batch_size)
        check_output_type(output_type)
        check_tensors(callback_on_step_end_tensor_inputs)
        asked = (plan or SamplingPlan()).changed(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, **settings
        )
        asked.check_types()
        shape = latent_shape(self.prior, height, width)
        embeds = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
        prompts, condition = self._described(prompt, negative_prompt, *embeds)
        for name, texts in (branches or {}).items():
            condition = condition.branch(name, self.prior.encode_text(texts)[COND].for_batch(condition.rows))
        condition = with_pictures(self.prior, condition, shape, control_image, ip_adapter_image)
        condition = condition.repeat(num_images_per_prompt)
        if cameras is not None:
            condition = condition.with_views(cameras, cameras.shape[0])
        seeds, generators = randomness(seed, generator, condition.rows // condition.frames)
        if not isinstance(generators, torch.Generator):
            generators = [one for one in generators for _ in range(condition.frames)]
        noise = self._noise(latents, shape, generators, condition.rows)
        draw = self.drawing(asked, noise.shape[1:], negative_prompt)
        if not callable(draw.plan.guidance):
            check_guidance(self.prior, draw.plan.guidance)
        warn_about_size(self.prior, shape)
        remap, controls, start = draw.remap(), draw.controls(prompts), draw.started(noise)
        left = len(start.levels) - 1
        size = [side * self.prior.vae_factor for side in shape[1:]]
        batches = Batches(self.prior, condition.rows, size, len(condition.branches), batch_size, condition.frames)
        nfe_before = draw.prior.nfe
        with (
            Progress(total=condition.rows * draw.solver.calls(left), label="sampling") as bar,
            caching(draw.prior, draw.plan.cache, steps=left, solver=draw.solver) as cache,
        ):

            def drawn(rows: slice) -> Tensor:
                if cache is not None:
                    cache.begin_run()
                bar.advance(rows.start * draw.solver.calls(left) - bar.done)  # back, after a try that failed
                watch = watched(self, bar, callback_on_step_end, rows.stop - rows.start)
                own = generators if isinstance(generators, torch.Generator) else generators[rows]
                part = Start(start.x[rows], start.levels)
                return draw.run(condition.index(rows), part, own, remap, controls, watch)

            parts = batches.each(drawn, generators)
        final = torch.cat(parts)
        if not bool(torch.isfinite(final).all()):
            raise UnprojectError("sampling produced values that are not finite; use dtype float32 or lower guidance")
        if output_type == "latent":
            images: Any = final
        else:
            decoded = batches.each(lambda rows: self.prior.decode(final[rows]))
            images = delivered(torch.cat(decoded), output_type)
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

    def _described(
        self,
        prompt: str | Sequence[str] | None,
        negative: str | Sequence[str] | None,
        embeds: Tensor | None,
        *others: Tensor | None,
    ) -> tuple[list[str], Condition]:
        """(prompts, what the network is told); warns of everything the prior will not see."""
        warn_about_negatives(self.prior, negative, REAL_BACKBONES)
        if embeds is not None:
            if prompt is not None:
                raise InputError("give prompt or prompt_embeds, not both")
            null, pooled, null_pooled = others
            made = embedded(self.prior, embeds, null, pooled, null_pooled, negative)
            return [""] * made.rows, made
        if any(other is not None for other in others):
            raise InputError("negative and pooled embeddings go with prompt_embeds; give it too, or leave them out")
        prompts = check_texts("prompt", prompt)
        if not (negative is None or isinstance(negative, str)) and len(negative) not in (1, len(prompts)):
            raise InputError(
                f"got {len(negative)} negative prompts for {len(prompts)} prompts; give one or one per prompt"
            )
        for text in dict.fromkeys(prompts):
            warn_about(self.prior, text, REAL_BACKBONES)
        return prompts, self.prior.encode_text(prompts, negative)

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
    whole_number("num_images_per_prompt", images)
    if batch_size is not None:
        whole_number("batch_size", batch_size)


def warn_about_size(prior: Prior, shape: Sequence[int]) -> None:
    """Warns of images of latent shape (C, h, w) far from the prior's own size, and of what they cost."""
    own, (height, width) = prior.latent_shape[1] * prior.vae_factor, (side * prior.vae_factor for side in shape[1:])
    warn_about_px(prior.name, own, prior.known_px, height, width)
