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

import numpy as np
import torch
from torch import Tensor

from ..core.distillation.objective import step_to
from ..core.distillation.teacher import prior_hash
from ..core.priors import Prior
from ..core.priors.planes import COUNT
from ..core.training.loss import LossOut
from ..core.training.objectives.base import Objective
from ..geometry.cameras import Camera
from ..geometry.extract import EmptySurfaceError
from ..geometry.outputs import RenderOutput
from ..geometry.representation import CHANNELS
from ..geometry.shapes.dual import DualVolume, surface_lattice
from ..geometry.silhouettes import draw_mesh
from ..utils.digests import digest
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image
from ..utils.ramps import Moment, Ramp
from .optimise import channels
from .regularisers import LossWeights, Scene, active_terms, check_terms, regularisation
from .render_teacher import TeacherConfig, known_teachers
from .step_memory import BUDGET_GB, StepMemory
from .turbo import TriplaneTurbo, TurboConfig
from .views import ViewConfig, draw_backgrounds, draw_cameras, turntable_cameras


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
        if not any(one.prior for one in self.teachers.values()):
            raise InputError("triplane-turbo: nobody teaches; name the prior of single, joint or normals")
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


class Prompts:
    """Texts as the data of a training."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        joined = np.frombuffer("\n".join(self.texts).encode(), dtype=np.uint8).copy()
        self.identity = {"prompts": digest({"texts": torch.from_numpy(joined)})}

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """See BatchedData."""
        return {"captions": [self.texts[int(i)] for i in indices]}


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
        check_terms(config.losses, self.turbo.shape)
        self.teachers = known_teachers(config.teachers, teachers)
        shape = self.turbo.shape
        self.memory = [StepMemory(shape, [one.score], config.memory_gb) for one in self.teachers.values()]
        hashes = {name: prior_hash(one.prior) for name, one in self.teachers.items()}
        self.config = Defined(config, prior_hash(prior), hashes)
        self.modules = self.turbo.modules
        priors = {id(one): one for one in (prior, *(teacher.prior for teacher in self.teachers.values()))}
        self.frozen = {
            f"{number}.{name}": module
            for number, one in enumerate(priors.values())
            for name, module in one.modules().items()
        }

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
                found = torch.autograd.grad(strength * loss / count, [field.planes, *heads], allow_unused=True)
                for sum_, grad in zip((pulls[rows], *of_heads), found, strict=True):
                    if grad is not None:
                        sum_ += grad
                value += strength * float(loss.detach()) / count
                for name, one in told.items():
                    logs[f"{branch}_{name}"] = logs.get(f"{branch}_{name}", 0.0) + float(one) / count
        return pulls, of_heads, value, logs

    def _volume(self, prompt: str, now: Moment, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Teachers and regularisers on the present shape as a volume."""
        config, shape = self.method, self.turbo.shape
        terms = active_terms(config.losses, now.share)
        wanted = tuple(dict.fromkeys((*channels(terms), *self._channels())))
        self._fit(config.volume_px, wanted)
        shape.planes.pull = (1.0, Ramp.of(config.volume_color).at(now.share))
        camera, background = self._drawn(config.volume_px, rng)
        here = camera.to(shape.device)
        seen = shape.render(here, wanted, background.to(here.c2w), rng)
        loss, logs = self._taught(seen, camera, prompt, now.share, rng)
        extra, more = regularisation(terms, shape, Scene(seen, here.rays()[1]), rng)
        return loss + extra, {**logs, **more, "alpha": seen.alpha.detach().mean()}

    def _mesh(self, prompt: str, now: Moment, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Teachers on the present shape as a mesh."""
        config, shape = self.method, self.turbo.shape
        self._fit(config.mesh_px, CHANNELS)
        shape.planes.pull = (config.mesh_geometry, 1.0)
        camera, background = self._drawn(config.mesh_px, rng)
        here = camera.to(shape.device)
        mesh = shape.mesh(config.mesh_resolution, forced=True)
        seen = draw_mesh(mesh, here, CHANNELS, background.to(here.c2w))
        loss, logs = self._taught(seen, camera, prompt, now.share, rng)
        return loss, {**logs, "alpha": seen.alpha.detach().mean()}

    def _taught(
        self, seen: RenderOutput, camera: Camera, prompt: str, share: float, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        loss, logs = seen.rgb.new_zeros(()), dict[str, Tensor | float]()
        for name, teacher in self.teachers.items():
            if weight := teacher.weight(share):
                out = teacher(seen, camera, prompt, self.method.seen_px, share, rng)
                loss, logs[f"{name}_grad"] = loss + weight * out.loss, out.grad_norm
        return loss, logs

    def _fit(self, size: int, wanted: Sequence[str]) -> None:
        """Chooses the parts in which a render and its teachers are computed."""
        for memory in self.memory:
            memory.fit(self.method.views.views * self.method.views.groups, size, self.method.seen_px or size, wanted)

    def _drawn(self, size: int, rng: torch.Generator) -> tuple[Camera, Tensor]:
        """Cameras and the colours behind the object, on the CPU."""
        return draw_cameras(self.method.views, size, rng), draw_backgrounds(self.method.views, rng)

    def _channels(self) -> tuple[str, ...]:
        return tuple(name for one in self.teachers.values() for name in one.channels())

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

    @torch.no_grad()
    def preview(self, step: int, out: Path) -> list[Path]:
        """Four sides of the shown prompts, as volumes."""
        size, rows = self.method.volume_px, []
        for shape in self._shapes():
            camera = turntable_cameras(4, size).to(shape.device)
            rows += list(shape.render(camera, ("rgb", "alpha", "depth"), 1.0).rgb.cpu().numpy())
        if not rows:
            return []
        out.mkdir(parents=True, exist_ok=True)
        return [save_image(out / f"step-{step:06d}.png", grid(rows, columns=4))]

    def _shapes(self) -> list[DualVolume]:
        if not self.shown:
            return []
        planes = self.turbo.draw(self.shown, range(len(self.shown)))
        found = []
        for one in planes:
            shape = self.turbo.filled(one)
            shape.on_step(Moment(1, 1), torch.Generator().manual_seed(0))
            found.append(shape)
        return found

    def save(self, folder: Path) -> Path:
        """Writes adapters and heads with what they were taught by."""
        return self.turbo.save(folder, method="triplane-turbo", teachers=dict(self.config.teachers))


def as_loss(value: float, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A scalar of this value whose gradients in the parameters are these."""
    pairs = zip(parameters, gradients, strict=True)
    surrogate = torch.stack([(p * g.detach().to(p)).sum() for p, g in pairs]).sum()
    return surrogate - surrogate.detach() + value
