"""The tasks: one file configs/tasks/NAME.yaml each. Reading them loads no network library."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

from ..utils.configs import CONFIGS, load_config
from ..utils.errors import InputError


@dataclass(frozen=True)
class TaskSchedule:
    """How a published head is asked when its files do not say."""

    start: Literal["zeros", "noise"] = "noise"
    """zeros: a one-step regressor; noise: a sampler"""
    steps: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps} must be at least 1")


@dataclass(frozen=True)
class Alternative:
    """A head of another kind."""

    weights: str
    """folder below weights/"""
    recipe: str
    """that trains one, of configs/train"""


@dataclass(frozen=True)
class TaskConfig:
    """What `unproject NAME` predicts, and with what."""

    summary: str
    """the command's help"""
    codec: str
    """name of the target in tasks/codecs"""
    pipeline: str = ""
    """class of diffusers in whose layout such heads are published; empty: none"""
    heads: dict[str, Alternative] = field(default_factory=dict)
    """of other kinds, by the name for --head"""
    refiner: Alternative | None = None
    """that looks a second time at what a one-step head says; None: none"""
    weights: str = "toybox-geometry"
    """folder of the embedded head, below weights/"""
    recipe: str = "geometry-head"
    """that trains one, of configs/train"""
    map: bool = True
    """the command writes the map; otherwise one of its own, in cli/, tells what follows from it"""
    metric: bool = False
    """the map has metres once a camera and a scale are known (--metric)"""
    colormap: str = ""
    """of its pictures, where another one would do; empty where the colours have a meaning"""
    schedule: TaskSchedule = field(default_factory=TaskSchedule)


@functools.cache
def task_table() -> dict[str, TaskConfig]:
    """The tasks by name, in alphabetical order."""
    return {path.stem: load_config(TaskConfig, path) for path in sorted((CONFIGS / "tasks").glob("*.yaml"))}


def published_task(pipeline: str) -> TaskConfig | None:
    """The task whose heads are published as this class of diffusers; None: no task's."""
    return next((task for task in task_table().values() if task.pipeline == pipeline), None)


def published_pipelines() -> list[str]:
    """The classes of diffusers that hold a head."""
    return [task.pipeline for task in task_table().values() if task.pipeline]
