"""`unproject doctor --prior NAME --verb text-to-mesh`: the memory that takes, and what fits which card."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .showing import Shown, Table

if TYPE_CHECKING:
    from ..pipelines.requirements import Verb

COLUMNS = ("card GiB", "settings", "weights GB", "optimised GB", "activations GB", "in all GB")


def needs_shown(prior: str, verb: Verb) -> Shown:
    """The settings that fit each size of card, and what this machine's card has."""
    from ..pipelines.requirements import CARDS, facts, fitting

    known = facts(prior)
    rows: list[tuple[Any, ...]] = []
    data: list[dict[str, Any]] = []
    for card in CARDS:
        found = fitting(known, verb, card)
        if found is None:
            rows.append((card, "none fits", "", "", "", ""))
            data.append({"card_gib": card, "settings": None})
            continue
        setting, needs = found
        numbers = (needs.weights, needs.optimised, needs.activations, needs.total)
        rows.append((card, setting.flags(verb), *(f"{number:.1f}" for number in numbers)))
        data.append(
            {"card_gib": card, "settings": asdict(setting), "needs_gb": {**asdict(needs), "total": needs.total}}
        )
    numbers_of = {part: f"{number / 1e6:.0f} M" for part, number in known.numbers.items()}
    lines = [f"{prior}: {', '.join(f'{part} {size}' for part, size in numbers_of.items())}, {known.side} px"]
    here = _card_gib()
    if here is None:
        lines.append("this machine has no CUDA device")
    else:
        fits = fitting(known, verb, here)
        told = fits[0].flags(verb) if fits else "none of the settings fits; use a smaller prior or smaller renders"
        lines.append(f"this machine's card has {here:.1f} GiB: {told}")
    table = Table(COLUMNS, rows, f"{verb} with {prior}")
    return Shown(lines, [table], {"prior": prior, "verb": verb, "card_gib": here, "cards": data})


def _card_gib() -> float | None:
    """The memory of the first CUDA device."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
