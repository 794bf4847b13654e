"""Three methods of the field beside the table of students, each in a file of its own: MeanFlow, DMD2, a policy.

They learn from the pairs of all, in as many updates and with as many rows of the teacher (`student_budget`). What they
spend beside that is their own: forward derivatives (MeanFlow), a second network that learns more often than the student
(DMD2). Rates are those of the nearest recipes: `lcm` for whole networks, `arcflow` for the adapter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.distillation.arcflow import Arcing
from ..core.distillation.distil import settled
from ..core.distillation.kinds import Full, Kind, Told
from ..core.distillation.objective import Distillation
from ..core.distillation.pairs import PairSet
from ..core.distillation.student import Student
from ..core.distillation.teacher import Teacher
from ..core.priors import Condition
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling import Denoiser, NoiseSchedule, Sampler, Solver
from ..core.sampling.solvers.consistency import Consistency
from ..core.training.config import TrainerConfig
from ..core.training.trainer import Trainer
from ..utils.errors import Stopped
from .intervals import digits
from .kept import Row
from .rival_dmd2 import Matching, MatchingObjective
from .rival_meanflow import Averaging, MeanFlowObjective
from .rival_meanflow import drawn as drawn_by_meanflow
from .rival_policy import Following, Points, PolicyObjective
from .student_budget import BRANCHES, Spending, shortened

SLOW = TrainerConfig(lr=3e-4, schedule="constant_with_warmup", warmup=50, weight_decay=0.0, ema=0.95)
WHOLE = replace(SLOW, channels_last=True)
ADAPTER = replace(WHOLE, lr=1e-3, clip=50.0)


class Rival(NamedTuple):
    """A method: its student, its objective, how it trains and what it can take."""

    kind: Kind
    objective: type[Distillation]
    method: Any
    rows: int  # of the teacher's network that a sample costs
    trainer: TrainerConfig
    solver: str  # as the table calls it
    calls: tuple[int, ...]


POLICY = Arcing(mixed=0)
RIVALS = {
    "meanflow": Rival(Told(), MeanFlowObjective, Averaging(), BRANCHES, SLOW, "euler", (1, 2, 4, 8)),
    "dmd2": Rival(Full(), MatchingObjective, Matching(), BRANCHES, WHOLE, "lcm", (1, 2, 4)),
    "policy": Rival(Points(8, 8), PolicyObjective, POLICY, BRANCHES * POLICY.steps * POLICY.states, ADAPTER,
                    "policy", (POLICY.steps,)),
}  # fmt: skip


class Learnt(NamedTuple):
    """A student that is done."""

    prior: DiffusersPrior
    told: Row  # what its rows say of its training


def learnt(name: str, prior: DiffusersPrior, pairs: PairSet, spending: Spending, seed: int, folder: Path) -> Learnt:
    """Trains a rival in a folder within the budget; an interrupted run goes on. Raises Stopped after a signal."""
    rival = RIVALS[name]
    batch = max(1, round(spending.rows / rival.rows))
    student = Student(prior, rival.kind, seed)
    objective = rival.objective(student, Teacher(prior), rival.method)
    settings = replace(
        shortened(rival.trainer, spending.updates, batch, seed), channels_last=rival.trainer.channels_last
    )
    trainer = Trainer(settings, objective, pairs, folder, "cpu")
    began = time.process_time()
    with torch.enable_grad():
        ended = trainer.run(True)
    if ended.reason != "done":
        raise Stopped(ended.step, spending.updates, str(folder), ended.signal)
    student = settled(trainer, objective)
    learns = sum(p.numel() for p in student.network.parameters() if p.requires_grad)
    told = {
        "updates": spending.updates,
        "batch": batch,
        "teacher_rows": spending.updates * batch * rival.rows,
        "train_s": digits(time.process_time() - began, 3),
        "trained_share": digits(student.trained_share, 3),
        "megabytes": digits(4 * learns / 1e6, 3),
    }
    return Learnt(student.prior.freeze(), told)


def drawn_by(
    name: str,
    student: DiffusersPrior,
    calls: int,
    condition: Condition,
    noise: Tensor,
    seeds: Sequence[torch.Generator],
) -> Tensor:
    """Latents (B, C, h, w) that a rival's student makes of unit noise (B, C, h, w)."""
    if name == "meanflow":
        return drawn_by_meanflow(student, condition, noise, calls)
    solver: Solver = Consistency() if name == "dmd2" else Following()
    levels = NoiseSchedule.from_config(student.scheduler_config).grid(calls, "trailing", "zero")
    return Sampler(solver).run(Denoiser(student, condition), noise, levels, list(seeds))


def rival_draws(name: str, student: DiffusersPrior, calls: Sequence[int]) -> dict[int, Any]:
    """What draws, by the number of calls, of those that the method can take."""
    return {count: partial(drawn_by, name, student, count) for count in RIVALS[name].calls if count in calls}
