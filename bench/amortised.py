"""Amortised score distillation: one network for a library of prompts, SDS, CSD, VSD and ASD at equal network rows.

Every rule trains the same generator of planes with the same prompts, seeds and schedules until its teacher and, for
VSD, the twin's answers and lessons have cost so many rows of a U-Net; runs are kept under runs/bench, so that an
interrupted one goes on. Nouns are crossed with all colours; some pairs are held out. A shape has collapsed where the
mean opacity of the ball that is rendered is below 1 % or above 99 %. Beside them what ASD rests on: the error of the
prior's noise estimate over time.

All of it takes about 20 minutes of one core: renders of 32 px, 190 to 375 updates of two prompts for each rule.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.distillation.rules import RuleConfig
from ..core.distillation.rules.asd import ASD
from ..core.priors import Prior, load_prior
from ..generate.amortised import AmortisedConfig
from ..generate.amortised_train import SHAPE, LibraryObjective, amortise
from ..generate.field_networks import NetworkConfig
from ..generate.health import coverage
from ..generate.render_teacher import TeacherConfig
from ..generate.views import turntable_cameras
from ..geometry.fields import TriplaneConfig
from ..scripts.amortised_recipe import AmortisedRecipe
from ..toybox.judge import Judge
from ..toybox.materials import COLOURS_SRGB
from ..utils.configs import CONFIGS, load_config, read_yaml
from ..utils.errors import UnprojectError
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .asd import premise
from .distilled import BEHIND
from .embedded_prior import plain_prompt
from .intervals import share
from .runner import Context
from .text_to_mesh import MeshBench, Wanted, cameras, judge_views
from .toy_latents import renders

RULES: dict[str, tuple[RuleConfig, float]] = {  # rule and guidance
    "sds": (RuleConfig(), 7.5),
    "sds, guidance 100": (RuleConfig(), 100.0),
    "csd": (RuleConfig("asd", asd=ASD(shift=0.0)), 7.5),  # times s - 1, as large as the others beside regularisers
    "vsd": (RuleConfig("vsd"), 7.5),
    "asd": (RuleConfig("asd"), 7.5),
}
NONE, FULL = 0.01, 0.99  # mean opacity


@dataclass(frozen=True)
class AmortisedBench:
    """Sizes of the experiment."""

    rows: int = 6000  # of the U-Nets, for each rule and seed
    seeds: tuple[int, ...] = (0,)
    nouns: tuple[str, ...] = ("chair", "car", "mushroom", "teapot", "duck", "table", "house", "bottle")
    heldout: int = 3  # colours of each noun that are left out
    accumulate: int = 2  # prompts of an update
    render_px: int = 32
    judged: int = 24  # shapes of trained pairs that are looked at, and of held-out ones
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(width=96, layers=3, heads=4, tokens=4))
    planes: TriplaneConfig = field(default_factory=lambda: TriplaneConfig(16, 12, 32))
    premise: tuple[int, int] = (256, 20)  # renders and levels
    work: str = "runs/bench/amortised"


QUICK = AmortisedBench(
    rows=40,
    nouns=("chair", "car"),
    heldout=1,
    render_px=16,
    judged=2,
    premise=(16, 5),
    work="runs/bench/amortised-quick",
)


def pairs(config: AmortisedBench) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(trained, held out): every noun in every colour; those held out walk through the colours from noun to noun."""
    colours = sorted(COLOURS_SRGB)
    known: list[tuple[str, str]] = []
    kept: list[tuple[str, str]] = []
    for row, noun in enumerate(config.nouns):
        out = {(row + k * len(colours) // config.heldout) % len(colours) for k in range(config.heldout)}
        for column, colour in enumerate(colours):
            (kept if column in out else known).append((noun, colour))
    return known, kept


def recipe_of(rule: str, config: AmortisedBench) -> AmortisedRecipe:
    """The packaged recipe at the sizes of the experiment, taught by the multi-view prior alone with a rule."""
    values = read_yaml(CONFIGS / "train" / "amortised.yaml")
    values.pop("objective")
    recipe = load_config(AmortisedRecipe, values)
    model, (kind, guidance) = recipe.model, RULES[rule]
    score = replace(model.joint.score, rule=kind, guidance=guidance)
    volume = model.generator.volume
    made = AmortisedConfig(config.network, replace(volume, field=replace(volume.field, triplane=config.planes)))
    model = replace(
        model,
        generator=made,
        single=TeacherConfig(),
        normals=TeacherConfig(),
        joint=replace(model.joint, score=score),
        render_px=config.render_px,
    )
    trainer = replace(
        recipe.trainer, accumulate=config.accumulate, lr=1e-3, ema=0.98, warmup=10, log_every=1,
        preview_every=0, validate_every=0,
    )  # fmt: skip
    return replace(recipe, model=model, trainer=trainer)


def rows_of_an_update(objective: LibraryObjective, prompts: list[str], accumulate: int) -> int:
    """Network rows of one update of the generator and of what moves after it."""
    before, rng = objective.nfe, generator(0)
    for loss in objective.losses().values():
        loss({"captions": prompts[:1]}, rng, 0)
    return (objective.nfe - before) * accumulate


def trained(
    rule: str, config: AmortisedBench, priors: Mapping[str, Prior], base: str, seed: int
) -> tuple[LibraryObjective, dict[str, Any]]:
    """(a generator with its averaged weights, what its training was like)."""
    recipe = recipe_of(rule, config)
    teachers, prompts = {"joint": priors[recipe.model.joint.prior]}, [plain_prompt(*one) for one in pairs(config)[0]]
    rows = rows_of_an_update(LibraryObjective(recipe.model, priors[base], teachers), prompts, config.accumulate)
    steps = max(1, config.rows // rows)
    trainer_config = replace(recipe.trainer, steps=steps, seed=seed)
    objective = LibraryObjective(replace(recipe.model, schedule=steps), priors[base], teachers, seed=seed)
    folder = Path(config.work) / f"{''.join(c if c.isalnum() else '-' for c in rule)}-{seed}"
    began, failed = time.process_time(), ""
    try:
        amortise(prompts, objective, trainer_config, folder, "cpu")
    except UnprojectError as error:  # numbers that are none are a result
        failed = str(error)
    cost = {"updates": steps, "rows": rows * steps, "train_seconds": round(time.process_time() - began, 1)}
    return objective, {**cost, "failed": failed, "norms": gradient_norms(folder)}


def gradient_norms(folder: Path) -> list[float]:
    """Norms of the generator's gradient, one an update, from the log of a run."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    found = [row.get("grad_norm", row.get(f"{SHAPE}/grad_norm")) for row in rows]
    return [float(one) for one in found if one is not None]


def looked_at(
    objective: LibraryObjective, chosen: list[tuple[str, str]], heldout: bool, judge: Judge, seed: int
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """(verdicts with mean opacity, fronts (H, W, 3)) of the shapes of some pairs."""
    records, fronts = [], []
    for number, pair in enumerate(chosen):
        wanted = Wanted(number, *pair, heldout)
        shape = objective.amortised.made(wanted.prompt, seed + number)
        opacity = coverage(shape)
        with torch.no_grad():
            views = shape.render(cameras(MeshBench()).to(shape.device), ("rgb", "alpha"), BEHIND).rgb.movedim(-1, 1)
            fronts.append(shape.render(turntable_cameras(8, 64)[1].to(shape.device), ("rgb", "alpha")).rgb[0])
        found = judge_views(judge, views.clamp(0, 1), wanted)
        right = {"noun_right": found["judged_noun"] == pair[0], "colour_right": found["judged_colour"] == pair[1]}
        records.append({"prompt": wanted.prompt, "heldout": heldout, "opacity": opacity, **found, **right})
    return records, fronts


def summary(rule: str, records: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table."""
    lost = [not NONE <= r["opacity"] <= FULL for r in records]
    norms = [np.asarray(one["norms"]) for one in runs if one["norms"]]
    varied = [float(one.std() / max(one.mean(), 1e-20)) for one in norms]

    def right(heldout: bool, *names: str) -> dict[str, Any]:
        chosen = [r for r in records if r["heldout"] == heldout]
        return share([all(r[f"{name}_right"] for name in names) for r in chosen])

    return {
        "rule": rule,
        "guidance": RULES[rule][1],
        "collapsed": share(lost),
        "gradient_variation": {"value": round(float(np.mean(varied)), 4) if varied else 0.0},
        "trained": right(False, "noun", "colour"),
        "heldout": right(True, "noun", "colour"),
        "heldout_noun": right(True, "noun"),
        "heldout_colour": right(True, "colour"),
        "updates": runs[0]["updates"],
        "rows": runs[0]["rows"],
        "failed": sum(bool(one["failed"]) for one in runs),
        "train_seconds": round(float(np.mean([one["train_seconds"] for one in runs])), 1),
    }


def run(context: Context) -> dict[str, Any]:
    """Every rule trained and looked at; the table, the premise and a picture of held-out pairs."""
    config = QUICK if context.quick else AmortisedBench()
    joint = recipe_of("sds", config).model.joint.prior
    priors = {name: load_prior(name) for name in {context.prior, joint}}
    judge, (known, kept) = Judge.from_pretrained(), pairs(config)
    step = max(1, len(known) // config.judged)
    table, shown, told = [], [], {}
    for rule in RULES:
        records: list[dict[str, Any]] = []
        runs: list[dict[str, Any]] = []
        for seed in config.seeds:
            objective, cost = trained(rule, config, priors, context.prior, seed)
            runs.append(cost)
            for heldout, chosen in ((False, known[::step][: config.judged]), (True, kept[: config.judged])):
                found, fronts = looked_at(objective, chosen, heldout, judge, 1000 * seed)
                records += found
                shown += [one.numpy() for one in fronts[:8]] if heldout and seed == config.seeds[0] else []
        table.append(summary(rule, records, runs))
        told[rule] = {"records": records, "runs": runs}
    save_image(context.picture(), grid(shown, columns=len(shown) // len(RULES)))
    images, levels = config.premise
    curve, rank = premise(priors[context.prior], renders("test", (images + 3) // 4), levels, context.seed)
    made = {"noise_error": curve, "spearman": rank, "shapes": told, "trained_pairs": len(known)}
    return {"config": asdict(config), "seeds": list(config.seeds), "table": table, **made}
