"""Teaching a prior of single images to draw orbits from one picture (Blattmann et al. 2023, the multi-view part).

An orbit is noised at one level, log sigma ~ N(noise_mean, noise_std^2) for sigma of x0 + sigma n (Karras et al. 2022);
the loss is (1 + sigma^2) / sigma^2 |D - x0|^2, the plain error of v. The first frame is shown with a little noise in
its pixels, whose strength is told; with probability null_share it is not shown at all, for guidance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ....utils.pictures import grid, save_image
from ...priors.latents import latent_affine
from ...priors.orbits import FRAMES, OrbitPrior
from ...priors.rows import Condition
from ...priors.temporal import TemporalConfig
from ...sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from ...sampling.edm import lognormal_levels, v_error
from ...sampling.guidance import FrameGuidance
from ...sampling.levels import Level
from ..export import folder_path
from ..loss import LossOut
from ..orbit_clips import OrbitClips
from .base import Objective


@dataclass(frozen=True)
class OrbitConfig:
    """What is added to the prior, and the loss."""

    frames: int = FRAMES
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    trained: Literal["adapter", "all"] = "adapter"
    """all: the 2-D network learns too"""
    noise_mean: float = 0.7
    """of log sigma; larger for more frames and larger pictures"""
    noise_std: float = 1.6
    null_share: float = 0.15
    """share of orbits whose picture is not shown"""
    cond_aug: tuple[float, float] = (0.0, 0.04)
    """least and largest standard deviation of the noise on the picture in [-1, 1]"""
    validation_orbits: int = 64
    preview_orbits: int = 4
    preview_steps: int = 20
    preview_guidance: tuple[float, float] = (1.0, 2.0)
    """at the picture, and on the other side"""


class OrbitObjective(Objective):
    """Trains the temporal parts of an `OrbitPrior` on `OrbitClips` batches."""

    def __init__(self, config: OrbitConfig, prior: OrbitPrior, held_out: OrbitClips | None = None) -> None:
        """The prior learns in place; its base only where config says so."""
        self.config, self.prior, self.held_out = config, prior, held_out
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        base = prior.base
        self.modules: dict[str, nn.Module] = {"parts": prior.parts.requires_grad_(True)}
        self.frozen: dict[str, nn.Module] = {
            name: module for name, module in base.modules().items() if module is not base.network
        }
        where = self.modules if config.trained == "all" else self.frozen
        where["unet"] = base.network.requires_grad_(config.trained == "all")

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.prior.parts.parameters()).device

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """The weighted error of D, with one level and one decision about the picture for each orbit."""
        count = len(batch["latents"])
        level = lognormal_levels(self.schedule, count, self.config.noise_mean, self.config.noise_std, rng)
        kept = (torch.rand(count, generator=rng) >= self.config.null_share).float()
        low, high = self.config.cond_aug
        strength = low + (high - low) * torch.rand(count, generator=rng)
        error = self._error(batch, level, strength, kept, rng)
        return LossOut(error.mean(), {"v_mse": error.detach().mean()})

    def _error(
        self, batch: dict[str, Any], level: Level, strength: Tensor, kept: Tensor | None, rng: torch.Generator
    ) -> Tensor:
        """(B F,) mean errors of v; level, strength and kept are of the orbits (B,)."""
        frames = self.config.frames
        clips = torch.from_numpy(batch["latents"]).to(self.device)
        shift, scale = latent_affine(self.prior.vae.config, clips.flatten(0, 1))
        x0 = (clips.flatten(0, 1) - shift) * scale
        noise = torch.randn(x0.shape, generator=rng)
        levels = self.schedule.at_lambda(torch.as_tensor(level.lam).repeat_interleave(frames))
        x, eps = self.schedule.noised(x0, levels, noise)
        condition = self._condition(batch, strength, kept, rng)
        return v_error(Denoiser(self.prior, condition)(x, levels), x0, eps).flatten(1).mean(1)

    def _condition(
        self, batch: dict[str, Any], strength: Tensor, kept: Tensor | None, rng: torch.Generator
    ) -> Condition:
        frames = self.config.frames
        pictures = torch.from_numpy(batch["pictures"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        noisy = pictures + strength.view(-1, 1, 1, 1) * torch.randn(pictures.shape, generator=rng)
        with torch.no_grad():
            latents = self.prior.vae.encode(noisy.to(self.device)).latent_dist.mode()
        turns = torch.deg2rad(torch.tensor(self.prior.azimuths(frames))).repeat(len(pictures))
        told = (strength, torch.from_numpy(batch["elevation"]))
        angles = torch.stack([*(one.repeat_interleave(frames) for one in told), turns], dim=1)
        kept = None if kept is None else kept.to(self.device)
        return self.prior.told(latents, angles.to(self.device), frames, kept)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Errors of v on held-out orbits at levels spread evenly in log sigma, with the picture shown."""
        if self.held_out is None:
            return {}
        count = min(self.config.validation_orbits, len(self.held_out))
        rng, errors = torch.Generator().manual_seed(0), []
        low, high = (float(self.schedule.at_index(i).lam) for i in (self.schedule.steps - 1, 0))
        for indices in np.array_split(np.arange(count), max(1, count // 8)):
            places = torch.from_numpy((indices * 7 + 3) % 16 / 15.0)
            level = self.schedule.at_lambda(low + (high - low) * places)
            strength = torch.full((len(indices),), self.prior.cond_aug)
            errors.append(self._error(self.held_out.batch(indices, None), level, strength, None, rng))
        return {"v_mse": float(torch.cat(errors).mean())}

    @torch.no_grad()
    def drawn(self, batch: dict[str, Any], steps: int, scales: tuple[float, float], seed: int) -> Tensor:
        """Orbits (B, F, 3, H, W) in [0, 1] of the pictures of a batch."""
        frames, rng = self.config.frames, torch.Generator().manual_seed(seed)
        count = len(batch["pictures"])
        condition = self._condition(batch, torch.full((count,), self.prior.cond_aug), None, rng)
        denoiser = Denoiser(self.prior, condition, FrameGuidance.around(*scales, self.prior.azimuths(frames)))
        noise = torch.randn((count * frames, *self.prior.latent_shape), generator=rng).to(self.device)
        latents = Sampler(DDIM()).run(denoiser, noise, denoiser.schedule.grid(steps, "karras"))
        return self.prior.decode(latents).unflatten(0, (-1, frames))

    def preview(self, step: int, out: Path) -> list[Path]:
        """Held-out orbits, the true one above the drawn one."""
        if self.held_out is None:
            return []
        indices = np.arange(min(self.config.preview_orbits, len(self.held_out)))
        drawn = self.drawn(
            self.held_out.batch(indices, None), self.config.preview_steps, self.config.preview_guidance, 0
        )
        rows = []
        for index, orbit in zip(indices, drawn, strict=True):
            rows += list(self.held_out.pictures[index].astype(np.float32) / 255)
            rows += list(orbit.permute(0, 2, 3, 1).cpu().numpy())
        path = out / f"orbits-{step:07d}.png"
        save_image(path, grid(rows, columns=self.config.frames))
        return [path]

    def save(self, out: str | Path, base: str = "toybox") -> Path:
        """Writes the adapter, with the validation's numbers; with the 2-D network where that learnt too."""
        with folder_path(out) as temporary:
            if self.config.trained == "all":
                self.prior.save(temporary)
            else:
                self.prior.save_adapter(temporary, base, validation=self.validate())
        return Path(out)
