"""Distilled students against their teacher and each other: one table, equal pairs, updates and rows of the teacher.

The eleven published methods learn from the same pairs in the same number of updates, whatever their stages, and in
every update ask the teacher's network for as many rows: the batch follows from what a sample costs (`student_budget`).
Retraining on pairs asks nothing in training: the rows of InstaFlow go into pairs of its own, Rectified Diffusion has
those that all have. Students are drawn from the same noises as the teacher, with the calls that they can take. Shipped
students, whose budget was another one, stand beside them where their weights are.

A row is the mean over 200 pictures (accuracy, distances from renders, paired error to the teacher's run of 50 calls of
DPM-Solver++, whose own error to 500 calls `sampling` measures at below 1e-4) or over 100 prompts (diversity). Rates are
those of the recipes; a few dozen updates are far from what the recipes take.

Beside the eleven stand QuEST with inputs of 4 bits too and a fine-tuning of all weights in its place (at the most
calls), and three methods of the field at the same spending (`student_rivals`), which the claims leave out.

What is finished is kept under runs/bench, method by method, and trainings have checkpoints: an interrupted run goes on.
All of it takes about 29 minutes of one core, by what an update and a network row took on a busy one (.4 to .9 s, 5 ms):
15 for 90 updates of each method, 4 for pairs and the teacher's runs, 7 to draw and judge, 3 for heads, views and times.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.distillation.distil import distil
from ..core.distillation.export import load_student
from ..core.distillation.pairs import PairPlan, make_pairs
from ..core.distillation.teacher import Teacher
from ..core.priors import Condition, Prior, load_prior
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling.drawing import drawing
from ..core.sampling.init import Start
from ..core.sampling.plan import SamplingPlan
from ..toybox.captions import Meaning, say
from ..toybox.judge import Judge
from ..toybox.samples import object_prompts, plain_meaning
from ..utils.errors import Stopped
from ..utils.files import atomic_path, is_there, read_json, weights_root, write_json
from ..utils.progress import progress
from ..utils.seeds import generator
from .distances import Yardstick
from .intervals import bootstrapped, digits
from .kept import Row, kept, place_of
from .runner import Context
from .student_budget import VARIANTS, Budgeted, Spending, budgeted, recipe_of, shared_pairs
from .student_claims import claims
from .student_kernels import STABLE_DIFFUSION, TOYBOX, kernel_rows, network_rows
from .student_others import head_rows, negative_row, view_rows
from .student_picture import picture
from .student_rivals import RIVALS, learnt, rival_draws
from .toy_latents import decoded, features, paired_mse, scores, seeded_noise, yardstick

Draw = Callable[[Condition, Tensor, Sequence[torch.Generator]], Tensor]
NONE = "none"
METHODS = (
    *("lora-distillation", "guided-distillation", "lcm-lora", "scott", "instaflow", "rectified-diffusion"),
    *("speedupnet", "arcflow", "koala", "asdm", "quest"),
)
SHIPPED = ("toybox-lcm", "toybox-1step", "toybox-small", "toybox-w4")
HELDOUT_SEED = 700_000
COPIES = ("vae", "text_encoder", "plain")  # folders of an export that hold what the prior has, or the same once more


@dataclass(frozen=True)
class StudentsBench:
    """Sizes of the experiment."""

    methods: tuple[str, ...] = (*METHODS, *VARIANTS)
    rivals: tuple[str, ...] = tuple(RIVALS)
    spending: Spending = field(default_factory=Spending)
    prompts: int = 100
    draws: int = 2
    """pictures of each prompt"""
    reference_groups: int = 150
    calls: tuple[int, ...] = (1, 2, 4, 8)
    reference_calls: int = 50
    """of the teacher's run that pictures are paired with"""
    rows: int = 50
    """pictures drawn at once"""
    decoded: int = 16
    """pictures decoded at once: more are slower on a processor"""
    rooms: tuple[int, int] = (24, 12)
    """four pictures each: a head of geometry learns from the first and is measured on the second"""
    objects: int = 24
    """drawn in four views each"""
    negatives: int = 32
    """prompts whose negative prompt is changed"""
    batches: tuple[int, ...] = (1, 8)
    """of layers whose kernels are timed"""
    layers: int | None = None
    """of those, the first so many; None: all"""
    repeats: int = 4
    """of a time"""
    work: str = "runs/bench/students"


QUICK = StudentsBench(
    spending=Spending(2, 4, 4, 2, 1),
    prompts=3,
    reference_groups=2,
    calls=(1, 2, 4),
    reference_calls=4,
    rows=6,
    rooms=(1, 1),
    objects=1,
    negatives=2,
    batches=(1,),
    layers=3,
    repeats=1,
    work="runs/bench/students-quick",
)


@dataclass(frozen=True)
class Questions:
    """What is drawn: prompts, several noises each, and what the pictures are compared with."""

    judge: Judge
    meanings: list[Meaning]
    yard: Yardstick
    noise: Tensor
    wanted: Tensor  # latents of the teacher's long run
    plain: Tensor  # the judge's features of them
    ms: float  # of the long run, for a picture
    config: StudentsBench

    @classmethod
    def of(cls, prior: DiffusersPrior, config: StudentsBench, seed: int, place: Path) -> Questions:
        """Of a prior's test prompts; the long run is kept."""
        count = config.prompts * config.draws
        meanings = [plain_meaning("test", i // config.draws) for i in range(count)]
        judge = Judge.from_pretrained()
        yard = yardstick(judge, count, config.reference_groups, first=count, size=prior.image_size)
        noise = seeded_noise(prior.latent_shape, count, seed + HELDOUT_SEED)
        path = place / "reference.safetensors"
        if not path.exists():
            condition, began = prior.encode_text([say(one) for one in meanings]), time.process_time()
            made = drawn(by_plan(prior, long_plan(config)), condition, noise, config.rows)
            ms = torch.tensor(1000 * (time.process_time() - began) / count)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                save_file({"latents": made.contiguous(), "ms": ms}, temporary)
        found = load_file(path)
        plain = features(judge, decoded(prior, found["latents"], config.decoded))
        return cls(judge, meanings, yard, noise, found["latents"], plain, float(found["ms"]), config)

    def row(self, prior: DiffusersPrior, plan: SamplingPlan | None = None, draw: Draw | None = None) -> Row:
        """Quality and cost of what a prior draws by a plan, or otherwise."""
        condition = prior.encode_text([say(one) for one in self.meanings])
        how = draw or by_plan(prior, plan or SamplingPlan())
        rows, began = prior.nfe, time.process_time()
        made = drawn(how, condition, self.noise, self.config.rows)
        ms = 1000 * (time.process_time() - began) / len(made)
        return {"network_rows": (prior.nfe - rows) // len(made), **self.said(prior, made, ms)}

    def said(self, prior: DiffusersPrior, made: Tensor, ms: float) -> Row:
        """What there is to say of latents (N, C, h, w) of all questions."""
        images = decoded(prior, made, self.config.decoded)
        row = scores(self.judge, images, self.meanings, self.yard, self.plain)
        if made is not self.wanted:
            row["mse_to_teacher"] = paired_mse(made, self.wanted)
        seen = features(self.judge, images)
        return {**row, "diversity": diversity(seen, self.config.draws), "ms_per_picture": digits(ms, 3)}


def run(context: Context) -> dict[str, Any]:
    """A row for each student and number of calls, after those of the teacher alone; then students elsewhere."""
    config = QUICK if context.quick else StudentsBench()
    prior = load_prior(context.prior)
    in_channels_last(prior.network)
    place = place_of(context, config, SHIPPED)
    questions = Questions.of(prior, config, context.seed, place)
    table = kept(place / "teacher.json", lambda: teacher_rows(prior, questions))
    makers = [(name, partial(method_rows, name, prior, questions, place, context)) for name in config.methods]
    makers += [(name, partial(rival_rows, name, prior, questions, place, context)) for name in config.rivals]
    for name, make in progress(makers, label="students"):
        table += kept(place / f"{name}.json", make)
    table += shipped_rows(questions)
    heads = kept(place / "head.json", lambda: head_rows(context.prior, config.rooms, config.spending.updates))
    folders = {method: place / method / "export" for method in config.methods}
    views = kept(
        place / "views.json",
        lambda: view_rows(folders, context.prior, questions.judge, config.objects, config.spending.guidance),
    )
    negative = kept(
        place / "negative.json",
        lambda: [negative_row(folders["speedupnet"], prior, questions.wanted[: config.negatives])],
    )
    kernels = kept(place / "kernels.json", lambda: measured_kernels(prior, folders["quest"], config))
    picture(table, context.picture())
    told = {"heads": heads, "views": views, "negative": negative, "kernels": kernels}
    told["claims"] = claims(table, heads, negative, kernels)
    return {"config": asdict(config), "seeds": [context.seed], "table": table, **told}


def measured_kernels(prior: DiffusersPrior, folder: Path, config: StudentsBench) -> list[Row]:
    """What few bits cost in time: layers of the toybox and of Stable Diffusion 1.5, and the whole student."""
    layers = kernel_rows((*TOYBOX, *STABLE_DIFFUSION)[: config.layers], config.batches, config.repeats)
    return layers + network_rows(prior, load_student(folder), config.batches, config.repeats)


def long_plan(config: StudentsBench) -> SamplingPlan:
    """The teacher's run that pictures are paired with."""
    return SamplingPlan("dpm++", config.reference_calls, "karras", config.spending.guidance)


def teacher_rows(prior: DiffusersPrior, questions: Questions) -> list[Row]:
    """The teacher with the solver that students share, the best one for few steps, without guidance, and at length."""
    config = questions.config
    scale, most = config.spending.guidance, config.calls[-1]
    plans = [SamplingPlan("ddim", calls, "trailing", scale) for calls in config.calls]
    plans += [SamplingPlan("dpm++", calls, "karras", scale) for calls in config.calls if calls > 2]
    plans += [SamplingPlan("ddim", most, "trailing", 1.0)]
    size = digits(sum(p.numel() for p in prior.network.parameters()) * 4 / 1e6, 3)
    rows = [{**begun(NONE, plan), "megabytes": size, **questions.row(prior, plan)} for plan in plans]
    whole = questions.said(prior, questions.wanted, questions.ms)
    long = {**begun(NONE, long_plan(config)), "megabytes": size, "network_rows": 2 * config.reference_calls}
    return [*rows, {**long, **whole}]


def begun(student: str, plan: SamplingPlan) -> Row:
    """Who draws, and how."""
    return {"student": student, "solver": plan.solver, "calls": plan.steps, "guidance": plan.guidance}


def method_rows(method: str, prior: DiffusersPrior, questions: Questions, place: Path, context: Context) -> list[Row]:
    """The rows of a method, whose student is distilled first."""
    config, folder = questions.config, place / method
    budget = budgeted(recipe_of(method), config.spending, context.seed)
    seconds = taught(method, prior, budget, folder, place)
    told = {"updates": config.spending.updates, "batch": budget.batch, "teacher_rows": budget.teacher_rows}
    counts = config.calls[-1:] if method in VARIANTS else config.calls  # they are compared at the most
    return student_rows(method, folder / "export", questions, {**told, "train_s": seconds}, counts)


def rival_rows(name: str, prior: DiffusersPrior, questions: Questions, place: Path, context: Context) -> list[Row]:
    """The rows of a method of the field, which is trained first."""
    config, folder = questions.config, place / name
    plan = shared_pairs(PairPlan(), config.spending, context.seed)
    with torch.no_grad():
        pairs = make_pairs(Teacher(prior), object_prompts("train", plan.count), plan, place.parent / "pairs")
    made = learnt(name, prior, pairs, config.spending, context.seed, folder)
    in_channels_last(made.prior.network)
    draws = rival_draws(name, made.prior, config.calls)
    about: Row = {"student": name, "solver": RIVALS[name].solver}
    rows = [
        {**about, "calls": calls, "guidance": 1.0, **made.told, **questions.row(made.prior, draw=draw)}
        for calls, draw in draws.items()
    ]
    shutil.rmtree(folder, ignore_errors=True)
    return rows


def taught(method: str, prior: DiffusersPrior, budget: Budgeted, folder: Path, place: Path) -> float:
    """Distils into folder/export unless it is there; the seconds that took, of the process that ended it. The shared
    pairs are drawn once for all methods."""
    done = folder / "taught.json"
    if not done.exists():
        prompts, began = object_prompts("train", budget.recipe.pairs.count), time.process_time()
        pairs = place.parent / "pairs"
        with torch.enable_grad():
            ended = distil(budget.recipe, prior, prompts, folder, method, True, "cpu", pairs)
        if ended.folder is None:
            total = budget.recipe.stages[ended.stage].trainer.steps
            raise Stopped(ended.result.step, total, str(folder), ended.result.signal)
        write_json(done, {"train_s": digits(time.process_time() - began, 3)})
        for stage in budget.recipe.stages:  # checkpoints are larger than what came out
            shutil.rmtree(folder / stage, ignore_errors=True)
    return float(read_json(done)["train_s"])


def student_rows(name: str, folder: Path, questions: Questions, told: Row, counts: Sequence[int]) -> list[Row]:
    """A row for each of these numbers of calls that a student can take."""
    student = load_student(folder)
    in_channels_last(student.network)
    about, able = read_json(folder / "distill.json"), student.recommended.step_counts
    told = {**told, "trained_share": digits(about["trained_share"], 3), "megabytes": megabytes(folder)}
    rows = []
    for calls in counts:
        if not able or calls in able:
            plan = SamplingPlan.of(student.recommended).changed(steps=calls)
            rows.append({**begun(name, plan), **told, **questions.row(student, plan)})
    return rows


def shipped_rows(questions: Questions) -> list[Row]:
    """Rows of the students that come along, where they do."""
    folders = [weights_root() / name for name in SHIPPED]
    there = [folder for folder in folders if is_there(folder / "distill.json")]
    calls = questions.config.calls
    return [row for folder in there for row in student_rows(f"shipped {folder.name}", folder, questions, {}, calls)]


def in_channels_last(network: nn.Module) -> None:
    """Weights in the order that is quicker on a processor, where all of them have such an order."""
    if all(value.ndim <= 4 for value in network.parameters()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def megabytes(folder: Path) -> float:
    """What a student's own weights take, without what its prior has already."""
    files = [path for path in folder.rglob("*.safetensors") if not set(path.relative_to(folder).parts) & set(COPIES)]
    return digits(sum(path.stat().st_size for path in files) / 1e6, 3)


def by_plan(prior: Prior, plan: SamplingPlan) -> Draw:
    """What draws with a prior as a plan says."""
    draw = drawing(plan, prior)
    return lambda condition, noise, seeds: draw.run(condition, Start(noise, draw.levels), list(seeds))


@torch.no_grad()
def drawn(draw: Draw, condition: Condition, noise: Tensor, batch: int) -> Tensor:
    """Latents (N, C, h, w) of N condition rows, from these noises; further noise has a seed for each row."""
    parts = []
    for first in range(0, len(noise), batch):
        part = noise[first : first + batch]
        seeds = [generator(HELDOUT_SEED + first + i) for i in range(len(part))]
        parts.append(draw(condition.index(range(first, first + len(part))), part, seeds))
    return torch.cat(parts)


def diversity(seen: Tensor, draws: int) -> dict[str, float]:
    """The mean distance of pictures of one prompt in the judge's features, with its interval over prompts."""
    groups = seen.double().unflatten(0, (-1, draws))
    gaps = torch.cdist(groups, groups).sum((1, 2)) / (draws * (draws - 1))
    return bootstrapped(np.asarray(gaps))
