"""Meshes from sentences with qualities, "a tall striped blue mug": whether what they name is still made, and whether
the qualities are seen, beside the toybox's own instances of the same programs.

Meshes are made as the command makes them, one after the other, and kept under runs/bench: an interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pipelines.shortcuts import mesh_maker
from ..toybox.captions import DEFAULTS, Meaning, meaning_of, say
from ..toybox.judge import Judge
from ..toybox.programs import ObjectProgram
from ..utils.errors import UnprojectError
from ..utils.files import read_json, write_json
from ..utils.pictures import grid, save_image, to_rgb8
from .embedded_prior import test_programs
from .intervals import share, spread
from .kept import place_of
from .runner import Context
from .text_to_mesh import MeshBench, cameras, judged_views, kept_views, true_looks

JUDGED = ("noun", "colour", "pattern", "finish")


@dataclass(frozen=True)
class WordsBench:
    """Sizes of the experiment."""

    meshes: int = 64
    steps: int | None = None  # None: the recipe's
    work: str = "runs/bench/mesh-words"


QUICK = WordsBench(2, 6, "runs/bench/mesh-words-quick")


def with_words(count: int) -> list[ObjectProgram]:
    """The first `count` test objects of which a pattern, a finish or a shape can be said."""
    said = (p for p in test_programs(8 * count) if any(getattr(p, name) != plain for name, plain in DEFAULTS.items()))
    return [program for program, _ in zip(said, range(count), strict=False)]


def run(context: Context) -> dict[str, Any]:
    """A row for all sentences and for those that name each kind of quality; of true instances and of meshes."""
    config = QUICK if context.quick else WordsBench()
    programs, looks = with_words(config.meshes), MeshBench()
    place = place_of(context, config)
    pipe: Any = mesh_maker(context.prior)
    records = []
    for number, program in enumerate(programs):
        folder = place / f"{number:03d}"
        if not (folder / "result.json").exists():
            write_json(folder / "result.json", make(pipe, program, context.seed + number, config, folder))
        records.append(read_json(folder / "result.json"))
    judge = Judge.from_pretrained()
    made = [i for i, record in enumerate(records) if "failed" not in record]
    meshes = {i: seen(judge, kept_views(place / f"{i:03d}"), meaning_of(programs[i])) for i in made}
    true = {i: seen(judge, true_views(p, i, looks), meaning_of(p)) for i, p in enumerate(programs)}
    table = [
        row(words, of, programs, found)
        for words in ("any", *DEFAULTS)
        for of, found in (("true renders", true), ("meshes", meshes))
    ]
    cost = {"seconds": spread([records[i]["seconds"] for i in made]), "failed": len(programs) - len(made)}
    table[1] |= cost
    shown = [(say(meaning_of(programs[i])), kept_views(place / f"{i:03d}")[1]) for i in made[:24]]
    tiles = [to_rgb8(view) for _, view in shown]
    save_image(context.picture(), grid(tiles, columns=8, labels=[text for text, _ in shown], scale=2))
    return {"config": asdict(config), "seeds": [context.seed], "table": table, "meshes": records}


def make(pipe: Any, program: ObjectProgram, seed: int, config: WordsBench, folder: Path) -> dict[str, Any]:
    """One mesh, its eight views kept in the folder; a collapse is a result."""
    prompt = say(meaning_of(program))
    try:
        out = pipe(prompt, seed=seed, num_inference_steps=config.steps)
    except UnprojectError as error:
        return {"prompt": prompt, "seed": seed, "failed": str(error)}
    views = judged_views(out.mesh, MeshBench())
    save_image(folder / "views.png", grid([view.permute(1, 2, 0).numpy() for view in views], columns=8, pad=0))
    return {"prompt": prompt, "seed": seed, "seconds": sum(out.seconds.values()), "nfe": out.nfe}


def true_views(program: ObjectProgram, number: int, config: MeshBench) -> Tensor:
    """The same eight sides (8, 3, H, W) of the program's own instance."""
    return true_looks(program, number, cameras(config))[0].movedim(-1, 1)


def seen(judge: Judge, views: Tensor, meaning: Meaning) -> dict[str, bool]:
    """Whether most of the views show what a sentence says, by question; the noun by all views together."""
    verdict = judge(views)
    flags = verdict.agrees([meaning] * len(views))
    noun = verdict.answers["noun"][int(verdict.noun_probs.mean(0).argmax())]
    most = {name: bool(torch.as_tensor(flags[name]).float().mean() > 0.5) for name in JUDGED}
    return most | {"noun": noun == meaning.phrases[0].noun}


def row(words: str, of: str, programs: Sequence[ObjectProgram], found: Mapping[int, dict[str, bool]]) -> dict[str, Any]:
    """Shares of those objects whose sentence has a word of this kind; what failed shows nothing."""
    nothing = dict.fromkeys(JUDGED, False)
    chosen = [i for i, p in enumerate(programs) if words == "any" or getattr(p, words) != DEFAULTS[words]]
    asked = ("noun", "colour", *([words] if words in JUDGED else []))
    shares = {name: share([found.get(i, nothing)[name] for i in chosen]) for name in asked} if chosen else {}
    return {"words": words, "of": of, **shares}
