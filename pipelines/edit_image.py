"""Editing a given picture by its words: exact inversion under one prompt, regeneration under another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..core.priors import Prior
from ..core.sampling import EDICT, Denoiser, Level, NoiseSchedule, invert
from ..core.sampling.guidance import guided
from ..core.sampling.inversion import Inversion, regenerate, truncated
from ..utils.progress import Progress
from .base import SamplingPipeline
from .picture_inputs import PictureLike, fitted, pictures
from .prompts import check_guidance, check_texts, warn_about
from .quality import own_steps
from .sampling_parts import (
    TENSORS,
    StepEnd,
    check_output_type,
    check_tensors,
    handed_out,
    longest_side,
    randomness,
    watched,
)
from .text_to_image import REAL_BACKBONES


@dataclass
class EditImageOutput(BaseOutput):
    """Edited pictures, and what they cost."""

    images: list[Image.Image] | np.ndarray | Tensor  # pil; np (B, H, W, 3); pt (B, 3, H, W), in [0, 1]; or latents
    latents: Tensor  # (B, C, h, w) scaled
    nfe: int  # network rows spent


class EditImage(SamplingPipeline):
    """Changes what the words change and leaves the rest, with any prior (EDICT).

    >>> pipe = EditImage.from_pretrained("toybox")
    >>> pipe("photo.png", "a red chair", "a blue chair").images[0].save("out.png")
    """

    @torch.no_grad()
    def __call__(
        self,
        image: PictureLike | Sequence[PictureLike],
        source: str | Sequence[str],
        target: str | Sequence[str],
        *,
        num_inference_steps: int | None = None,
        strength: float = 0.8,
        guidance_scale: float = 3.0,
        mixing: float = 0.93,
        size: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSORS,
    ) -> EditImageOutput | tuple[Any, ...]:
        """Edits pictures.

        Args:
            image: a path, PIL image, array (H, W, 3), tensor (3, H, W), or a list or batch of one size.
            source: what the pictures show, one prompt or one each.
            target: what they shall show, likewise.
            num_inference_steps: steps of the whole schedule, two network calls a step in each direction; None: those of
                the pipeline's quality.
            strength: share of the steps that is walked, (0, 1]; less keeps more of the picture.
            guidance_scale: classifier-free guidance in both directions.
            mixing: of the two copies, (0, 1]; see `core.sampling.EDICT`.
            size: longest side in px at which the prior works, and of the result; None: the prior's own.
            generator: draws the latents of the pictures from the encoder's distribution, one for all or one each; None:
                its mean. Nothing else is random.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns (images,).
            callback_on_step_end: called with (pipe, call, timestep, {"latents": ...}) after every network call under
                `target`, two a step; may return {"latents": ...}.
            callback_on_step_end_tensor_inputs: what it is handed; there is "latents".
        """
        check_output_type(output_type)
        check_tensors(callback_on_step_end_tensor_inputs)
        check_guidance(self.prior, guidance_scale)
        nfe_before = self.prior.nfe
        images, kept = prepared(self.prior, pictures(image), size)
        inversion = self.invert(
            images,
            source,
            num_inference_steps=num_inference_steps,
            strength=strength,
            guidance_scale=guidance_scale,
            mixing=mixing,
            generator=generator,
        )
        latents = self.regenerate(
            inversion, target, guidance_scale=guidance_scale, callback_on_step_end=callback_on_step_end
        )
        made = handed_out(latents, lambda: self.prior.decode(latents), kept, output_type, "editing")
        return EditImageOutput(made, latents, self.prior.nfe - nfe_before) if return_dict else (made,)

    @torch.no_grad()
    def invert(
        self,
        images: Tensor,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int | None = None,
        strength: float = 0.8,
        guidance_scale: float = 3.0,
        mixing: float = 0.93,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Inversion:
        """The coupled noise of images (B, 3, H, W) in [0, 1] whose sides the prior can draw; arguments as in a call."""
        images = images.to(self.prior.device, self.prior.dtype)
        drawn = None if generator is None else randomness(None, generator, len(images))[1]
        latents = self.prior.encode(images, sample=drawn is not None, generator=drawn)
        latents = latents.to(torch.promote_types(self.prior.dtype, torch.float32))
        schedule = NoiseSchedule.from_config(self.prior.scheduler_config)
        steps = own_steps(self.quality) if num_inference_steps is None else num_inference_steps
        levels = truncated(schedule.grid(steps, tokens=self.prior.tokens(latents)), strength)
        with _bar(levels, "inverting") as bar:
            denoiser = self._denoiser(prompt, len(latents), guidance_scale)
            return invert(denoiser, latents, levels, mixing, watched(self, bar, None))

    @torch.no_grad()
    def regenerate(
        self,
        inversion: Inversion,
        prompt: str | Sequence[str],
        *,
        guidance_scale: float = 3.0,
        callback_on_step_end: StepEnd | None = None,
    ) -> Tensor:
        """Latents (B, C, h, w) of an inversion under a prompt, at the guidance it was inverted with."""
        denoiser = self._denoiser(prompt, len(inversion.x), guidance_scale)
        with _bar(inversion.levels, "drawing") as bar:
            return regenerate(denoiser, inversion, watched(self, bar, callback_on_step_end))

    def _denoiser(self, prompt: str | Sequence[str], rows: int, scale: float) -> Denoiser:
        for text in dict.fromkeys(check_texts("prompt", prompt)):
            warn_about(self.prior, text, REAL_BACKBONES)
        guidance, condition = guided(self.prior, self.prior.encode_text(prompt).for_batch(rows), scale)
        return Denoiser(self.prior, condition, guidance)


def _bar(levels: Sequence[Level], label: str) -> Progress:
    return Progress(EDICT().calls(len(levels) - 1), label)


def prepared(prior: Prior, images: Tensor, size: int | None) -> tuple[Tensor, tuple[int, int]]:
    """Images whose longest side is `size` px (None: the prior's own), padded to its cells; and (H, W) without that."""
    return fitted(images, longest_side(prior, size), prior.vae_factor * prior.latent_multiple)
