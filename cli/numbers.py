"""Numbers with commas between, as options take them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..utils.errors import InputError

SMALLEST, LARGEST = 1e-6, 1e9  # of a length, a focal length, a place in a picture


def numbers(option: str, text: str, counts: Sequence[int], word: str = "") -> list[float]:
    """Finite numbers above 0. Raises InputError naming the option for anything else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not all(math.isfinite(value) and value > 0 for value in values):
        many = " or ".join(map(str, counts))
        other = f", or the word {word}" if word else ""
        raise InputError(f"{option} {text!r}: give {many} numbers above 0 with commas between{other}")
    if min(values) < SMALLEST or max(values) > LARGEST:
        raise InputError(f"{option} {text!r}: each number has to lie between {SMALLEST:g} and {LARGEST:g}")
    return values
