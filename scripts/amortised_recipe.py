"""The training of a generator of fields (`unproject train amortised`) from the values of its YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.training.config import TrainerConfig
from ..generate.amortised_train import LibraryConfig, LibraryObjective
from ..generate.lessons import Prompts
from ..utils.configs import load_config
from .job import Job
from .turbo_recipe import PromptSource, base_and_teachers


@dataclass(frozen=True)
class AmortisedRecipe:
    """Priors and prompts to a generator."""

    base: str = "toybox"
    """the prior whose text encoder is read: a name, an id of the registry, a folder"""
    prompts: PromptSource = field(default_factory=PromptSource)
    shown: tuple[str, ...] = ()
    """prompts of validation and previews"""
    model: LibraryConfig = field(default_factory=LibraryConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def amortised_job(values: dict[str, Any]) -> Job:
    """Trains network and shared parts, exports amortised.safetensors and amortised.json."""
    recipe = load_config(AmortisedRecipe, values)
    base, teachers = base_and_teachers(recipe.base, recipe.model.teachers)
    objective = LibraryObjective(recipe.model, base, teachers, recipe.shown, recipe.trainer.seed)
    return Job(recipe.trainer, objective, Prompts(recipe.prompts.read()), objective.save)
