"""Early signs that an optimisation is lost: nothing left, everything full, numbers that are none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.distillation.score import DivergedError
from ..geometry.cameras import Camera
from ..geometry.outputs import RenderOutput
from ..geometry.representation import Representation
from ..utils.errors import InputError


class CollapsedError(DivergedError):
    """The object vanished or filled everything; the message names the remedy."""


@dataclass(frozen=True)
class HealthConfig:
    """Limits; a state must last `patience` steps in a row to count."""

    empty: float = 0.005  # mean alpha where the rendered ball is seen, below which nothing is left
    full: float = 0.98  # likewise, above which the ball is full (a soft sphere of 0.85 m: 0.95)
    largest: float = 1e4  # |parameter| above which it has exploded
    patience: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.empty < self.full <= 1:
            raise InputError(f"health: 0 <= empty={self.empty} < full={self.full} <= 1 needed")


class Health:
    """Watches the renders of each step."""

    def __init__(self, config: HealthConfig, radius: float) -> None:
        """`radius` of the ball outside which nothing is rendered, metres."""
        self.config, self.radius = config, radius
        self.streak = {"empty": 0, "full": 0}

    def check(self, step: int, shape: nn.Module, render: RenderOutput, camera: Camera, loss: float) -> None:
        """Raises CollapsedError or DivergedError, naming step and remedy; `render` is seen from `camera`."""
        self.judge(step, shape, float(self.cover(render, camera)), loss)

    def cover(self, render: RenderOutput, camera: Camera) -> Tensor:
        """Mean opacity where the ball is seen, a scalar on the device of the render."""
        alpha = render.alpha.detach()[..., 0]
        ball = sees_the_ball(camera, self.radius).to(alpha)
        return (alpha * ball).sum() / ball.sum()

    def judge(self, step: int, shape: nn.Module, cover: float, loss: float) -> None:
        """`check` with numbers that are known."""
        if not (math.isfinite(loss) and math.isfinite(cover)):
            raise DivergedError(f"step {step}: the loss is not finite; lower lr or set score.clip")
        for state, now in (("empty", cover < self.config.empty), ("full", cover > self.config.full)):
            self.streak[state] = self.streak[state] + 1 if now else 0
        if self.streak["empty"] >= self.config.patience:
            raise CollapsedError(
                f"step {step}: the object vanished (mean opacity {cover:.4f}); lower losses.opacity, raise "
                "score.guidance or try another seed"
            )
        if self.streak["full"] >= self.config.patience:
            raise CollapsedError(
                f"step {step}: the volume filled up (mean opacity {cover:.2f}); raise losses.opacity, lower lr or try "
                "another seed"
            )
        if step % 10 == 0:
            self.check_parameters(step, shape)

    @torch.no_grad()
    def check_parameters(self, step: int, shape: nn.Module) -> None:
        """Raises DivergedError when a parameter is not finite or far too large."""
        named = {name: p for name, p in shape.named_parameters() if p.numel()}
        for name, largest in zip(named, torch.stack([p.abs().amax() for p in named.values()]).tolist(), strict=True):
            if not math.isfinite(largest) or largest > self.config.largest:
                raise DivergedError(f"step {step}: {name} reached {largest:.3g}; lower lr or set score.clip")


def sees_the_ball(camera: Camera, radius: float) -> Tensor:
    """Pixels (B, H, W) whose rays meet the ball of this radius around the origin."""
    origins, directions = camera.rays()
    along = directions / directions.norm(dim=-1, keepdim=True)
    return torch.linalg.cross(origins, along).norm(dim=-1) < radius


@torch.no_grad()
def coverage(shape: Representation, size: int = 32, turns: int = 8) -> float:
    """Mean opacity in [0, 1] of a shape where the ball that it is rendered in is seen, from all around."""
    camera = Camera.orbit([360 * turn / turns for turn in range(turns)], 15.0, 3.5, 40.0, size).to(shape.device)
    seen = shape.render(camera, ("alpha",))
    return float(Health(HealthConfig(), shape.bounds).cover(seen, camera))
