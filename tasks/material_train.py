"""Training of a material prior: maps where they are known, pictures alone where they are not; and its consistency.

StableMaterials (2024): L = L_s + lambda L_adv. L_s is the denoising error on materials with maps; L_adv = -E D(z0_hat)
for texts of which only pictures exist, z0_hat the predicted clean latents. D tells latents of drawn materials from
those of pictures, so that what is drawn for such texts looks like them while the maps keep what labels taught. Here
pictures share the latents of the albedo: D judges these alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..core.distillation.adversarial import Critic, Critical, critic_loss, realism
from ..core.distillation.consistency import ConsistencyObjective, Consistent
from ..core.distillation.kinds import Kind
from ..core.distillation.student import Student
from ..core.distillation.teacher import Teacher
from ..core.priors.diffusers import DiffusersPrior
from ..core.priors.rows import COND, NULL, Condition, Rows
from ..core.sampling import Denoiser, NoiseSchedule
from ..core.training.adapters import learning
from ..core.training.config import TrainerConfig, optimizer_of
from ..core.training.loss import LossOut
from ..core.training.objectives.base import BatchLoss, Objective
from ..core.training.players import Player
from ..utils.pictures import grid, save_image, to_uint8
from .codecs.pbr import GROUPS, MaterialMaps
from .materials import MaterialConfig, MaterialGenerator, MaterialPrior, told_scale


class MaterialData(Protocol):
    """Batches of maps by name (B, H, W[, 3]), "photo" and "textures" uint8 (B, H, W, 3), captions of both."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]: ...


@dataclass(frozen=True)
class MaterialLoss:
    """What is minimised."""

    textless: float = 0.1
    """share of materials that are learnt without their text"""
    photo: float = 0.5
    """share that is learnt with its photograph"""
    critic: Critical | None = field(default_factory=lambda: Critical(weight=0.02, start=200))
    """None: maps alone, supervised"""
    validation: int = 32


class MaterialObjective(Objective):
    """Trains the U-Net of a material prior, with a critic of what it draws for texts without maps."""

    def __init__(self, prior: MaterialPrior, method: MaterialLoss, held_out: MaterialData | None = None) -> None:
        self.prior, self.config, self.held_out = prior, method, held_out
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        learning(prior.network)
        self.modules: dict[str, nn.Module] = {"unet": prior.network}
        self.frozen = {name: part for name, part in prior.modules().items() if part is not prior.network}
        for part in self.frozen.values():
            part.requires_grad_(False)
        self.critic = None if method.critic is None else Critic(prior.base, method.critic)
        if self.critic is not None:
            self.modules["critic"] = self.critic

    def players(self, config: TrainerConfig) -> Sequence[Player]:
        """The U-Net, and the critic after it."""
        owns, make = optimizer_of(config, nn.ModuleDict({"unet": self.prior.network}))
        drawer = Player("unet", owns, make, ema=config.ema, clip=config.clip)
        if self.critic is None:
            return [drawer]
        critic = self.critic.player(config)
        critic.moves = replace(critic.moves, after=drawer.name)
        return [drawer, critic]

    def losses(self) -> Mapping[str, BatchLoss]:
        """See Playing.losses."""
        return {"unet": self.loss} | ({} if self.critic is None else {"critic": self.critic_loss})

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        with torch.no_grad():
            clean = self.prior.encode_maps(MaterialMaps.of_batch(batch, self.prior.device))
            condition = self.condition(batch, rng)
        t = torch.randint(self.schedule.steps, (len(clean),), generator=rng)
        level = self.schedule.at_index(t)
        noisy, eps = self.schedule.noised(clean, level, rng)
        raw = Denoiser(self.prior, condition)(noisy, level).raw
        error = (raw - self.schedule.target(self.prior.prediction_type, clean, eps, level)).square().mean()
        logs: dict[str, Tensor] = {"error": error.detach()}
        if self.critic is None or self.config.critic is None or step < self.config.critic.start:
            return LossOut(error, logs)
        made, told = self.drawn(batch, rng)
        real = realism(self.critic, made, self.schedule, told, rng)
        return LossOut(error - self.config.critic.weight * real, {**logs, "realism": real.detach()})

    def condition(self, batch: dict[str, Any], rng: torch.Generator) -> Condition:
        """What the network is told: texts, some left out, and photographs, zeros where left out."""
        texts = batch["captions"]
        silent = torch.rand(len(texts), generator=rng) < self.config.textless
        told = self.prior.encode_text(["" if off else text for text, off in zip(texts, silent.tolist(), strict=True)])
        seen = (torch.rand(len(texts), generator=rng) < self.config.photo).to(self.prior.device)
        latents = photo_latents(self.prior, batch) * seen[:, None, None, None]
        return Condition({COND: Rows({"text": told[COND]["text"], "concat": latents})})

    def drawn(self, batch: dict[str, Any], rng: torch.Generator) -> tuple[Tensor, Condition]:
        """(albedo latents of z0_hat, the texts) for pictures without maps.

        The states are noised stacks of the batch's materials told the texts of pictures: there are no maps to noise.
        At high noise, where texts decide, that is what sampling meets.
        """
        with torch.no_grad():
            stack = self.prior.encode_maps(MaterialMaps.of_batch(batch, self.prior.device))
            told = self.prior.encode_text(batch["texture_captions"])
            half = self.schedule.steps // 2
            level = self.schedule.at_index(
                half + torch.randint(self.schedule.steps - half, (len(stack),), generator=rng)
            )
            noisy, _ = self.schedule.noised(stack, level, rng)
        only = Condition({COND: told[COND]})
        found = Denoiser(self.prior, only)(noisy, level).x0
        return found[:, : found.shape[1] // GROUPS], only

    def critic_loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """The critic's, on latents of pictures and on what is drawn for their texts."""
        assert self.critic is not None
        with torch.no_grad():
            made, told = self.drawn(batch, rng)
            real = self.prior.encode(_pictures(batch["textures"], self.prior))
        return critic_loss(self.critic, real, made, self.schedule, told, rng)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The denoising error on held-out materials at fixed noise."""
        if self.held_out is None:
            return {}
        count = min(self.config.validation, len(self.held_out))
        batch = self.held_out.batch(np.arange(count), None)
        clean = self.prior.encode_maps(MaterialMaps.of_batch(batch, self.prior.device))
        condition, errors = self.prior.encode_text(batch["captions"]), []
        for share in (0.2, 0.5, 0.8):
            level = self.schedule.at_index(share * (self.schedule.steps - 1))
            noisy, _ = self.schedule.noised(clean, level, torch.Generator().manual_seed(0))
            found = Denoiser(self.prior, Condition({COND: condition[COND]}))(noisy, level)
            errors.append((found.x0 - clean).square().mean())
        return {"x0_error": float(torch.stack(errors).mean())}

    @torch.no_grad()
    def preview(self, step: int, out: Path) -> list[Path]:
        """A row of maps for each of a few held-out texts."""
        if self.held_out is None:
            return []
        texts = self.held_out.batch(np.arange(min(4, len(self.held_out))), None)["captions"]
        made = MaterialGenerator(self.prior, MaterialConfig(steps=20))(texts)
        return [save_image(out / f"materials-{step:07d}.png", sheet(made.maps))]


def sheet(maps: MaterialMaps) -> np.ndarray:
    """A row of pictures for each material: albedo, normal, height, roughness, metallic."""
    planes = (maps.albedo, (maps.normal + 1) / 2, maps.height, maps.roughness, maps.metallic)
    tiles = [to_uint8(one[i].expand(3, -1, -1)) for i in range(len(maps)) for one in planes]
    return grid(tiles, columns=len(planes))


def photo_latents(prior: MaterialPrior, batch: Mapping[str, Any]) -> Tensor:
    """Latents (B, C, h, w) of a batch's photographs."""
    return prior.encode(_pictures(batch["photo"], prior))


def _pictures(values: np.ndarray, prior: MaterialPrior) -> Tensor:
    return torch.as_tensor(values).to(prior.device).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class ToldAdapters(Kind):
    """The adapters of a material prior go on learning, and its U-Net is told the guidance scale."""

    name: ClassVar[str] = "told adapters"

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted."""
        network = copy.deepcopy(prior.network)
        told_scale(network)
        learning(network)
        return prior.with_network(network, prior.prediction_type)


class MaterialConsistency(ConsistencyObjective):
    """Consistency of a material prior (`core.distillation.consistency`): batches of maps in place of latents."""

    def __init__(self, student: Student, teacher: Teacher, method: Consistent, photo: float = 0.5) -> None:
        """`photo`: share of materials that are learnt with their photograph."""
        super().__init__(student, teacher, method)
        self.photo = photo

    def latents(self, batch: dict[str, Any], name: str = "latents") -> Tensor:
        """See Distillation.latents."""
        prior = self._prior()
        with torch.no_grad():
            return prior.encode_maps(MaterialMaps.of_batch(batch, prior.device))

    def told(self, batch: dict[str, Any], rng: torch.Generator) -> Condition:
        """See Distillation.told; with photographs in the conditional branch of some rows."""
        prior = self._prior()
        with torch.no_grad():
            condition = prior.encode_text(batch["captions"])
            latents = photo_latents(prior, batch)
        seen = (torch.rand(len(latents), generator=rng) < self.photo).to(latents.device)[:, None, None, None]
        cond = condition[COND].with_tensors(concat=latents * seen)
        null = condition[NULL].with_tensors(concat=torch.zeros_like(latents))
        return Condition({COND: cond, NULL: null}, condition.prompts)

    def _prior(self) -> MaterialPrior:
        assert isinstance(self.teacher.prior, MaterialPrior)
        return self.teacher.prior
