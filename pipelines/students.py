"""Students in the place of the network of pipelines that make meshes: quicker previews, asked as distill.json says."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.priors.base import Recommended
from ..core.sampling.plan import SamplingPlan
from ..utils.configs import load_config, to_dict
from .direct25_mesh import Direct25TextToMesh
from .map_student import lent
from .text_to_shape import MeshRecipe, TextToShape


def drawn_by_student(pipe: Direct25TextToMesh, student: str | Path, **options: Any) -> Recommended:
    """Normal maps are drawn by this student alone, with its steps, solver and guidance; what paints stays. Returns
    these."""
    pipe.prior, pipe.student = lent(pipe.prior, student, **options), None
    plan = SamplingPlan.of(pipe.prior.recommended)
    pipe.config = replace(pipe.config, normals=replace(pipe.config.normals, plan=plan))
    return pipe.prior.recommended


def guided_by_student(pipe: TextToShape, student: str | Path, **options: Any) -> Recommended:
    """Score distillation asks the student, without guidance where that is in its weights. Returns what it recommends.

    Its solver and steps are of no use here: a rule asks at random levels.
    """
    pipe.prior = lent(pipe.prior, student, **options)
    told = pipe.prior.recommended
    if told.distilled and told.solver == "lcm":
        warnings.warn(
            f"{pipe.prior.name} answers with where a run ends, not with the middle of what could be there: previews by "
            "score distillation are coarse",
            UserWarning,
            stacklevel=2,
        )
    if told.guidance == 1 and pipe.recipe.score.rule.made.guided:
        pipe.recipe = load_config(MeshRecipe, to_dict(pipe.recipe), **{"score.guidance": 1.0})
    return told
