"""Sentences that are hard for a prior: words it never saw around those it knows, qualities, and two subjects.

Qualities and pairs are read in true renders of the same sentences first: what the judge finds there bounds what it can
find in drawings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pipelines.text_to_image import TextToImage
from ..toybox.captions import Meaning, Phrase, meaning_of, say
from ..toybox.dataset import RenderJob, render_group
from ..toybox.judge import Judge
from ..toybox.programs import ObjectProgram, SceneProgram
from ..toybox.strange import QUALITIES, THINGS, strange_word, strange_words
from ..utils.pictures import grid, save_image
from .embedded_prior import draw_images, test_programs
from .focus import relations
from .intervals import ratio, share
from .runner import Context
from .toy_latents import agreement

SAID = ("pattern", "finish")  # what the judge reads of the qualities


@dataclass(frozen=True)
class PromptBench:
    """Sizes of the experiment."""

    images: int = 400
    """of each kind of sentence"""
    steps: int = 20
    batch: int = 50


QUICK = PromptBench(6, 4, 6)


def five_strange(rng: np.random.Generator) -> Callable[[str], str]:
    """A function that puts two strange qualities before what a phrase names and three strange things behind it."""

    def around(phrase: str) -> str:
        _, _, rest = phrase.partition(" ")
        first, second = (strange_word(rng, QUALITIES, held_out=True) for _ in range(2))
        things = [strange_word(rng, THINGS, held_out=True) for _ in range(3)]
        article = "an" if first[0] in "aeiou" else "a"
        return f"{article} {first} {second} {rest} with a {things[0]} and a {things[1]} near the {things[2]}"

    return around


def with_qualities(count: int) -> list[tuple[ObjectProgram, int]]:
    """The first `count` test objects with a pattern or a finish to speak of, and their numbers."""
    numbered = ((program, number) for number, program in enumerate(test_programs(3 * count)))
    return [(p, n) for p, n in numbered if any(getattr(meaning_of(p).phrases[0], name) for name in SAID)][:count]


def run(context: Context) -> dict[str, Any]:
    """A row for each kind of sentence; of qualities and pairs also what the judge reads in true renders."""
    config = QUICK if context.quick else PromptBench()
    pipe, judge = TextToImage.from_pretrained(context.prior), Judge.from_pretrained()
    shown: list[tuple[list[str], Tensor]] = []
    table: list[dict[str, Any]] = []

    def drawn(prompts: list[str]) -> tuple[Tensor, dict[str, Any]]:
        began, before, guidance = time.perf_counter(), pipe.prior.nfe, pipe.prior.recommended.guidance
        images = draw_images(pipe, prompts, config.steps, guidance, config.batch, context.seed)
        shown.append((prompts, images))
        took = round(time.perf_counter() - began, 1)
        return images, {"guidance": guidance, "nfe_rows": pipe.prior.nfe - before, "seconds": took}

    plain = [Meaning((Phrase(p.noun, p.colour),)) for p in test_programs(config.images)]
    rng = np.random.default_rng(context.seed)
    ways: dict[str, Callable[[str], str] | None] = {
        "plain": None,
        "strange words": strange_words(rng, held_out=True),
        "five strange words": five_strange(rng),
    }
    for name, around in ways.items():
        images, cost = drawn([say(meaning, around=around) for meaning in plain])
        table.append({"sentences": name, "of": "drawings", **_shares(_single(judge, images, plain)), **cost})
    for name, meanings, renders, read in (
        ("qualities", *_qualities(config.images), _single),
        ("two subjects", *_pairs(config.images), _double),
    ):
        truth = read(judge, renders, meanings)
        table.append({"sentences": name, "of": "true renders", **_shares(truth)})
        images, cost = drawn([say(meaning) for meaning in meanings])
        found = read(judge, images, meanings)
        bound = {"of_renders": ratio(found["all"], truth["all"])}
        table.append({"sentences": name, "of": "drawings", **_shares(found), **bound, **cost})
    tiles = [(p, i.permute(1, 2, 0).numpy()) for prompts, images in shown for p, i in zip(prompts[:8], images[:8])]
    save_image(context.picture(), grid([i for _, i in tiles], columns=8, labels=[p for p, _ in tiles], scale=2))
    return {"config": asdict(config), "seeds": [context.seed], "table": table}


def _qualities(count: int) -> tuple[list[Meaning], Tensor]:
    chosen = with_qualities(count)
    return [meaning_of(program) for program, _ in chosen], _rendered("object", [number for _, number in chosen])


def _pairs(count: int) -> tuple[list[Meaning], Tensor]:
    scenes, numbers = relations(count)
    return [_named(scene) for scene in scenes], _rendered("scene", numbers)


def _named(scene: SceneProgram) -> Meaning:
    return Meaning(tuple(Phrase(member.noun, member.colour) for member in scene.members), scene.relation)


def _rendered(kind: Any, numbers: Sequence[int]) -> Tensor:
    """One view (N, 3, H, W) of each of these objects or scenes of the test split."""
    views = [render_group(RenderJob(kind, "test"), number, 1)["rgb"] for number in numbers]
    return torch.from_numpy(np.concatenate(views)).permute(0, 3, 1, 2).float() / 255


def _single(judge: Judge, images: Tensor, meanings: list[Meaning]) -> dict[str, np.ndarray]:
    """Flags by question, each of the sentences that say something of it; all: of every sentence."""
    flags = agreement(judge, images, meanings)
    said = {name: np.array([bool(getattr(m.phrases[0], name)) for m in meanings]) for name in SAID}
    every = np.logical_and.reduce([flags[name] for name in ("noun", "colour", *SAID)])
    qualities = {name: flags[name][asked] for name, asked in said.items() if asked.any()}
    return {"noun": flags["noun"], "colour": flags["colour"], **qualities, "all": every}


def _double(judge: Judge, images: Tensor, meanings: list[Meaning]) -> dict[str, np.ndarray]:
    flags = agreement(judge, images, meanings, judge.pairs is not None)
    nouns, colours = (flags[name] & flags[f"second_{name}"] for name in ("noun", "colour"))
    return {"noun": nouns, "colour": colours, "relation": flags["relation"], "all": nouns & colours}


def _shares(flags: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: share(values) for name, values in flags.items()}
