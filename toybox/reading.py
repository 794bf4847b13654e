"""What a picture of a toy shows, in words and degrees: what priors of several views have to be told."""

from __future__ import annotations

from torch import Tensor

from .captions import DEFAULTS
from .judge import Judge

NEAR = 10.0  # degrees within which what the judge reads is the front, a side or the back, where drawings are best


def read_picture(picture: Tensor) -> tuple[str, float]:
    """(prompt, azimuth in degrees from which it looks, 0 the front) of a picture (3, H, W) sRGB in [0, 1] of one toy,
    as the embedded judge reads it."""
    verdict = Judge.from_pretrained()(picture[None].float().cpu())
    kinds = [word for word in verdict.best("pattern") if word != DEFAULTS["pattern"]]
    words = " ".join([*kinds, verdict.colours[0], verdict.nouns[0]])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}", upright(float(verdict.azimuth_deg[0]))


def upright(azimuth_deg: float) -> float:
    """An azimuth in [0, 360), of the front, a side or the back exactly where it is near one of them."""
    nearest = 90.0 * round(azimuth_deg / 90.0)
    return (nearest if abs(azimuth_deg - nearest) <= NEAR else azimuth_deg) % 360
