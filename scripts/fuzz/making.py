"""Cases by their number: the same seed and number make the same case, whatever ran before."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from .cases import Case, Kind
from .mutations import mutated

CHUNK = 250  # cases that one process reads
PLANTED = 0.08  # share of the cases with something unknown
WRITTEN = 3  # every so many chunks one is hypothesis's


def cases(kind: Kind, seed: int, chunk: int, count: int = CHUNK) -> Iterator[Case]:
    """The cases of a chunk."""
    if kind.grammar is not None and chunk % WRITTEN == WRITTEN - 1:
        yield from _written(kind, seed, chunk, count)
        return
    samples = kind.samples()
    for index in range(count):
        rng = Random(f"{seed}/{kind.name}/{chunk}/{index}")
        case = None
        if kind.planted is not None and rng.random() < PLANTED:
            case = kind.planted(rng, samples, "zq" + "".join(rng.choices(string.ascii_lowercase, k=6)))
        yield replace(case, kind=kind.name) if case is not None else mutated(rng, kind, samples)


def _written(kind: Kind, seed: int, chunk: int, count: int) -> list[Case]:
    """What hypothesis draws from the kind's grammar."""
    import hypothesis

    assert kind.grammar is not None
    found: list[Case] = []

    @hypothesis.seed(seed * 1_000_003 + chunk)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(kind.grammar())
    def draw(made: tuple[str, bytes]) -> None:
        found.append(Case(kind.name, made[0], made[1], "hypothesis"))

    draw()
    return found[:count]
