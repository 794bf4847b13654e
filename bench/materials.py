"""StableMaterials on procedural surfaces: pictures without maps, four steps, and edges that continue.

Half of the families have maps, of the others there are pictures alone; both stand in the texts. Supervised and
semi-supervised training take the same updates from the prior's weights. Distances are Frechet's between the judge's
features of drawn and true albedos; the floor is that of other true ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.distillation.adversarial import Critical
from ..core.distillation.consistency import Consistent
from ..core.distillation.kinds import Told
from ..core.distillation.student import Student
from ..core.distillation.teacher import Teacher
from ..core.priors import StableDiffusionPrior, load_prior
from ..core.sampling.tileable import seam_energy
from ..core.training.config import TrainerConfig
from ..core.training.objectives.base import Objective
from ..core.training.trainer import Trainer
from ..tasks.codecs.pbr import MaterialMaps, joined_maps
from ..tasks.material_train import MaterialConsistency, MaterialLoss, MaterialObjective, sheet
from ..tasks.materials import MaterialConfig, MaterialGenerator, MaterialPrior
from ..toybox.judge import Judge
from ..toybox.pbr import LABELLED, PICTURED, draw_pbr, pbr_caption, pbr_maps
from ..toybox.pbr_set import PbrSet
from ..utils.errors import InputError
from ..utils.pictures import save_image
from .distances import frechet
from .intervals import spread
from .runner import Context

NEIGHBOURS = 3


@dataclass(frozen=True)
class MaterialBench:
    """Sizes of the experiment."""

    count: int = 400
    """materials with maps, and pictures without"""
    drawn: int = 64
    """of each kind of text"""
    steps: int = 200
    """updates of either training"""
    few_steps: int = 100
    """updates of the distillation"""
    batch: int = 8
    lr: float = 2e-3
    guidance: float = 2.0
    sampled: int = 20
    """steps of the teacher"""
    seeds: tuple[int, ...] = (0, 1)
    """of drawings"""
    size: int = 64


QUICK = MaterialBench(12, 4, 3, 2, 4, sampled=4, seeds=(0,))


def run(context: Context) -> dict[str, Any]:
    """Both trainings, the distillation, seams."""
    config = QUICK if context.quick else MaterialBench()
    base = load_prior(context.prior)
    if not isinstance(base, StableDiffusionPrior):
        raise InputError(f"--prior {context.prior} is no Stable Diffusion prior")
    data, judge = PbrSet("train", config.count, config.size), Judge.from_pretrained()
    table = []
    made: dict[str, MaterialGenerator] = {}
    for name, critic in (("supervised", None), ("semi-supervised", Critical(weight=0.02, start=config.steps // 4))):
        prior = MaterialPrior.from_prior(base)
        objective = MaterialObjective(prior, MaterialLoss(critic=critic))
        _trained(objective, data, config.steps, config, "muon", config.lr)
        made[name] = MaterialGenerator(prior.freeze(), MaterialConfig(config.sampled, config.guidance))
        table.append({"method": name, **diversity(made[name], judge, config)})
    teacher = made["semi-supervised"]
    table += few_step_rows(teacher, distilled(teacher, data, config), judge, config)
    save_image(context.picture(), sheet(drawn(teacher, texts(tuple(LABELLED | PICTURED), 6), config, 0).maps))
    return {"config": asdict(config), "seeds": list(config.seeds), "table": table, "nfe": {"teacher": config.sampled}}


def _trained(objective: Objective, data: PbrSet, steps: int, config: MaterialBench, optimizer: str, lr: float) -> None:
    """Trains and leaves the averaged weights behind."""
    settings = TrainerConfig(steps=steps, batch=config.batch, lr=lr, warmup=steps // 20, ema=0.99)
    settings = replace(settings, optimizer=optimizer)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings, objective, data, Path(folder) / "run", "cpu")
        trainer.run()
    with trainer.averaged():
        kept = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in objective.modules.items()}
    for name, part in objective.modules.items():
        part.load_state_dict(kept[name])
        part.requires_grad_(False).eval()


def distilled(teacher: MaterialGenerator, data: PbrSet, config: MaterialBench) -> MaterialGenerator:
    """The teacher in four steps."""
    student = Student(teacher.prior, Told())
    method = Consistent(scale=(1.0, 4.0), grid=48)
    _trained(
        MaterialConsistency(student, Teacher(teacher.prior), method), data, config.few_steps, config, "adamw", 3e-4
    )
    assert isinstance(student.prior, MaterialPrior)
    return MaterialGenerator(student.prior, MaterialConfig(4, config.guidance, distilled=True, levels=48))


def texts(families: tuple[str, ...], count: int) -> list[str]:
    return [pbr_caption(draw_pbr("test", i, families)) for i in range(count)]


def albedos(families: tuple[str, ...], count: int, size: int, split: str = "test") -> Tensor:
    made = [pbr_maps(draw_pbr(split, i, families), size).albedo_srgb for i in range(count)]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def drawn(make: MaterialGenerator, texts: Sequence[str], config: MaterialBench, seed: int, **how: Any) -> Any:
    """A MaterialOutput of all texts, a batch at a time."""
    parts = [
        make(texts[i : i + 24], seed=[10_000 * seed + i + k for k in range(len(texts[i : i + 24]))], **how)
        for i in range(0, len(texts), 24)
    ]
    return replace(parts[0], maps=joined_maps([part.maps for part in parts]), nfe=sum(part.nfe for part in parts))


def diversity(make: MaterialGenerator, judge: Judge, config: MaterialBench) -> dict[str, Any]:
    """Coverage of the families without maps, and how roughness and albedo go together in those with maps."""
    true = judge.features(albedos(tuple(PICTURED), config.drawn, config.size))
    covered, together = [], []
    for seed in config.seeds:
        seen = judge.features(drawn(make, texts(tuple(PICTURED), config.drawn), config, seed).maps.albedo)
        covered.append(coverage(true, seen))
        together.append(correlation(drawn(make, texts(tuple(LABELLED), config.drawn), config, seed).maps))
    data = PbrSet("test", config.drawn, config.size)
    truth = correlation(MaterialMaps.of_batch(data.batch(np.arange(config.drawn), None), torch.device("cpu")))
    return {
        "coverage_of_pictured_families": spread(covered),
        "roughness_with_albedo": spread(together),
        "true_roughness_with_albedo": round(truth, 4),
    }


def coverage(true: Tensor, seen: Tensor) -> float:
    """Share of true ones in whose ball, out to the third nearest true neighbour, something drawn lies (Naeem 2020)."""
    count = min(NEIGHBOURS, len(true) - 1)
    radii = torch.cdist(true.double(), true.double()).kthvalue(count + 1, 1).values
    return float((torch.cdist(true.double(), seen.double()).amin(1) <= radii).double().mean())


def correlation(maps: MaterialMaps) -> float:
    """Mean over materials of |correlation| between roughness and the brightness of the albedo over the pixels."""
    grey = maps.albedo.mean(1).flatten(1)
    rough = maps.roughness[:, 0].flatten(1)
    a, b = (values - values.mean(1, keepdim=True) for values in (grey, rough))
    norms = (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)
    return float(((a * b).sum(1) / norms).abs().mean())


def few_step_rows(
    teacher: MaterialGenerator, fast: MaterialGenerator, judge: Judge, config: MaterialBench
) -> list[dict[str, Any]]:
    """Distances and seams of teacher and student, with and without padding that wraps around."""
    families, rows = tuple(LABELLED), []
    reference = judge.features(albedos(families, config.drawn, config.size))
    floor = frechet(reference, judge.features(albedos(families, config.drawn, config.size, "val")))
    ways = {
        f"teacher, {config.sampled} steps": (teacher, config.sampled),
        "teacher, 4 steps": (teacher, 4),
        "distilled, 4 steps": (fast, 4),
    }
    for name, (make, steps) in ways.items():
        for tileable in (True, False):
            fids, seams, calls = [], [], 0
            for seed in config.seeds:
                made = drawn(make, texts(families, config.drawn), config, seed, num_inference_steps=steps,
                              tileable=tileable)  # fmt: skip
                fids.append(frechet(reference, judge.features(made.maps.albedo)))
                seams.append(float(seam_energy(made.maps.albedo).mean()))
                calls += made.nfe
            rows.append(
                {
                    "method": f"{name}{'' if tileable else ', own padding'}",
                    "frechet": spread(fids),
                    "floor": round(floor, 4),
                    "seam_energy": spread(seams),
                    "nfe": calls / (len(config.seeds) * config.drawn),
                }
            )
    return rows
