"""Training of a refiner, of the one-step head that it begins with, and of a head of a preimage, by the one trainer.

The one-step head (StableNormal's YOSO) learns x0 from pure noise, which is now and then replaced by its mean, so that
the answer does not hang on the noise. The refiner learns x0 at the levels of its own run: at the level that is held
the state is the first head's guess, as it is or noised; below it, the truth noised. A head of a preimage learns on
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.sampling import Denoiser, Level
from ..core.training.adapters import learning
from ..core.training.loss import LossOut
from .data import GeometryData
from .metrics import masked_mean
from .one_map import OneMapHead
from .one_step import OneStepConfig, OneStepHead
from .preimage_head import PreimageConfig, PreimageHead
from .refine import RefineConfig, RefinedHead
from .train import HeadObjective, LossConfig, latent_mask


@dataclass(frozen=True)
class RefineTraining:
    """What a run is defined by."""

    head: RefineConfig
    losses: LossConfig


@dataclass(frozen=True)
class PreimageTraining:
    """What a run is defined by."""

    head: PreimageConfig
    losses: LossConfig


@dataclass(frozen=True)
class OneStepTraining:
    """What a run is defined by."""

    head: OneStepConfig
    losses: LossConfig
    shrink: float


class OneStepObjective(HeadObjective):
    """Trains the U-Net of a `OneStepHead` and the encoder of its picture; codec and text stay frozen."""

    def __init__(
        self, config: LossConfig, head: OneStepHead, held_out: GeometryData | None = None, shrink: float = 0.5
    ) -> None:
        """`shrink`: share of inputs whose noise is its mean, zeros, where the head starts from noise."""
        self.losses, self.head, self.held_out = config, head, held_out  # type: ignore[assignment]
        self.config = OneStepTraining(head.settings, config, shrink)  # type: ignore[assignment]
        self.one_step, self.shrink = head, shrink if head.config.start == "noise" else 1.0
        self.modules: dict[str, nn.Module] = head.modules()
        self.frozen: dict[str, nn.Module] = {"vae": head.prior.vae}
        for module in self.modules.values():
            learning(module)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss: squared error of x0 over the latents whose pixels are all known."""
        images, targets, valid = self.tensors(batch)
        head = self.one_step
        with torch.no_grad():
            condition = head.encode_image(images)
            clean, _ = head.encode_targets(targets, valid)
        return latent_error(head.answer(condition, self.inputs(clean, rng)), clean, valid, head)

    def inputs(self, clean: Tensor, rng: torch.Generator) -> Tensor:
        """Noise like latents (B, C, h, w), zeros in a share of the rows."""
        noise = torch.randn(clean.shape, generator=rng).to(clean)
        plain = (torch.rand(len(clean), generator=rng) < self.shrink).to(clean.device)
        return noise.masked_fill(plain[:, None, None, None], 0.0)


class PreimageObjective(HeadObjective):
    """Trains the refiner and branch of a `PreimageHead`; the prior stays frozen."""

    def __init__(self, config: LossConfig, head: PreimageHead, held_out: GeometryData | None = None) -> None:
        self.losses, self.head, self.held_out = config, head, held_out  # type: ignore[assignment]
        self.config = PreimageTraining(head.settings, config)  # type: ignore[assignment]
        self.weights = head.codec.weights(config.weights)
        self.modules: dict[str, nn.Module] = head.modules()
        self.frozen: dict[str, nn.Module] = {"vae": head.prior.vae, "unet": head.prior.network}
        for module in self.modules.values():
            learning(module)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss: the codecs' own loss of the decoded picture."""
        images, targets, valid = self.tensors(batch)
        with torch.no_grad():
            condition = self.head.encode_image(images)
        return self._end_to_end_loss(condition, targets, valid)

    def predict_pictures(self, condition: Tensor) -> Tensor:
        """See HeadObjective.predict_pictures."""
        head: Any = self.head
        return head.decode_pictures(head.refined(condition))


class RefineObjective(HeadObjective):
    """Trains the networks of a `RefinedHead`; the first head and the prior stay frozen."""

    def __init__(self, config: LossConfig, head: RefinedHead, held_out: GeometryData | None = None) -> None:
        self.losses, self.head, self.held_out = config, head, held_out  # type: ignore[assignment]
        self.config = RefineTraining(head.settings, config)  # type: ignore[assignment]
        self.refined = head
        self.modules: dict[str, nn.Module] = head.modules()
        self.frozen: dict[str, nn.Module] = {
            "vae": head.prior.vae,
            "first": head.first.unet,
            "prior": head.prior.network,
        }
        for module in self.modules.values():
            learning(module)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss: squared error of x0 over the latents whose pixels are all known."""
        images, targets, valid = self.tensors(batch)
        head = self.refined
        with torch.no_grad():
            condition = head.encode_image(images)
            clean, _ = head.encode_targets(targets, valid)
            guess = head.guess(condition, torch.randn(clean.shape, generator=rng).to(clean))
        state, level = self.states(clean, guess, rng)
        x0 = Denoiser(head.asked, head.condition(condition))(state, level).x0
        return latent_error(x0, clean, valid, head)

    def states(self, clean: Tensor, guess: Tensor, rng: torch.Generator) -> tuple[Tensor, Level]:
        """States (B, C, h, w) as the run has them, and their levels, one of the run's own for each row."""
        levels = self.refined.levels()
        chosen = torch.randint(len(levels), (len(clean),), generator=rng)
        level = self.refined.schedule.at_index(torch.tensor([float(levels[i].index) for i in chosen.tolist()]))
        noise = torch.randn(clean.shape, generator=rng).to(clean)
        alpha, sigma = level.coefficients(clean)
        held = (chosen == 0).to(clean.device)[:, None, None, None]
        plain = (torch.rand(len(clean), generator=rng) < 0.5).to(clean.device)[:, None, None, None]
        noised = alpha * torch.where(held, guess, clean) + sigma * noise
        return torch.where(held & plain, guess, noised), level


def latent_error(x0: Tensor, clean: Tensor, valid: Tensor, head: OneMapHead) -> LossOut:
    """Mean squared error of latents (B, C, h, w) over the cells whose pixels are all known."""
    keep = latent_mask(valid, head.prior.vae_factor)
    error = masked_mean((x0 - clean).square().mean(1), keep[:, 0]).nan_to_num(0.0).mean()
    return LossOut(error, {"latent_mse": error.detach()})
