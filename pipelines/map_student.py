"""Students that draw the normal maps of a mesh in the place of a prior of several views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.distillation.export import load_student
from ..core.distillation.lent import seeing_views
from ..core.priors import MultiViewPrior, Prior
from ..utils.errors import InputError
from .mesh_quality import usual_student

USUAL = "auto"


def map_student(name: str | Path, prior: Prior, student: str | Path | None) -> MultiViewPrior | None:
    """The student that draws for a prior by name; "auto": the one of configs/mesh-quality.yaml, where its weights are
    there; None: none.

    Raises InputError for students of another prior, and for those that do not fit.
    """
    if student is None:
        return None
    chosen = usual_student(str(name)) if str(student) == USUAL else student
    return None if chosen is None else lent(prior, chosen)


def lent(prior: Prior, student: str | Path, **options: Any) -> MultiViewPrior:
    """A prior of several views with a student's network; `options` as of `load_student`.

    Raises InputError for another prior, and for students that do not fit it.
    """
    if not isinstance(prior, MultiViewPrior):
        raise InputError(
            f"a student lends its network to a prior of several views, which {prior.name} is not; draw with it by "
            "text-to-image --student"
        )
    return seeing_views(prior, load_student(student, device=prior.device, dtype=prior.dtype, **options))
