"""What a user is told about a prompt before time is spent on it."""

from __future__ import annotations

import warnings

from ..core.priors import Prior


def warn_about(prior: Prior, prompt: str, backbones: str) -> None:
    """Warns of an empty prompt, of an ending the text encoder cannot see and of words the prior has never seen.

    backbones: the registry names to suggest to a user whose words are unknown.
    """
    if not prompt.strip():
        warnings.warn("the prompt is empty: the image will show whatever the prior likes", stacklevel=4)
        return
    cut = prior.truncated(prompt)
    if cut:
        shown = cut if len(cut) <= 80 else f"{cut[:60]} ... {cut[-17:]}"
        warnings.warn(
            f"the prompt is longer than the text encoder of {prior.name!r} reads; the last {len(cut.split())} words "
            f"are ignored: {shown!r}",
            stacklevel=4,
        )
    unknown = prior.unknown_words(prompt)
    if unknown:
        named = [f"{word!r}" + (f" (nearest: {', '.join(near)})" if near else "") for word, near in unknown[:8]]
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        warnings.warn(
            f"the prior {prior.name!r} has never seen {', '.join(named)}{more}; the result will not show it. "
            f"Backbones that know such words: --prior {backbones}",
            stacklevel=4,
        )
