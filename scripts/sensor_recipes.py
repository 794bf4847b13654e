"""Recipes of a simulated depth sensor: stage 1, and stage 2 on what it draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.priors import load_prior
from ..core.training.config import TrainerConfig
from ..tasks.point_critic import CriticConfig
from ..tasks.sim2real import SensorConfig, SensorSimulator, SensorStage, UNetPrior, load_sensor
from ..tasks.sim2real_train import FlaggedPairs, MeasuredPairs, SensorObjective
from ..toybox.dataset import RenderedSet
from ..toybox.sensor import SensorModel
from ..toybox.sensor_pairs import SensorPairs
from ..utils.configs import load_config
from ..utils.errors import InputError
from .job import Job

COLUMNS = ("depth_m", "normal", "albedo", "material")


@dataclass(frozen=True)
class SensorRecipe:
    """Text-to-image prior and clean depth with measurements to a stage of a simulated sensor."""

    train: tuple[str, ...]
    """folders rendered with maps, of one size"""
    val: tuple[str, ...]
    base: str = "toybox"
    """name or pipeline folder of the prior"""
    base_name: str = "toybox"
    """name under which the export finds its prior"""
    first: str = ""
    """folder of a trained stage 1, for stage 2"""
    sensor: SensorConfig = field(default_factory=SensorConfig)
    measures: SensorModel = field(default_factory=SensorModel)
    """the sensor that is to be learnt"""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """who marks what stage 2 has to do better"""
    drawn_steps: int = 20
    """steps in which stage 1 draws what stage 2 learns from"""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def sensor_job(values: dict[str, Any]) -> Job:
    """Trains a stage, exports sensor.json with all stages so far and the validation numbers."""
    recipe = load_config(SensorRecipe, values)
    prior = load_prior(recipe.base)
    if not isinstance(prior, UNetPrior):
        raise InputError(f"base={recipe.base} is not a Stable Diffusion prior")
    if (recipe.sensor.stage == 2) != bool(recipe.first):
        raise InputError(f"first={recipe.first!r}: stage 2 needs the folder of a trained stage 1, stage 1 none")
    stage = SensorStage(prior, recipe.sensor, recipe.trainer.seed)
    train, val = (_pairs(folders, recipe.measures) for folders in (recipe.train, recipe.val))
    before: list[SensorStage] = []
    if recipe.first:
        given = load_sensor(recipe.first)
        before = given.stages[:1]
        first = SensorSimulator(before)
        train, val = (
            FlaggedPairs(pairs, first, recipe.critic, seed, recipe.drawn_steps)
            for seed, pairs in enumerate((train, val))
        )
    simulator = SensorSimulator([*before, stage])
    objective = SensorObjective(stage, val)

    def export(out: Path) -> Path:
        return simulator.save(out, recipe.base_name, validation=objective.validate())

    return Job(recipe.trainer, objective, train, export)


def _pairs(folders: tuple[str, ...], model: SensorModel) -> MeasuredPairs:
    return SensorPairs(RenderedSet(folders, COLUMNS), model)
