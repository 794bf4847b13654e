"""A critic of latents: heads on the features of a frozen prior with a low-rank adapter, told text and level.

Hinge losses (Lim & Ye 2017): the critic learns E max(0, 1 - D(real)) + E max(0, 1 + D(fake)), the student - E D(fake);
both kinds of latents get noise of a random level first, so that the critic judges at every scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import InputError
from ..priors.base import Prior
from ..priors.diffusers import DiffusersPrior
from ..priors.rows import Condition
from ..priors.taps import Taps
from ..sampling.denoiser import Denoiser
from ..sampling.levels import Level, NoiseSchedule
from ..training.config import TrainerConfig, optimizer_of
from ..training.loss import LossOut
from ..training.objectives.base import fixed_init
from ..training.players import Moves, Player
from .kinds import Lora


@dataclass(frozen=True)
class Critical:
    """Settings of a critic."""

    weight: float = 0.1
    """of its opinion in the student's loss"""
    rank: int = 8
    """of the adapter"""
    taps: tuple[str, ...] = ("mid_block",)
    """modules whose outputs (B, C, h, w) are judged"""
    levels: tuple[float, float] = (0.05, 0.7)
    """fractions of the train indices of the noise that both kinds get"""
    start: int = 0
    """first step at which it learns"""


class Critic(nn.Module):
    """D(z, text, level), (B,)."""

    def __init__(self, prior: Prior, settings: Critical, seed: int = 0) -> None:
        """Raises InputError for priors without networks or without the tapped modules."""
        super().__init__()
        if not isinstance(prior, DiffusersPrior):
            raise InputError(f"a critic reads features of a network, which the prior {prior.name!r} has none of")
        self.settings = settings
        fitted = Lora(settings.rank, settings.rank).fitted(prior, seed)
        self.network, self._asked = fitted.network, [fitted]  # in a list: a prior is no submodule
        blank = torch.zeros(1, *prior.latent_shape, device=prior.device)
        with torch.no_grad():
            seen = self._features(
                blank, NoiseSchedule.from_config(prior.scheduler_config).at_index(0), prior.encode_text("")
            )
        with fixed_init(seed):
            self.heads = nn.ModuleList(_Head(one.shape[1]) for one in seen).to(prior.device)

    def _features(self, z: Tensor, level: Level, condition: Condition) -> list[Tensor]:
        with Taps(self.network, self.settings.taps) as seen:
            Denoiser(self._asked[0], condition)(z, level)
            return [seen[name] for name in self.settings.taps]

    def forward(self, z: Tensor, level: Level, condition: Condition) -> Tensor:
        """Scores (B,) of noised latents."""
        found = self._features(z, level, condition)
        return torch.stack([head(one) for head, one in zip(self.heads, found, strict=True)]).mean(0)

    def player(self, config: TrainerConfig) -> Player:
        """It as a player that moves after the student."""
        owns, make = optimizer_of(config, nn.ModuleDict({"critic": self}))
        return Player("critic", owns, make, clip=config.clip, moves=Moves(start=self.settings.start, after="student"))


class _Head(nn.Module):
    """Feature maps to one score."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 1)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.float(), x.shape[1:])
        return self.last(F.silu(self.first(x))).flatten(1).mean(1)


def realism(
    critic: Critic, made: Tensor, schedule: NoiseSchedule, condition: Condition, rng: torch.Generator
) -> Tensor:
    """E D of what a student made; the critic's weights get no gradients from it."""
    z, level = renoised(made, schedule, critic.settings, rng)
    return critic(z, level, condition).mean()


def critic_loss(
    critic: Critic, real: Tensor, made: Tensor, schedule: NoiseSchedule, condition: Condition, rng: torch.Generator
) -> LossOut:
    """The hinge loss of the critic on latents and what a student made, both noised alike."""
    scores = []
    for latents in (real, made.detach()):
        z, level = renoised(latents, schedule, critic.settings, rng)
        scores.append(critic(z, level, condition))
    loss = F.relu(1 - scores[0]).mean() + F.relu(1 + scores[1]).mean()
    return LossOut(loss, {"loss": loss.detach(), "gap": (scores[0] - scores[1]).mean().detach()})


def renoised(
    latents: Tensor, schedule: NoiseSchedule, settings: Critical, rng: torch.Generator
) -> tuple[Tensor, Level]:
    """Latents with noise of a random level each."""
    low, high = (share * (schedule.steps - 1) for share in settings.levels)
    level = schedule.at_index(low + (high - low) * torch.rand(len(latents), generator=rng).double())
    return schedule.noised(latents, level, rng)[0], level
