"""The loop of per-prompt optimisation: cameras, render, guidance, regularisers, step; resumable to the bit on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as default
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.distillation.score import GuidanceOut
from ..core.training.checkpoints import Tensors, copy_into
from ..core.training.loop import Loop
from ..core.training.loss import LossOut
from ..core.training.players import Moves, Player, Turn, named_groups
from ..geometry.cameras import Camera
from ..geometry.outputs import RenderOutput
from ..geometry.representation import CHANNELS
from ..geometry.shapes import ShapeConfig, make_shape
from ..utils.configs import to_dict
from ..utils.errors import InputError
from ..utils.ramps import Moment, Ramp
from .guides import Guide
from .health import Health, HealthConfig
from .held_targets import FitConfig, HeldTargets
from .normal_guide import NormalGuide
from .regularisers import LossWeights, Scene, active_terms, check_terms, regularisation
from .resumable import ResumableRun
from .step_memory import BUDGET_GB, StepMemory
from .views import ViewConfig, draw_backgrounds, draw_cameras

Watch = Callable[[int, Tensor, Camera, GuidanceOut], None]  # step, renders (B, 3, S, S), cameras, what was answered
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


class Optimisation(ResumableRun):
    """A representation on its way to satisfy a guide; the guide holds no state."""

    document = "optimisation"

    def __init__(
        self,
        config: OptimiseConfig,
        guide: Guide,
        seed: int,
        device: torch.device | str = "cpu",
        guided_by: Mapping[str, Any] | None = None,
        normals: NormalGuide | None = None,
        step_memory_gb: float = BUDGET_GB,
    ) -> None:
        """`guided_by`: what defines the guide, plain values by name; checkpoints of another guide do not resume.
        `normals` pulls on rendered normals, where targets are not held.

        `step_memory_gb`: of the activations of a step; what needs more is computed in parts, with the same gradients.
        """
        super().__init__(config, seed, device)
        self.config, self.guide, self.normals = config, guide, normals
        self.guided_by: dict[str, Any] = to_dict(guided_by or {})
        self.shape = make_shape(config.shape, self.generator).to(device)
        check_terms(config.losses, self.shape)
        self.health = Health(config.health, self.shape.bounds)
        self.held = HeldTargets(config.fit)
        self.loop = self._loop()
        self.loop.recover, self.loop.watch = self._recovered, self._watched
        scores = [guide.score, *([] if normals is None else [normals.guide.score])]
        self.memory = StepMemory(self.shape, scores, step_memory_gb)
        for score in scores:
            score.checks = False  # `_watched` does it, with all other numbers of a step
        self.nfe = 0  # of the whole run, resumed or not
        self.watch: Watch | None = None
        self._looked: dict[str, Tensor | float] = {}  # log of the newest look by the prior

    def _loop(self) -> Loop:
        """The representation, and the twin of a rule that has one."""
        twin = self.guide.twin
        if twin is None:
            return Loop([self._player()], {"shape": self._loss})
        losses = {"shape": self._loss, "twin": lambda turn: twin.loss(self.generator)}
        return Loop([self._player(), twin.player()], losses)

    def _player(self) -> Player:
        config, shape = self.config, self.shape
        return Player(
            "shape",
            lambda: named_groups(shape, shape.param_groups(1.0)),
            partial(torch.optim.Adam, betas=config.adam_betas, eps=config.adam_eps),
            rate=self._rate,
            moves=Moves(times=max(config.fit.steps, 1)),
            grows=shape.grows,
            before_step=lambda turn: shape.after_backward(self.now),
            after_step=lambda turn: shape.after_step(self.now),
        )

    def _rate(self, step: int) -> float | Sequence[float]:
        """Factors on the rates: of the run, and those of the representation's own schedules."""
        now = Moment(step, self.config.steps)
        factor = Ramp.of(self.config.lr).at(now.share)
        own = self.shape.rates(now)
        return [factor * one for one in own] if own else factor

    def run(self, out: Path | None = None, on_step: StepEnd | None = None) -> None:
        """The remaining steps; see ResumableRun.go_on."""
        asked = self.guide.nfe - self.nfe

        def count() -> None:
            self.nfe = self.guide.nfe - asked

        try:
            self.go_on(out, None if on_step is None else partial(on_step, self), count)
        finally:
            self.memory.release()

    def _loss(self, turn: Turn) -> LossOut:
        """The loss of a gradient step; the first of each turn begins with a look by the prior."""
        terms = active_terms(self.config.losses, self.now.share)
        views, size = self.config.views_at(self.now), self.config.size_at(self.now)
        self.memory.fit(views.views * views.groups, size, self.config.guided_px or size, self._channels(terms))
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

    def _watched(self, player: str, turn: Turn, loss: float, logs: dict[str, float]) -> None:
        """Raises DivergedError before a step is made with numbers that are none, or of a shape that is lost."""
        if player != "shape":
            return
        cover = logs.pop(COVER)
        if turn.repeat == 0:
            if not all(math.isfinite(logs.get(name, 0.0)) for name in ("grad", "normals_grad")):
                raise self.guide.score.diverged(f" at step {self.step}")
            self.health.judge(self.step, self.shape, cover, loss + logs["loss"])  # finite if both are

    def _drawn(self) -> tuple[Camera, Tensor]:
        """Cameras and the colours behind the object, after all schedules have moved; on the CPU."""
        self.shape.on_step(self.now, self.generator)
        views = self.config.views_at(self.now)
        camera = draw_cameras(views, self.config.size_at(self.now), self.generator)
        return camera, draw_backgrounds(views, self.generator)

    def _channels(self, terms: Mapping[str, float]) -> tuple[str, ...]:
        """What is rendered for a step: normals where a regulariser or a guide wants them."""
        asked = self.normals is not None and self.normals.config.at(self.now.share) > 0
        return CHANNELS if asked and not self.config.fit.steps else channels(terms)

    def _pull(self, terms: dict[str, float]) -> LossOut:
        """Through whole renders."""
        camera, background = self._drawn()
        here, share, normals = camera.to(self.device), self.now.share, self.normals
        seen = self.shape.render(here, self._channels(terms), background.to(here.c2w), self.generator)
        pull = self._ask(seen, camera, here).loss
        if normals is not None and normals.config.at(share) > 0:
            more, told = normals(seen, camera, self.config.guided_px, share, self.generator)
            pull, self._looked = pull + more, {**self._looked, **told}
        loss, log = self._regularised(pull, seen, here.rays()[1], terms)
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
        """What the guide says of renders; the camera is given on the CPU, which asks about it, and on the device."""
        images = self._for_prior(seen.rgb)
        guidance = self.guide(images, camera, self.now.share, self.generator)
        if self.watch is not None:
            self.watch(self.step, images.detach(), camera, guidance)
        self._looked = {**guidance.log, "alpha": seen.alpha.detach().mean(), COVER: self.health.cover(seen, here)}
        return guidance

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

    def identity(self) -> dict[str, Mapping[str, Any]]:
        """See ResumableRun."""
        return {"guided_by": self.guided_by, "config": to_dict(self.config)}

    def own_state(self) -> tuple[Tensors, dict[str, Any]]:
        """See ResumableRun."""
        held = {f"held.{i}": rows for i, rows in enumerate(self.held.sets)}
        held |= dict(self.loop.players["twin"].named) if self.guide.twin else {}
        return held, {"health": self.health.streak, "pixels": self.held.pixels, "nfe": self.nfe}

    def take_state(self, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """See ResumableRun."""
        held = [name for name in tensors if name.startswith("held.")]
        self.held.sets = [tensors[f"held.{i}"].to(self.device) for i in range(len(held))]
        self.held.pixels, self.health.streak = int(facts["pixels"]), dict(facts["health"])
        self.nfe = int(facts["nfe"])
        if self.guide.twin:
            learnt = {name: value for name, value in tensors.items() if name.startswith("twin.")}
            copy_into(self.loop.players["twin"].named, learnt, "the twin of the checkpoint")

    @torch.no_grad()
    def picture(self, camera: Camera, background: float = 1.0) -> RenderOutput:
        """The representation as it is, without jitter."""
        return self.shape.render(camera.to(self.device), background=background)


def channels(terms: Mapping[str, float]) -> tuple[str, ...]:
    """What has to be rendered for a loss on colours with these regularisers."""
    return CHANNELS if "orientation" in terms else ("rgb", "alpha", "depth")
