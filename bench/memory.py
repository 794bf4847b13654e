"""What fits which card: memory of text-to-mesh and text-to-image with the published backbones, by arithmetic.

The numbers follow from published configs (`pipelines.requirements`); tests hold the arithmetic against what autograd
and network calls keep on small networks. The baseline is everything at once in float32, as it would be without parts,
offloading and half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..pipelines.requirements import CARDS, Facts, Setting, Verb, facts, fitting, needs
from .runner import Context

BASELINE = Setting("float32", "none", "full", 1e6)


@dataclass(frozen=True)
class MemoryBench:
    """Backbones of the experiment."""

    priors: tuple[str, ...] = ("sd21-base", "mvdream", "sdxl", "sd35-medium", "flux-dev")


def run(context: Context) -> dict[str, Any]:
    """Settings and gigabytes by backbone and card."""
    config = MemoryBench()
    known = [facts(name) for name in (config.priors[:1] if context.quick else config.priors)]
    table = [row for one in known for row in rows(one, "text-to-mesh")]
    drawing = [row for one in known for row in rows(one, "text-to-image")]
    return {"config": {"priors": [one.name for one in known]}, "seeds": [], "table": table, "drawing": drawing}


def rows(known: Facts, verb: Verb) -> list[dict[str, Any]]:
    """The baseline, and the fastest settings that fit each card."""
    whole = needs(known, BASELINE, verb)
    found: list[dict[str, Any]] = [{"prior": known.name, "way": "all at once, float32", "gb": round(whole.total, 1)}]
    for card in CARDS:
        fits = fitting(known, verb, card)
        row: dict[str, Any] = {"prior": known.name, "way": "in parts", "card_gib": card, "settings": "none fits"}
        if fits is not None:
            setting, need = fits
            row |= {"settings": setting.flags(verb), "weights_gb": round(need.weights, 1), "gb": round(need.total, 1)}
        found.append(row)
    return found
