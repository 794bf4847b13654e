"""What every student may spend: the same updates, the same pairs to learn from, and as many answers of the teacher.

What a sample costs the teacher follows from the objective: two rows where guidance is learnt, sixteen where a student's
own run is watched, none where the ends of the teacher's runs are all there is. The batch is what the budget of rows
then allows. Pairs that a method draws for itself, and runs that calibrate, are paid from the same budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.distillation.asdm import Slim
from ..core.distillation.distil import OBJECTIVES, DistillRecipe, StageRecipe
from ..core.distillation.kinds import Lora
from ..core.distillation.pairs import PairPlan
from ..core.distillation.quest import Quantised
from ..core.training.config import TrainerConfig
from ..utils.configs import load_config

BRANCHES = 2  # of a guided teacher
ROWS: dict[str, Callable[[Any], float]] = {
    "guidance": lambda method: BRANCHES,
    "progressive": lambda method: 2,  # steps of a teacher that is told its scale
    "consistency": lambda method: BRANCHES * method.substeps,
    "rectify": lambda method: 0,
    "phased": lambda method: BRANCHES * method.grid / method.phases,
    "speed-up": lambda method: BRANCHES * (1 + method.substeps * watched(method)),
    "arc": lambda method: BRANCHES * method.steps * method.states,
    "features": lambda method: 1,
    "incubate": lambda method: 1,
    "selective": lambda method: 1,
}
QUEST_4_4, ALL_4_4 = VARIANTS = ("quest-w4a4", "quest-w4a4-all-weights")
CHECKPOINTS = 3  # of a stage
PLAIN_LAYOUT = (Slim.name, Lora.name)  # kernels of five axes; files of adapters are written as they lie in memory


@dataclass(frozen=True)
class Spending:
    """The budget of a student."""

    updates: int = 90
    rows: int = 32
    """of the teacher's network, an update"""
    pairs: int = 768
    pair_steps: int = 15
    times: int = 8
    """model times at which a quantised student's inputs have scales of their own: the most calls that are drawn"""
    guidance: float = 3.0
    """of the pairs"""

    @property
    def total(self) -> int:
        """Rows of the teacher beside the pairs that all learn from."""
        return self.updates * self.rows


@dataclass(frozen=True)
class Budgeted:
    """A recipe within the budget."""

    recipe: DistillRecipe
    teacher_rows: int
    """asked beside the shared pairs"""
    batch: int
    """of the first stage"""


def watched(method: Any) -> float:
    """Steps of its own that a SpeedUpNet student takes in an update, the mean over where it begins."""
    return float(np.mean([min(method.horizon, method.steps - first) for first in range(method.steps)]))


def rows_of_a_sample(stage: StageRecipe) -> float:
    """Rows of the teacher's network that a sample of a stage's batches costs, the mean over its draws."""
    return ROWS[stage.objective](load_config(OBJECTIVES[stage.objective].settings, stage.method))


def calibration_rows(stage: StageRecipe) -> int:
    """Rows asked before a quantised student learns: its runs, and both branches at every state of them."""
    settings = dict(stage.student)
    if settings.pop("kind", "full") != Quantised.name:
        return 0
    kind = load_config(Quantised, settings)
    return kind.runs * kind.times * (1 + BRANCHES)


def budgeted(recipe: DistillRecipe, spending: Spending, seed: int) -> Budgeted:
    """A packaged recipe with the budget, whose updates its stages share as they do in the recipe."""
    given = {name: replace(stage, student=fewer(stage.student, spending)) for name, stage in recipe.stages.items()}
    fixed = calibration_rows(next(iter(given.values())))
    whole = sum(stage.trainer.steps for stage in recipe.stages.values())
    of_pairs = BRANCHES * spending.pair_steps  # rows of a pair
    stages: dict[str, StageRecipe] = {}
    for name, stage in given.items():
        own = stage.pairs
        if own is not None:
            own = replace(own, count=max(1, (spending.total - fixed) // of_pairs), steps=spending.pair_steps, seed=seed)
            fixed += own.count * of_pairs
        stages[name] = replace(stage, pairs=own)
    left, asked = max(spending.total - fixed, spending.updates), float(fixed)
    for name, stage in stages.items():
        steps = max(1, round(spending.updates * stage.trainer.steps / whole))
        rows = rows_of_a_sample(stage)
        batch = max(1, round(left / spending.updates / rows)) if rows else spending.rows
        trainer = shortened(stage.trainer, steps, batch, seed)
        if stage.student.get("kind") in PLAIN_LAYOUT:
            trainer = replace(trainer, channels_last=False)
        stages[name] = replace(stage, trainer=trainer, method=sooner(stage.method, steps / stage.trainer.steps))
        asked += steps * batch * rows
    made = replace(recipe, stages=stages, pairs=shared_pairs(recipe.pairs, spending, seed))
    return Budgeted(made, round(asked), next(iter(stages.values())).trainer.batch)


def shared_pairs(plan: PairPlan, spending: Spending, seed: int) -> PairPlan:
    """The pairs that all learn from."""
    return replace(
        plan,
        count=spending.pairs,
        guidance=spending.guidance,
        steps=spending.pair_steps,
        solver="dpm++",
        spacing="karras",
        seed=seed,
    )


def recipe_of(method: str) -> DistillRecipe:
    """The packaged recipe of a method; of a variant, another with inputs of 4 bits too, by its stages or, as what they
    are compared with, by one in which all weights learn."""
    if method not in VARIANTS:
        return load_config(DistillRecipe, f"distill/{method}")
    recipe = load_config(DistillRecipe, "distill/quest")
    stages = {name: replace(stage, student={**stage.student, "input_bits": 4}) for name, stage in recipe.stages.items()}
    if method == QUEST_4_4:
        return replace(recipe, stages=stages)
    first, last = next(iter(stages.values())), list(stages.values())[-1]
    steps = sum(stage.trainer.steps for stage in stages.values())
    whole = replace(first, method={"weights": "all"}, trainer=replace(last.trainer, steps=steps))
    return replace(recipe, stages={"all": whole})


def shortened(trainer: TrainerConfig, steps: int, batch: int, seed: int) -> TrainerConfig:
    """The recipe's trainer with these updates, which keeps few checkpoints."""
    return replace(
        trainer,
        steps=steps,
        batch=batch,
        seed=seed,
        warmup=min(trainer.warmup, steps // 10),
        channels_last=True,
        save_every=max(1, steps // CHECKPOINTS),
        log_every=steps,
        keep=1,
    )


def fewer(student: dict[str, Any], spending: Spending) -> dict[str, Any]:
    """Settings of a student whose inputs are calibrated at fewer times, if at any."""
    return {**student, "times": spending.times} if "times" in student else student


def sooner(method: dict[str, Any], share: float) -> dict[str, Any]:
    """Settings of an objective whose moments come after this share of the recipe's updates."""
    made = dict(method)
    if "mixed" in made:
        made["mixed"] = round(made["mixed"] * share)
    if "critic" in made:
        made["critic"] = {**made["critic"], "start": round(made["critic"]["start"] * share)}
    return made
