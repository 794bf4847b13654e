"""The loop of per-prompt optimisation: cameras, render, guidance, regularisers, step; resumable to the bit on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.training.checkpoints import (
    copy_into,
    latest_checkpoint,
    load_optimizer_state,
    optimizer_state,
    read_document,
    read_tensors,
    remove_broken,
    save_checkpoint,
)
from ..geometry.cameras import Camera
from ..geometry.fields import FieldConfig, make_field
from ..geometry.outputs import RenderOutput
from ..geometry.volume import Occupancy, Rays, VolumeConfig, render
from ..utils.configs import to_dict
from ..utils.errors import InputError
from ..utils.ramps import Ramp
from ..utils.seeds import generator as seeded
from .guides import Guide
from .health import Health, HealthConfig
from .held_targets import FitConfig, HeldTargets
from .regularisers import LossWeights, Scene, active_terms, regularisation
from .views import ViewConfig, draw_backgrounds, draw_cameras

StepEnd = Callable[["Optimisation", int, dict[str, float]], None]


@dataclass(frozen=True)
class OptimiseConfig:
    """One stage of optimisation."""

    steps: int = 300
    sizes: tuple[tuple[int, int], ...] = ((0, 32), (120, 64))  # (from step, px): renders grow during the run
    guided_px: int = 64  # renders are resized to this for the prior; 0: as rendered
    fit: FitConfig = default(default_factory=FitConfig)
    lr: tuple[float, ...] = (0, 1.0, 0.2, 300)  # factor on the field's own rates
    adam_betas: tuple[float, float] = (0.9, 0.99)
    adam_eps: float = 1e-4  # gradients far below it (unseen space) barely move anything
    occupancy_every: int = 10
    occupancy_from: int = 20  # step; before it the whole ball is sampled
    checkpoint_every: int = 100  # steps; 0: never
    views: ViewConfig = default(default_factory=ViewConfig)
    field: FieldConfig = default(default_factory=FieldConfig)
    volume: VolumeConfig = default(default_factory=VolumeConfig)
    losses: LossWeights = default(default_factory=LossWeights)
    health: HealthConfig = default(default_factory=HealthConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps} must be at least 1")
        if not self.sizes or self.sizes[0][0] != 0 or list(self.sizes) != sorted(self.sizes):
            raise InputError(f"sizes={self.sizes} must start at step 0 and be in order, such as [[0, 32], [150, 64]]")
        if min(px for _, px in self.sizes) < 4:
            raise InputError(f"sizes={self.sizes}: renders need at least 4 px")

    def size_at(self, step: int) -> int:
        """Side of the renders in px."""
        return [px for start, px in self.sizes if start <= step][-1]


class Optimisation:
    """A field on its way to satisfy a guide. Everything that changes is in `state`; the guide holds none."""

    def __init__(
        self,
        config: OptimiseConfig,
        guide: Guide,
        seed: int,
        device: torch.device | str = "cpu",
        guided_by: Mapping[str, Any] | None = None,
    ) -> None:
        """`guided_by`: what defines the guide, plain values by name; checkpoints of another guide do not resume."""
        self.config, self.guide, self.seed = config, guide, seed
        self.guided_by: dict[str, Any] = to_dict(guided_by or {})
        self.generator = seeded(seed)
        self.device = torch.device(device)
        self.field = make_field(config.field, self.generator).to(device)
        self.occupancy = Occupancy(config.volume, config.field.half)
        groups = self.field.param_groups(1.0)
        self.optimizer = torch.optim.Adam(groups, betas=config.adam_betas, eps=config.adam_eps)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.health = Health(config.health, config.volume.radius)
        self.held = HeldTargets(config.fit)
        self.step = 0
        self.last: RenderOutput | None = None

    def run(self, out: Path | None = None, on_step: StepEnd | None = None) -> None:
        """The remaining steps; with `out` the state goes to out/ckpt-N every `checkpoint_every` steps."""
        while self.step < self.config.steps:
            log = self.advance()
            every = self.config.checkpoint_every
            if out is not None and every and self.step % every == 0 and self.step < self.config.steps:
                self.save(out)
            if on_step is not None:
                on_step(self, self.step, log)
        self.field.on_step(self.step)
        self.occupancy.update(self.field, self.generator)

    def advance(self) -> dict[str, float]:
        """One look by the prior and the gradient steps that follow it; returns the log."""
        step, config = self.step, self.config
        self._schedules(step)
        camera = draw_cameras(config.views, config.size_at(step), self.generator).to(self.device)
        background = draw_backgrounds(config.views, self.generator).to(camera.c2w)
        terms = active_terms(config.losses, step, sdf=config.field.head.kind == "sdf")
        log = (self._follow if config.fit.steps else self._pull)(camera, background, terms)
        self.step = step + 1
        assert self.last is not None
        return {**log, "alpha": float(self.last.alpha.detach().mean())}

    def _pull(self, camera: Camera, background: Tensor, terms: dict[str, float]) -> dict[str, float]:
        """One gradient step through whole renders."""
        seen = self._render(camera, background, "orientation" in terms)
        guidance = self.guide(self._for_prior(seen.rgb), camera, self.step, self.generator)
        loss, log = self._regularised(guidance.loss, seen, camera.rays()[1], terms)
        self.health.check(self.step, self.field, seen, camera, float(loss.detach()))
        self._descend(loss)
        self.last = seen
        return {**guidance.log, **log}

    def _follow(self, camera: Camera, background: Tensor, terms: dict[str, float]) -> dict[str, float]:
        """Holds new targets, then takes `fit.steps` gradient steps on rays of all that are held."""
        with torch.no_grad():
            seen = self._render(camera, background, normals=False)
            seen.extras.pop("snapshot")
            guidance = self.guide(self._for_prior(seen.rgb), camera, self.step, self.generator)
        self.health.check(self.step, self.field, seen, camera, float(guidance.loss))
        if guidance.target_rgb is None:
            raise InputError('fit.steps needs targets as images; set score.space to "image"')
        self.held.add(camera, background, guidance.target_rgb, guidance.weight)
        log: dict[str, float] = {}
        for _ in range(self.config.fit.steps):
            rays = self.held.draw(self.generator)
            part = self._render(rays, rays.background[None, None], "orientation" in terms)
            fitted = self.held.loss(part.rgb[0, 0], rays)
            loss, log = self._regularised(fitted, part, rays.rays()[1], terms)
            log["fit"] = float(fitted.detach())
            self._descend(loss)
        self.last = seen
        return {**guidance.log, **log}

    def _render(self, camera: Rays, background: Tensor, normals: bool) -> RenderOutput:
        return render(self.field, camera, background, self.config.volume, self.occupancy, self.generator, normals)

    def _regularised(
        self, loss: Tensor, seen: RenderOutput, directions: Tensor, terms: dict[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        scene = Scene(self.field, seen.extras.pop("snapshot"), seen, directions, self.generator)
        extra, log = regularisation(terms, scene)
        return loss + extra, log

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def _schedules(self, step: int) -> None:
        self.field.on_step(step)
        factor = Ramp.of(self.config.lr).at(step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if step >= self.config.occupancy_from and step % self.config.occupancy_every == 0:
            self.occupancy.update(self.field, self.generator)

    def _for_prior(self, rgb: Tensor) -> Tensor:
        """Renders (B, H, W, 3) as the prior wants them (B, 3, S, S)."""
        images, side = rgb.permute(0, 3, 1, 2), self.config.guided_px
        if side and images.shape[-1] != side:
            images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return images

    def save(self, out: Path) -> Path:
        """Writes out/ckpt-STEP, whole or absent."""
        named = dict(self.field.named_parameters())
        slots, document = optimizer_state(self.optimizer, named)
        state: dict[str, Tensor] = {"generator": self.generator.get_state()}
        if self.occupancy.mask is not None:
            state["occupancy"] = self.occupancy.mask
        state.update({f"held.{i}": rows for i, rows in enumerate(self.held.sets)})
        tensors: dict[str, dict[str, Tensor]] = {"field": dict(named), "optimizer": slots, "state": state}
        facts = {"step": self.step, "seed": self.seed, "guided_by": self.guided_by, "config": to_dict(self.config)}
        facts |= {"health": self.health.streak, "pixels": self.held.pixels}
        return save_checkpoint(out, self.step, tensors, {"optimizer": document, "optimisation": facts})

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
        named = dict(self.field.named_parameters())
        copy_into(named, read_tensors(checkpoint, "field"), str(checkpoint))
        slots = read_tensors(checkpoint, "optimizer")
        load_optimizer_state(self.optimizer, named, slots, read_document(checkpoint, "optimizer"))
        state = read_tensors(checkpoint, "state")
        self.generator.set_state(state["generator"])
        if "occupancy" in state:
            self.occupancy.mask = state["occupancy"].to(self.device)
        held = [name for name in state if name.startswith("held.")]
        self.held.sets = [state[f"held.{i}"].to(self.device) for i in range(len(held))]
        self.held.pixels = int(facts["pixels"])
        self.step, self.health.streak = int(facts["step"]), dict(facts["health"])
        return True

    @torch.no_grad()
    def picture(self, camera: Camera, background: float = 1.0) -> RenderOutput:
        """The field as it is, without jitter."""
        return render(self.field, camera.to(self.device), background, self.config.volume, self.occupancy)


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
