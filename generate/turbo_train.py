"""Progressive rendering distillation (Ma et al. 2025): how a network learns planes from priors of pictures, without 3D.

z_0 ~ N(0, I). For i = 1 .. K: x_i = alpha_i z_{i-1} + sigma_i n_i with noise n_i of its own, z_i the network's x0,
L_i = (what teachers and regularisers say of the shape of z_i) / K, and no gradient passes from step to step. One
update follows all K, or some drawn at random (`taught`): the mean of L over those, whose expectation is the same, for a
part of the cost. Each shape is rendered twice, as a volume and as its mesh. The first updates may follow drawn views in
the place of teachers (`turbo_start`).

Memory: the gradients of a step are taken where it is done, those of an object where it was rendered, so that networks,
renders and teachers never meet; what is returned is the scalar whose gradient is their sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from .drawn_views import ViewDrawer
from .lessons import Lessons, Logs, add_gradients, as_loss, check_taught, frozen_parts, write_strips
from .regularisers import LossWeights
from .render_teacher import TeacherConfig, known_teachers
from .step_memory import BUDGET_GB
from .turbo import TriplaneTurbo, TurboConfig
from .turbo_start import StartConfig, start_loss
from .views import ViewConfig


@dataclass(frozen=True)
class PRDConfig:
    """What is learnt from whom; what changes follows a schedule of `schedule` updates."""

    turbo: TurboConfig = field(default_factory=TurboConfig)
    single: TeacherConfig = field(default_factory=TeacherConfig)  # a prior of single images
    joint: TeacherConfig = field(default_factory=TeacherConfig)  # of several views at once
    normals: TeacherConfig = field(default_factory=TeacherConfig)  # of normals
    start: StartConfig = field(default_factory=StartConfig)  # of drawn views
    fresh: bool = True  # noise anew at every step; False: the network's own, as in DDIM
    taught: int = 0  # steps, drawn at random, that an update follows; 0: all
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
        if not 0 <= self.taught <= self.turbo.steps:
            raise InputError(f"triplane-turbo: taught={self.taught} of {self.turbo.steps} steps; 0 follows all of them")
        if self.start.updates and not self.joint.prior:
            raise InputError("triplane-turbo: start.updates needs views, which the prior of `joint` draws; name it")
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
    teachers: Mapping[str, str]  # hashes, of who draws at the start too


class PRDObjective(Objective):
    """A generator of planes that learns from teachers."""

    def __init__(
        self,
        config: PRDConfig,
        prior: Prior,
        teachers: Mapping[str, Prior],
        shown: Sequence[str] = (),
        seed: int = 0,
        drawer: ViewDrawer | None = None,
    ) -> None:
        """`teachers`: the priors that config names, by its names for them. `shown`: prompts of validation and
        previews. `seed`: of the first weights. `drawer`: of what it begins with. Raises InputError without the one that
        config.start needs."""
        if config.start.updates and drawer is None:
            raise InputError("triplane-turbo: start.updates needs a drawer of views")
        self.method, self.shown = config, list(shown)
        self.turbo = TriplaneTurbo(prior, config.turbo, seed)
        self.teachers = known_teachers(config.teachers, teachers)
        settings = (config.views, config.losses, config.seen_px, config.memory_gb)
        self.lessons = Lessons(self.turbo.shape, self.teachers, *settings)
        hashes = {name: prior_hash(one.prior) for name, one in self.teachers.items()}
        self.drawer, drawing = drawer, () if drawer is None else drawer.priors
        hashes.update({f"drawn by {n}": prior_hash(one) for n, one in enumerate(drawing)})
        self.config = Defined(config, prior_hash(prior), hashes)
        self.modules = self.turbo.modules
        self.frozen = frozen_parts((prior, *(one.prior for one in self.teachers.values()), *drawing))

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective: the mean over prompts and steps."""
        config, turbo, prompts = self.method, self.turbo, list(batch["captions"])
        now = Moment(min(step, config.schedule), config.schedule)
        denoiser = turbo.told(prompts)
        adapters, heads = (list(module.parameters()) for module in self.modules.values())
        total = [torch.zeros_like(p) for p in (*adapters, *heads)]
        z = turbo.noise(rng, len(prompts))
        followed = self._followed(rng)
        value, logs, x = 0.0, dict[str, float](), z
        for number, (level, after) in enumerate(zip(turbo.levels, [*turbo.levels[1:], None], strict=True)):
            if number > followed[-1]:
                break
            if config.fresh:
                x = turbo.schedule.add_noise(z, turbo.noise(rng, len(prompts)), level)
            with torch.set_grad_enabled(number in followed):
                prediction = denoiser(x, level)
            if number in followed:
                planes = turbo.decode(prediction.x0)
                pulls, of_heads, found, told = self._lessons(planes.detach(), prompts, now, rng)
                grads = torch.autograd.grad(planes, adapters, pulls, allow_unused=True)
                for sum_, grad in zip(total, (*grads, *of_heads), strict=True):
                    if grad is not None:
                        sum_ += grad / len(followed)
                value += found / len(followed)
                logs = {name: logs.get(name, 0.0) + one / len(followed) for name, one in told.items()}
            z = prediction.x0.detach()
            if after is not None and not config.fresh:
                x = step_to(prediction, after).detach()
        return LossOut(as_loss(value, [*adapters, *heads], total), logs)

    def _followed(self, rng: torch.Generator) -> list[int]:
        """The numbers of the steps that an update follows, rising."""
        steps, some = self.turbo.config.steps, self.method.taught
        return sorted(torch.randperm(steps, generator=rng)[:some].tolist()) if some else list(range(steps))

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
            for branch, strength, loss, told in self._branches(prompt, now, rng):
                add_gradients((pulls[rows], *of_heads), strength * loss / count, [field.planes, *heads])
                value += strength * float(loss.detach()) / count
                for name, one in told.items():
                    logs[f"{branch}_{name}"] = logs.get(f"{branch}_{name}", 0.0) + float(one) / count
        return pulls, of_heads, value, logs

    def _branches(self, prompt: str, now: Moment, rng: torch.Generator) -> Iterator[tuple[str, float, Tensor, Logs]]:
        """(name, weight, loss, logs) of what is said of the present shape, one after the other."""
        config, shape = self.method, self.turbo.shape
        if now.step < config.start.updates:
            assert self.drawer is not None
            shape.planes.pull = (1.0, 1.0)
            if (views := self.drawer.of(prompt)) is not None:
                yield "start", 1.0, *start_loss(shape, views, config.start, now, rng)
            return
        shape.on_step(now, rng)
        if strength := Ramp.of(config.volume).at(now.share):
            yield "volume", strength, *self._volume(prompt, now, rng)
        if strength := Ramp.of(config.mesh).at(now.share):
            yield "mesh", strength, *self._mesh(prompt, now, rng)

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
