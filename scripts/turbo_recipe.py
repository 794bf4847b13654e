"""The training of a generator of planes (`unproject train triplane-turbo`) from the values of its YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.distillation.export import load_student
from ..core.distillation.lent import seeing_views
from ..core.priors import MultiViewPrior, Prior, load_prior
from ..core.training.config import TrainerConfig
from ..generate.drawn_views import ViewDrawer
from ..generate.lessons import Prompts
from ..generate.render_teacher import TeacherConfig
from ..generate.turbo_start import StartConfig
from ..generate.turbo_train import PRDConfig, PRDObjective
from ..generate.view_texture import NormalTexture
from ..toybox.samples import object_prompts
from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import weights_root
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
    base, teachers = base_and_teachers(recipe.base, recipe.model.teachers)
    start = recipe.model.start
    drawer = view_drawer(start, teachers["joint"]) if start.updates else None
    objective = PRDObjective(recipe.model, base, teachers, recipe.shown, recipe.trainer.seed, drawer)
    return Job(recipe.trainer, objective, Prompts(recipe.prompts.read()), objective.save)


def base_and_teachers(base: str, configs: Mapping[str, TeacherConfig]) -> tuple[Prior, dict[str, Prior]]:
    """(the prior of a name, those that teachers name by the teachers' names), each loaded once."""
    loaded = {name: load_prior(name) for name in {base, *(one.prior for one in configs.values() if one.prior)}}
    return loaded[base], {name: loaded[one.prior] for name, one in configs.items() if one.prior}


def view_drawer(start: StartConfig, prior: Prior) -> ViewDrawer:
    """Who draws the views that a training begins with, on a prior of several views.

    Raises InputError for students and painters that are not there or belong to another prior.
    """
    student, painter = None, None
    if start.student:
        if not isinstance(prior, MultiViewPrior):
            raise InputError(f"start.student={start.student}: {prior.name} draws single images; leave it empty")
        student = seeing_views(prior, load_student(start.student, device=prior.device, dtype=prior.dtype))
    if start.painter:
        shipped = weights_root() / start.painter
        painter = NormalTexture.load(shipped if shipped.is_dir() else start.painter, prior).asked
    return ViewDrawer(start.drawn, prior, painter, student)
