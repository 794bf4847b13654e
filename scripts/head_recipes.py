"""Recipes of the heads that read a frozen prior or look a second time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.priors import StableDiffusionPrior, load_prior
from ..core.training.config import TrainerConfig
from ..tasks.data import GeometryData
from ..tasks.heads import load_head
from ..tasks.preimage_head import PreimageConfig, PreimageHead
from ..tasks.refine import RefineConfig, RefinedHead
from ..tasks.refine_train import PreimageObjective, RefineObjective
from ..tasks.train import LossConfig
from ..toybox.dataset import RenderedSet
from ..utils.configs import load_config
from ..utils.errors import InputError
from .job import Job


@dataclass(frozen=True)
class PreimageRecipe:
    """Frozen prior and renders with geometry to a head that reads its preimage."""

    train: tuple[str, ...]
    """folders rendered with geometry"""
    val: tuple[str, ...]
    base: str = "toybox"
    """name or pipeline folder of the prior"""
    base_name: str = "toybox"
    """name under which the exported head finds it: its sibling"""
    head: PreimageConfig = field(default_factory=PreimageConfig)
    model: LossConfig = field(default_factory=LossConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class RefineRecipe:
    """One-step head and renders with geometry to a refiner of one of its targets."""

    train: tuple[str, ...]
    """folders rendered with geometry"""
    val: tuple[str, ...]
    base: str = "toybox"
    """name or folder of the one-step head"""
    base_name: str = "toybox-geometry"
    """name under which the exported refiner finds it: its sibling"""
    head: RefineConfig = field(default_factory=RefineConfig)
    model: LossConfig = field(default_factory=lambda: LossConfig(loss="regression"))
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def preimage_job(values: dict[str, Any]) -> Job:
    """Trains the refiner and branch, exports them with head.json (which holds the validation numbers)."""
    recipe = load_config(PreimageRecipe, values)
    prior = load_prior(recipe.base)
    if not isinstance(prior, StableDiffusionPrior):
        raise InputError(f"base={recipe.base} is not a Stable Diffusion prior")
    head = PreimageHead(prior, recipe.head, seed=recipe.trainer.seed)
    train, held_out = _sets(recipe, head)
    objective = PreimageObjective(recipe.model, head, held_out)

    def export(out: Path) -> Path:
        return head.save(out, recipe.base_name, validation=objective.validate())

    return Job(recipe.trainer, objective, train, export)


def refine_job(values: dict[str, Any]) -> Job:
    """Trains a refiner, exports it with head.json (which holds the validation numbers)."""
    recipe = load_config(RefineRecipe, values)
    if recipe.model.loss != "regression":
        raise InputError(f"loss={recipe.model.loss!r}: a refiner learns latents; use regression")
    head = RefinedHead(load_head(recipe.base, (recipe.head.target,)), recipe.head, recipe.trainer.seed)
    train, held_out = _sets(recipe, head)
    objective = RefineObjective(recipe.model, head, held_out)

    def export(out: Path) -> Path:
        return head.save(out, recipe.base_name, validation=objective.validate())

    return Job(recipe.trainer, objective, train, export)


def _sets(recipe: PreimageRecipe | RefineRecipe, head: PreimageHead | RefinedHead) -> tuple[GeometryData, GeometryData]:
    """(training, validation) with the columns of the head's target."""
    train, held_out = (
        GeometryData([RenderedSet(folder) for folder in folders], recipe.model.augment, head.codec.columns())
        for folders in (recipe.train, recipe.val)
    )
    return train, held_out
