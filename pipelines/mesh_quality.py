"""How much score distillation of a mesh spends: fast, balanced or best, the factors of configs/mesh-quality.yaml."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Literal

from ..utils.configs import load_config
from ..utils.errors import InputError
from .text_to_shape import MeshRecipe

MeshQuality = Literal["fast", "balanced", "best"]


@dataclass(frozen=True)
class Spent:
    """What a quality changes in a recipe."""

    looks: float = 1.0  # factor on the steps
    walk: int | None = None  # denoising steps of a look at most; None: the recipe's


@dataclass(frozen=True)
class Spending:
    """configs/mesh-quality.yaml."""

    fast: Spent = field(default_factory=Spent)
    balanced: Spent = field(default_factory=Spent)
    best: Spent = field(default_factory=Spent)


@functools.cache
def spending() -> Spending:
    """The file, read once."""
    return load_config(Spending, "mesh-quality")


def at_quality(recipe: MeshRecipe, quality: str) -> MeshRecipe:
    """The recipe with what a quality spends. Raises InputError for unknown names."""
    if quality not in vars(spending()):
        raise InputError(f"quality={quality!r} is unknown; have {', '.join(vars(spending()))}")
    return spent(recipe, getattr(spending(), quality))


def spent(recipe: MeshRecipe, one: Spent) -> MeshRecipe:
    """The recipe with other numbers of looks and of steps of a look."""
    steps = max(1, round(recipe.optimise.steps * one.looks))
    walk = recipe.score.target_steps if one.walk is None else min(one.walk, recipe.score.target_steps)
    score, optimise = replace(recipe.score, target_steps=walk), replace(recipe.optimise, steps=steps)
    return replace(recipe, score=score, optimise=optimise)
