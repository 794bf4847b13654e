"""A distillation from a recipe: pairs, then stages, each a student that learns an objective, then the export.

A stage's student begins as the prior, or as the student of the stage before. Everything goes on where an interrupted
run was: pairs are kept by their key, stages by their checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...utils.configs import load_config
from ...utils.errors import InputError
from ..priors.base import Recommended
from ..priors.diffusers import DiffusersPrior
from ..training.config import TrainerConfig
from ..training.trainer import Trainer, TrainResult
from .arcflow import Arcing, ArcObjective
from .asdm import IncubateObjective, Incubating
from .consistency import ConsistencyObjective, Consistent
from .export import About, export, kind_of
from .guided import GuidanceObjective, Guiding, Halving, ProgressiveObjective
from .kinds import Kind
from .objective import Distillation
from .pairs import PairPlan, make_pairs
from .prune import FeatureMatching, FeatureObjective
from .quest import Selective, SelectiveObjective
from .rectify import Phased, PhasedObjective, Rectifying, RectifyObjective, check_coupled
from .speedupnet import SpeedingUp, SpeedUpObjective
from .student import Student
from .teacher import Teacher


class Made(NamedTuple):
    """An objective and its settings."""

    settings: type[Any]
    objective: type[Distillation]
    coupled: bool = False  # its pairs have to be ends of deterministic runs


OBJECTIVES: dict[str, Made] = {
    "guidance": Made(Guiding, GuidanceObjective),
    "progressive": Made(Halving, ProgressiveObjective),
    "consistency": Made(Consistent, ConsistencyObjective),
    "rectify": Made(Rectifying, RectifyObjective, coupled=True),
    "phased": Made(Phased, PhasedObjective),
    "speed-up": Made(SpeedingUp, SpeedUpObjective),
    "arc": Made(Arcing, ArcObjective),
    "features": Made(FeatureMatching, FeatureObjective),
    "incubate": Made(Incubating, IncubateObjective),
    "selective": Made(Selective, SelectiveObjective),
}


@dataclass(frozen=True)
class StageRecipe:
    """One student."""

    objective: str
    """a name of OBJECTIVES"""
    student: dict[str, Any] = field(default_factory=lambda: {"kind": "full"})
    """its kind, and the settings of that"""
    method: dict[str, Any] = field(default_factory=dict)
    """settings of the objective"""
    teacher: Literal["prior", "previous"] = "prior"
    """who teaches: the prior, or the student of the stage before"""
    pairs: PairPlan | None = None
    """pairs that the teacher of this stage draws for it; None: those of the recipe"""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class DistillRecipe:
    """A method; configs/distill holds those that come with the package."""

    stages: dict[str, StageRecipe]
    pairs: PairPlan = field(default_factory=PairPlan)
    """what the prior draws to learn from"""
    sampling: Recommended = field(default_factory=Recommended)
    """how the student draws"""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """what the scheduler's config says otherwise than the prior's, for stock pipelines"""

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("a distillation needs at least one stage")
        for name, stage in self.stages.items():
            if stage.objective not in OBJECTIVES:
                raise InputError(
                    f"stages.{name}.objective={stage.objective!r} is unknown; have {', '.join(OBJECTIVES)}"
                )
        if next(iter(self.stages.values())).teacher == "previous":
            raise InputError("the first stage has none before it that could teach; its teacher is the prior")


class Distilled(NamedTuple):
    """How a distillation ended."""

    folder: Path | None  # of the export; None where a stage was stopped
    stage: str
    result: TrainResult


def check_stages(recipe: DistillRecipe, prior: DiffusersPrior) -> None:
    """Raises InputError for kinds and settings that are unknown, and for a first student that the prior has not the
    layers for, before the teacher draws anything."""
    for number, stage in enumerate(recipe.stages.values()):
        kind = kind_of_stage(stage)
        load_config(OBJECTIVES[stage.objective].settings, stage.method)
        if number == 0:  # the others begin with the student of the stage before
            kind.check(prior)


def kind_of_stage(stage: StageRecipe) -> Kind:
    """The student's kind. Raises InputError for unknown names and settings."""
    settings = dict(stage.student)
    return kind_of(str(settings.pop("kind", "full")), settings)


def objective_of(stage: StageRecipe, prior: DiffusersPrior, previous: Student | None, seed: int = 0) -> Distillation:
    """The objective of a stage on a prior, after the student of the stage before."""
    made = OBJECTIVES[stage.objective]
    student = Student(previous.prior if previous else prior, kind_of_stage(stage), seed)
    base = previous.prior if previous and stage.teacher == "previous" else prior
    teacher = Teacher(base)
    if previous is None:
        with contextlib.suppress(InputError):  # a kind that can be turned off needs no second network
            teacher = student.teacher()
    return made.objective(student, teacher, load_config(made.settings, stage.method))


def distil(
    recipe: DistillRecipe,
    prior: DiffusersPrior,
    prompts: Sequence[str],
    out: str | Path,
    method: str = "",
    resume: bool = False,
    device: str = "auto",
    pairs_root: str | Path | None = None,
) -> Distilled:
    """Runs a recipe in `out`, whose export/ is the student.

    Args:
        recipe: what to do.
        prior: who teaches; stays as it is.
        prompts: texts of the pairs, sample i has text i modulo their number.
        out: folder of the run.
        method: its name, for distill.json.
        resume: go on where an earlier run in `out` was.
        device: "auto" or "cpu".
        pairs_root: folder of pairs; None: pairs/ in `out`.

    Raises InputError for settings that do not fit, before anything is drawn (`check_stages`).
    """
    check_stages(recipe, prior)
    out, previous, last = Path(out), None, None
    root = Path(pairs_root or out / "pairs")
    pairs = make_pairs(Teacher(prior), prompts, recipe.pairs, root)
    for name, stage in recipe.stages.items():
        objective = objective_of(stage, prior, previous, stage.trainer.seed)
        data = pairs if stage.pairs is None else make_pairs(objective.teacher, prompts, stage.pairs, root)
        if OBJECTIVES[stage.objective].coupled:
            check_coupled(data)
        trainer = Trainer(stage.trainer, objective, data, out / name, device)
        last = trainer.run(resume)
        if last.reason != "done":
            return Distilled(None, name, last)
        previous = settled(trainer, objective)
    assert previous is not None and last is not None
    about = About(method, prior.name, Teacher(prior).hash, recipe.sampling)
    return Distilled(export(previous, out / "export", about, recipe.scheduler), name, last)


def settled(trainer: Trainer, objective: Distillation) -> Student:
    """The student of a training that is done, with its averaged weights for good."""
    with trainer.averaged():
        weights = {name: value.clone() for name, value in objective.student.network.state_dict().items()}
    objective.student.network.load_state_dict(weights)
    objective.student.network.eval()
    return objective.student
