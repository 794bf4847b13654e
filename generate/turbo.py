"""Meshes in a few network calls (Ma et al. 2025, TriplaneTurbo): noise and text to six planes, planes to a shape.

The prior's network draws the planes of an object in K steps of DDIM without noise or guidance at even times from the
last one, t_i = N - 1 - i floor(N / K); the decoder reads the x0 of the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.distillation.teacher import rollout
from ..core.priors import Prior, StableDiffusionPrior
from ..core.priors.planes import COUNT, plane_networks, told_planes
from ..core.priors.rows import Condition
from ..core.sampling.denoiser import Denoiser
from ..core.sampling.levels import Level, NoiseSchedule
from ..core.training.objectives.base import fixed_init
from ..geometry.fields import DualConfig, FieldConfig, HeadConfig
from ..geometry.shapes.dual import DualVolume
from ..geometry.shapes.volume import VolumeShapeConfig
from ..utils.errors import InputError
from ..utils.recompute import in_parts
from ..utils.seeds import sample_noise
from .shape_generator import ShapeGenerator


@dataclass(frozen=True)
class TurboConfig:
    """What is added to a prior."""

    rank: int = 16  # of the adapters
    steps: int = 4  # K
    field: FieldConfig = field(default_factory=lambda: FieldConfig("dual", head=HeadConfig("neus")))
    """its planes have the side that the prior's codec gives them, whatever `field.dual.side` says"""
    checkpointing: bool = False  # activations of the U-Net are computed again in the backward pass
    decoded_at_once: int | None = None  # objects whose planes are decoded together; None: all

    def __post_init__(self) -> None:
        if self.field.kind != "dual":
            raise InputError(f"turbo: field.kind={self.field.kind!r} has no six planes; use dual")
        if self.steps < 1:
            raise InputError(f"turbo: steps={self.steps} must be at least 1")


class TriplaneTurbo(ShapeGenerator):
    """A prior with adapters and heads, which are all its weights."""

    stem: ClassVar[str] = "turbo"
    training: ClassVar[str] = "triplane-turbo"
    settings: ClassVar[type[Any]] = TurboConfig
    prior: StableDiffusionPrior
    config: TurboConfig
    shape: DualVolume

    def __init__(self, prior: Prior, config: TurboConfig = TurboConfig(), seed: int = 0) -> None:
        """`seed`: of the first weights. Raises InputError for priors whose network cannot draw planes."""
        super().__init__(prior, config)
        with fixed_init(seed):
            features = config.field.dual.features
            made = plane_networks(prior, config.rank, features, config.checkpointing)
            self.adapters, self.asked, self.decoder = made
            self.shape = DualVolume(self.shape_config, torch.Generator().manual_seed(seed)).to(prior.device)
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TriplaneTurbo:
        """See ShapeGenerator."""
        super().to(device, dtype)
        self.asked.dtype = self.prior.dtype
        return self

    @property
    def shape_config(self) -> VolumeShapeConfig:
        """Of the shapes it makes."""
        side = self.prior.latent_shape[-1] * self.prior.vae_factor
        dual: DualConfig = replace(self.config.field.dual, side=side)
        return VolumeShapeConfig(replace(self.config.field, dual=dual), occupancy_every=1, occupancy_from=0.0)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"adapters": self.adapters, "heads": self.shape.planes.heads}

    @property
    def levels(self) -> list[Level]:
        """Those of the K steps, noisiest first."""
        return [self.schedule.at_index(i) for i in plane_times(self.config.steps, self.schedule.steps)]

    def told(self, prompts: Sequence[str]) -> Denoiser:
        """The network, told B prompts, to be asked for 6 B rows."""
        return self.denoiser(self.prior.encode_text(list(prompts)))

    def denoiser(self, condition: Condition) -> Denoiser:
        """The network, told B objects."""
        return Denoiser(self.asked, told_planes(condition))

    def noise(self, generators: torch.Generator | Sequence[torch.Generator], count: int) -> Tensor:
        """(6 B, C, h, w), each object's from its own generator."""
        drawn = sample_noise((COUNT, *self.prior.latent_shape), generators, count, self.prior.device)
        return drawn.flatten(0, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Planes (6 B, C, S, S) of latents (6 B, C, h, w) as the network draws them."""
        at_once = self.config.decoded_at_once
        objects = latents.unflatten(0, (-1, COUNT))
        planes = in_parts(lambda some: self.decoder(some.flatten(0, 1)).unflatten(0, (-1, COUNT)), at_once, objects)
        return planes.flatten(0, 1).float()

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Planes (B, 6, C, S, S) of objects, one seed each."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = self.noise(generators, len(seeds))
        states = rollout(self.told(prompts), noise, [*self.levels, self.schedule.clean])
        return self.decode(states[-1]).unflatten(0, (-1, COUNT))

    def made(self, prompt: str, seed: int) -> DualVolume:
        """See ShapeGenerator."""
        shape = self.filled({"planes": self.draw([prompt], [seed])[0]})
        assert isinstance(shape, DualVolume)
        return shape

    @property
    def nfe(self) -> int:
        """See ShapeGenerator."""
        return self.asked.nfe


def plane_times(steps: int, train_steps: int) -> list[int]:
    """Train indices of K steps: the leading spacing, moved so that the first is the last train step."""
    if not 1 <= steps <= train_steps:
        raise InputError(f"turbo: steps={steps} must lie between 1 and the {train_steps} train steps of the prior")
    return [train_steps - 1 - i * (train_steps // steps) for i in range(steps)]
