"""Images to noise and back: exact inversion by coupled states (EDICT), its approximate rival (DDIM), and editing.

Exactness needs the same network, condition, guidance and levels in both directions, and arithmetic that does not round
away the difference of the copies: float64 latents with a float64 prior round-trip below 1e-9, float32 to about 1e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.base import Prior
from ..priors.rows import Condition
from .denoiser import Denoiser
from .guidance import ClassifierFree
from .levels import Level, NoiseSchedule
from .sampler import Sampler, StepCallback
from .solvers.edict import EDICT, affine_step


@dataclass(frozen=True)
class Inversion:
    """What an image becomes at a noisy level, and the way back. Both copies are needed."""

    x: Tensor  # (B, C, h, w)
    partner: Tensor  # (B, C, h, w)
    levels: tuple[Level, ...]  # from noisy to clean, as they are to be replayed
    mixing: float


def invert(
    denoiser: Denoiser,
    latents: Tensor,
    levels: Sequence[Level],
    mixing: float = 0.93,
    callback: StepCallback | None = None,
) -> Inversion:
    """The coupled noise of clean latents (B, C, h, w) along `levels` (noisy to clean, as for sampling).

    `callback` is that of `Sampler.run`; a state it returns would not be undone on the way back.
    Raises InputError for guidance with rescale and for priors that carry a cache.
    """
    check_invertible(denoiser)
    solver = EDICT(mixing)
    x = Sampler(solver).run(denoiser, latents, list(reversed(levels)), callback=callback)
    first, partner = solver.pair
    return Inversion(x, partner if x is first else x, tuple(levels), mixing)  # a callback's state is both copies


def regenerate(denoiser: Denoiser, inversion: Inversion, callback: StepCallback | None = None) -> Tensor:
    """Latents (B, C, h, w) of an inversion: what it came from, or an edit of it for a denoiser of another condition."""
    check_invertible(denoiser)
    sampler = Sampler(EDICT(inversion.mixing, inversion.partner))
    return sampler.run(denoiser, inversion.x, inversion.levels, callback=callback)


def ddim_invert(denoiser: Denoiser, latents: Tensor, levels: Sequence[Level]) -> Tensor:
    """The usual approximate noise (B, C, h, w): every step asks at the noisier level with the cleaner state."""
    x = latents
    for index in reversed(range(len(levels) - 1)):
        a, b, kind = affine_step(levels[index], levels[index + 1])
        x = (x - b * denoiser(x, levels[index]).read(kind).to(x.dtype)) / a
    return x


@torch.no_grad()
def edit(
    prior: Prior,
    images: Tensor,
    source: str | Sequence[str],
    target: str | Sequence[str],
    steps: int = 50,
    strength: float = 0.8,
    guidance: float = 3.0,
    mixing: float = 0.93,
) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] that the prompt `source` describes, changed to `target`; the rest stays.

    Args:
        prior: any prior; in float64 (`prior.to(dtype=torch.float64)`) an unchanged prompt changes nothing.
        images: (B, 3, H, W) in [0, 1].
        source: what the images show, one prompt or one each; likewise `target`.
        steps: levels of the whole schedule; `strength` of them are walked, (0, 1]: less keeps more.
        guidance: scale in both directions.
        mixing: see EDICT.
    """
    levels = truncated(NoiseSchedule.from_config(prior.scheduler_config).grid(steps), strength)
    latents = prior.encode(images).to(torch.promote_types(prior.dtype, torch.float32))
    before, after = (_condition(prior, text, images.shape[0]) for text in (source, target))
    inversion = invert(Denoiser(prior, before, guidance), latents, levels, mixing)
    return prior.decode(regenerate(Denoiser(prior, after, guidance), inversion))


def truncated(levels: Sequence[Level], strength: float) -> list[Level]:
    """The last `strength` of the steps, at least one."""
    if not 0 < strength <= 1:
        raise InputError(f"strength={strength} must lie in (0, 1]: the share of the steps that is walked")
    steps = len(levels) - 1
    return list(levels[steps - max(int(steps * strength), 1) :])


def check_invertible(denoiser: Denoiser) -> None:
    """Raises InputError where the coupled steps would not be what they undo."""
    guidance = denoiser.guidance
    if isinstance(guidance, ClassifierFree) and guidance.rescale:
        raise InputError(
            f"guidance rescale={guidance.rescale} does not go with EDICT: it divides by each prediction's own spread, "
            "so the branches no longer mix linearly, and an edit would change the contrast of what should stay; use "
            "rescale=0"
        )
    for name, module in denoiser.prior.modules().items():
        if any(_remembers(part) for part in module.modules()):
            raise InputError(
                f"the {name} carries a cache, whose answers depend on earlier calls, so no step can be undone; "
                "remove the cache before inverting"
            )


def _remembers(module: torch.nn.Module) -> bool:
    """Whether a diffusers hook on this module keeps state from call to call."""
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and any(hook._is_stateful or "cache" in name for name, hook in registry.hooks.items())


def _condition(prior: Prior, text: str | Sequence[str], rows: int) -> Condition:
    condition = prior.encode_text(text)
    if condition.rows not in (1, rows):
        raise InputError(f"got {condition.rows} prompts for {rows} images; give one, or one per image")
    return condition.for_batch(rows)
