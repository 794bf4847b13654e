"""What frozen priors and regularisers teach whoever makes shapes for many prompts, one prompt at a time.

A generator fills a shape; the shape is rendered, teachers and regularisers say what they think of it, and the gradients
of the filled parameters go back into the generator. Networks, renders and teachers so never meet in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.priors import Prior
from ..geometry.cameras import Camera
from ..geometry.outputs import RenderOutput
from ..geometry.representation import Representation
from ..utils.digests import digest
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image
from ..utils.ramps import Moment
from .optimise import channels
from .regularisers import LossWeights, Scene, active_terms, check_terms, regularisation
from .render_teacher import RenderTeacher, TeacherConfig
from .step_memory import StepMemory
from .views import ViewConfig, draw_backgrounds, draw_cameras, turntable_cameras

Logs = dict[str, "Tensor | float"]


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


class Lessons:
    """Teachers and regularisers of the shape that a generator fills."""

    def __init__(
        self,
        shape: Representation,
        teachers: Mapping[str, RenderTeacher],
        views: ViewConfig,
        losses: LossWeights,
        seen_px: int,
        memory_gb: float,
    ) -> None:
        """`seen_px`: of what teachers are shown; 0: as rendered. `memory_gb`: of the activations of a render or a
        teacher. Raises InputError for regularisers that the shape does not know."""
        check_terms(losses, shape)
        self.shape, self.teachers, self.views = shape, dict(teachers), views
        self.losses, self.seen_px = losses, seen_px
        self.memory = [StepMemory(shape, [one.score], memory_gb) for one in self.teachers.values()]

    def fit(self, size: int, wanted: Sequence[str]) -> None:
        """Chooses the parts in which renders of `size` px and their teachers are computed."""
        for memory in self.memory:
            memory.fit(self.views.views * self.views.groups, size, self.seen_px or size, wanted)

    def drawn(self, size: int, rng: torch.Generator) -> tuple[Camera, Tensor]:
        """Cameras and the colours behind the object, on the CPU."""
        return draw_cameras(self.views, size, rng), draw_backgrounds(self.views, rng)

    def volume(self, prompt: str, size: int, now: Moment, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """(loss, logs) of the shape as it is filled, as a volume at `size` px: teachers and regularisers."""
        terms = active_terms(self.losses, now.share)
        self.fit(size, self._wanted(terms))
        camera, background = self.drawn(size, rng)
        seen, here = self._seen(camera, background, terms, rng)
        loss, logs = self.taught(seen, camera, prompt, now.share, rng)
        extra, more = regularisation(terms, self.shape, Scene(seen, here.rays()[1]), rng)
        return loss + extra, {**logs, **more, "alpha": seen.alpha.detach().mean()}

    def taught(
        self, seen: RenderOutput, camera: Camera, prompt: str, share: float, rng: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """(weighted loss, logs) of the teachers on renders; the camera is on the CPU."""
        loss, logs = seen.rgb.new_zeros(()), Logs()
        for name, teacher in self.teachers.items():
            if weight := teacher.weight(share):
                out = teacher(seen, camera, prompt, self.seen_px, share, rng)
                loss, logs[f"{name}_grad"] = loss + weight * out.loss, out.grad_norm
        return loss, logs

    @torch.no_grad()
    def renders(self, size: int, now: Moment, rng: torch.Generator) -> tuple[RenderOutput, Camera]:
        """Renders without gradients, for whoever learns the renders; the camera is on the CPU."""
        terms = active_terms(self.losses, now.share)
        camera, background = self.drawn(size, rng)
        return self._seen(camera, background, terms, rng)[0], camera

    def _seen(
        self, camera: Camera, background: Tensor, terms: Mapping[str, float], rng: torch.Generator
    ) -> tuple[RenderOutput, Camera]:
        here = camera.to(self.shape.device)
        return self.shape.render(here, self._wanted(terms), background.to(here.c2w), rng), here

    def _wanted(self, terms: Mapping[str, float]) -> tuple[str, ...]:
        own = (name for one in self.teachers.values() for name in one.channels())
        return tuple(dict.fromkeys((*channels(terms), *own)))


def check_taught(configs: Mapping[str, TeacherConfig], method: str) -> None:
    """Raises InputError when no config names a prior."""
    if not any(one.prior for one in configs.values()):
        raise InputError(f"{method}: nobody teaches; name the prior of {', '.join(configs)}")


def frozen_parts(priors: Iterable[Prior]) -> dict[str, nn.Module]:
    """The networks of some priors, each prior once, for a trainer to move along."""
    once = {id(one): one for one in priors}
    return {f"{n}.{name}": part for n, one in enumerate(once.values()) for name, part in one.modules().items()}


def add_gradients(sums: Iterable[Tensor], loss: Tensor, inputs: Sequence[Tensor]) -> None:
    """Adds d loss / d input to each sum; an input that the loss does not reach adds nothing."""
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    for total, one in zip(sums, found, strict=True):
        if one is not None:
            total += one


def as_loss(value: float, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A scalar of this value whose gradients in the parameters are these."""
    pairs = zip(parameters, gradients, strict=True)
    surrogate = torch.stack([(p * g.detach().to(p)).sum() for p, g in pairs]).sum()
    return surrogate - surrogate.detach() + value


@torch.no_grad()
def write_strips(shapes: Sequence[Representation], size: int, path: Path) -> list[Path]:
    """A picture of four sides of each shape; none without shapes."""
    rows = []
    for shape in shapes:
        camera = turntable_cameras(4, size).to(shape.device)
        rows += list(shape.render(camera, ("rgb", "alpha", "depth"), 1.0).rgb.cpu().numpy())
    if not rows:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    return [save_image(path, grid(rows, columns=4))]
