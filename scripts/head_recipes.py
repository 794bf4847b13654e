"""Recipes of the heads that read a frozen prior, see the picture beside the network, or look a second time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.training.config import TrainerConfig
from ..core.training.objectives.base import Objective
from ..tasks.alternatives import load_first
from ..tasks.codecs import CameraCodec, Column
from ..tasks.data import CameraColumns, GeometryData
from ..tasks.metric_head import MetricConfig, MetricHead, MetricObjective
from ..tasks.one_map import OneMapHead
from ..tasks.one_step import OneStepConfig, OneStepHead
from ..tasks.preimage_head import PreimageConfig, PreimageHead
from ..tasks.refine import RefineConfig, RefinedHead
from ..tasks.refine_train import OneStepObjective, PreimageObjective, RefineObjective
from ..tasks.train import LossConfig
from ..toybox.dataset import RenderedSet
from ..utils.configs import load_config
from ..utils.errors import InputError
from .beginnings import stable_diffusion
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
class OneStepRecipe:
    """Text-to-image prior and renders with geometry to a head that is asked once and told the picture beside it."""

    train: tuple[str, ...]
    """folders rendered with geometry"""
    val: tuple[str, ...]
    base: str = "toybox"
    """name or pipeline folder of the prior"""
    base_name: str = "toybox"
    """name under which the exported head finds it: its sibling"""
    shrink: float = 0.5
    """share of inputs whose noise is replaced by zeros, where the head starts from noise"""
    head: OneStepConfig = field(default_factory=OneStepConfig)
    model: LossConfig = field(default_factory=lambda: LossConfig(loss="regression"))
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class RefineRecipe:
    """One-step head and renders with geometry to a refiner of one of its targets."""

    train: tuple[str, ...]
    """folders rendered with geometry"""
    val: tuple[str, ...]
    base: str = "toybox"
    """name or folder of the one-step head"""
    base_name: str = ""
    """name under which the exported refiner finds it, as a sibling; empty: as base is given"""
    head: RefineConfig = field(default_factory=RefineConfig)
    model: LossConfig = field(default_factory=lambda: LossConfig(loss="regression"))
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class MetricRecipe:
    """Text-to-image prior and renders with geometry to a head of metres that is told the camera."""

    train: tuple[str, ...]
    """folders rendered with geometry"""
    val: tuple[str, ...]
    base: str = "toybox"
    """name or pipeline folder of the prior"""
    base_name: str = "toybox"
    """name under which the exported head finds it: its sibling"""
    head: MetricConfig = field(default_factory=MetricConfig)
    model: LossConfig = field(default_factory=LossConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def metric_job(values: dict[str, Any]) -> Job:
    """Trains a head of metres."""
    recipe = load_config(MetricRecipe, values)
    head = MetricHead(stable_diffusion(recipe.base), recipe.head)
    columns = [CameraCodec.column, recipe.head.codec.column]
    return _job(recipe, head, columns, lambda held_out: MetricObjective(recipe.model, head, held_out))


def preimage_job(values: dict[str, Any]) -> Job:
    """Trains the refiner and branch of a head that reads a preimage."""
    recipe = load_config(PreimageRecipe, values)
    head = PreimageHead(stable_diffusion(recipe.base), recipe.head, seed=recipe.trainer.seed)
    return _job(recipe, head, head.codec.columns(), lambda held_out: PreimageObjective(recipe.model, head, held_out))


def one_step_job(values: dict[str, Any]) -> Job:
    """Trains a one-step head that is told the picture beside it."""
    recipe = load_config(OneStepRecipe, values)
    _latents_only(recipe.model)
    if not 0 <= recipe.shrink <= 1:
        raise InputError(f"shrink={recipe.shrink} must lie in [0, 1]")
    head = OneStepHead(stable_diffusion(recipe.base), recipe.head, seed=recipe.trainer.seed)
    return _job(
        recipe,
        head,
        head.codec.columns(),
        lambda held_out: OneStepObjective(recipe.model, head, held_out, recipe.shrink),
    )


def refine_job(values: dict[str, Any]) -> Job:
    """Trains a refiner of a one-step head."""
    recipe = load_config(RefineRecipe, values)
    _latents_only(recipe.model)
    head = RefinedHead(load_first(recipe.base, recipe.head.target), recipe.head, recipe.trainer.seed)
    return _job(recipe, head, head.codec.columns(), lambda held_out: RefineObjective(recipe.model, head, held_out))


def _job(
    recipe: PreimageRecipe | OneStepRecipe | RefineRecipe | MetricRecipe,
    head: OneMapHead | MetricHead,
    columns: Sequence[Column],
    objective_of: Callable[[GeometryData], Objective],
) -> Job:
    """The training of a head, which exports it with head.json (and the validation numbers in that)."""
    train, held_out = (
        GeometryData([CameraColumns(RenderedSet(folder)) for folder in folders], recipe.model.augment, columns)
        for folders in (recipe.train, recipe.val)
    )
    objective = objective_of(held_out)

    def export(out: Path) -> Path:
        return head.save(out, recipe.base_name or recipe.base, validation=objective.validate())

    return Job(recipe.trainer, objective, train, export)


def _latents_only(model: LossConfig) -> None:
    if model.loss != "regression":
        raise InputError(f"loss={model.loss!r}: this head learns latents; use regression")
