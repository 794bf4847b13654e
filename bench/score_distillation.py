"""All rules of score distillation at the same prompts, cameras, seeds and network rows.

Every rule optimises the same Gaussians with the same window of levels (but for HiFA's, which is its rule), at as many
steps as the rows allow. One prompt is made with eight seeds, for diversity; the others with one. Variance is that of
the pull at fixed renders and level, over draws of noise, in shares of the square of its mean.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..generate.guides import make_guide
from ..pipelines.text_to_shape import MeshRecipe, load_recipe
from ..toybox.judge import Judge
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .distilled import Made, at_rows, geometry, judged, made, true_of
from .intervals import share, spread
from .runner import Context
from .text_to_mesh import MeshBench, Wanted, cameras, prompts

RULES = ("sds", "sjc", "vsd", "csd", "csd-late", "nfsd", "ism", "sdi", "asd", "hifa", "recon")
WORDS_ONLY = ("sds", "perp-neg")  # told apart by words, with the single-image prior
SIDES = (0, 2, 4, 6)  # of the eight views, shown


@dataclass(frozen=True)
class FamilyBench:
    """Sizes of the experiment."""

    rows: int = 600  # network rows of each run
    prompts: int = 3
    seeds: int = 8  # of the first prompt
    draws: int = 8  # of noise, for the variance
    rules: tuple[str, ...] = RULES
    words_only: tuple[str, ...] = WORDS_ONLY


def recipe_of(rule: str, prior: Prior, rows: int) -> MeshRecipe:
    """The splat recipe of the prior with a rule, in the recipe's own window of levels."""
    plain, changed = (load_recipe(None, prior, name, "text-to-splats") for name in (None, rule))
    if changed.score.window.draw == "uniform":
        changed = replace(changed, score=replace(changed.score, window=plain.score.window))
    return at_rows(changed, prior, rows)


def pull_variance(recipe: MeshRecipe, prior: Prior, views: Tensor, draws: int) -> float:
    """Variance of g over draws of noise at half the train time in shares of |mean g|^2; four views (4, 3, H, W)."""
    guide = make_guide(recipe.score, prior, "a red chair", None, len(views))
    camera = cameras(MeshBench())[torch.tensor(SIDES)]
    pulls = []
    for seed in range(draws):
        images = views.clone().requires_grad_()
        guide_at_half(guide, images, camera, generator(seed)).backward()
        pulls.append(images.grad)
    found = torch.stack([pull for pull in pulls if pull is not None])
    return float(found.var(0).sum() / found.mean(0).square().sum().clamp_min(1e-20))


def guide_at_half(guide: Any, images: Tensor, camera: Any, rng: torch.Generator) -> Tensor:
    """The loss of renders with all levels at half the train time."""
    from ..core.distillation.time_window import TimeWindow

    score = guide.score
    kept, score.config = score.config, replace(score.config, window=TimeWindow((0.5,), (0.5,)))
    try:
        loss: Tensor = guide(images, camera, 0.5, rng).loss
    finally:
        score.config = kept
    return loss


def row_of(
    rule: str, prior: Prior, config: FamilyBench, wanted: list[Wanted], judge: Judge, seed: int
) -> tuple[dict[str, Any], list[Made]]:
    """One line of the table and what was made."""
    recipe = recipe_of(rule, prior, config.rows)
    jobs = [(wanted[0], seed + k) for k in range(config.seeds)] + [(one, seed) for one in wanted[1:]]
    shapes = [made(recipe, prior, one.prompt, number) for one, number in jobs]
    records = [
        judged(judge, shape, one, true_of(one, 1000 + number))
        for shape, (one, number) in zip(shapes, jobs, strict=True)
    ]
    firsts = [0, *range(config.seeds, len(jobs))]  # one run of each prompt
    surfaces = [geometry(shapes[i], jobs[i][0]) for i in firsts]
    true = torch.stack([true_of(wanted[0], 1000 + seed + k) for k in range(config.seeds)])
    row = {
        "rule": rule,
        "prior": prior.name,
        "steps": recipe.optimise.steps,
        "guidance": recipe.score.guidance if recipe.score.rule.made.guided else None,
        "right": share([r["right"] for r in records]),
        "noun": share([r["judged_noun"] == one.noun for r, (one, _) in zip(records, jobs, strict=True)]),
        "colour": share([r["judged_colour"] == one.colour for r, (one, _) in zip(records, jobs, strict=True)]),
        "two_fronts": share([r["two_fronts"] for r in records]),
        "f_score": spread([s["f_score"] for s in surfaces]),
        "saturation_error": spread([r["saturation_error"] for r in records]),
        "variance": {"value": pull_variance(recipe, prior, true[0, list(SIDES)], config.draws)},
        "diversity": {"value": diversity(judge, [s.views for s in shapes[: config.seeds]], true)},
        "failed": sum(bool(r["failed"]) for r in records),
        "seconds": spread([r["seconds"] for r in records]),
        "nfe": spread([r["nfe"] for r in records]),
    }
    return row, [shapes[i] for i in firsts]


def diversity(judge: Judge, views: list[Tensor], true: Tensor) -> float:
    """Mean distance of two runs of a prompt in the judge's features, in shares of that of two toybox instances."""
    return _apart(judge, torch.stack(views)) / max(_apart(judge, true), 1e-9)


def _apart(judge: Judge, views: Tensor) -> float:
    """Mean distance between the mean features of N shapes (N, 8, 3, H, W)."""
    features = judge.features(views.flatten(0, 1)).unflatten(0, views.shape[:2]).mean(1)
    return float(torch.pdist(features).mean()) if len(features) > 1 else 0.0


def run(context: Context) -> dict[str, Any]:
    """The table, and a picture with four sides of every prompt for each rule."""
    config = FamilyBench(40, 1, 2, 2) if context.quick else FamilyBench()
    views, single, judge = load_prior("toybox-mv"), load_prior(context.prior), Judge.from_pretrained()
    wanted = prompts(MeshBench(test_prompts=config.prompts, heldout_prompts=0))
    rows, shown, labels = [], [], []
    for prior, rules in ((views, config.rules), (single, config.words_only)):
        for rule in rules:
            row, shapes = row_of(rule, prior, config, wanted, judge, context.seed)
            rows.append(row)
            for one, shape in zip(wanted, shapes, strict=True):
                shown += [view.permute(1, 2, 0).numpy() for view in shape.views[list(SIDES)]]
                labels += [f"{rule} {one.noun}" if prior is views else f"{rule} (words)", "", "", ""]
    save_image(context.picture(), grid(shown, columns=4 * len(wanted), labels=labels))
    return {"config": asdict(config), "seeds": [context.seed + k for k in range(config.seeds)], "table": rows}
