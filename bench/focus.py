"""FOCUS: sentences with two objects, with and without control of the attention, right and wrong sign.

The judge's answers on true renders of the same sentences come first: they bound what it can find in drawings. Both
colours, in sentences that name two, are asked for beside both objects, since it tells colours better than nouns.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling import Denoiser, NoiseSchedule
from ..core.sampling.attention import subject_tokens
from ..core.sampling.focus import COSTS, AttentionCost, MapCost, VelocityControl, focus_cost
from ..toybox.captions import Meaning, Phrase, say
from ..toybox.dataset import RenderJob, render_group
from ..toybox.judge import Judge
from ..toybox.programs import SceneProgram, draw
from .distances import Features, Yardstick
from .intervals import bootstrapped, share
from .runner import Context
from .toy_latents import agreement, decoded, features, run_sampler, seeded_noise

PROBE_SEED = 60_000


@dataclass(frozen=True)
class FocusBench:
    """Sizes of the experiment."""

    images: int = 200
    reference_groups: int = 120
    """other test scenes with a relation, two views each"""
    steps: int = 20
    guidance: float = 3.0
    controls: tuple[tuple[str, float], ...] = (
        ("focus", 2.0),
        ("focus", 20.0),
        ("focus", 100.0),
        ("focus", -20.0),
        ("attend-and-excite", 20.0),
        ("attend-and-excite", 200.0),
    )
    """costs and strengths; negative: the wrong sign. Strength 1 changes the velocity by less than 1 % here"""
    weight: str = "local"
    batch: int = 25
    probe: float = 0.5
    """share of the train steps at which the cost of finished images is compared"""


QUICK = FocusBench(4, 2, 3, 3.0, (("focus", 1.0), ("attend-and-excite", 1.0)), "local", 2)


@dataclass(frozen=True)
class Pairs:
    """Sentences with two objects in a relation and where their subjects stand in the text."""

    meanings: list[Meaning]
    prompts: list[str]
    subjects: list[list[list[int]]]


def relations(count: int, first: int = 0) -> tuple[list[SceneProgram], list[int]]:
    """The next `count` test scenes with a relation from number `first` on, and their numbers."""
    found: list[SceneProgram] = []
    numbers: list[int] = []
    for index in itertools.count(first):
        if len(found) == count:
            break
        program = draw("test", index, "scene")
        if isinstance(program, SceneProgram) and program.relation:
            found.append(program)
            numbers.append(index)
    return found, numbers


def two_objects(prior: Prior, scenes: list[SceneProgram]) -> Pairs:
    """Sentences of scenes, their members named by noun and colour."""
    phrases = [tuple(Phrase(member.noun, member.colour) for member in scene.members) for scene in scenes]
    meanings = [Meaning(named, scene.relation) for named, scene in zip(phrases, scenes, strict=True)]
    prompts = [say(meaning) for meaning in meanings]
    subjects = [
        subject_tokens(prior, prompt, [say(Meaning((phrase,))).split(" ", 1)[1] for phrase in meaning.phrases])
        for prompt, meaning in zip(prompts, meanings)
    ]
    return Pairs(meanings, prompts, subjects)


def run(context: Context) -> dict[str, Any]:
    """Plain sampling first, then every cost and strength, all from the same noise."""
    config = QUICK if context.quick else FocusBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    scenes, numbers = relations(config.images)
    pairs, yard = two_objects(prior, scenes), _yardstick(judge, config, numbers[-1] + 1)
    noise = seeded_noise(prior.latent_shape, config.images, context.seed)
    probe = seeded_noise(prior.latent_shape, config.images, context.seed + PROBE_SEED)
    shown = _judged(judge, _rendered(numbers)[::2], pairs.meanings)
    table: list[dict[str, Any]] = [{"cost": "true renders", **_shares(shown)}]
    plain: _Seen | None = None
    for name, strength in [("none", 0.0), *config.controls]:
        began, before = time.perf_counter(), prior.nfe
        final = _drawn(prior, pairs, noise, COSTS.get(name, focus_cost), strength, config)
        took, nfe = time.perf_counter() - began, prior.nfe - before
        images = decoded(prior, final)
        flags, cost = _judged(judge, images, pairs.meanings), _costs(prior, pairs, final, probe, config)
        seen = _Seen(flags["both_colours"], Features.of(features(judge, images)), cost)
        row: dict[str, Any] = {"cost": name, "strength": strength, "nfe_rows": nfe, "seconds": round(took, 1)}
        row |= _shares(flags)
        row |= yard.row(seen.features, None if plain is None else plain.features)
        row["focus_cost"] = bootstrapped(cost.numpy())
        if plain is not None:
            row["cost_below_plain"] = share((cost < plain.cost).numpy())
            row["both_colours_gained"] = int((seen.colours & ~plain.colours).sum())
            row["both_colours_lost"] = int((plain.colours & ~seen.colours).sum())
        plain = plain or seen
        table.append(row)
    return {"config": asdict(config), "seeds": [context.seed], "table": table}


class _Seen(NamedTuple):
    """What later rows are compared with."""

    colours: np.ndarray  # flags of the sentences with two colours
    features: Features
    cost: Tensor  # (N,)


def _drawn(prior: Prior, pairs: Pairs, noise: Tensor, measure: MapCost, strength: float, config: FocusBench) -> Tensor:
    """Final latents, in batches that know their own subjects."""
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(config.steps)
    parts = []
    for start in range(0, len(noise), config.batch):
        rows = slice(start, start + config.batch)
        control = VelocityControl(AttentionCost(pairs.subjects[rows], measure), strength, config.weight)
        condition = prior.encode_text(pairs.prompts[rows])
        parts.append(run_sampler(prior, condition, noise[rows], levels, config.guidance, controls=(control,)))
    return torch.cat(parts)


@torch.no_grad()
def _costs(prior: Prior, pairs: Pairs, final: Tensor, probe: Tensor, config: FocusBench) -> Tensor:
    """FOCUS cost (N,) of finished latents, noised alike, by noise they did not begin with, to one level."""
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    level = schedule.at_index(config.probe * (schedule.steps - 1))
    parts = []
    for start in range(0, len(final), config.batch):
        rows = slice(start, start + config.batch)
        denoiser = Denoiser(prior, prior.encode_text(pairs.prompts[rows]))
        x = schedule.add_noise(final[rows], probe[rows], level)
        parts.append(AttentionCost(pairs.subjects[rows])(denoiser, x, level))
    return torch.cat(parts)


def _judged(judge: Judge, images: Tensor, meanings: list[Meaning]) -> dict[str, np.ndarray]:
    """Flags: both objects there, placed as said; of sentences with two colours, both seen, and swapped."""
    near = judge.pairs is not None
    agree = agreement(judge, images, meanings, near)
    other = agreement(judge, images, [_swapped(meaning) for meaning in meanings], near)
    apart = np.array([meaning.phrases[0].colour != meaning.phrases[1].colour for meaning in meanings])
    return {
        "both_objects": agree["noun"] & agree["second_noun"],
        "relation": agree["relation"],
        "both_colours": (agree["colour"] & agree["second_colour"])[apart],
        "swapped_colours": (other["colour"] & other["second_colour"])[apart],
    }


def _shares(flags: dict[str, np.ndarray]) -> dict[str, Any]:
    return {question: share(right) for question, right in flags.items() if len(right)}


def _swapped(meaning: Meaning) -> Meaning:
    first, second = meaning.phrases
    return Meaning((Phrase(first.noun, second.colour), Phrase(second.noun, first.colour)), meaning.relation)


def _yardstick(judge: Judge, config: FocusBench, first: int) -> Yardstick:
    """Features of the next test scenes with a relation, two views each, and of as many others as are drawn, in one."""
    numbers = relations(config.reference_groups + config.images, first)[1]
    seen, others = numbers[: config.reference_groups], numbers[config.reference_groups :]
    return Yardstick(
        Features.of(features(judge, _rendered(seen)), 2), Features.of(features(judge, _rendered(others)[::2]))
    )


def _rendered(numbers: list[int]) -> Tensor:
    """Two views (2 N, 3, H, W) of each of the test scenes."""
    views = [render_group(RenderJob("scene", "test"), index)["rgb"] for index in numbers]
    return torch.from_numpy(np.concatenate(views)).permute(0, 3, 1, 2).float() / 255
