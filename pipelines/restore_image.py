"""Restoring a damaged picture with a frozen prior: super-resolution, inpainting, deblurring (FLAIR)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..core.priors import Prior
from ..core.sampling import RestoreConfig, restore
from ..core.sampling.flair import ErrorCurve
from ..core.sampling.operators import Inpainting, Operator, gaussian_blur, super_resolution
from ..utils.errors import InputError
from ..utils.progress import Progress
from .base import SamplingPipeline
from .picture_inputs import PictureLike, fitted, hidden_pixels, pictures, resized
from .prompts import check_guidance, check_texts, warn_about
from .quality import own_steps
from .sampling_parts import (
    TENSORS,
    StepEnd,
    check_output_type,
    check_tensors,
    handed_out,
    latent_shape,
    longest_side,
    mark,
    randomness,
    watched,
)
from .text_to_image import REAL_BACKBONES

TASKS = "super-resolution:FACTOR, inpaint, deblur:STD"


@dataclass
class RestoreImageOutput(BaseOutput):
    """Restored pictures, and how well they explain what was given."""

    images: list[Image.Image] | np.ndarray | Tensor  # pil; np (B, H, W, 3); pt (B, 3, H, W), in [0, 1]; or latents
    latents: Tensor  # (B, C, h, w) scaled
    residual: list[float]  # root mean square of what the result, damaged again, differs by; image units
    seeds: list[int] | None  # one per image; None when generators were given
    nfe: int  # network rows spent


class Task(NamedTuple):
    """What happened to a picture."""

    kind: str  # super-resolution, inpaint or deblur
    value: float = 0.0  # factor, or standard deviation in px of the given picture


def parse_task(text: str) -> Task:
    """The task a text names: super-resolution:4, inpaint, deblur:2.0. Raises InputError for anything else."""
    kind, _, value = text.partition(":")
    try:
        if kind == "super-resolution" and int(value) >= 2:
            return Task(kind, int(value))
        if kind == "deblur" and 0 < float(value) < 1000:
            return Task(kind, float(value))
    except ValueError:
        pass
    if text == "inpaint":
        return Task(text)
    raise InputError(f"task {text!r} is unknown; write {TASKS}")


def check_factor(factor: int, longest: int) -> None:
    """Raises InputError for a factor of super-resolution that a result of `longest` px has no pixels for."""
    if longest < factor:
        raise InputError(f"task super-resolution:{factor} leaves nothing of a result of {longest} px; lower the factor")


class RestoreImage(SamplingPipeline):
    """Pictures that explain a damaged one and that the prior finds plausible, without training.

    >>> pipe = RestoreImage.from_pretrained("toybox")
    >>> pipe("small.png", "super-resolution:4").images[0].save("large.png")
    """

    def __call__(
        self,
        image: PictureLike | Sequence[PictureLike],
        task: str,
        prompt: str | Sequence[str] = "",
        *,
        mask: PictureLike | None = None,
        curve: ErrorCurve | str | Path | None = None,
        noise_std: float = 0.005,
        config: RestoreConfig | None = None,
        size: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSORS,
    ) -> RestoreImageOutput | tuple[Any, ...]:
        """Restores pictures.

        Args:
            image: the damaged picture, a path, PIL image, array (H, W, 3) or tensor (3, H, W), or a list of one size.
            task: "super-resolution:4", "inpaint" or "deblur:2.0" (standard deviation in px of the given picture).
            prompt: what the pictures show, one or one each; empty is fine.
            mask: for inpaint, a picture of the same size that marks what is filled in; `hidden_pixels` has the rule.
            curve: `ErrorCurve` or its file, measured at `size` and the guidance of `config`; None: equal weights.
            noise_std: standard deviation of the noise in the picture, image units.
            config: settings of `core.sampling.flair`; None: its defaults, with the steps of the pipeline's quality.
            size: longest side of the result in px; None: the prior's own.
            seed: image i uses seed + i; other seeds give other plausible answers; None: a fresh one (reported).
            generator: one for all images or one per image, instead of seeds.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns (images,).
            callback_on_step_end: called with (pipe, step, timestep, {"latents": ...}) after the data term of every
                step; may return {"latents": ...}.
            callback_on_step_end_tensor_inputs: what it is handed; there is "latents".
        """
        check_output_type(output_type)
        check_tensors(callback_on_step_end_tensor_inputs)
        chosen, settings = parse_task(task), config or RestoreConfig(steps=own_steps(self.quality))
        check_guidance(self.prior, settings.guidance)
        for text in dict.fromkeys(check_texts("prompt", prompt)):
            if text:
                warn_about(self.prior, text, REAL_BACKBONES)
        given = pictures(image)
        y, operator, kept = measured(self.prior, given, chosen, mask, size)
        y = y.to(self.prior.device, torch.promote_types(self.prior.dtype, torch.float32))
        seeds, drawn = randomness(seed, generator, len(y))
        draws = [drawn] * len(y) if isinstance(drawn, torch.Generator) else drawn
        if isinstance(curve, (str, Path)):
            curve = ErrorCurve.load(curve, mark(self.prior, latent_shape(self.prior, size, size), settings.guidance))
        with Progress(settings.steps, "restoring") as bar:
            watch = watched(self, bar, callback_on_step_end)
            made = restore(y, operator, self.prior, prompt, curve, noise_std, settings, 0, draws, watch)
        images = handed_out(made.latents, lambda: made.images, kept, output_type, "restoring")
        if not return_dict:
            return (images,)
        return RestoreImageOutput(images, made.latents, made.residual.tolist(), seeds, made.nfe)


def measured(
    prior: Prior, given: Tensor, task: Task, mask: PictureLike | None, size: int | None
) -> tuple[Tensor, Operator, tuple[int, int]]:
    """(y, A, (H, W) of the result without padding) for pictures (B, 3, H, W) of a task.

    Pictures too large for a result of `size` px are reduced with a warning, edges are repeated up to the prior's cells.
    """
    if (task.kind == "inpaint") != (mask is not None):
        raise InputError("mask= is what inpaint fills in: give both, or neither")
    longest = longest_side(prior, size)
    cell = prior.vae_factor * prior.latent_multiple
    factor = int(task.value) if task.kind == "super-resolution" else 1
    if task.kind != "super-resolution":
        y, kept = fitted(given, longest, cell)
        _warn_of_loss(given, kept, longest)
        height, width = y.shape[2:]
        if mask is not None:
            known = _known(mask, given, kept)
            operator: Operator = Inpainting(F.pad(known, (0, width - kept[1], 0, height - kept[0])))
            return operator.forward(y), operator, kept
        return y, gaussian_blur(task.value * kept[1] / given.shape[3], height, width), kept
    check_factor(factor, longest)
    small = given
    if max(given.shape[2:]) * factor > longest:
        small = resized(given, longest // factor)
        _warn_of_loss(given, small.shape[2:], longest)
    rows, columns = small.shape[2:]
    padding = [next(p for p in range(cell) if factor * (side + p) % cell == 0) for side in (rows, columns)]
    y = F.pad(small, (0, padding[1], 0, padding[0]), mode="replicate")
    return y, super_resolution(factor, *(factor * side for side in y.shape[2:])), (factor * rows, factor * columns)


def _known(mask: PictureLike, given: Tensor, kept: tuple[int, int]) -> Tensor:
    """(1, 1, H, W) of pixels at the processing size that no masked pixel touches."""
    marked = hidden_pixels(mask, given)
    known = F.interpolate(marked[:1], kept, mode="bilinear", antialias=True) < 1e-3
    if not bool(known.any()):
        raise InputError("the mask covers the whole picture: nothing is known; white is what is filled in")
    return known


def _warn_of_loss(given: Tensor, kept: Sequence[int], longest: int) -> None:
    """Warns when pictures (B, 3, H, W) lose pixels on the way to the size (H, W) they are restored at."""
    height, width = given.shape[2:]
    if max(kept) < max(height, width):
        warnings.warn(
            f"the picture is reduced from {width} x {height} to {kept[1]} x {kept[0]} px: a result of {longest} px has "
            "no more (size=)",
            stacklevel=4,
        )
