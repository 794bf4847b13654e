"""The loop of per-prompt optimisation: cameras, render, guidance, regularisers, step; resumable to the bit on a CPU."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as default
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.distillation.score import GuidanceOut
from ..core.training.checkpoints import (
    latest_checkpoint,
    read_document,
    read_tensors,
    remove_broken,
    save_checkpoint,
)
from ..core.training.loop import Loop
from ..core.training.loop_parts import stop_signals
from ..core.training.loss import LossOut
from ..core.training.players import Moves, Player, Turn, named_groups
from ..geometry.cameras import Camera
from ..geometry.outputs import RenderOutput
from ..geometry.representation import CHANNELS
from ..geometry.shapes import ShapeConfig, make_shape
from ..utils.configs import to_dict
from ..utils.errors import InputError, NotWrittenError, Stopped
from ..utils.ramps import Moment, Ramp
from ..utils.seeds import generator as seeded
from .guides import Guide
from .health import Health, HealthConfig
from .held_targets import FitConfig, HeldTargets
from .regularisers import LossWeights, Scene, active_terms, check_terms, regularisation
from .step_memory import BUDGET_GB, StepMemory
from .views import ViewConfig, draw_backgrounds, draw_cameras

StepEnd = Callable[["Optimisation", int, dict[str, float]], None]
COVER = "cover"  # number of a step that only its health check sees


@dataclass(frozen=True)
class OptimiseConfig:
    """One stage of optimisation; what changes during the run is given in shares of it."""

    steps: int = 300
    sizes: tuple[tuple[float, int], ...] = ((0, 32), (0.4, 64))  # (from share, px): renders grow during the run
    groups: tuple[tuple[float, int], ...] = ()  # (from share, groups of views a step) in place of views.groups
    guided_px: int = 64  # renders are resized to this for the prior; 0: as rendered
    fit: FitConfig = default(default_factory=FitConfig)
    lr: tuple[float, ...] = (0, 1.0, 0.2, 1)  # factor on the representation's own rates
    adam_betas: tuple[float, float] = (0.9, 0.99)
    adam_eps: float = 1e-4  # gradients far below it (unseen space) barely move anything
    checkpoint_every: int = 100  # steps; 0: never
    views: ViewConfig = default(default_factory=ViewConfig)
    shape: ShapeConfig = default(default_factory=ShapeConfig)
    losses: LossWeights = default(default_factory=LossWeights)
    health: HealthConfig = default(default_factory=HealthConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps} must be at least 1")
        starts = [start for start, _ in self.sizes]
        if not starts or starts[0] != 0 or starts != sorted(starts) or starts[-1] > 1:
            raise InputError(
                f"sizes={self.sizes} must start at 0 and be in order, shares of the run, such as [[0, 32], [0.5, 64]]"
            )
        if any(not 0 <= start <= 1 or number < 1 for start, number in self.groups):
            raise InputError(f"groups={self.groups} must be (share of the run, groups of views), such as [[0.5, 1]]")
        if min(px for _, px in self.sizes) < 4:
            raise InputError(f"sizes={self.sizes}: renders need at least 4 px")

    def size_at(self, now: Moment) -> int:
        """Side of the renders in px."""
        return [px for start, px in self.sizes if now.reached(start)][-1]

    def views_at(self, now: Moment) -> ViewConfig:
        """What is looked at: fewer groups of views, say, once renders have grown."""
        reached = [number for start, number in sorted(self.groups) if now.reached(start)]
        return replace(self.views, groups=reached[-1]) if reached else self.views


class Optimisation:
    """A representation on its way to satisfy a guide; the guide holds no state."""

    def __init__(
        self,
        config: OptimiseConfig,
        guide: Guide,
        seed: int,
        device: torch.device | str = "cpu",
        guided_by: Mapping[str, Any] | None = None,
        step_memory_gb: float = BUDGET_GB,
    ) -> None:
        """`guided_by`: what defines the guide, plain values by name; checkpoints of another guide do not resume.

        `step_memory_gb`: of the activations of a step; what needs more is computed in parts, with the same gradients.
        """
        self.config, self.guide, self.seed = config, guide, seed
        self.guided_by: dict[str, Any] = to_dict(guided_by or {})
        self.generator = seeded(seed)
        self.device = torch.device(device)
        self.shape = make_shape(config.shape, self.generator).to(device)
        check_terms(config.losses, self.shape)
        self.health = Health(config.health, self.shape.bounds)
        self.held = HeldTargets(config.fit)
        self.loop = Loop([self._player()], {"shape": self._loss})
        self.loop.recover, self.loop.watch = self._recovered, self._watched
        guide.score.checks = False  # `_watched` does it, with all other numbers of a step
        self.memory = StepMemory(self.shape, guide.score, step_memory_gb)
        self.nfe, self.seconds = 0, 0.0  # of the whole run, resumed or not
        self.history: list[dict[str, float]] = []  # the log of each step
        self._looked: dict[str, Tensor | float] = {}  # log of the newest look by the prior

    def _player(self) -> Player:
        config, shape = self.config, self.shape
        return Player(
            "shape",
            lambda: named_groups(shape, shape.param_groups(1.0)),
            partial(torch.optim.Adam, betas=config.adam_betas, eps=config.adam_eps),
            rate=lambda step: Ramp.of(config.lr).at(Moment(step, config.steps).share),
            moves=Moves(times=max(config.fit.steps, 1)),
            grows=shape.grows,
            before_step=lambda turn: shape.after_backward(self.now),
            after_step=lambda turn: shape.after_step(self.now),
        )

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.loop.step

    @property
    def now(self) -> Moment:
        """Where the run is."""
        return Moment(self.loop.step, self.config.steps)

    def run(self, out: Path | None = None, on_step: StepEnd | None = None) -> None:
        """The remaining steps; with `out` the state goes to out/ckpt-N every `checkpoint_every` steps and at the end.

        With `out` SIGINT and SIGTERM end the run after a whole step, which is saved: raises Stopped. A disk that
        refuses a checkpoint is told once and does not stop the work.
        """
        began, asked = time.perf_counter() - self.seconds, self.guide.nfe - self.nfe
        signals: list[int] = []

        def after(step: int, log: dict[str, float]) -> None:
            self.history.append({"step": step, **{key: round(value, 6) for key, value in log.items()}})
            self.nfe, self.seconds = self.guide.nfe - asked, time.perf_counter() - began
            every = self.config.checkpoint_every
            if out is not None and every and step % every == 0 and step < self.config.steps:
                self._try_save(out)
            if on_step is not None:
                on_step(self, step, log)
            if out is not None and signals:
                self.save(out)
                raise Stopped(step, self.config.steps, str(out), signals[0])

        with stop_signals(signals.append) if out is not None else contextlib.nullcontext():
            left = self.step < self.config.steps
            try:
                self.loop.run(self.config.steps, after)
            finally:
                self.memory.release()
            if out is not None and left and self.config.checkpoint_every:
                self._try_save(out)
        self.shape.on_step(self.now, self.generator)
        self.seconds = time.perf_counter() - began

    def _try_save(self, out: Path) -> None:
        try:
            self.save(out)
        except NotWrittenError as error:
            warnings.warn(f"{error}; going on without it", stacklevel=2)

    def _loss(self, turn: Turn) -> LossOut:
        """The loss of a gradient step; the first of each turn begins with a look by the prior."""
        terms = active_terms(self.config.losses, self.now.share)
        views, size = self.config.views_at(self.now), self.config.size_at(self.now)
        self.memory.fit(views.views * views.groups, size, self.config.guided_px or size, channels(terms))
        self._before = self.generator.get_state(), list(self.held.sets), self.held.pixels, dict(self.health.streak)
        if not self.config.fit.steps:
            return self._pull(terms)
        if turn.repeat == 0:
            self._hold()
        return self._follow(terms)

    def _recovered(self, player: str, error: Exception) -> bool:
        """Whether a step is made again that failed; then nothing remembers the failed try."""
        if not self.memory.recover(error, self.step):
            return False
        if player == "shape":
            state, self.held.sets, self.held.pixels, self.health.streak = self._before
            self.generator.set_state(state)
        return True

    def _drawn(self) -> tuple[Camera, Tensor]:
        """Cameras and the colours behind the object, after all schedules have moved; on the CPU."""
        self.shape.on_step(self.now, self.generator)
        views = self.config.views_at(self.now)
        camera = draw_cameras(views, self.config.size_at(self.now), self.generator)
        return camera, draw_backgrounds(views, self.generator)

    def _pull(self, terms: dict[str, float]) -> LossOut:
        """Through whole renders."""
        camera, background = self._drawn()
        here = camera.to(self.device)
        seen = self.shape.render(here, channels(terms), background.to(here.c2w), self.generator)
        guidance = self._ask(seen, camera, here)
        loss, log = self._regularised(guidance.loss, seen, here.rays()[1], terms)
        return LossOut(loss, {**self._looked, **log})

    def _hold(self) -> None:
        """Holds new targets."""
        with torch.no_grad():
            camera, background = self._drawn()
            here = camera.to(self.device)
            seen = self.shape.render(here, ("rgb", "alpha", "depth"), background.to(here.c2w), self.generator)
            guidance = self._ask(seen, camera, here)
        if guidance.target_rgb is None:
            raise InputError('fit.steps needs targets as images; set score.space to "image"')
        self.held.add(here, background, guidance.target_rgb, guidance.weight)

    def _follow(self, terms: dict[str, float]) -> LossOut:
        """On rays of all targets that are held."""
        rays = self.held.draw(self.generator)
        part = self.shape.render(rays, channels(terms), rays.background[None, None], self.generator)
        fitted = self.held.loss(part.rgb[0, 0], rays)
        loss, log = self._regularised(fitted, part, rays.rays()[1], terms)
        return LossOut(loss, {**self._looked, **log, "fit": fitted.detach()})

    def _ask(self, seen: RenderOutput, camera: Camera, here: Camera) -> GuidanceOut:
        """What the guide says of renders; the camera is given on the CPU and on the device."""
        guidance = self.guide(self._for_prior(seen.rgb), camera, self.now.share, self.generator)
        self._looked = {**guidance.log, "alpha": seen.alpha.detach().mean(), COVER: self.health.cover(seen, here)}
        return guidance

    def _watched(self, player: str, turn: Turn, loss: float, logs: dict[str, float]) -> None:
        """Raises DivergedError before a step is made with numbers that are none, or of a shape that is lost."""
        if player != "shape":
            return
        cover = logs.pop(COVER)
        if turn.repeat == 0:
            if not math.isfinite(logs["grad"]):
                raise self.guide.score.diverged(f" at step {self.step}")
            self.health.judge(self.step, self.shape, cover, loss + logs["loss"])  # finite if both are

    def _regularised(
        self, loss: Tensor, seen: RenderOutput, directions: Tensor, terms: dict[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        extra, log = regularisation(terms, self.shape, Scene(seen, directions), self.generator)
        return loss + extra, log

    def _for_prior(self, rgb: Tensor) -> Tensor:
        """Renders (B, H, W, 3) as the prior wants them (B, 3, S, S)."""
        images, side = rgb.permute(0, 3, 1, 2), self.config.guided_px
        if side and images.shape[-1] != side:
            images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return images

    def save(self, out: Path) -> Path:
        """Writes out/ckpt-STEP, whole or absent."""
        parts, players = self.loop.state()
        state: dict[str, Tensor] = {"generator": self.generator.get_state()}
        state.update({f"held.{i}": rows for i, rows in enumerate(self.held.sets)})
        tensors = {"shape": dict(self.shape.state_dict()), "optimizer": parts["optimizer"], "state": state}
        facts = {"step": self.step, "seed": self.seed, "guided_by": self.guided_by, "config": to_dict(self.config)}
        facts |= {"health": self.health.streak, "pixels": self.held.pixels}
        facts |= {"nfe": self.nfe, "seconds": self.seconds, "history": self.history}
        return save_checkpoint(out, self.step, tensors, {"players": players, "optimisation": facts})

    def resume(self, out: Path) -> bool:
        """Continues from the newest checkpoint in `out`; False when there is none.

        Raises InputError when it was made with another config, guide or seed.
        """
        remove_broken(out)
        checkpoint = latest_checkpoint(out)
        if checkpoint is None:
            return False
        facts = read_document(checkpoint, "optimisation")
        changed = [
            *differences(facts.get("guided_by", {}), self.guided_by),
            *differences(facts["config"], to_dict(self.config)),
            *differences(facts, {"seed": self.seed}),
        ]
        if changed:
            raise InputError(
                f"{checkpoint} was made with another {', '.join(changed)}; choose another folder (out=, --work), "
                "or delete this one"
            )
        self.shape.restore(read_tensors(checkpoint, "shape"), str(checkpoint))
        slots = {"optimizer": read_tensors(checkpoint, "optimizer"), "ema": {}}
        self.loop.load_optimizers(slots, read_document(checkpoint, "players"))
        state = read_tensors(checkpoint, "state")
        self.generator.set_state(state["generator"])
        held = [name for name in state if name.startswith("held.")]
        self.held.sets = [state[f"held.{i}"].to(self.device) for i in range(len(held))]
        self.held.pixels, self.health.streak = int(facts["pixels"]), dict(facts["health"])
        self.nfe, self.seconds = int(facts["nfe"]), float(facts["seconds"])
        self.history = list(facts["history"])
        return True

    @torch.no_grad()
    def picture(self, camera: Camera, background: float = 1.0) -> RenderOutput:
        """The representation as it is, without jitter."""
        return self.shape.render(camera.to(self.device), background=background)


def channels(terms: Mapping[str, float]) -> tuple[str, ...]:
    """What has to be rendered for a loss on colours with these regularisers."""
    return CHANNELS if "orientation" in terms else ("rgb", "alpha", "depth")


def differences(made: Mapping[str, Any], wanted: Mapping[str, Any], inside: str = "") -> list[str]:
    """The dotted names of `wanted` that have another value in `made`, with that value."""
    found: list[str] = []
    for name, value in wanted.items():
        other = made.get(name)
        if isinstance(value, Mapping):
            found += differences(other or {}, value, f"{inside}{name}.")
        elif value != other:
            found.append(f"{inside}{name} ({other!r})")
    return found
