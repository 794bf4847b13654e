"""Score distillation: how a frozen prior pulls on renders.

x = E(render), x_t = alpha x + sigma n. Master form: g = w(t) (eps_a - eps_b) and loss 0.5 |x - sg(x - g)|^2 / B, whose
gradient in x is g / B. Sums run over pixels and channels, means over images, in every form.

form "score" (SDS, Poole et al. 2022): eps_a the guided prediction, eps_b = n.
form "recon" (MVDream, Shi et al. 2023; StableDreamer, Guo et al. 2023): 0.5 W |x - sg(x0_target)|^2 / B with
    x0_target = r x0_cfg std(x0_cond) / std(x0_cfg) + (1 - r) x0_cfg, stds over all views of one object.
    x - x0_cfg = (sigma / alpha)(eps_a - n), so r = 0 and W = 1 is SDS with w = sigma / alpha, and any w has
    W = w alpha / sigma. For w = sigma / alpha the pull is taken in this form, which has a limit where alpha = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...utils.errors import InputError, UnprojectError
from ...utils.ramps import Ramp
from ...utils.recompute import in_parts
from ..priors.base import Prior
from ..priors.rows import COND, Condition
from ..sampling.denoiser import Denoiser
from ..sampling.guidance import guided as guided_by
from ..sampling.levels import Level
from ..sampling.prediction import Prediction
from .time_window import TimeWindow

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigma2": lambda alpha, sigma: sigma**2,  # 1 - abar, DreamFusion
    "ratio": lambda alpha, sigma: sigma / alpha,  # constant weight in x0 form
    "product": lambda alpha, sigma: sigma * alpha,
    "one": lambda alpha, sigma: torch.ones_like(sigma),
}


@dataclass(frozen=True)
class ScoreConfig:
    """A member of the family."""

    form: Literal["score", "recon"] = "recon"
    guidance: float = 50.0  # classifier-free scale s: uncond + s (cond - uncond)
    rescale: float = 0.5  # r of the recon form, [0, 1]
    weight: Literal["sigma2", "ratio", "product", "one"] = "ratio"
    space: Literal["latent", "image", "both"] = "latent"  # image: compare decoded targets, no encoder gradient
    image_weight: float = 0.1  # of the image term where both are used
    target_steps: int = 1  # of deterministic denoising (DDIM) from pure noise to the target; fewer from lower levels
    clip: tuple[float, ...] = ()  # largest |g| per element, a number or [start, v0, v1, end]; empty: none
    window: TimeWindow = field(default_factory=TimeWindow)

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise InputError(f"score: rescale={self.rescale} must lie in [0, 1]")
        if self.target_steps < 1 or (self.form == "score" and self.target_steps > 1):
            raise InputError(f'score: target_steps={self.target_steps} must be at least 1, and 1 with form "score"')
        if self.form == "score" and (self.space != "latent" or self.rescale):
            raise InputError('form "score" has no target image; use space "latent" and rescale 0, or form "recon"')


class GuidanceOut(NamedTuple):
    """One evaluation of a guidance."""

    loss: Tensor  # scalar to minimise
    grad_norm: Tensor  # scalar, RMS over images of |g| per image, before the encoder
    t: Tensor  # (B,) train index
    x0_hat: Tensor  # (B, C, h, w) target the renders are pulled to, scaled latents
    log: dict[str, Tensor | float]
    weight: Tensor  # (B,) W of the recon form
    target_rgb: Tensor | None = None  # (B, 3, H, W) in [0, 1], the decoded target; spaces "image" and "both"


class DivergedError(UnprojectError):
    """An optimisation left the range where its numbers mean anything; the message names the remedy."""


class ScoreDistillation:
    """A frozen prior as a loss on renders. Holds no trainable state and never enters checkpoints."""

    def __init__(self, config: ScoreConfig, prior: Prior, condition: Condition) -> None:
        """`condition` has one row per object; calls with one of their own say how the objects are seen."""
        self.config, self.prior = config, prior
        guidance, self.condition = guided_by(prior, condition, config.guidance)
        self.denoiser = Denoiser(prior, self.condition, guidance)
        self.schedule = self.denoiser.schedule
        self.images_at_once: int | None = None  # encoded or decoded at once, for less memory; None: all
        self.checks = True  # a gradient that is not finite is refused at once, for which the host waits for the device

    def __call__(
        self,
        images: Tensor,
        share: float,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        noise: Tensor | None = None,
        index: Tensor | None = None,
    ) -> GuidanceOut:
        """Loss of renders (B, 3, H, W) in [0, 1], views of an object contiguous.

        Args:
            share: of the run that is done, for the schedules.
            generator: of levels and noise.
            condition: B rows instead of the objects' own, each repeated: view-dependent text, or cameras. The views of
                its groups (frames) share attention, level and rescale; without groups images are independent.
            noise: (B, C, h, w), index: (B,) train index, equal within a group; drawn when absent.
        """
        config, batch = self.config, images.shape[0]
        condition = self.repeated(batch) if condition is None else guided_by(self.prior, condition, config.guidance)[1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and config.space != "image"):
            x = in_parts(self.prior.encode, self.images_at_once, images)
        groups = batch // condition.frames
        if index is None:
            per_group = config.window.indices(share, groups, self.schedule.steps, generator)
            index = per_group.repeat_interleave(condition.frames)
        index = index.cpu()  # levels are float64, which some devices lack
        level = self.schedule.at_index(index)
        if noise is None:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        with torch.no_grad():
            guided, plain = self.predict(self.schedule.add_noise(x.detach(), noise, level), level, condition)
            clean = self.walked(guided, plain, index, condition)
            target = self.target(*clean, condition.frames)
            grad = self.gradient(x.detach(), noise, level, guided, target, share)
            weight = self.recon_weight(level, images)
        if self.checks and not bool(torch.isfinite(grad).all()):
            raise self.diverged(f" at train index {index.tolist()}")
        loss = 0.5 * (x - (x.detach() - grad)).square().sum() / batch if config.space != "image" else x.new_zeros(())
        target_rgb = None
        if config.space != "latent":
            pull = 1.0 if config.space == "image" else config.image_weight
            with torch.no_grad():
                target_rgb = in_parts(self.prior.decode, self.images_at_once, target).to(images)
            loss = loss + pull * image_loss(images, target_rgb, weight)
        norm = grad.flatten(1).square().sum(1).mean().sqrt()
        log: dict[str, Tensor | float] = {
            "t": float(index.double().mean()) / self.schedule.steps,
            "grad": norm,
            "loss": loss.detach(),
        }
        return GuidanceOut(loss, norm, index, target, log, weight, target_rgb)

    def repeated(self, batch: int) -> Condition:
        """The objects' own condition for `batch` images, as many of each."""
        if batch % self.condition.rows:
            raise InputError(f"{batch} images do not divide among {self.condition.rows} prompts")
        return self.condition.repeat(batch // self.condition.rows)

    def predict(self, noised: Tensor, level: Level, condition: Condition) -> tuple[Prediction, Prediction]:
        """(guided, conditional) predictions at a noised point, all branches in one network call."""
        guidance = self.denoiser.guidance
        branches = self.denoiser.with_condition(condition).ask(noised, level, (*guidance.needs(level), COND))
        return guidance(branches), branches[COND]

    def walked(
        self, guided: Prediction, plain: Prediction, index: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """(guided, conditional) x0 (B, C, h, w) at the end of a DDIM walk from t = index / steps.

        Every row takes ceil(t target_steps) even steps of its own.
        """
        steps = (index.double() / self.schedule.steps * self.config.target_steps).ceil().long()  # (B,)
        x0, plain_x0 = guided.x0, plain.x0
        eps = guided.eps if int(steps.max()) > 1 else x0
        for left in range(int(steps.max()) - 1, 0, -1):
            rows = (steps > left).nonzero()[:, 0]
            level = self.schedule.at_index(torch.div(index[rows] * left, steps[rows], rounding_mode="floor"))
            on = rows.to(x0.device)
            alpha, sigma = level.coefficients(x0)
            guided, plain = self.predict(alpha * x0[on] + sigma * eps[on], level, condition.index(rows))
            x0, eps = x0.index_copy(0, on, guided.x0), eps.index_copy(0, on, guided.eps)
            plain_x0 = plain_x0.index_copy(0, on, plain.x0)
        return x0, plain_x0

    def target(self, guided_x0: Tensor, plain_x0: Tensor, frames: int) -> Tensor:
        """The x0 (B, C, h, w) that renders are pulled to."""
        if self.config.form == "score" or not self.config.rescale:
            return guided_x0
        return rescaled(guided_x0, plain_x0, self.config.rescale, frames)

    def gradient(
        self, x: Tensor, noise: Tensor, level: Level, guided: Prediction, target: Tensor, share: float
    ) -> Tensor:
        """g (B, C, h, w), which is dL/dx times B, weighed at the level the render was noised to."""
        if self.config.form == "recon" or self.config.weight == "ratio":
            grad = self._recon_weight(level, x) * (x - target)
        else:
            alpha, sigma = (torch.as_tensor(c) for c in level.coefficients(x))
            grad = WEIGHTS[self.config.weight](alpha, sigma) * (guided.eps - noise)
        if self.config.clip:
            limit = Ramp.of(self.config.clip).at(share)
            grad = grad.clamp(-limit, limit)
        return grad

    def recon_weight(self, level: Level, like: Tensor) -> Tensor:
        """W = w alpha / sigma (B,)."""
        return self._recon_weight(level, like).reshape(-1).to(like).expand(like.shape[0])

    def _recon_weight(self, level: Level, like: Tensor) -> Tensor:
        """W, one number or (B, 1, 1, 1); that of the weight sigma / alpha is 1, also in pure noise."""
        alpha, sigma = (torch.as_tensor(c) for c in level.coefficients(like))
        if self.config.weight == "ratio":
            return torch.ones_like(alpha)
        return WEIGHTS[self.config.weight](alpha, sigma) * alpha / sigma

    def diverged(self, where: str = "") -> DivergedError:
        """What to raise for a gradient that is not finite."""
        return DivergedError(
            f"the prior {self.prior.name!r} gave a gradient that is not finite{where}; "
            "run it in float32, lower the learning rate or set score.clip"
        )


def rescaled(guided: Tensor, plain: Tensor, share: float, frames: int) -> Tensor:
    """Guided x0 with its spread pulled to the conditional one's; stds over the (views, C, h, w) of each object."""
    axes = (1, 2, 3, 4)

    def spread(x: Tensor) -> Tensor:
        return x.reshape(-1, frames, *x.shape[1:]).std(axes).repeat_interleave(frames)[:, None, None, None]

    factor = spread(plain) / spread(guided).clamp_min(1e-12)
    return guided * (share * factor + 1 - share)


def image_loss(images: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """0.5 W |image - D(target)|^2 / B (HiFA, Zhu et al. 2023) at the size of the decoded target (B, 3, H, W)."""
    if target.shape[-2:] != images.shape[-2:]:
        images = torch.nn.functional.interpolate(images, target.shape[-2:], mode="bilinear", antialias=True)
    return 0.5 * (weight[:, None, None, None] * (images - target).square()).sum() / images.shape[0]
