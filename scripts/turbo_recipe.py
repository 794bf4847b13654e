"""The training of a generator of planes (`unproject train triplane-turbo`) from the values of its YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.priors import Prior, load_prior
from ..core.training.config import TrainerConfig
from ..generate.turbo_train import PRDConfig, PRDObjective, Prompts
from ..toybox.samples import object_prompts
from ..utils.configs import load_config
from ..utils.errors import InputError
from .job import Job


@dataclass(frozen=True)
class PromptSource:
    """Texts to learn: those of a file, one a line, or of the toybox's objects."""

    file: str = ""
    split: str = "train"
    count: int = 4000
    """objects; equal texts are kept once"""

    def read(self) -> list[str]:
        """The texts. Raises InputError when there are none."""
        if not self.file:
            return list(dict.fromkeys(object_prompts(self.split, self.count)))
        path = Path(self.file)
        if not path.is_file():
            raise InputError(f"prompts.file={self.file} does not exist")
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        texts = list(dict.fromkeys(line for line in found if line))
        if not texts:
            raise InputError(f"prompts.file={self.file} holds no prompt; write one a line")
        return texts


@dataclass(frozen=True)
class TurboRecipe:
    """Priors and prompts to adapters and heads."""

    base: str = "toybox"
    """the 2-D prior that is adapted: a name, an id of the registry, a folder"""
    prompts: PromptSource = field(default_factory=PromptSource)
    shown: tuple[str, ...] = ()
    """prompts of validation and previews"""
    model: PRDConfig = field(default_factory=PRDConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def turbo_job(values: dict[str, Any]) -> Job:
    """Trains adapters and heads, exports turbo.safetensors and turbo.json."""
    recipe = load_config(TurboRecipe, values)
    loaded: dict[str, Prior] = {}
    for name in (recipe.base, *(one.prior for one in recipe.model.teachers.values() if one.prior)):
        loaded.setdefault(name, load_prior(name))
    teachers = {name: loaded[one.prior] for name, one in recipe.model.teachers.items() if one.prior}
    objective = PRDObjective(recipe.model, loaded[recipe.base], teachers, recipe.shown, recipe.trainer.seed)
    return Job(recipe.trainer, objective, Prompts(recipe.prompts.read()), objective.save)
