"""Text to image: the plainest use of a prior, and the base of every check of it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..core.priors import Condition, Prior, load_prior
from ..core.sampling import Denoiser, Guidance, Level, NoiseSchedule, Sampler, Solver, make_solver
from ..core.sampling.caches import CacheConfig, caching
from ..core.sampling.denoiser import Control, Remap
from ..core.sampling.grids import Spacing
from ..core.sampling.init import Init, NoiseInit, sample_from
from ..utils.errors import InputError, UnprojectError
from ..utils.progress import Progress
from ..utils.seeds import generator as seeded
from ..utils.seeds import sample_noise
from .prompts import warn_about

StepEnd = Callable[["TextToImage", int, float, dict[str, Tensor]], dict[str, Tensor] | None]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MAX_PIXELS = 4096 * 4096
REAL_BACKBONES = "sd15, sdxl, sd3 or flux-dev"


@dataclass
class TextToImageOutput(BaseOutput):
    """Images, and what made them."""

    images: list[Image.Image] | np.ndarray | Tensor  # pil; np (B, H, W, 3); pt (B, 3, H, W), in [0, 1]; or latents
    latents: Tensor  # (B, C, h, w) scaled
    seeds: list[int] | None  # one per image; None when generators were given
    nfe: int  # network rows spent


class TextToImage:
    """Images from prompts with any prior and solver.

    >>> pipe = TextToImage.from_pretrained("toybox")
    >>> pipe("a red chair", seed=1).images[0].save("chair.png")
    """

    def __init__(self, prior: Prior) -> None:
        self.prior = prior

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "toybox",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> TextToImage:
        """Loads a prior by name, folder, registry id or hub repository (`core.priors.load_prior`)."""
        return cls(load_prior(name, device, dtype, **options))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the prior as a folder `from_pretrained` reads."""
        return self.prior.save(folder)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextToImage:
        """Moves and casts the prior."""
        self.prior.to(device, dtype)
        return self

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
            num_inference_steps: solver steps; None: what suits the prior.
            guidance_scale: classifier-free guidance; 1 switches it off; None: what suits the prior.
            guidance_rescale: [0, 1], against over-saturation at high guidance.
            num_images_per_prompt: images per prompt, adjacent in the output.
            height: px, multiple of the latent cell; None: the prior's own size. Likewise `width`.
            solver: a name of `core.sampling.SOLVERS` (ddim, dpm++, unipc, euler, heun, ghvb:2,0.5 ...) or a Solver;
                None: what suits the prior.
            eta: randomness of ddim, [0, 1].
            spacing: trailing, leading, linspace, logsnr or karras; None: the prior's own.
            seed: image i uses seed + i, so a batch equals its images drawn one by one; None: a fresh one (reported).
            generator: one for the whole batch or one per image, instead of seeds.
            latents: starting noise (B, C, h, w) instead of drawing it.
            cameras: (F, 16) for multi-view priors: F views per image, adjacent in the output.
            init: where the run begins (`TeleportInit`, `FixedNoiseInit`); None: at the noise.
            time_remap: what the network is told instead of its own times (`TimeRemap`).
            controls: change each guided prediction (`VelocityControl`).
            cache: what is not computed anew at every step, a config or "deep:3", "inherit", "regions:0.5".
            batch_size: images drawn at once; None: all.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns (images,).
            callback_on_step_end: called with (pipe, step, timestep, {"latents": ...}); may return {"latents": ...}.
        """
        prompts = self._checked_prompts(prompt)
        settings = self.prior.recommended
        scale = settings.guidance if guidance_scale is None else guidance_scale
        self._check(scale, num_images_per_prompt, output_type, batch_size)
        condition = self.prior.encode_text(prompts, negative_prompt).repeat_interleave(num_images_per_prompt)
        guidance, condition = self._guided(condition, scale, guidance_rescale)
        if cameras is not None:
            condition = condition.with_views(cameras, cameras.shape[0])
        shape = self._latent_shape(height, width)
        seeds, generators = _randomness(seed, generator, condition.rows)
        noise = self._noise(latents, shape, generators, condition.rows)

        schedule = NoiseSchedule.from_config(self.prior.scheduler_config)
        steps = settings.steps if num_inference_steps is None else num_inference_steps
        levels = schedule.grid(steps, spacing or settings.spacing, tokens=self.prior.tokens(noise))
        method = solver or settings.solver
        if isinstance(method, str):
            method = make_solver(method, schedule.flow, self.prior.prediction_type, eta)
        levels = method.own_grid(schedule) or levels
        start = init or NoiseInit()
        calls = method.calls(len(start(noise, levels).levels) - 1)
        chunk = condition.rows if batch_size is None else max(batch_size // condition.frames, 1) * condition.frames
        chunks = range(0, condition.rows, chunk)
        nfe_before = self.prior.nfe
        parts = []
        with (
            Progress(total=len(chunks) * calls, label="sampling") as bar,
            caching(self.prior, cache, steps=len(levels) - 1, solver=method),
        ):
            run = _Run(self, guidance, method, levels, start, time_remap, tuple(controls), bar, callback_on_step_end)
            for rows in (slice(first, first + chunk) for first in chunks):
                own = generators if isinstance(generators, torch.Generator) else generators[rows]
                parts.append(run(condition.index(rows), noise[rows], own))
        final = torch.cat(parts)
        if not bool(torch.isfinite(final).all()):
            raise UnprojectError("sampling produced values that are not finite; use dtype float32 or lower guidance")
        images = final if output_type == "latent" else _delivered(self.prior.decode(final), output_type)
        if not return_dict:
            return (images,)
        return TextToImageOutput(images=images, latents=final, seeds=seeds, nfe=self.prior.nfe - nfe_before)

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
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type={output_type!r} is unknown; have {', '.join(OUTPUT_TYPES)}")

    def _guided(self, condition: Condition, scale: float, rescale: float) -> tuple[Guidance, Condition]:
        """Guidance by two branches, or as an input of models distilled to take it."""
        if not self.prior.guidance_embedded:
            return Guidance(scale, rescale), condition
        return Guidance(1.0), replace(condition, extra={**condition.extra, "guidance": scale})

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        channels, rows, columns = self.prior.latent_shape
        cell = self.prior.vae_factor * self.prior.latent_multiple
        sides = [height or rows * self.prior.vae_factor, width or columns * self.prior.vae_factor]
        for name, value, given in (("height", sides[0], height), ("width", sides[1], width)):
            if value < cell or value % cell or given == 0:
                raise InputError(f"{name}={given} must be a positive multiple of {cell} px for this prior")
        if sides[0] * sides[1] > MAX_PIXELS:
            raise InputError(f"height={sides[0]} width={sides[1]} exceeds {MAX_PIXELS} pixels")
        return channels, sides[0] // self.prior.vae_factor, sides[1] // self.prior.vae_factor

    def _noise(
        self,
        latents: Tensor | None,
        shape: tuple[int, int, int],
        generators: torch.Generator | list[torch.Generator],
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
    levels: list[Level]
    init: Init
    time_remap: Remap | None
    controls: tuple[Control, ...]
    bar: Progress
    callback: StepEnd | None

    def __call__(
        self, condition: Condition, noise: Tensor, generators: torch.Generator | list[torch.Generator]
    ) -> Tensor:
        """Final latents (b, C, h, w) of some rows."""
        denoiser = Denoiser(self.pipe.prior, condition, self.guidance, self.time_remap, self.controls)
        options = {"generator": generators, "callback": self._after}
        return sample_from(self.init, Sampler(self.solver), denoiser, noise, self.levels, **options)

    def _after(self, call: int, level: Level, x: Tensor) -> Tensor | None:
        self.bar.advance()
        if self.callback is None:
            return None
        changed = self.callback(self.pipe, call, float(level.model_time), {"latents": x})
        return (changed or {}).get("latents")


def _randomness(
    seed: int | None, generator: torch.Generator | Sequence[torch.Generator] | None, rows: int
) -> tuple[list[int] | None, torch.Generator | list[torch.Generator]]:
    """(seeds, generators): one seed per image unless generators were given."""
    if generator is not None and seed is not None:
        raise InputError("give either seed or generator, not both")
    if isinstance(generator, torch.Generator):
        return None, generator
    if generator is not None:
        if len(generator) != rows:
            raise InputError(f"got {len(generator)} generators for {rows} images; give one, or one per image")
        return None, list(generator)
    if seed is not None and not 0 <= seed < 2**63 - rows:
        raise InputError(f"seed={seed} must lie between 0 and 2^63 - 1")
    first = secrets.randbelow(2**32) if seed is None else seed
    seeds = [first + i for i in range(rows)]
    return seeds, [seeded(s) for s in seeds]


def _delivered(images: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Images (B, 3, H, W) in [0, 1] in the form asked for."""
    if output_type == "pt":
        return images
    array = images.float().permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(picture) for picture in (array * 255).round().astype(np.uint8)]
