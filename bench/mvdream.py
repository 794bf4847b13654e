"""MVDream's claim: views that see each other make fewer objects with two fronts than words for views do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..core.priors import load_prior
from ..pipelines.text_to_shape import load_recipe
from ..toybox.judge import Judge
from ..utils.pictures import grid, save_image
from .distilled import at_rows, geometry, judged, made, true_of
from .intervals import share, spread
from .runner import Context
from .text_to_mesh import MeshBench, prompts

KINDS = {"single images, view words": "toybox", "four views": "toybox-mv"}
SIDES = (0, 2, 4, 6)


@dataclass(frozen=True)
class MultiViewBench:
    """Sizes of the experiment."""

    prompts: int = 12
    seeds: int = 2
    rows: int = 1600  # network rows of each run


def run(context: Context) -> dict[str, Any]:
    """Both priors at the same prompts, seeds, representation, rule and rows."""
    config = MultiViewBench(1, 1, 80) if context.quick else MultiViewBench()
    judge = Judge.from_pretrained()
    wanted = prompts(MeshBench(test_prompts=config.prompts, heldout_prompts=0))
    seeds = [context.seed + k for k in range(config.seeds)]
    rows, shown, labels = [], [], []
    for kind, name in KINDS.items():
        prior = load_prior(name)
        recipe = at_rows(load_recipe(None, prior, None, "text-to-splats"), prior, config.rows)
        records = []
        for one in wanted:
            for seed in seeds:
                shape = made(recipe, prior, one.prompt, seed)
                records.append({**judged(judge, shape, one, true_of(one, 1000 + seed)), **geometry(shape, one)})
                if seed == seeds[0]:
                    shown += [view.permute(1, 2, 0).numpy() for view in shape.views[list(SIDES)]]
                    labels += [f"{one.noun}, {prior.frames} view" + "s" * (prior.frames > 1), "", "", ""]
        rows.append(
            {
                "prior": kind,
                "two_fronts": share([r["two_fronts"] for r in records]),
                "right": share([r["right"] for r in records]),
                "f_score": spread([r["f_score"] for r in records]),
                "seconds": spread([r["seconds"] for r in records]),
                "nfe": spread([r["nfe"] for r in records]),
                "failed": sum(bool(r["failed"]) for r in records),
            }
        )
    save_image(context.picture(), grid(shown, columns=4 * min(3, len(wanted)), labels=labels))
    return {"config": asdict(config), "seeds": seeds, "table": rows}
