"""What the pipelines that sample share: sizes, randomness, fingerprints, delivered pictures."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.priors import Prior
from ..core.sampling import ClassifierFree, Level
from ..core.sampling.calibration import Fingerprint, fingerprint
from ..core.sampling.sampler import StepCallback
from ..utils.errors import InputError, UnprojectError
from ..utils.progress import Progress
from ..utils.seeds import generator as seeded

TENSORS = ("latents",)  # what callbacks are handed
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MAX_PIXELS = 4096 * 4096
Generators = torch.Generator | list[torch.Generator]
# (pipeline, network calls before this one, timestep asked, {"latents": state}); may return {"latents": another state}
StepEnd = Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None]


def mark(
    prior: Prior,
    shape: Sequence[int],
    scale: float,
    rescale: float = 0.0,
    negative: str | Sequence[str] | None = None,
) -> Fingerprint:
    """The fingerprint of runs at a latent shape (C, h, w) and guidance scale, whichever way the prior takes it."""
    return fingerprint(prior, tuple(shape), ClassifierFree(scale, rescale), negative)


def latent_shape(prior: Prior, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
    """(C, h, w) of images of height x width px (None: the prior's own). Raises InputError for sizes it cannot draw."""
    for name, side in (("height", height), ("width", width)):
        if side is not None and not is_whole(side):
            raise InputError(f"{name}={side!r} must be a whole number of px")
    channels, rows, columns = prior.latent_shape
    cell = prior.vae_factor * prior.latent_multiple
    sides = [height or rows * prior.vae_factor, width or columns * prior.vae_factor]
    for name, value, given in (("height", sides[0], height), ("width", sides[1], width)):
        if value < cell or value % cell or given == 0:
            raise InputError(f"{name}={given} must be a positive multiple of {cell} px for this prior")
    if sides[0] * sides[1] > MAX_PIXELS:
        raise InputError(f"height={sides[0]} width={sides[1]} exceeds {MAX_PIXELS} pixels")
    return channels, sides[0] // prior.vae_factor, sides[1] // prior.vae_factor


def longest_side(prior: Prior, size: int | None) -> int:
    """`size`, or the prior's own: px of the longer side at which it works on a given picture. Raises InputError for a
    size that it cannot draw."""
    longest = size or prior.latent_shape[1] * prior.vae_factor
    latent_shape(prior, longest, longest)
    return longest


def randomness(
    seed: int | None, generator: torch.Generator | Sequence[torch.Generator] | None, rows: int
) -> tuple[list[int] | None, Generators]:
    """(seeds, generators): one seed per image unless generators were given."""
    if generator is not None and seed is not None:
        raise InputError("give either seed or generator, not both")
    if isinstance(generator, torch.Generator):
        return None, generator
    if generator is not None:
        if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
            raise InputError(f"generator={generator!r} must be a torch.Generator or a list of them")
        if len(generator) != rows:
            raise InputError(f"got {len(generator)} generators for {rows} images; give one, or one per image")
        return None, list(generator)
    if seed is not None and not (is_whole(seed) and 0 <= seed < 2**63 - rows):
        raise InputError(f"seed={seed!r} must be a whole number between 0 and 2^63 - 1")
    first = secrets.randbelow(2**32) if seed is None else int(seed)
    seeds = [first + i for i in range(rows)]
    return seeds, [seeded(s) for s in seeds]


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or numpy, and no truth value."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raises InputError for what is no whole number, too small or too large."""
    if not is_whole(value):
        raise InputError(f"{name}={value!r} must be a whole number")
    if value < least:
        raise InputError(f"{name}={value} must be at least {least}")
    if most is not None and value > most:
        raise InputError(f"{name}={value} must be at most {most}")


def check_tensors(names: Sequence[str]) -> None:
    """Raises InputError for tensors that no callback is handed."""
    listed = [names] if isinstance(names, str) else list(names)
    odd = [name for name in listed if name not in TENSORS]
    if odd:
        raise InputError(
            f"callback_on_step_end_tensor_inputs={listed}: callbacks are handed {', '.join(TENSORS)} alone"
        )


def step_callback(pipe: Any, callback: StepEnd) -> StepCallback:
    """A callback of a pipeline as one of `Sampler`. Raises InputError for what cannot be called."""
    if not callable(callback):
        raise InputError(f"callback_on_step_end={callback!r} cannot be called; give a function")

    def after(call: int, level: Level, x: Tensor) -> Tensor | None:
        return (callback(pipe, call, float(level.model_time), {"latents": x}) or {}).get("latents")

    return after


def watched(pipe: Any, bar: Progress, callback: StepEnd | None, rows: int = 1) -> StepCallback:
    """A callback of `Sampler` that moves the bar by `rows` and then asks a pipeline's callback, where there is one."""
    asked = None if callback is None else step_callback(pipe, callback)

    def after(call: int, level: Level, x: Tensor) -> Tensor | None:
        bar.advance(rows)
        return None if asked is None else asked(call, level, x)

    return after


def check_output_type(output_type: str) -> None:
    """Raises InputError for a form of delivery that does not exist."""
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type={output_type!r} is unknown; have {', '.join(OUTPUT_TYPES)}")


def delivered(images: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Images (B, 3, H, W) in [0, 1] as a list of PIL images, an array (B, H, W, 3) or the tensor itself."""
    if output_type == "pt":
        return images
    array = images.float().permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(picture) for picture in (array * 255).round().astype(np.uint8)]


def handed_out(
    latents: Tensor, images: Callable[[], Tensor], kept: Sequence[int], output_type: str, doing: str
) -> list[Image.Image] | np.ndarray | Tensor:
    """What became of given pictures, in a form of delivery: the latents, or the images (B, 3, H, W) that they show, cut
    to `kept` (H, W) where the pictures were padded. Raises UnprojectError for latents that are not finite."""
    if not bool(torch.isfinite(latents).all()):
        raise UnprojectError(f"{doing} produced values that are not finite; use dtype float32 or lower guidance")
    return latents if output_type == "latent" else delivered(images()[..., : kept[0], : kept[1]], output_type)
