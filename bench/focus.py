"""FOCUS: sentences with two objects, with and without control of the attention, right and wrong sign."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling import Denoiser, NoiseSchedule
from ..core.sampling.attention import subject_tokens
from ..core.sampling.control import AttentionCost, MapCost, VelocityControl, attend_and_excite_cost, focus_cost
from ..toybox.captions import Meaning, Phrase, say
from ..toybox.dataset import RenderJob, render_group
from ..toybox.judge import Judge, frechet
from ..toybox.programs import SceneProgram, draw
from .runner import Context, share
from .toy_latents import decoded, features, run_sampler, seeded_noise

COSTS: dict[str, MapCost] = {"focus": focus_cost, "attend-and-excite": attend_and_excite_cost}


@dataclass(frozen=True)
class FocusBench:
    """Sizes of the experiment."""

    images: int = 300
    reference_groups: int = 150
    steps: int = 20
    guidance: float = 3.0
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, -1.0)
    """negative: the wrong sign"""
    weight: str = "local"
    batch: int = 25
    probe: float = 0.5
    """share of the train steps at which the cost of finished images is compared"""


QUICK = FocusBench(4, 2, 3, 3.0, (1.0,), "local", 2)


@dataclass(frozen=True)
class Pairs:
    """Sentences with two objects in a relation and where their subjects stand in the text."""

    meanings: list[Meaning]
    prompts: list[str]
    subjects: list[list[list[int]]]


def two_objects(prior: Prior, count: int) -> Pairs:
    """The first `count` relations of the test split, named by noun and colour."""
    meanings: list[Meaning] = []
    index = 0
    while len(meanings) < count:
        program = draw("test", index, "scene")
        index += 1
        if isinstance(program, SceneProgram) and program.relation:
            phrases = tuple(Phrase(member.noun, member.colour) for member in program.members)
            meanings.append(Meaning(phrases, program.relation))
    prompts = [say(meaning) for meaning in meanings]
    subjects = [
        subject_tokens(prior, prompt, [say(Meaning((phrase,))).split(" ", 1)[1] for phrase in meaning.phrases])
        for prompt, meaning in zip(prompts, meanings)
    ]
    return Pairs(meanings, prompts, subjects)


def run(context: Context) -> dict[str, Any]:
    """Plain sampling first, then every cost at every strength, all from the same noise."""
    config = QUICK if context.quick else FocusBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    pairs = two_objects(prior, config.images)
    reference = _reference(judge, config.reference_groups)
    noise = seeded_noise(prior.latent_shape, config.images, context.seed)
    table, plain_cost = [], None
    for name, strength in [("none", 0.0), *((cost, s) for cost in COSTS for s in config.strengths)]:
        began, before = time.perf_counter(), prior.nfe
        final = _drawn(prior, pairs, noise, COSTS.get(name, focus_cost), strength, config)
        took, nfe = time.perf_counter() - began, prior.nfe - before
        images, cost = decoded(prior, final), _costs(prior, pairs, final, noise, config)
        plain_cost = cost if plain_cost is None else plain_cost
        row: dict[str, Any] = {"cost": name, "strength": strength, "nfe_rows": nfe, "seconds": round(took, 1)}
        row |= _judged(judge, images, pairs.meanings)
        row["toy_fid"] = round(frechet(reference, features(judge, images)), 3)
        row["focus_cost"] = round(float(cost.mean()), 5)
        row["cost_below_plain"] = round(float((cost < plain_cost).float().mean()), 3)
        table.append(row)
    return {"config": asdict(config), "seeds": [context.seed], "table": table}


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
def _costs(prior: Prior, pairs: Pairs, final: Tensor, noise: Tensor, config: FocusBench) -> Tensor:
    """FOCUS cost (N,) of finished latents, noised alike to the middle of the schedule."""
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    level = schedule.at_index(config.probe * (schedule.steps - 1))
    parts = []
    for start in range(0, len(final), config.batch):
        rows = slice(start, start + config.batch)
        denoiser = Denoiser(prior, prior.encode_text(pairs.prompts[rows]))
        x = schedule.add_noise(final[rows], noise[rows], level)
        parts.append(AttentionCost(pairs.subjects[rows])(denoiser, x, level))
    return torch.cat(parts)


def _judged(judge: Judge, images: Tensor, meanings: list[Meaning]) -> dict[str, Any]:
    """Both objects there, both with their colours, colours swapped."""
    flags: dict[str, list[np.ndarray]] = {}
    swapped = [_swapped(meaning) for meaning in meanings]
    for start in range(0, len(images), 100):
        verdict = judge(images[start : start + 100])
        agree = verdict.agrees(meanings[start : start + 100])
        other = verdict.agrees(swapped[start : start + 100])
        objects = agree["noun"] & agree["second_noun"]
        flags.setdefault("both_objects", []).append(objects)
        flags.setdefault("both_colours", []).append(objects & agree["colour"] & agree["second_colour"])
        flags.setdefault("swapped_colours", []).append(objects & other["colour"] & other["second_colour"])
    return {name: share(np.concatenate(parts)) for name, parts in flags.items()}


def _swapped(meaning: Meaning) -> Meaning:
    first, second = meaning.phrases
    return Meaning((Phrase(first.noun, second.colour), Phrase(second.noun, first.colour)), meaning.relation)


def _reference(judge: Judge, groups: int) -> Tensor:
    """Judge features of test scenes."""
    views = [render_group(RenderJob("scene", "test", groups), i)["rgb"] for i in range(groups)]
    images = torch.from_numpy(np.concatenate(views)).permute(0, 3, 1, 2).float() / 255
    return features(judge, images)
