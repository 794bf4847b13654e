"""Students where pictures are not the end: a head of geometry on a smaller network, views of one object, negatives.

A head asks its network once. Here the shipped head's network is rounded to 8 and 4 bits, and cut as KOALA cuts, before
and after learning anew from rooms. A multi-view prior is the network of single images with joint attention and cameras:
students whose network has its inputs and answers in its parameterisation take its place without further training
(adapters, smaller U-Nets, Rectified Diffusion). Those told a scale or a negative prompt, on a flow, or with a velocity
law do not: its forward pass has no place for these.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..core.distillation.export import load_student
from ..core.distillation.lent import seeing_views
from ..core.distillation.prune import Pruned, pruned
from ..core.distillation.quantised import quantised, weight_scales
from ..core.distillation.quest import OUTER, OUTER_BITS
from ..core.priors import MultiViewPrior, load_prior
from ..core.priors.diffusers import DiffusersPrior
from ..core.sampling import Denoiser, NoiseSchedule
from ..core.sampling.guidance import guided
from ..core.sampling.plan import SamplingPlan
from ..core.training.config import TrainerConfig
from ..geometry.cameras import Camera, to_mvdream
from ..pipelines.text_to_image import TextToImage, TextToImageOutput
from ..tasks.data import GeometryData
from ..tasks.few_bits import with_unet
from ..tasks.geometry_head import GeometryHead
from ..tasks.heads import load_head
from ..tasks.train import HeadObjective, LossConfig
from ..toybox.captions import say
from ..toybox.judge import Judge
from ..toybox.samples import object_prompts, plain_meaning
from ..utils.seeds import generator
from .intervals import bootstrapped, digits, ratio, share
from .kept import Row
from .rendered import RenderedPlaces
from .short_training import trained
from .toy_latents import agreement, decoded, paired_mse

WHOLE = "as shipped"
CUT = "cut as koala cuts"
KOALA = Pruned(layers=1, depth=(1, 1, 1), mid=False)
FITTING = ("lora-distillation", "lcm-lora", "koala")  # students that a multi-view prior takes
VIEWS_DEG = [0.0, 90.0, 180.0, 270.0]
VIEW_SEED = 40
NEGATIVE_INDEX = 700  # train index at which answers to two negative prompts are compared


def head_rows(prior: str, rooms: tuple[int, int], updates: int, size: int = 96, batch: int = 4) -> list[Row]:
    """AbsRel and mean angle of the shipped head on test rooms: whole, rounded, cut, and cut and taught anew."""
    head = load_head(prior)
    counts = zip(("train", "test"), rooms, strict=True)
    learnt, held = (GeometryData([RenderedPlaces(split, count, size)]) for split, count in counts)
    errors = head_errors(head, held)
    whole, rows = errors["abs_rel"], [head_row(WHOLE, head.unet, errors, errors["abs_rel"])]
    for bits in (8, 4):
        network = rounded(head.unet, bits)
        rows.append(head_row(f"weights of {bits} bits", network, head_errors(with_unet(head, network), held), whole))
    small = with_unet(head, pruned(head.unet, KOALA))
    rows.append(head_row(CUT, small.unet, head_errors(small, held), whole))
    settings = TrainerConfig(updates, batch, lr=5e-4, warmup=updates // 10, ema=0.98, channels_last=True)
    with torch.enable_grad(), trained(HeadObjective(LossConfig("regression"), small), learnt, settings):
        errors = head_errors(small, held)
    return [*rows, {**head_row(f"{CUT}, {updates} updates", small.unet, errors, whole), "updates": updates}]


def head_errors(head: GeometryHead, data: GeometryData, batch: int = 16) -> dict[str, np.ndarray]:
    """Errors (n,) of each picture by name, as the codecs measure them."""
    objective, parts = HeadObjective(LossConfig(), head), []
    head.unet.requires_grad_(False)
    for indices in np.array_split(np.arange(len(data)), -(-len(data) // batch)):
        images, targets, valid = objective.tensors(data.batch(indices, None))
        parts.append(head.codec.metrics(objective.predict(images), targets, valid, summary=True))
    return {name: torch.cat([part[name] for part in parts]).double().numpy() for name in ("abs_rel", "normals_mean")}


def head_row(name: str, network: nn.Module, errors: Mapping[str, np.ndarray], whole: np.ndarray) -> Row:
    """Errors of a head and its AbsRel over that of the whole one."""
    return {
        "network": name,
        "calls": 1,
        "parameters_m": digits(sum(p.numel() for p in network.parameters()) / 1e6, 3),
        **{key: bootstrapped(values) for key, values in errors.items()},
        "abs_rel_ratio": ratio(errors["abs_rel"], whole),
    }


@torch.no_grad()
def rounded(network: UNet2DConditionModel, bits: int) -> UNet2DConditionModel:
    """A copy whose weights have so many bits, as `Quantised` begins; inputs are not rounded."""
    made = copy.deepcopy(network)
    for name, layer in made.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            own = OUTER_BITS if name in OUTER else bits
            layer.weight.copy_(quantised(layer.weight, *weight_scales(layer.weight, own), own))
    return made


def view_rows(
    folders: Mapping[str, Path], prior: str, judge: Judge, objects: int, guidance: float, calls: int = 4
) -> list[Row]:
    """Four views each of test prompts by the multi-view prior, and with students in the place of its network."""
    many = load_prior(f"{prior}-mv")
    assert isinstance(many, MultiViewPrior)
    prompts, meanings = object_prompts("test", objects), [plain_meaning("test", i) for i in range(objects)]
    long = views(many, SamplingPlan("unipc", 5 * calls, guidance=guidance), prompts)
    rows = []

    def row(name: str, drawer: MultiViewPrior, plan: SamplingPlan) -> None:
        before = drawer.nfe
        made = views(drawer, plan, prompts)
        right = agreement(judge, decoded(many, made, 16), [one for one in meanings for _ in VIEWS_DEG])["all"]
        told = {"student": name, "solver": plan.solver, "calls": plan.steps}
        told["network_rows"] = (drawer.nfe - before) // len(made)
        rows.append({**told, "accuracy": share(right), "mse_to_teacher": paired_mse(made, long)})

    for number in (calls, 2 * calls):
        row("none", many, SamplingPlan("ddim", number, "trailing", guidance))
    for name in FITTING:
        if name in folders:
            student = load_student(folders[name])
            able = student.recommended.step_counts
            plan = SamplingPlan.of(student.recommended).changed(steps=calls if calls in able else 2 * calls)
            row(name, seeing_views(many, student), plan)
    return rows


@torch.no_grad()
def views(prior: MultiViewPrior, plan: SamplingPlan, prompts: list[str]) -> Tensor:
    """Latents (N F, C, h, w) of F views of each prompt's object."""
    size = prior.image_size
    cameras = to_mvdream(Camera.orbit(VIEWS_DEG, 20.0, 3.0, 40.0, size, size).c2w)
    made = TextToImage(prior)(prompts, plan=plan, cameras=cameras, seed=VIEW_SEED, batch_size=48, output_type="latent")
    assert isinstance(made, TextToImageOutput)
    return made.latents


@torch.no_grad()
def negative_row(folder: Path, prior: DiffusersPrior, latents: Tensor, scale: float = 3.0) -> Row:
    """How alike the changes are that another negative prompt makes in a student's answer and in its guided teacher's.

    latents: (N, C, h, w) of the first N test prompts; each is noised, and its negative prompt is nothing, then the
    next prompt.
    """
    count = len(latents)
    prompts = [say(plain_meaning("test", i)) for i in range(count + 1)]
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    level = schedule.at_index(NEGATIVE_INDEX)
    state = schedule.noised(latents, level, generator(VIEW_SEED))[0]
    changes = []
    for asked in (load_student(folder), prior):
        answers = []
        for against in ([""] * count, prompts[1:]):
            guidance, told = guided(asked, asked.encode_text(prompts[:-1], against), scale)
            answers.append(Denoiser(asked, told, guidance)(state, level).eps)
        changes.append((answers[1] - answers[0]).double().flatten(1))
    alike = torch.cosine_similarity(changes[0], changes[1], dim=1)
    return {"student": folder.parent.name, "cosine": bootstrapped(alike.numpy())}
