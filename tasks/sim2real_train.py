"""Training of a simulator's stages: x0 of noised residual latents, weighted where stage 1 was found out.

L = mean w (z0 - z0_theta(z_t, t, hint))^2, t uniform; stage 2 learns with w of `point_critic.weight_map` and what
stage 1 drew of the same clean depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..core.training.loss import LossOut
from ..core.training.objectives.base import Objective
from ..core.training.sampling_order import seed_of
from ..utils.configs import to_dict
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .codecs.residual import ResidualDepthCodec
from .point_critic import CriticConfig, DepthPairs, realness, trained_critic, weight_map
from .sim2real import SensorConfig, SensorSimulator, SensorStage


class MeasuredPairs(Protocol):
    """Clean depth with measurements: batches {"clean", "measured" (B, H, W) in metres, "K" (B, 3, 3)}, float32."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]: ...


@dataclass(frozen=True)
class SensorTraining:
    """What a run of the objective is defined by."""

    sensor: SensorConfig
    validation: int = 32
    """pairs on which validation draws"""
    validation_steps: int = 20


class SensorObjective(Objective):
    """Trains a stage: its decoder and the copy of the encoder that reads the hint."""

    def __init__(self, stage: SensorStage, held_out: MeasuredPairs | None = None, validation: int = 32) -> None:
        self.stage, self.held_out = stage, held_out
        self.config = SensorTraining(stage.config, validation)
        self.modules: dict[str, nn.Module] = stage.modules()
        self.frozen: dict[str, nn.Module] = {"vae": stage.prior.vae}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss; a batch of stage 2 holds "first" and "weights" too (`FlaggedPairs`)."""
        stage, clean, measured = self.stage, self._tensor(batch, "clean"), self._tensor(batch, "measured")
        first = self._tensor(batch, "first") if stage.config.stage == 2 else None
        with torch.no_grad():
            target = stage.encode(measured, clean, rng)
            hint = stage.hint(clean, first, rng)
        t = torch.randint(stage.schedule.steps, (len(target),), generator=rng)
        level = stage.schedule.at_index(t.to(target.device))
        noisy, _ = stage.schedule.noised(target, level, rng)
        found = stage.denoiser(hint)(noisy, level).x0
        error = (target - found).square()
        if "weights" in batch:
            error = error * torch.as_tensor(batch["weights"]).to(error)
        return LossOut(error.mean(), {"latent_mse": error.detach().mean()})

    def _tensor(self, batch: dict[str, Any], name: str) -> Tensor:
        return torch.as_tensor(batch[name]).to(self.stage.unet.device, torch.float32)[:, None]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Distance of the distributions of drawn and real residuals, and the shares of holes, on held-out pairs."""
        if self.held_out is None:
            return {}
        clean, real, drawn = self._drawn(min(self.config.validation, len(self.held_out)))
        answered = self.stage.codec.answered
        gone, lost = (
            float((~answered(one, clean))[self.stage.codec.seen(clean)].float().mean()) for one in (real, drawn)
        )
        return {
            "wasserstein_mm": 1000
            * wasserstein(residuals(self.stage.codec, real, clean), residuals(self.stage.codec, drawn, clean)),
            "holes_real": gone,
            "holes_drawn": lost,
        }

    def _drawn(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """(clean, real, drawn) of the first held-out pairs."""
        assert self.held_out is not None
        batch = self.held_out.batch(np.arange(count), None)
        clean, real = self._tensor(batch, "clean"), self._tensor(batch, "measured")
        first = self._tensor(batch, "first") if self.stage.config.stage == 2 else None
        steps = min(self.config.validation_steps, self.stage.config.steps)
        drawn = [
            self.stage.draw(
                clean[i : i + 8],
                None if first is None else first[i : i + 8],
                [generator(k) for k in range(i, min(i + 8, count))],
                steps,
            )
            for i in range(0, count, 8)
        ]
        return clean, real, torch.cat(drawn)

    @torch.no_grad()
    def preview(self, step: int, out: Path) -> list[Path]:
        """Rows of clean, real and drawn depth."""
        if self.held_out is None:
            return []
        parts = self._drawn(min(6, len(self.held_out)))
        tiles = [
            self.stage.codec.picture(one[i, 0, ..., None].cpu().numpy()) for i in range(len(parts[0])) for one in parts
        ]
        return [save_image(out / f"sensor-{step:07d}.png", grid(tiles, columns=3))]


def residuals(codec: ResidualDepthCodec, measured: Tensor, clean: Tensor) -> np.ndarray:
    """Clean minus measured depth in metres (n,) where both belong together."""
    known = codec.answered(measured, clean)
    return (clean - measured)[known].double().cpu().numpy()


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """1-D Wasserstein distance of two sets of numbers, in their unit; infinite when one is empty."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(one, other)) if len(one) and len(other) else float("inf")


class FlaggedPairs:
    """Pairs for stage 2: what stage 1 drew of each clean map ("first"), and where that was found out ("weights").

    Everything is drawn once, when the first batch is asked for, with noise of the pair's number; the critic learns
    on the same pairs, and every visit shows them as they were then.
    """

    def __init__(
        self,
        pairs: MeasuredPairs,
        first: SensorSimulator,
        config: CriticConfig | None = None,
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        """`steps`: of stage 1; None: its own."""
        self.config = config or CriticConfig()
        self.pairs, self.first, self.seed, self.steps = pairs, first, seed, steps
        self._made: tuple[np.ndarray, np.ndarray] | None = None
        self.identity = {"length": len(pairs), "critic": to_dict(self.config), "steps": steps}

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """See MeasuredPairs.batch."""
        if self._made is None:
            self._made = self._make()
        drawn, weights = self._made
        return {**self.pairs.batch(indices, None), "first": drawn[indices], "weights": weights[indices]}

    def _make(self) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for chosen in np.array_split(np.arange(len(self)), -(-len(self) // 16)):
            batch = self.pairs.batch(chosen, None)
            clean, real, K = (torch.as_tensor(batch[name]) for name in ("clean", "measured", "K"))
            drawn = self.first.measured(
                clean[:, None].to(self.first.stages[0].unet.device),
                [generator(seed_of(self.seed, int(i))) for i in chosen],
                self.steps,
                stages=1,
            )
            parts.append(DepthPairs(clean[:, None], real[:, None], drawn.cpu(), K))
        pairs = joined(parts)
        critic = trained_critic(pairs, self.config, self.seed)
        real_map = realness(critic, pairs.drawn, pairs.clean, pairs.K, self.config.patch)
        size = self.first.stages[0].latent_size(*pairs.clean.shape[2:])
        return pairs.drawn[:, 0].numpy(), weight_map(real_map, self.config, size).numpy()


def joined(parts: Sequence[DepthPairs]) -> DepthPairs:
    """Several sets of pairs as one."""
    return DepthPairs(*(torch.cat([getattr(part, name) for part in parts]) for name in ("clean", "real", "drawn", "K")))
