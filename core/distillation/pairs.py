"""Noises and what a teacher makes of them: pairs and trajectories in shards on disk, made once and gone on with.

The noise of sample i is not stored: it is drawn from (seed, i) alone, so that any process finds the same. The folder of
a set is named by a key of everything its values depend on; sets of different keys are never mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...utils.errors import InputError, UnprojectError
from ...utils.files import atomic_path, read_json, write_json
from ...utils.progress import Progress
from ...utils.seeds import sample_noise
from ..priors.base import Spacing
from ..sampling.levels import Level
from ..sampling.solvers import Solver, make_solver
from ..training.sampling_order import seed_of
from .teacher import Teacher, rollout

VERSION = 1
MANIFEST = "pairs.json"
SHARD = 256  # samples
LARGEST = 100.0  # of a latent, in standard deviations: beyond it a run has diverged


@dataclass(frozen=True)
class PairPlan:
    """How the teacher draws."""

    count: int = 2048
    steps: int = 25
    solver: str = "dpm++"
    spacing: Spacing | None = None
    """None: the prior's own"""
    guidance: float = 3.0
    seed: int = 0
    batch: int = 32
    keep: int = 0
    """states along each run that are stored too, evenly over its steps"""

    def __post_init__(self) -> None:
        if self.count < 1 or self.steps < 1 or not 0 <= self.keep < self.steps:
            raise InputError(
                f"pairs: count={self.count}, steps={self.steps} must be at least 1, keep={self.keep} below steps"
            )


class PairSet:
    """Training batches {"latents": what was drawn (B, C, h, w), "noise": what it was drawn from, "captions": texts}
    and, where states were kept, {"states": (B, K, C, h, w), "kept": (B, K) indices of their levels in the grid}."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError for a folder that holds no whole set."""
        self.folder = Path(folder)
        about = read_json(self.folder / MANIFEST)
        self.key, self.plan, self.deterministic = about["key"], PairPlan(**about["plan"]), about["deterministic"]
        self.prompts: list[str] = about["prompts"]
        if len(about["shards"]) * SHARD < self.plan.count:
            raise InputError(f"{folder} holds a part of its {self.plan.count} pairs; make them again, which goes on")
        parts = [load_file(self.folder / name) for name in sorted(about["shards"])]
        self.latents = torch.cat([part["latents"] for part in parts])
        self.states = torch.cat([part["states"] for part in parts]) if "states" in parts[0] else None
        self.identity: dict[str, Any] = {"pairs": self.key}

    def __len__(self) -> int:
        return len(self.latents)

    @cached_property
    def noise(self) -> Tensor:
        """The noises (N, C, h, w)."""
        return noises(self.plan.seed, range(len(self)), self.latents.shape[1:])

    def captions(self, indices: np.ndarray) -> list[str]:
        """The text of each sample."""
        return [self.prompts[int(i) % len(self.prompts)] for i in indices]

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """The samples of these indices."""
        rows = torch.as_tensor(indices)
        made = {"latents": self.latents[rows].float(), "noise": self.noise[rows], "captions": self.captions(indices)}
        if self.states is None:
            return made
        return {**made, "states": self.states[rows].float(), "kept": kept(self.plan)}


def kept(plan: PairPlan) -> list[int]:
    """Indices of the grid's levels whose states are stored, between its ends."""
    return [round((k + 1) * plan.steps / (plan.keep + 1)) for k in range(plan.keep)]


def noises(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Unit noise (n, *shape) float32 of samples by number, each from a generator of its own."""
    generators = [torch.Generator().manual_seed(seed_of(seed, int(i))) for i in indices]
    return sample_noise(shape, generators, len(generators))


def pair_key(teacher: Teacher, prompts: Sequence[str], plan: PairPlan, levels: Sequence[Level]) -> str:
    """16 hex digits of all that the values of a set depend on."""
    told = {
        "version": VERSION,
        "teacher": teacher.hash,
        "path": type(teacher.prior).__name__,
        "plan": {name: value for name, value in asdict(plan).items() if name != "batch"},
        "levels": [float(level.sigma) for level in levels],
        "prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        "shape": teacher.prior.latent_shape,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_pairs(teacher: Teacher, prompts: Sequence[str], plan: PairPlan, root: str | Path) -> PairSet:
    """The set of a teacher, these prompts (sample i has prompt i modulo their number) and a plan, made where it is not
    there; what an interrupted run has written is kept.

    Raises UnprojectError for a teacher whose runs diverge.
    """
    if not prompts:
        raise InputError("pairs need prompts; give a file with one a line")
    solver = make_solver(plan.solver, teacher.schedule.flow, teacher.prior.prediction_type)
    shape = teacher.prior.latent_shape
    tokens = teacher.prior.tokens(torch.empty(1, *shape))
    levels = teacher.schedule.grid(plan.steps, plan.spacing, tokens=tokens)
    key = pair_key(teacher, prompts, plan, levels)
    folder = Path(root) / key
    about: dict[str, Any] = {"key": key, "plan": asdict(plan), "deterministic": not solver.stochastic}
    about |= {"teacher": teacher.hash, "prompts": list(prompts), "shards": {}}
    if (folder / MANIFEST).is_file():
        about["shards"] = read_json(folder / MANIFEST)["shards"]
    with Progress(plan.count, "pairs") as bar:
        for first in range(0, plan.count, SHARD):
            indices = range(first, min(first + SHARD, plan.count))
            path = folder / f"pairs-{first // SHARD:05d}.safetensors"
            if about["shards"].get(path.name) != _digest(path):
                drawn = _drawn(teacher, [prompts[i % len(prompts)] for i in indices], indices, plan, levels, solver)
                with atomic_path(path) as temporary:
                    save_file(drawn, temporary)
                about["shards"][path.name] = _digest(path)
                write_json(folder / MANIFEST, about)
            bar.advance(len(indices))
    return PairSet(folder)


def _drawn(
    teacher: Teacher, texts: list[str], indices: range, plan: PairPlan, levels: list[Level], solver: Solver
) -> dict[str, Tensor]:
    """What is stored of these samples, in half precision."""
    noise = noises(plan.seed, indices, teacher.prior.latent_shape).to(teacher.prior.device)
    ends, states = [], []
    for first in range(0, len(texts), plan.batch):
        rows = slice(first, first + plan.batch)
        condition = teacher.prior.encode_text(texts[rows])
        scale = torch.full((condition.rows,), plan.guidance)
        denoiser = teacher.denoiser_at(condition, scale) if plan.guidance != 1 else teacher.denoiser(condition)
        seeds = [torch.Generator().manual_seed(seed_of(plan.seed, int(i), 1)) for i in indices[rows]]
        run = rollout(denoiser, noise[rows], levels, seeds, solver)
        ends.append(run[-1])
        if plan.keep:
            states.append(torch.stack([run[k] for k in kept(plan)], 1))
    made = {"latents": torch.cat(ends)} | ({"states": torch.cat(states)} if states else {})
    for name, value in made.items():
        if not bool(torch.isfinite(value).all()) or float(value.abs().max()) > LARGEST:
            raise UnprojectError(
                f"the teacher's {name} diverged; lower the guidance of the pairs or use another solver"
            )
    return {name: value.to(torch.float16).cpu().contiguous() for name, value in made.items()}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
