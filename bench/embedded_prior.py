"""What the embedded prior draws, scored by the judge: test and held-out prompts, ancestral sampling, two sweeps."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pipelines.text_to_image import TextToImage, TextToImageOutput
from ..toybox.captions import Meaning, Phrase, say
from ..toybox.catalogue import NOUNS
from ..toybox.judge import Judge
from ..toybox.materials import COLOURS_SRGB
from ..toybox.programs import ObjectProgram, draw, is_heldout_pair
from ..utils.pictures import grid, save_image
from .distances import Features
from .intervals import share, spread
from .runner import Context
from .toy_latents import agreement, features, yardstick

ANCESTRAL = 1.0  # eta


@dataclass(frozen=True)
class PriorBench:
    """Sizes of the experiment."""

    images: int = 1000
    heldout: int = 300
    sweep_images: int = 150
    steps: int = 20
    guidance: float | None = None
    """None: the prior's own"""
    guidances: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 7.5)
    step_counts: tuple[int, ...] = (5, 10, 20, 30, 50)
    batch: int = 50
    reference_groups: int = 250


QUICK = PriorBench(24, 8, 8, 6, None, (1.0, 3.0), (3, 6), 8, 4)


def test_programs(count: int) -> list[ObjectProgram]:
    """The first `count` object programs of the test split."""
    programs = (draw("test", i) for i in range(count))
    return [p for p in programs if isinstance(p, ObjectProgram)]


def heldout_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Noun-colour pairs that no training image shows, cycled to `count`."""
    pairs = [(n, c) for n in NOUNS for c in COLOURS_SRGB if is_heldout_pair(n, c)]
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [pairs[order[i % len(pairs)]] for i in range(count)]


def plain_prompt(noun: str, colour: str) -> str:
    """ "a red chair"."""
    return say(Meaning((Phrase(noun, colour),)))


def draw_images(
    pipe: TextToImage, prompts: list[str], steps: int, guidance: float, batch: int, seed: int, eta: float | None = None
) -> Tensor:
    """Images (N, 3, 64, 64) in [0, 1]; image i uses seed + i. `eta` is that of ddim, None takes the prior's solver."""
    chosen_solver: dict[str, Any] = {} if eta is None else {"solver": "ddim", "eta": eta}
    parts = []
    for start in range(0, len(prompts), batch):
        chosen = prompts[start : start + batch]
        out = pipe(
            chosen,
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=seed + start,
            output_type="pt",
            **chosen_solver,
        )
        assert isinstance(out, TextToImageOutput)
        parts.append(torch.as_tensor(out.images))
    return torch.cat(parts)


def score(judge: Judge, images: Tensor, pairs: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Per-image flags for (noun, colour) pairs: noun right, colour right, both."""
    right = agreement(judge, images, [Meaning((Phrase(*pair),)) for pair in pairs])
    return {"noun": right["noun"], "colour": right["colour"], "both": right["noun"] & right["colour"]}


def run(context: Context) -> dict[str, Any]:
    """Accuracy with confidence intervals, ancestral sampling, held-out pairs, two sweeps of accuracy and distances."""
    config = QUICK if context.quick else PriorBench()
    pipe, judge = TextToImage.from_pretrained(context.prior), Judge.from_pretrained()
    own = pipe.prior.recommended.guidance if config.guidance is None else config.guidance
    programs = test_programs(config.images)
    wanted = [(p.noun, p.colour) for p in programs]
    prompts = [plain_prompt(*pair) for pair in wanted]
    yard = yardstick(judge, config.images, config.reference_groups, first=config.images)
    table: list[dict[str, Any]] = []

    def measure(name: str, n: int, steps: int, guidance: float, eta: float | None = None) -> Tensor:
        began, rows = time.perf_counter(), pipe.prior.nfe
        images = draw_images(pipe, prompts[:n], steps, guidance, config.batch, context.seed, eta)
        took, nfe = time.perf_counter() - began, pipe.prior.nfe - rows
        flags = score(judge, images, wanted[:n])
        distances = replace(yard, others=yard.others.first(n)).row(Features.of(features(judge, images)))
        row = {"setting": name, "steps": steps, "guidance": guidance, **{k: share(v) for k, v in flags.items()}}
        table.append({**row, **distances, "nfe_rows": nfe, "seconds": round(took, 1)})
        return images

    images = measure("test prompts", config.images, config.steps, own)
    measure("test prompts, ancestral", config.images, config.steps, own, ANCESTRAL)
    pairs = heldout_pairs(config.heldout)
    drawn = draw_images(
        pipe, [plain_prompt(*p) for p in pairs], config.steps, own, config.batch, context.seed + 100_000
    )
    held = score(judge, drawn, pairs)
    table.append(
        {
            "setting": "held-out pairs",
            "steps": config.steps,
            "guidance": own,
            **{k: share(v) for k, v in held.items()},
        }
    )
    for guidance in config.guidances:
        measure("guidance sweep", config.sweep_images, config.steps, guidance)
    for steps in config.step_counts:
        measure("step sweep", config.sweep_images, steps, own)
    shown = [i.permute(1, 2, 0).numpy() for i in images[:48]]
    save_image(context.picture(), grid(shown, columns=8, labels=prompts[:48], scale=2))
    both, nouns = score(judge, images, wanted)["both"], np.array([noun for noun, _ in wanted])
    by_noun = {n: spread(both[nouns == n])["mean"] for n in sorted(set(nouns.tolist()))}
    worst = dict(sorted(by_noun.items(), key=lambda item: item[1])[:10])
    return {"config": asdict(config), "seeds": [context.seed], "table": table, "weakest_nouns": worst}
