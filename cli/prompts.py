"""Prompts on the command line and in files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..utils.errors import InputError
from .common import check_file


def check_prompt(prompt: str) -> None:
    """Raises InputError for a prompt without any letter."""
    if not any(c.isalnum() for c in prompt):
        raise InputError(f"the prompt is empty ({prompt!r}); describe what to make, for example 'a red chair'")


def forewarn(
    prior: str, prompts: Iterable[str], negative: str = "", size: int | None = None, backbones: str = ""
) -> None:
    """Warns of words that a prior has never seen or will not read, and of pictures of `size` px far from its own, by
    its files alone. backbones: that are suggested for unknown words; empty: those that draw pictures."""
    from ..core.priors.facts import prior_facts  # heavy
    from ..pipelines.prompts import warn_about, warn_about_px
    from ..pipelines.text_to_image import REAL_BACKBONES

    facts = prior_facts(prior)
    if facts is None:
        return
    for prompt in prompts:
        warn_about(facts, prompt, backbones or REAL_BACKBONES)
    if negative:
        warn_about(facts, negative, backbones or REAL_BACKBONES, "negative prompt")
    if size is not None:
        warn_about_px(facts.name, facts.own_px, facts.known_px, size, size)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file (UTF-8), one on each line. Raises InputError for a file without any."""
    check_file("--prompts", path, "give a text file with a prompt on each line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--prompts {path} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"--prompts {path} holds no prompt; write one on each line")
    return lines


def chosen_prompts(prompt: str | None, prompts: Path | None) -> list[str]:
    """The prompts of a command that takes one as an argument or many from a file, each once."""
    if (prompt is None) == (prompts is None):
        raise InputError(
            "give a prompt, or --prompts FILE with one on each line" + ("" if prompt is None else ", not both")
        )
    return list(dict.fromkeys(read_prompts(prompts))) if prompts is not None else [prompt or ""]
