"""What makes retraining on pairs work: straight paths (InstaFlow), or matched noises and samples (Rectified Diffusion)?

From the same pairs and in the same updates: velocities on a rectified flow, the prior's own parameterisation on its own
path, and the same with noises and samples shuffled, which must change nothing. Straightness is that of each student's
own runs as a flow; the first-order defect says how far one DDIM step of any length is from exact, on pairs it did not
see.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.distillation.distil import DistillRecipe, StageRecipe, objective_of, settled
from ..core.distillation.pairs import PairPlan, PairSet, make_pairs
from ..core.distillation.rectify import first_order_defect, straightness
from ..core.distillation.teacher import Teacher, rollout
from ..core.distillation.views import PathView, flow_view
from ..core.priors import load_prior
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling import Denoiser, NoiseSchedule
from ..core.training.config import TrainerConfig
from ..core.training.trainer import Trainer
from ..toybox.samples import object_prompts
from .intervals import bootstrapped
from .runner import Context


@dataclass(frozen=True)
class RectifiedBench:
    """Sizes of the experiment."""

    pairs: int = 512
    heldout: int = 64
    updates: tuple[int, ...] = (100, 250)
    batch: int = 16
    guidance: float = 3.0
    steps: int = 15
    """of the teacher, and of the runs whose straightness is measured"""
    lr: float = 3e-4


QUICK = RectifiedBench(4, 4, (2,), 2, steps=3)
STUDENTS: dict[str, dict[str, Any]] = {
    "flow, velocity": {"path": "flow", "distance": "velocity"},
    "flow, velocity, shuffled": {"path": "flow", "distance": "velocity", "shuffled": True},
    "own path and output": {"path": "own", "distance": "huber-x0"},
    "own path and output, shuffled": {"path": "own", "distance": "huber-x0", "shuffled": True},
}


def run(context: Context) -> dict[str, Any]:
    """A row for the prior itself and for each student and number of updates."""
    config = QUICK if context.quick else RectifiedBench()
    prior = load_prior(context.prior)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plan = PairPlan(config.pairs, config.steps, "dpm++", guidance=config.guidance, seed=context.seed)
        pairs = make_pairs(Teacher(prior), object_prompts("train", config.pairs), plan, root)
        other = PairPlan(config.heldout, config.steps, "dpm++", guidance=config.guidance, seed=context.seed + 1)
        heldout = make_pairs(Teacher(prior), object_prompts("test", config.heldout), other, root)
        table = [{"student": "none", "updates": 0, **measured(prior, heldout, config)}]
        for updates in config.updates:
            for name, settings in STUDENTS.items():
                made = trained(prior, settings, updates, pairs, root / f"{name} {updates}", config, context.seed)
                table.append({"student": name, "updates": updates, **measured(made, heldout, config)})
    return {"config": asdict(config), "seeds": [context.seed], "table": table}


def trained(
    prior: DiffusersPrior,
    settings: dict[str, Any],
    updates: int,
    pairs: PairSet,
    out: Path,
    config: RectifiedBench,
    seed: int,
) -> DiffusersPrior:
    """A student of the pairs."""
    method = {"drop": 0.0, **{key: value for key, value in settings.items() if key != "path"}}
    how = TrainerConfig(steps=updates, batch=config.batch, lr=config.lr, warmup=updates // 20, ema=0.99, seed=seed)
    stage = StageRecipe("rectify", {"kind": "full", "path": settings["path"]}, method, trainer=how)
    recipe = DistillRecipe({"student": stage})
    objective = objective_of(recipe.stages["student"], prior, None, seed)
    trainer = Trainer(how, objective, pairs, out, "cpu")
    trainer.run()
    return settled(trainer, objective).prior


@torch.no_grad()
def measured(prior: DiffusersPrior, pairs: PairSet, config: RectifiedBench) -> dict[str, Any]:
    """Straightness, defect and the error of one step, with the teacher's ends of pairs as the truth.

    The prior itself is asked at its plain conditional answer, as its students are.
    """
    batch = pairs.batch(np.arange(len(pairs)), None)
    condition = prior.encode_text(batch["captions"])
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    view = prior if schedule.flow else flow_view(prior)
    path = NoiseSchedule.from_config(view.scheduler_config)
    levels = view.levels(config.steps) if isinstance(view, PathView) else path.grid(config.steps, "trailing")
    first = levels[0]
    start = batch["noise"] if first.alpha == 0 else batch["noise"] / (first.alpha + first.sigma)
    inner = schedule.grid(5, "trailing", "zero")[:-1]
    one = schedule.grid(1, "trailing", "zero")
    ends = rollout(Denoiser(prior, condition), batch["noise"], one)[-1]
    return {
        "straightness": bootstrapped(straightness(Denoiser(view, condition), start, levels).numpy()),
        "first_order_defect": bootstrapped(
            first_order_defect(Denoiser(prior, condition), batch["latents"], batch["noise"], inner).numpy()
        ),
        "one_step_mse": bootstrapped((ends - batch["latents"]).square().flatten(1).mean(1).numpy()),
    }
