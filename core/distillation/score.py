"""Score distillation: how a frozen prior pulls on renders.

x = E(render), x_t = alpha x + sigma n. Master form: g = w(t) (eps_a - eps_b) and loss 0.5 |x - sg(x - g)|^2 / B, whose
gradient in x is g / B. Sums run over pixels and channels, means over images, in every form. What a and b are is the
rule (`rules`); with the rule "sds" (Poole et al. 2022) a is the guided prediction and eps_b = n.

form "score": as above.
form "recon" (MVDream, Shi et al. 2023; StableDreamer, Guo et al. 2023): 0.5 W |x - sg(x0_target)|^2 / B with
    x0_target = x + x0_a - x0_b, for the rule "sds" x0_cfg, or r x0_cfg std(x0_cond) / std(x0_cfg) + (1 - r) x0_cfg,
    stds over all views of one object. x0_b - x0_a = (sigma / alpha)(eps_a - eps_b), so r = 0 and W = 1 is the rule with
    w = sigma / alpha, and any w has W = w alpha / sigma. For w = sigma / alpha the pull is taken in this form, which
    has a limit where alpha = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ...utils.errors import InputError, UnprojectError
from ...utils.ramps import Ramp
from ...utils.recompute import in_parts
from ..priors.base import Prior
from ..priors.rows import Condition
from ..sampling.denoiser import Denoiser
from ..sampling.guidance import Guidance
from ..sampling.guidance import guided as guided_by
from ..sampling.levels import Level
from .rules import Pull, RuleConfig, Seen
from .time_window import TimeWindow

if TYPE_CHECKING:
    from .twin import Twin

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigma2": lambda alpha, sigma: sigma**2,  # 1 - abar, DreamFusion
    "ratio": lambda alpha, sigma: sigma / alpha,  # constant weight in x0 form
    "product": lambda alpha, sigma: sigma * alpha,
    "one": lambda alpha, sigma: torch.ones_like(sigma),
}


@dataclass(frozen=True)
class ScoreConfig:
    """A member of the family."""

    rule: RuleConfig = field(default_factory=RuleConfig)
    form: Literal["score", "recon"] = "recon"
    guidance: float = 50.0  # classifier-free scale s: uncond + s (cond - uncond)
    perp_neg: bool = False  # words of other views as perpendicular negatives; priors of single images
    rescale: float = 0.5  # r of the recon form, [0, 1]
    weight: Literal["sigma2", "ratio", "product", "one"] = "ratio"
    space: Literal["latent", "image", "both"] = "latent"  # image: compare decoded targets, no encoder gradient
    image_weight: float = 0.1  # of the image term where both are used
    target_steps: int = 1  # of deterministic denoising (DDIM) from pure noise to the target; fewer from lower levels
    even: float = 0.0  # c > 0: g is divided by mean |x - (x - sigma eps_a) / alpha| + c of each image (Ma et al. 2025)
    clip: tuple[float, ...] = ()  # largest |g| per element, a number or [start, v0, v1, end]; empty: none
    window: TimeWindow = field(default_factory=TimeWindow)

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise InputError(f"score: rescale={self.rescale} must lie in [0, 1]")
        if self.even < 0 or (self.even and self.space != "latent"):
            raise InputError(f'score: even={self.even} must not be negative, and 0 unless space is "latent"')
        if self.target_steps < 1 or (self.form == "score" and self.target_steps > 1):
            raise InputError(f'score: target_steps={self.target_steps} must be at least 1, and 1 with form "score"')
        if self.form == "score" and (self.space != "latent" or self.rescale):
            raise InputError('form "score" has no target image; use space "latent" and rescale 0, or form "recon"')
        if self.perp_neg and self.target_steps > 1:
            raise InputError(f"score: perp_neg weighs views at one level; use target_steps=1, not {self.target_steps}")
        if (self.rescale or self.target_steps > 1) and not self.rule.made.targets:
            raise InputError(
                f"score: rescale={self.rescale} and target_steps={self.target_steps} change a denoised image, to which "
                f"the rule {self.rule.kind!r} does not pull; use 0 and 1"
            )


class GuidanceOut(NamedTuple):
    """One evaluation of a guidance."""

    loss: Tensor  # scalar to minimise
    grad_norm: Tensor  # scalar, RMS over images of |g| per image, before the encoder
    t: Tensor  # (B,) train index
    x0_hat: Tensor  # (B, C, h, w) target the renders are pulled to, scaled latents
    log: dict[str, Tensor | float]
    weight: Tensor  # (B,) W of the recon form
    target_rgb: Tensor | None = None  # (B, 3, H, W) in [0, 1], the decoded target; spaces "image" and "both"
    noised: Tensor | None = None  # (B, C, h, w), the state that the prior was asked at


class DivergedError(UnprojectError):
    """An optimisation left the range where its numbers mean anything; the message names the remedy."""


class ScoreDistillation:
    """A frozen prior as a loss on renders. All that is trainable is the `twin` of rules that have one."""

    def __init__(self, config: ScoreConfig, prior: Prior, condition: Condition) -> None:
        """`condition` has one row per object; calls with one of their own say how the objects are seen."""
        self.config, self.prior = config, prior
        guidance, self.condition = guided_by(prior, condition, config.guidance)
        self.denoiser = Denoiser(prior, self.condition, guidance)
        self.schedule = self.denoiser.schedule
        self.images_at_once: int | None = None  # encoded or decoded at once, for less memory; None: all
        self.checks = True  # a gradient that is not finite is refused at once, for which the host waits for the device
        self.twin: Twin | None = None
        if config.rule.made.twin:
            from .twin import Twin  # heavy: adapters

            self.twin = Twin(prior, config.rule.vsd)

    @property
    def nfe(self) -> int:
        """Network rows spent so far, a twin's lessons among them."""
        return self.prior.nfe + (self.twin.nfe if self.twin else 0)

    def __call__(
        self,
        images: Tensor,
        share: float,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        noise: Tensor | None = None,
        index: Tensor | None = None,
        guidance: Guidance | None = None,
        told: Condition | None = None,
    ) -> GuidanceOut:
        """Loss of renders (B, 3, H, W) in [0, 1], views of an object contiguous.

        Args:
            share: of the run that is done, for the schedules.
            generator: of levels and noise.
            condition: B rows instead of the objects' own, each repeated: view-dependent text, or cameras. The views of
                its groups (frames) share attention, level and rescale; without groups images are independent.
            noise: (B, C, h, w), index: (B,) train index, equal within a group; drawn when absent.
            guidance: of this call instead of the config's.
            told: B rows for the twin, which learns views from cameras; None: the objects' own condition.
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
        if noise is None:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        with torch.no_grad():
            denoiser = self.denoiser.with_condition(condition)
            denoiser.guidance = guidance or denoiser.guidance
            twin = None if self.twin is None else self.twin.told(x, told or self.repeated(batch))
            lowest = config.window.bounds(share)[0] * self.schedule.steps
            seen = Seen(x.detach(), noise, index.double(), share, lowest, denoiser, generator, twin)
            pull = config.rule.made(seen)
            target = self.target(seen, pull)
            grad = self.gradient(seen, pull, target)
            weight = self.recon_weight(seen.level, images)
        if self.checks and not bool(torch.isfinite(grad).all()):
            raise self.diverged(f" at train index {index.tolist()}")
        loss = 0.5 * (x - (x.detach() - grad)).square().sum() / batch if config.space != "image" else x.new_zeros(())
        target_rgb = None
        if config.space != "latent":
            strength = 1.0 if config.space == "image" else config.image_weight
            with torch.no_grad():
                target_rgb = in_parts(self.prior.decode, self.images_at_once, target).to(images)
            loss = loss + strength * image_loss(images, target_rgb, weight)
        norm = grad.flatten(1).square().sum(1).mean().sqrt()
        log: dict[str, Tensor | float] = {
            "t": float(index.double().mean()) / self.schedule.steps,
            "grad": norm,
            "loss": loss.detach(),
        }
        return GuidanceOut(loss, norm, index, target, log, weight, target_rgb, pull.ahead.x)

    def repeated(self, batch: int) -> Condition:
        """The objects' own condition for `batch` images, as many of each."""
        if batch % self.condition.rows:
            raise InputError(f"{batch} images do not divide among {self.condition.rows} prompts")
        return self.condition.repeat(batch // self.condition.rows)

    def target(self, seen: Seen, pull: Pull) -> Tensor:
        """The x0 (B, C, h, w) that renders are pulled to."""
        if not self.config.rule.made.targets:
            return pull.ahead.x0 + (seen.x - pull.reference.x0)
        guided, plain = self.walked(seen, pull) if self.config.target_steps > 1 else (pull.ahead.x0, None)
        if not self.config.rescale:
            return guided
        assert pull.plain is not None
        return rescaled(guided, pull.plain.x0 if plain is None else plain, self.config.rescale, seen.condition.frames)

    def walked(self, seen: Seen, pull: Pull) -> tuple[Tensor, Tensor]:
        """(guided, conditional) x0 (B, C, h, w) at the end of a DDIM walk from t = index / steps.

        Every row takes ceil(t target_steps) even steps of its own.
        """
        assert pull.plain is not None
        steps = (seen.fraction * self.config.target_steps).ceil().long()  # (B,)
        x0, plain_x0, eps = pull.ahead.x0, pull.plain.x0, pull.ahead.eps
        for left in range(int(steps.max()) - 1, 0, -1):
            rows = (steps > left).nonzero()[:, 0]
            index = torch.div(seen.index[rows] * left, steps[rows], rounding_mode="floor")
            on, level = rows.to(x0.device), self.schedule.at_index(index)
            alpha, sigma = level.coefficients(x0)
            guided, plain = seen.guided(alpha * x0[on] + sigma * eps[on], index, rows)
            x0, eps = x0.index_copy(0, on, guided.x0), eps.index_copy(0, on, guided.eps)
            plain_x0 = plain_x0.index_copy(0, on, plain.x0)
        return x0, plain_x0

    def gradient(self, seen: Seen, pull: Pull, target: Tensor) -> Tensor:
        """g (B, C, h, w), which is dL/dx times B, weighed at the level the render was noised to."""
        if self.config.form == "recon" or self.config.weight == "ratio":
            grad = self._recon_weight(seen.level, seen.x) * (seen.x - target)
        else:
            alpha, sigma = (torch.as_tensor(c) for c in seen.level.coefficients(seen.x))
            grad = WEIGHTS[self.config.weight](alpha, sigma) * (pull.ahead.eps - pull.reference.eps)
        if self.config.even:
            alpha, sigma = (torch.as_tensor(c) for c in seen.level.coefficients(seen.x))
            error = seen.x - (seen.x - sigma * pull.ahead.eps) / alpha  # the clean x for x_t, as published
            grad = grad / (error.abs().mean((1, 2, 3), keepdim=True) + self.config.even)
        if self.config.clip:
            limit = Ramp.of(self.config.clip).at(seen.share)
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
