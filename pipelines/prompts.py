"""What a user is told about prompts and guidance before time is spent on them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.priors import Condition, Prior, Rows
from ..core.priors.rows import COND, NULL
from ..utils.errors import InputError

if TYPE_CHECKING:
    from ..core.priors.facts import PriorFacts

LISTED = 8  # unknown words that are named
FAR = 1.5  # times the prior's own side: further off its pictures suffer


def check_texts(name: str, texts: Any) -> list[str]:
    """A prompt or several as a list. Raises InputError for anything else."""
    listed = [texts] if isinstance(texts, str) else texts
    found = list(listed) if isinstance(listed, Sequence) else []
    if not found or not all(isinstance(text, str) for text in found):
        raise InputError(f"{name}={texts!r} must be text or a non-empty list of texts")
    return found


def check_prompt(prompt: Any) -> None:
    """Raises InputError for what is no text that says something."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt={prompt!r} must be one text that says what to make, for example 'a red chair'")
    if not prompt.strip():
        raise InputError("the prompt is empty; say what to make, for example 'a red chair'")


def warn_about(prior: Prior | PriorFacts, prompt: str, backbones: str, what: str = "prompt") -> None:
    """Warns of an empty prompt, of an ending the text encoder cannot see and of words the prior has never seen.

    backbones: the registry names to suggest to a user whose words are unknown; what: "prompt" or "negative prompt".
    """
    if not prompt.strip():
        if what == "prompt":
            warnings.warn("the prompt is empty: the image will show whatever the prior likes", stacklevel=4)
        return
    cut = prior.truncated(prompt)
    if cut:
        shown = cut if len(cut) <= 80 else f"{cut[:60]} ... {cut[-17:]}"
        warnings.warn(
            f"the {what} is longer than the text encoder of {prior.name!r} reads; the last {len(cut.split())} words "
            f"are ignored: {shown!r}",
            stacklevel=4,
        )
    unknown = prior.unknown_words(prompt)
    if unknown:
        named = [f"{word!r}" + (f" (did you mean {' or '.join(near)}?)" if near else "") for word, near in unknown]
        more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        whose = "" if what == "prompt" else f" of the {what}"
        effect = "the result will not show it" if what == "prompt" else "it will not keep it away"
        warnings.warn(
            f"the prior {prior.name!r} has never seen {', '.join(named[:LISTED])}{more}{whose}; {effect}, and a "
            f"strange word can spoil the known ones too. Backbones that know such words: --prior {backbones}",
            stacklevel=4,
        )


def warn_about_negatives(prior: Prior, negative: Any, backbones: str) -> None:
    """The same of negative prompts, one or several. Raises InputError for anything else than text."""
    for text in dict.fromkeys([] if negative is None else check_texts("negative_prompt", negative)):
        warn_about(prior, text, backbones, "negative prompt")


def warn_about_px(name: str, own: int, known: tuple[int, int] | None, height: int, width: int) -> None:
    """Warns of pictures of a size far from the `own` px of the prior `name`, and of what they cost; `known`: the
    smallest and largest side that it learnt to draw."""
    low, high = known or (own, own)
    larger, smaller = max(height, width) / high, low / min(height, width)
    if max(larger, smaller) <= FAR:
        return
    costs = height * width / own**2
    effect = (
        f"objects repeat or smear, and it takes {costs:.0f} times the pixels or more in time and memory"
        if larger > FAR
        else "little of the prompt will be recognisable"
    )
    way_out = "draw at its own size and enlarge with `unproject restore`" if larger > FAR else "draw larger and reduce"
    warnings.warn(
        f"{width} x {height} px is far from the {own} px that {name!r} draws: {effect}; {way_out}", stacklevel=4
    )


def check_guidance(prior: Prior, scale: Any) -> None:
    """Warns of a guidance that does not follow the prompt. Raises InputError for what is no finite number."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise InputError(f"guidance_scale={scale!r} must be a finite number; 1 switches guidance off")
    if prior.guidance_embedded or scale > 0:
        return
    means = "draws without looking at the prompt" if scale == 0 else "moves away from the prompt"
    warnings.warn(
        f"guidance_scale={scale:g} {means}: the guided answer is null + {scale:g} (prompt - null). What switches "
        "guidance off is 1, also for turbo and LCM models, which elsewhere are given 0",
        stacklevel=4,
    )


def embedded(
    prior: Prior,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor | None = None,
    pooled_prompt_embeds: Tensor | None = None,
    negative_pooled_prompt_embeds: Tensor | None = None,
    negative_prompt: str | Sequence[str] | None = None,
) -> Condition:
    """The condition of embeddings in the place of prompts, as diffusers takes them: (B, L, D) and, pooled, (B, P).

    Without negative embeddings the null branch is that of `negative_prompt`. Raises InputError for embeddings that are
    missing, too many or of other widths than the prior's own.
    """
    own = prior.encode_text([""] * len(prompt_embeds), negative_prompt)
    given = {"text": prompt_embeds, "pooled": pooled_prompt_embeds}
    against = {"text": negative_prompt_embeds, "pooled": negative_pooled_prompt_embeds}
    cond = _replaced(own[COND], given, "")
    if NULL not in own:
        return Condition({COND: cond})
    null = own[NULL] if all(value is None for value in against.values()) else _replaced(own[NULL], against, "negative_")
    return Condition({COND: cond, NULL: null})


def _replaced(own: Rows, given: dict[str, Tensor | None], prefix: str) -> Rows:
    names = {"text": f"{prefix}prompt_embeds", "pooled": f"{prefix}pooled_prompt_embeds"}
    tensors: dict[str, Tensor] = {}
    for name, value in given.items():
        if (value is None) != (name not in own):
            raise InputError(f"{names[name]} is {'missing' if value is None else 'nothing that this prior takes'}")
        if value is None:
            continue
        like = own[name]
        if not isinstance(value, torch.Tensor) or value.ndim != like.ndim or value.shape[-1] != like.shape[-1]:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(f"{names[name]} has shape {shape}, expected one like {tuple(like.shape)}")
        if len(value) != len(like):
            raise InputError(f"{names[name]} has {len(value)} rows, prompt_embeds {len(like)}")
        tensors[name] = value.to(like.device, like.dtype)
    return own.with_tensors(**tensors)
