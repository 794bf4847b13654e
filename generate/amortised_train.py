"""How a network learns fields for a library of prompts from priors of pictures (Ma et al. 2024, "ScaleDreamer").

A step: some prompts, the network's field for each, renders, the pull of every teacher on them, regularisers; the
gradient of the field's parameters goes on into the network. Any rule of score distillation pulls. One with a second
network (VSD) has it learn the renders of all prompts: a player that moves after the generator.

Memory: one field at a time is rendered and judged, whatever the batch; what is returned is the scalar whose gradient is
their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.distillation.teacher import prior_hash
from ..core.priors import Prior
from ..core.training.config import TrainerConfig, optimizer_of
from ..core.training.loss import LossOut
from ..core.training.objectives.base import BatchLoss, Objective
from ..core.training.players import Player
from ..core.training.trainer import Trainer
from ..geometry.shapes.volume import Volume
from ..utils.errors import InputError
from ..utils.ramps import Moment
from ..utils.seeds import generator
from .amortised import Amortised, AmortisedConfig
from .health import HealthConfig, coverage
from .lessons import Lessons, Logs, Prompts, add_gradients, as_loss, check_taught, frozen_parts, write_strips
from .regularisers import LossWeights
from .render_teacher import TeacherConfig, known_teachers
from .step_memory import BUDGET_GB
from .views import ViewConfig

SHAPE = "shape"  # the player that learns shapes


@dataclass(frozen=True)
class LibraryConfig:
    """What is learnt from whom; what changes follows a schedule of `schedule` updates."""

    generator: AmortisedConfig = field(default_factory=AmortisedConfig)
    single: TeacherConfig = field(default_factory=TeacherConfig)  # a prior of single images
    joint: TeacherConfig = field(default_factory=TeacherConfig)  # of several views at once
    normals: TeacherConfig = field(default_factory=TeacherConfig)  # of normals
    schedule: int = 20_000
    views: ViewConfig = field(default_factory=ViewConfig)
    render_px: int = 64
    seen_px: int = 64  # of what teachers are shown; 0: as rendered
    losses: LossWeights = field(default_factory=lambda: LossWeights(opacity=(20.0,), eikonal=(0, 100.0, 1.0, 0.1)))
    memory_gb: float = BUDGET_GB  # of the activations of a render or a teacher

    def __post_init__(self) -> None:
        check_taught(self.teachers, "amortised")
        if self.schedule < 1 or self.render_px < 4:
            raise InputError(
                f"amortised: schedule={self.schedule} must be at least 1 and render_px={self.render_px} at least 4"
            )

    @property
    def teachers(self) -> dict[str, TeacherConfig]:
        """By name."""
        return {"single": self.single, "joint": self.joint, "normals": self.normals}


@dataclass(frozen=True)
class Defined:
    """What a run is defined by."""

    method: LibraryConfig
    base: str  # hash of the prior whose text encoder is read
    teachers: Mapping[str, str]  # hashes


class LibraryObjective(Objective):
    """A generator that learns the fields of many prompts from teachers."""

    def __init__(
        self,
        config: LibraryConfig,
        prior: Prior,
        teachers: Mapping[str, Prior],
        shown: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        """`prior`: who reads the text. `teachers`: the priors that config names, by its names for them. `shown`:
        prompts of validation and previews. `seed`: of the first weights."""
        self.method, self.shown = config, list(shown)
        self.amortised = Amortised(prior, config.generator, seed)
        self.teachers = known_teachers(config.teachers, teachers)
        settings = (config.views, config.losses, config.seen_px, config.memory_gb)
        self.lessons = Lessons(self.amortised.shape, self.teachers, *settings)
        hashes = {name: prior_hash(one.prior) for name, one in self.teachers.items()}
        self.config = Defined(config, prior_hash(prior), hashes)
        self.twins = {f"twin_{name}": one for name, one in self.teachers.items() if one.twin is not None}
        learnt = {name: one.twin.parts for name, one in self.twins.items() if one.twin is not None}
        self.modules: dict[str, nn.Module] = {**self.amortised.modules, **learnt}
        self.frozen = frozen_parts((prior, *(one.prior for one in self.teachers.values())))

    @property
    def nfe(self) -> int:
        """Rows that the teachers' networks and their twins were asked so far, each network once."""
        priors = {id(one.prior): one.prior.nfe for one in self.teachers.values()}
        return sum(priors.values()) + sum(one.twin.nfe for one in self.twins.values() if one.twin is not None)

    def players(self, config: TrainerConfig) -> list[Player]:
        """The generator, and the twins of rules that have one, which move after it."""
        own = nn.ModuleDict(self.amortised.modules)
        groups, optimiser = optimizer_of(config, own)
        shape = Player(SHAPE, groups, optimiser, ema=config.ema, clip=config.clip)
        twins = [one.twin.player(name, SHAPE) for name, one in self.twins.items() if one.twin is not None]
        return [shape, *twins]

    def losses(self) -> dict[str, BatchLoss]:
        """See Playing."""
        return {SHAPE: self.loss, **{name: partial(self.lesson, name) for name in self.twins}}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective: the mean over prompts."""
        prompts, now, shape = list(batch["captions"]), self.now(step), self.amortised.shape
        values = self.amortised.values(prompts, self.amortised.style(rng, len(prompts)))
        own = dict(shape.field.named_parameters())
        shared = [] if self.amortised.shared is None else list(self.amortised.shared.parameters())
        pulls = {name: torch.zeros_like(value) for name, value in values.items()}
        of_shared = [torch.zeros_like(p) for p in shared]
        total, logs = 0.0, dict[str, float]()
        for number, prompt in enumerate(prompts):
            self._fill({name: value[number].detach() for name, value in values.items()}, now, rng)
            loss, told = self.lessons.volume(prompt, self.method.render_px, now, rng)
            sums = [*(pull[number] for pull in pulls.values()), *of_shared]
            add_gradients(sums, loss / len(prompts), [*(own[name] for name in values), *shared])
            total += float(loss.detach()) / len(prompts)
            for name, one in told.items():
                logs[name] = logs.get(name, 0.0) + float(one) / len(prompts)
        learnt = list(self.amortised.network.parameters())
        grads = torch.autograd.grad(list(values.values()), learnt, list(pulls.values()), allow_unused=True)
        of_network = [torch.zeros_like(p) if g is None else g for p, g in zip(learnt, grads, strict=True)]
        return LossOut(as_loss(total, [*learnt, *shared], [*of_network, *of_shared]), logs)

    def lesson(self, name: str, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """What the twin of a teacher minimises on renders of the batch's prompts, drawn anew: the mean over prompts."""
        prompts, now, teacher = list(batch["captions"]), self.now(step), self.twins[name]
        with torch.no_grad():
            values = self.amortised.values(prompts, self.amortised.style(rng, len(prompts)))
        losses, logs = [], Logs()
        for number, prompt in enumerate(prompts):
            self._fill({key: value[number] for key, value in values.items()}, now, rng)
            seen, camera = self.lessons.renders(self.method.render_px, now, rng)
            found = teacher.lesson(seen, camera, prompt, self.method.seen_px, rng)
            losses.append(found.loss)
            logs = {key: logs.get(key, 0.0) + one / len(prompts) for key, one in found.logs.items()}
        return LossOut(torch.stack(losses).mean(), logs)

    def now(self, step: int) -> Moment:
        """Where the schedules are at an update."""
        return Moment(min(step, self.method.schedule), self.method.schedule)

    def _fill(self, values: Mapping[str, torch.Tensor], now: Moment, rng: torch.Generator) -> None:
        """Puts one prompt's field into the shape."""
        shape = self.amortised.shape.to(next(iter(values.values())).device)
        own = dict(shape.field.named_parameters())
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)
        shape.on_step(now, rng)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Of the shapes of the shown prompts: mean opacity where the ball is seen, and the share that is lost."""
        if not self.shown:
            return {}
        found = [coverage(shape) for shape in self._shapes()]
        lost = [not HealthConfig().empty <= one <= HealthConfig().full for one in found]
        return {"opacity": sum(found) / len(found), "collapsed": sum(lost) / len(lost)}

    @torch.no_grad()
    def preview(self, step: int, out: Path) -> list[Path]:
        """Four sides of the shown prompts."""
        return write_strips(self._shapes(), self.method.render_px, out / f"step-{step:06d}.png")

    def _shapes(self) -> list[Volume]:
        found = [self.amortised.made(prompt, seed) for seed, prompt in enumerate(self.shown)]
        for shape in found:
            shape.on_step(Moment(1, 1), generator(0))
        return found

    def save(self, folder: Path) -> Path:
        """Writes the network and what is shared, with what they were taught by."""
        return self.amortised.save(folder, method="amortised", teachers=dict(self.config.teachers))


def amortise(
    prompts: Sequence[str],
    objective: LibraryObjective,
    settings: TrainerConfig,
    out: str | Path,
    device: str = "auto",
    resume: bool = True,
) -> Amortised:
    """Trains a generator on a library of prompts, with checkpoints in `out`, and gives it its averaged weights.

    Raises UnprojectError for a run that diverged; the generator then holds what it learnt so far.
    """
    trainer = Trainer(settings, objective, Prompts(prompts), out, device)
    try:
        trainer.run(resume)
    finally:
        with trainer.averaged():
            weights = {name: value.clone() for name, value in objective.amortised.state().items()}
        objective.amortised.take(weights, "the averaged weights")
    return objective.amortised
