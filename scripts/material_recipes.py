"""Recipes of materials: a prior that draws all maps at once, and its distillation to four steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.distillation.consistency import Consistent
from ..core.distillation.kinds import Told
from ..core.distillation.student import Student
from ..core.distillation.teacher import Teacher
from ..core.training.config import TrainerConfig
from ..tasks.material_train import MaterialConsistency, MaterialLoss, MaterialObjective, ToldAdapters
from ..tasks.materials import MaterialConfig, MaterialGenerator, MaterialPrior, load_materials
from ..toybox.pbr import FAMILIES, LABELLED, PICTURED
from ..toybox.pbr_set import PbrSet
from ..utils.configs import load_config
from ..utils.errors import InputError
from .beginnings import stable_diffusion
from .job import Job


@dataclass(frozen=True)
class Surfaces:
    """Procedural materials, made when the training begins."""

    count: int = 2000
    size: int = 64
    held_out: int = 64
    labelled: Literal["half", "all"] = "half"
    """families that come with maps; of the others there are pictures alone, for a critic"""


@dataclass(frozen=True)
class MaterialRecipe:
    """Text-to-image prior and materials to a material prior."""

    base: str = "toybox"
    """name or pipeline folder of the prior"""
    base_name: str = "toybox"
    """name under which the export finds its prior"""
    rank: int = 0
    """of the adapters that learn, beside first and last layers; 0: all of the network does"""
    surfaces: Surfaces = field(default_factory=Surfaces)
    model: MaterialLoss = field(default_factory=MaterialLoss)
    asked: MaterialConfig = field(default_factory=MaterialConfig)
    """how the result is asked"""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class FewStepRecipe:
    """A material prior to one that is distilled to consistency."""

    teacher: str
    """folder of a material prior"""
    base_name: str = "toybox"
    surfaces: Surfaces = field(default_factory=Surfaces)
    model: Consistent = field(default_factory=lambda: Consistent(scale=(1.0, 5.0)))
    photo: float = 0.5
    """share of materials that are learnt with their photograph"""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def material_job(values: dict[str, Any]) -> Job:
    """Trains a material prior, exports unet/ and materials.json."""
    recipe = load_config(MaterialRecipe, values)
    base = stable_diffusion(recipe.base)
    prior, (train, val) = MaterialPrior.from_prior(base, recipe.rank, recipe.trainer.seed), _sets(recipe.surfaces)
    objective = MaterialObjective(prior, recipe.model, val)

    def export(out: Path) -> Path:
        made = MaterialGenerator(prior, recipe.asked)
        return made.save(out, recipe.base_name, validation=objective.validate())

    return Job(recipe.trainer, objective, train, export)


def few_step_job(values: dict[str, Any]) -> Job:
    """Distils a material prior to consistency, exports unet/ and materials.json."""
    recipe = load_config(FewStepRecipe, values)
    given = load_materials(recipe.teacher)
    if given.config.distilled:
        raise InputError(f"teacher={recipe.teacher} takes few steps already; give the prior it was made from")
    kind = ToldAdapters() if isinstance(given.prior, MaterialPrior) and given.prior.rank else Told()
    student = Student(given.prior, kind, recipe.trainer.seed)
    objective = MaterialConsistency(student, Teacher(given.prior), recipe.model, recipe.photo)
    asked = MaterialConfig(4, given.config.guidance, given.config.spacing, True, recipe.model.grid)

    def export(out: Path) -> Path:
        assert isinstance(student.prior, MaterialPrior)
        return MaterialGenerator(student.prior, asked).save(out, recipe.base_name)

    return Job(recipe.trainer, objective, _sets(recipe.surfaces)[0], export)


def _sets(surfaces: Surfaces) -> tuple[PbrSet, PbrSet]:
    families = (tuple(FAMILIES), ()) if surfaces.labelled == "all" else (tuple(LABELLED), tuple(PICTURED))
    train = PbrSet("train", surfaces.count, surfaces.size, *families)
    return train, PbrSet("val", surfaces.held_out, surfaces.size, *families)
