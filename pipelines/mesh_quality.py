"""How much a mesh costs: fast, balanced or best, the settings of configs/mesh-quality.yaml for score distillation and
for drawn normal maps (`drawn_quality` applies those)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import STUDENT, is_there, weights_root
from .text_to_shape import MeshRecipe

MeshQuality = Literal["fast", "balanced", "best"]


@dataclass(frozen=True)
class Spent:
    """What a quality changes in a recipe."""

    looks: float = 1.0  # factor on the steps
    walk: int | None = None  # denoising steps of a look at most; None: the recipe's


@dataclass(frozen=True)
class Drawn:
    """What a quality changes where normal maps are drawn; None: as it is."""

    steps: int | None = None  # of each drawing
    solver: str | None = None
    cache: str | None = None
    fusion: int | None = None  # steps that the solid takes to follow the maps
    second_ring: float | None = None  # degrees above the object of more painted views


@dataclass(frozen=True)
class DrawnSpending:
    """Of drawn normal maps."""

    students: dict[str, str] = field(default_factory=dict)  # who draws the maps in a prior's place, by its name
    fast: Drawn = field(default_factory=Drawn)
    balanced: Drawn = field(default_factory=Drawn)
    best: Drawn = field(default_factory=Drawn)


@dataclass(frozen=True)
class Spending:
    """configs/mesh-quality.yaml."""

    fast: Spent = field(default_factory=Spent)
    balanced: Spent = field(default_factory=Spent)
    best: Spent = field(default_factory=Spent)
    drawn: DrawnSpending = field(default_factory=DrawnSpending)


@functools.cache
def spending() -> Spending:
    """The file, read once."""
    return load_config(Spending, "mesh-quality")


def usual_student(prior: str) -> str | None:
    """The student that draws the normal maps of meshes for a prior, by its name, where its weights are there."""
    known = spending().drawn.students.get(prior)
    return known if known and is_there(weights_root() / known / STUDENT) else None


def at_quality(recipe: MeshRecipe, quality: str) -> MeshRecipe:
    """The recipe with what a quality spends. Raises InputError for unknown names."""
    check_quality(quality)
    return spent(recipe, getattr(spending(), quality))


def check_quality(quality: str) -> None:
    """Raises InputError for unknown names."""
    if quality not in get_args(MeshQuality):
        raise InputError(f"quality={quality!r} is unknown; have {', '.join(get_args(MeshQuality))}")


def spent(recipe: MeshRecipe, one: Spent) -> MeshRecipe:
    """The recipe with other numbers of looks and of steps of a look."""
    steps = max(1, round(recipe.optimise.steps * one.looks))
    walk = recipe.score.target_steps if one.walk is None else min(one.walk, recipe.score.target_steps)
    score, optimise = replace(recipe.score, target_steps=walk), replace(recipe.optimise, steps=steps)
    return replace(recipe, score=score, optimise=optimise)
