"""The training of a prior of orbits (`unproject train orbits`) from the values of its YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.priors import load_prior
from ..core.priors.multiview import CameraEmbedding
from ..core.priors.orbits import OrbitPrior
from ..core.training.config import TrainerConfig
from ..core.training.objectives.orbits import OrbitConfig, OrbitObjective
from ..core.training.objectives.unet_weights import begin_with_cameras
from ..core.training.orbit_clips import OrbitClips, encoded_orbits
from ..toybox.dataset import RenderedSet
from ..utils.configs import load_config
from ..utils.errors import InputError
from .beginnings import stable_diffusion
from .job import Job


@dataclass(frozen=True)
class OrbitRecipe:
    """Text-to-image prior and orbits to a prior of orbits from one picture."""

    train: tuple[str, ...]
    """folders of kind orbit, all of one size"""
    val: tuple[str, ...]
    base: str = "toybox"
    """name or pipeline folder of the image prior"""
    base_name: str = "toybox"
    """name under which the exported folder finds it: its sibling, or an embedded prior"""
    start_from: str = ""
    """folder of an exported adapter that learns more; empty: fresh"""
    cameras: str = ""
    """name or folder of a prior of several views on the same base, with whose embedding of cameras that of
    model.temporal.cameras begins; empty: fresh"""
    least_motion: float = 0.0
    """mean difference of neighbouring frames in [0, 1] below which an orbit is left out of the training"""
    model: OrbitConfig = field(default_factory=OrbitConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def orbit_job(values: dict[str, Any]) -> Job:
    """Trains temporal blocks and what reads the picture, exports orbit.safetensors and orbit.json."""
    recipe = load_config(OrbitRecipe, values)
    base = stable_diffusion(recipe.base)
    prior = OrbitPrior(base, recipe.model.temporal, recipe.model.frames, seed=recipe.trainer.seed, frozen=False)
    if recipe.start_from:
        prior.take(recipe.start_from)
    if recipe.cameras:
        begin_with_poses(prior, recipe.cameras)
    train = _clips(recipe.train, prior, recipe.least_motion)
    objective = OrbitObjective(recipe.model, prior, _clips(recipe.val, prior, 0.0))

    def export(out: Path) -> Path:
        return objective.save(out, recipe.base_name)

    return Job(recipe.trainer, objective, train, export)


def begin_with_poses(prior: OrbitPrior, name: str) -> None:
    """Poses begin with what they mean to a prior of several views. Raises InputError where none are told, for a prior
    of single views, and for one of another width."""
    if prior.parts.cameras is None:
        raise InputError(f"cameras={name}: no poses are told; set model.temporal.cameras=true")
    given = load_prior(name).modules().get("camera_embedding")
    if not isinstance(given, CameraEmbedding):
        raise InputError(f"cameras={name} is no prior of several views; the embedded one is toybox-mv")
    begin_with_cameras(prior.parts.cameras, given, name)


def _clips(folders: tuple[str, ...], prior: OrbitPrior, least_motion: float) -> OrbitClips:
    return encoded_orbits(prior.vae, RenderedSet(folders, ("rgb",)), prior.frames, least_motion)
