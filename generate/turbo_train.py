"""Progressive rendering distillation (Ma et al. 2025): how a network learns planes from priors of pictures, without 3D.

z_0 ~ N(0, I). For i = 1 .. K: x_i = alpha_i z_{i-1} + sigma_i n_i with noise n_i of its own, z_i the network's x0,
L_i = (what teachers and regularisers say of the shape of z_i) / K, and no gradient passes from step to step. One
update follows all K. Each shape is rendered twice, as a volume and as its mesh.

Memory: the gradients of a step are taken where it is done, those of an object where it was rendered, so that networks,
renders and teachers never meet; what is returned is the scalar whose gradient is their sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.distillation.objective import step_to
from ..core.distillation.teacher import prior_hash
from ..core.priors import Prior
from ..core.priors.planes import COUNT
from ..core.training.loss import LossOut
from ..core.training.objectives.base import Objective
from ..geometry.extract import EmptySurfaceError
from ..geometry.representation import CHANNELS
from ..geometry.shapes.dual import DualVolume, surface_lattice
from ..geometry.silhouettes import draw_mesh
from ..utils.errors import InputError
from ..utils.ramps import Moment, Ramp
from ..utils.seeds import generator
from .lessons import Lessons, Logs, add_gradients, as_loss, check_taught, frozen_parts, write_strips
from .regularisers import LossWeights
from .render_teacher import TeacherConfig, known_teachers
from .step_memory import BUDGET_GB
from .turbo import TriplaneTurbo, TurboConfig
from .views import ViewConfig


@dataclass(frozen=True)
class PRDConfig:
    """What is learnt from whom; what changes follows a schedule of `schedule` updates."""

    turbo: TurboConfig = field(default_factory=TurboConfig)
    single: TeacherConfig = field(default_factory=TeacherConfig)  # a prior of single images
    joint: TeacherConfig = field(default_factory=TeacherConfig)  # of several views at once
    normals: TeacherConfig = field(default_factory=TeacherConfig)  # of normals
    fresh: bool = True  # noise anew at every step; False: the network's own, as in DDIM
    schedule: int = 20_000
    views: ViewConfig = field(default_factory=ViewConfig)
    volume_px: int = 64
    mesh_px: int = 64
    seen_px: int = 64  # of what teachers are shown; 0: as rendered
    mesh_resolution: int = 33  # lattice corners along an edge
    volume: tuple[float, ...] = (1.0,)  # weight of the volume's renders
    mesh: tuple[float, ...] = (1.0,)  # weight of the mesh's
    mesh_geometry: float = 0.001  # factor on gradients of distance and deformation from the mesh
    volume_color: tuple[float, ...] = (0, 1.0, 0.01, 1)  # factor on gradients of colour from the volume
    losses: LossWeights = field(
        default_factory=lambda: LossWeights(opacity=(0, 1.0, 0.0, 1), eikonal=(0, 1.0, 0.0, 1))
    )  # of the volume
    memory_gb: float = BUDGET_GB  # of the activations of a render or a teacher

    def __post_init__(self) -> None:
        check_taught(self.teachers, "triplane-turbo")
        if twins := [one.score.rule.kind for one in self.teachers.values() if one.score.rule.made.twin]:
            raise InputError(f"triplane-turbo: the rule {twins[0]!r} learns renders in turns of its own; use another")
        if self.schedule < 1 or min(self.volume_px, self.mesh_px) < 4 or self.mesh_resolution < 5:
            raise InputError("triplane-turbo: schedule >= 1, volume_px and mesh_px >= 4, mesh_resolution >= 5 needed")

    @property
    def teachers(self) -> dict[str, TeacherConfig]:
        """By name."""
        return {"single": self.single, "joint": self.joint, "normals": self.normals}


@dataclass(frozen=True)
class Defined:
    """What a run is defined by."""

    method: PRDConfig
    base: str  # hash of the prior that is adapted
    teachers: Mapping[str, str]  # hashes


class PRDObjective(Objective):
    """A generator of planes that learns from teachers."""

    def __init__(
        self,
        config: PRDConfig,
        prior: Prior,
        teachers: Mapping[str, Prior],
        shown: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        """`teachers`: the priors that config names, by its names for them. `shown`: prompts of validation and
        previews. `seed`: of the first weights."""
        self.method, self.shown = config, list(shown)
        self.turbo = TriplaneTurbo(prior, config.turbo, seed)
        self.teachers = known_teachers(config.teachers, teachers)
        settings = (config.views, config.losses, config.seen_px, config.memory_gb)
        self.lessons = Lessons(self.turbo.shape, self.teachers, *settings)
        hashes = {name: prior_hash(one.prior) for name, one in self.teachers.items()}
        self.config = Defined(config, prior_hash(prior), hashes)
        self.modules = self.turbo.modules
        self.frozen = frozen_parts((prior, *(one.prior for one in self.teachers.values())))

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective: the mean over prompts and steps."""
        config, turbo, prompts = self.method, self.turbo, list(batch["captions"])
        now = Moment(min(step, config.schedule), config.schedule)
        denoiser = turbo.told(prompts)
        adapters, heads = (list(module.parameters()) for module in self.modules.values())
        total = [torch.zeros_like(p) for p in (*adapters, *heads)]
        z = turbo.noise(rng, len(prompts))
        value, logs, x = 0.0, dict[str, float](), z
        for level, after in zip(turbo.levels, [*turbo.levels[1:], None], strict=True):
            if config.fresh:
                x = turbo.schedule.add_noise(z, turbo.noise(rng, len(prompts)), level)
            prediction = denoiser(x, level)
            planes = turbo.decode(prediction.x0)
            pulls, of_heads, found, told = self._lessons(planes.detach(), prompts, now, rng)
            grads = torch.autograd.grad(planes, adapters, pulls, allow_unused=True)
            for sum_, grad in zip(total, (*grads, *of_heads), strict=True):
                if grad is not None:
                    sum_ += grad / turbo.config.steps
            z, value = prediction.x0.detach(), value + found / turbo.config.steps
            logs = {name: logs.get(name, 0.0) + one / turbo.config.steps for name, one in told.items()}
            if after is not None and not config.fresh:
                x = step_to(prediction, after).detach()
        return LossOut(as_loss(value, [*adapters, *heads], total), logs)

    def _lessons(
        self, planes: Tensor, prompts: Sequence[str], now: Moment, rng: torch.Generator
    ) -> tuple[Tensor, list[Tensor], float, dict[str, float]]:
        """(gradients of planes (6 B, C, S, S) and of the heads, mean loss, logs) of the shapes of one step."""
        shape, count = self.turbo.shape.to(planes.device), len(prompts)
        field, heads = shape.planes, list(shape.planes.heads.parameters())
        pulls, of_heads = torch.zeros_like(planes), [torch.zeros_like(p) for p in heads]
        value, logs = 0.0, dict[str, float]()
        for number, prompt in enumerate(prompts):
            rows = slice(COUNT * number, COUNT * (number + 1))
            with torch.no_grad():
                field.planes.copy_(planes[rows])
            shape.on_step(now, rng)
            for branch, weight in {"volume": self.method.volume, "mesh": self.method.mesh}.items():
                strength = Ramp.of(weight).at(now.share)
                if not strength:
                    continue
                loss, told = self._volume(prompt, now, rng) if branch == "volume" else self._mesh(prompt, now, rng)
                add_gradients((pulls[rows], *of_heads), strength * loss / count, [field.planes, *heads])
                value += strength * float(loss.detach()) / count
                for name, one in told.items():
                    logs[f"{branch}_{name}"] = logs.get(f"{branch}_{name}", 0.0) + float(one) / count
        return pulls, of_heads, value, logs

    def _volume(self, prompt: str, now: Moment, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """Teachers and regularisers on the present shape as a volume."""
        self.turbo.shape.planes.pull = (1.0, Ramp.of(self.method.volume_color).at(now.share))
        return self.lessons.volume(prompt, self.method.volume_px, now, rng)

    def _mesh(self, prompt: str, now: Moment, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """Teachers on the present shape as a mesh."""
        config, shape = self.method, self.turbo.shape
        self.lessons.fit(config.mesh_px, CHANNELS)
        shape.planes.pull = (config.mesh_geometry, 1.0)
        camera, background = self.lessons.drawn(config.mesh_px, rng)
        here = camera.to(shape.device)
        mesh = shape.mesh(config.mesh_resolution, forced=True)
        seen = draw_mesh(mesh, here, CHANNELS, background.to(here.c2w))
        loss, logs = self.lessons.taught(seen, camera, prompt, now.share, rng)
        return loss, {**logs, "alpha": seen.alpha.detach().mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Of the shapes of the shown prompts: those with a surface, and the inside's share of the cube."""
        if not self.shown:
            return {}
        solid, inside = 0, 0.0
        axis = torch.linspace(-0.97, 0.97, 24, device=self.turbo.shape.device)
        points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
        for shape in self._shapes():
            try:
                surface_lattice(shape.planes, self.method.mesh_resolution)
                solid += 1
            except EmptySurfaceError:
                pass
            inside += float((shape.planes.distance(points * shape.planes.half_side) < 0).float().mean())
        return {"solid": solid / len(self.shown), "inside": inside / len(self.shown)}

    def preview(self, step: int, out: Path) -> list[Path]:
        """Four sides of the shown prompts, as volumes."""
        return write_strips(self._shapes(), self.method.volume_px, out / f"step-{step:06d}.png")

    def _shapes(self) -> list[DualVolume]:
        found = [self.turbo.made(prompt, seed) for seed, prompt in enumerate(self.shown)]
        for shape in found:
            shape.on_step(Moment(1, 1), generator(0))
        return found

    def save(self, folder: Path) -> Path:
        """Writes adapters and heads with what they were taught by."""
        return self.turbo.save(folder, method="triplane-turbo", teachers=dict(self.config.teachers))
