"""RichDreamer's claim: a score of normals beside that of colours makes better geometry at the same network rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.priors import load_prior
from ..generate.normal_guide import NormalsConfig
from ..pipelines.text_to_shape import load_recipe
from ..toybox.judge import Judge
from .distilled import at_rows
from .runner import Context
from .score_distillation import faster
from .stabledreamer import in_one, row_of
from .text_to_mesh import MeshBench, prompts


@dataclass(frozen=True)
class NormalsBench:
    """Sizes of the experiment."""

    prompts: int = 8
    seeds: int = 2
    rows: int = 1200  # network rows of each run, of both guides together
    weight: float = 0.5  # of the pull on normals
    rates: float = 5.0  # factor on the recipe's: half as many steps finish a shape too


def run(context: Context) -> dict[str, Any]:
    """Colours alone, and colours and normals with half as many steps, by one prior of several views.

    Raises InputError for a prior that does not know the words "normal map".
    """
    config = NormalsBench(1, 1, 80) if context.quick else NormalsBench()
    prior, judge = load_prior(context.prior), Judge.from_pretrained()
    wanted = prompts(MeshBench(test_prompts=config.prompts, heldout_prompts=0))
    seeds = [context.seed + k for k in range(config.seeds)]
    plain = faster(load_recipe(None, prior, None, "text-to-splats"), config.rates)
    both = replace(plain, normals=NormalsConfig(weight=(config.weight,)))
    rows = []
    for name, recipe, share in (("colours", plain, 1), ("colours and normals", both, 2)):
        row = row_of(in_one(at_rows(recipe, prior, config.rows // share), prior), wanted, seeds, judge)
        rows.append({"guides": name, **row})
    return {"config": asdict(config), "seeds": seeds, "table": rows}
