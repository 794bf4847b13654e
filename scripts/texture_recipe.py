"""The training that teaches a multi-view prior to read normals (`unproject train direct25-texture`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.priors import MultiViewPrior, load_prior
from ..core.training.config import TrainerConfig
from ..generate.view_texture_train import PairedGroups, TextureObjective, TextureTraining
from ..utils.configs import load_config
from ..utils.errors import InputError
from .drawn import Drawn, ObjectPhrases, drawn
from .job import Job

KINDS = ("picture", "normal map")


@dataclass(frozen=True)
class TextureRecipe:
    """Views with their normal maps to an adapter of a multi-view prior."""

    train: tuple[Drawn, ...]
    """of kinds [picture, normal map]"""
    val: tuple[Drawn, ...]
    base: str = "toybox-mv"
    """name or folder of the prior"""
    strange: float = 0.0
    """share of captions with strange words in them (toybox.strange)"""
    model: TextureTraining = field(default_factory=TextureTraining)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if any(part.kinds != KINDS for part in (*self.train, *self.val)):
            raise InputError(f"train and val of direct25-texture need kinds={list(KINDS)}: each view and its normals")


def texture_job(values: dict[str, Any]) -> Job:
    """Trains the adapter, exports direct25.safetensors and direct25.json."""
    recipe = load_config(TextureRecipe, values)
    groups = [PairedGroups(latents, ObjectPhrases(pictures)) for latents, pictures in
              (drawn(recipe.train, recipe.strange), drawn(recipe.val))]  # fmt: skip
    prior = load_prior(recipe.base)
    if not isinstance(prior, MultiViewPrior):
        raise InputError(f"base={recipe.base} draws single images; give a multi-view prior")
    objective = TextureObjective(recipe.model, prior, groups[1], recipe.trainer.seed)
    return Job(recipe.trainer, objective, groups[0], objective.save)
