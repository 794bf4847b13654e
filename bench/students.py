"""Distilled students against their teacher and each other: one table, equal data, updates and batch for all.

Every method learns from the same pairs in the same number of updates, whatever its stages; what it asks of the teacher
differs and is counted. Students are drawn from the same noises as the teacher, with the calls that they can take.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.distillation.distil import DistillRecipe, distil
from ..core.distillation.export import load_student
from ..core.priors import Condition, Prior, load_prior
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling.drawing import drawing
from ..core.sampling.init import Start
from ..core.sampling.plan import SamplingPlan
from ..toybox.captions import Meaning, say
from ..toybox.judge import Judge
from ..toybox.samples import object_prompts, plain_meaning
from ..utils.configs import load_config
from ..utils.files import read_json
from ..utils.seeds import generator
from .distances import Yardstick
from .intervals import bootstrapped, digits
from .runner import Context
from .toy_latents import decoded, features, paired_mse, scores, seeded_noise, yardstick

NONE = "none"
METHODS = (
    *("lora-distillation", "guided-distillation", "lcm", "lcm-lora", "scott", "rectified-diffusion"),
    *("phased-diffusion", "instaflow", "speedupnet", "arcflow", "koala", "asdm", "quest"),
)
HELDOUT_SEED = 700_000


@dataclass(frozen=True)
class StudentsBench:
    """Sizes of the experiment."""

    methods: tuple[str, ...] = METHODS
    pairs: int = 2048
    updates: int = 1500
    """of each method, all its stages together"""
    batch: int = 32
    prompts: int = 50
    draws: int = 4
    """pictures of each prompt"""
    reference_groups: int = 150
    calls: tuple[int, ...] = (1, 2, 4, 8, 20)
    guidance: float = 3.0
    reference_steps: int = 500
    """of the teacher's run that pictures are paired with"""
    rows: int = 50
    """pictures drawn at once"""


QUICK = StudentsBench(("lcm-lora", "rectified-diffusion"), 4, 2, 2, 3, 2, 3, (1, 2), reference_steps=4, rows=6)


@dataclass(frozen=True)
class Questions:
    """What is drawn: prompts, several noises each, and what the pictures are compared with."""

    judge: Judge
    meanings: list[Meaning]
    yard: Yardstick
    noise: Tensor
    wanted: Tensor  # latents of the teacher's long run
    config: StudentsBench

    @classmethod
    def of(cls, prior: DiffusersPrior, config: StudentsBench, seed: int) -> Questions:
        """Of a prior's test prompts."""
        count = config.prompts * config.draws
        meanings = [plain_meaning("test", i // config.draws) for i in range(count)]
        judge = Judge.from_pretrained()
        yard = yardstick(judge, count, config.reference_groups, first=count, size=prior.image_size)
        noise = seeded_noise(prior.latent_shape, count, seed + HELDOUT_SEED)
        long = SamplingPlan(steps=config.reference_steps, guidance=config.guidance, solver="ddim")
        made = drawn(prior, long, prior.encode_text([say(one) for one in meanings]), noise, config.rows)
        return cls(judge, meanings, yard, noise, made, config)

    def row(self, prior: DiffusersPrior, plan: SamplingPlan) -> dict[str, Any]:
        """Quality and cost of what a prior draws by a plan."""
        condition = prior.encode_text([say(one) for one in self.meanings])
        rows, began = prior.nfe, time.perf_counter()
        made = drawn(prior, plan, condition, self.noise, self.config.rows)
        seconds = time.perf_counter() - began
        images = decoded(prior, made)
        return {
            "network_rows": (prior.nfe - rows) // len(made),
            **scores(self.judge, images, self.meanings, self.yard),
            "mse_to_teacher": paired_mse(made, self.wanted),
            "diversity": diversity(features(self.judge, images), self.config.draws),
            "ms_per_picture": round(1000 * seconds / len(made), 2),
        }


def run(context: Context) -> dict[str, Any]:
    """A row for each student and number of calls, after those of the teacher alone."""
    config = QUICK if context.quick else StudentsBench()
    prior = load_prior(context.prior)
    questions = Questions.of(prior, config, context.seed)
    table = []
    for calls, solver in itertools.product(config.calls, ("ddim", "unipc")):
        plan = SamplingPlan(steps=calls, guidance=config.guidance, solver=solver, spacing="trailing")
        row = {"student": NONE, "solver": solver, "calls": calls, "trained_share": 0.0}
        table.append(row | questions.row(prior, plan))
    prompts = object_prompts("train", config.pairs)
    with tempfile.TemporaryDirectory() as folder:
        for method in config.methods:
            made = distilled(method, prior, prompts, config, Path(folder), context.seed)
            table += student_rows(method, made, context.prior, questions)
    return {"config": asdict(config), "seeds": [context.seed], "table": table}


@dataclass(frozen=True)
class Made:
    """A student and what it cost."""

    folder: Path
    teacher_rows: int
    seconds: float


def distilled(
    method: str, prior: DiffusersPrior, prompts: list[str], config: StudentsBench, root: Path, seed: int
) -> Made:
    """A student of a packaged recipe at the experiment's budget; the pairs are drawn once for all methods."""
    recipe = budgeted(load_config(DistillRecipe, f"distill/{method}"), config, seed)
    rows, began = prior.nfe, time.perf_counter()
    ended = distil(recipe, prior, prompts, root / method, method, device="cpu", pairs_root=root / "pairs")
    assert ended.folder is not None
    return Made(ended.folder, prior.nfe - rows, time.perf_counter() - began)


def budgeted(recipe: DistillRecipe, config: StudentsBench, seed: int) -> DistillRecipe:
    """A recipe with the experiment's pairs, batch and updates, which its stages share as they do in the recipe."""
    total = sum(stage.trainer.steps for stage in recipe.stages.values())
    stages = {}
    for name, stage in recipe.stages.items():
        steps = max(1, round(config.updates * stage.trainer.steps / total))
        warmup = min(stage.trainer.warmup, steps // 10)
        trainer = replace(stage.trainer, steps=steps, batch=config.batch, warmup=warmup, seed=seed)
        own = None if stage.pairs is None else replace(stage.pairs, count=config.pairs)
        stages[name] = replace(stage, trainer=trainer, pairs=own)
    pairs = replace(recipe.pairs, count=config.pairs, guidance=config.guidance, steps=25, seed=seed)
    return replace(recipe, stages=stages, pairs=pairs)


def student_rows(method: str, made: Made, prior: str, questions: Questions) -> list[dict[str, Any]]:
    """A row for each number of calls that a student can take."""
    student = load_student(made.folder)
    student.name = f"{prior}/{method}"
    about, able = read_json(made.folder / "distill.json"), student.recommended.step_counts
    weights = [path for path in made.folder.rglob("*.safetensors") if path.parent.name not in ("vae", "text_encoder")]
    told = {
        "trained_share": digits(about["trained_share"], 3),
        "megabytes": digits(sum(path.stat().st_size for path in weights) / 1e6, 3),
        "teacher_rows": made.teacher_rows,
        "training_seconds": round(made.seconds, 1),
    }
    rows = []
    for calls in questions.config.calls:
        if able and calls not in able:
            continue
        plan = SamplingPlan.of(student.recommended).changed(steps=calls)
        row = {"student": method, "solver": student.recommended.solver, "calls": calls}
        rows.append(row | told | questions.row(student, plan))
    return rows


@torch.no_grad()
def drawn(prior: Prior, plan: SamplingPlan, condition: Condition, noise: Tensor, batch: int) -> Tensor:
    """Latents (N, C, h, w) of N condition rows, from these noises; further noise has a seed for each row."""
    draw = drawing(plan, prior)
    parts = []
    for first in range(0, len(noise), batch):
        part = noise[first : first + batch]
        seeds = [generator(HELDOUT_SEED + first + i) for i in range(len(part))]
        parts.append(draw.run(condition.index(range(first, first + len(part))), Start(part, draw.levels), seeds))
    return torch.cat(parts)


def diversity(seen: Tensor, draws: int) -> dict[str, float]:
    """The mean distance of pictures of one prompt in the judge's features, with its interval over prompts."""
    groups = seen.double().unflatten(0, (-1, draws))
    gaps = torch.cdist(groups, groups).sum((1, 2)) / (draws * (draws - 1))
    return bootstrapped(np.asarray(gaps))
