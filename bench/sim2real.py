"""Stable-Sim2Real on the toybox's sensor: distributions of its residuals, patches that give it away, a net downstream.

"Real" is the toybox's own sensor (noise that grows with depth and slant, pixels that fly at edges, shadows, lost dark
and grazing surfaces, counted disparities) on views that no stage has seen. Hand-made noise has the standard deviation
of the training measurements, or follows the square of the depth; both lose pixels at random at the true rate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.priors import load_prior
from ..core.training.config import TrainerConfig
from ..core.training.objectives.base import fixed_init
from ..core.training.sampling_order import seed_of
from ..core.training.trainer import Trainer
from ..tasks.codecs.residual import ResidualDepthCodec
from ..tasks.point_critic import CriticConfig, DepthPairs, auc, realness, trained_critic
from ..tasks.sim2real import SensorConfig, SensorSimulator, SensorStage, UNetPrior, load_sensor
from ..tasks.sim2real_train import FlaggedPairs, SensorObjective, residuals, wasserstein
from ..toybox.sensor import SensorModel
from ..toybox.sensor_pairs import SensorPairs
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .intervals import spread
from .rendered import RenderedPlaces
from .runner import Context

SLANTS_DEG = ((0.0, 30.0), (30.0, 60.0), (60.0, 90.0))
CODEC = ResidualDepthCodec((0.1, 10.0), 9.8, 0.5, True, 1e-3)


@dataclass(frozen=True)
class Sim2realBench:
    """Sizes of the experiment."""

    groups: int = 16
    """rooms that critics, nets and stages that are not shipped learn from, four eyes each"""
    test_groups: int = 12
    size: int = 32
    steps: tuple[int, int] = (500, 200)
    """updates of stage 1 and stage 2, where none are shipped"""
    batch: int = 16
    lr: float = 2e-3
    draw_steps: int = 20
    seeds: tuple[int, ...] = (0, 1)
    """of drawn measurements, of critics and of the nets downstream"""
    net_steps: int = 150
    sensor: SensorModel = field(default_factory=lambda: SensorModel(window_px=0.7))


QUICK = Sim2realBench(6, 3, 32, (12, 6), 8, draw_steps=4, seeds=(0,), net_steps=10)


@dataclass(frozen=True)
class Scenes:
    """Clean depth and its real measurement (N, 1, H, W) in metres, K (N, 3, 3), slants (N, 1, H, W) in degrees."""

    clean: Tensor
    real: Tensor
    K: Tensor
    slant_deg: Tensor

    @classmethod
    def of(cls, pairs: SensorPairs) -> Scenes:
        """Everything there is, each view with its own measurement."""
        every = np.arange(len(pairs))
        batch = pairs.batch(every, None)
        clean, real = (torch.from_numpy(batch[name])[:, None] for name in ("clean", "measured"))
        slant = torch.from_numpy(np.rad2deg(pairs.incidence(every))).float()[:, None]
        return cls(clean, real, torch.from_numpy(batch["K"]), slant)


Draw = Callable[[Scenes, int], Tensor]  # measurements (N, 1, H, W) of scenes with a seed


def run(context: Context) -> dict[str, Any]:
    """Stages trained, then compared with clean depth and hand-made noise."""
    config = QUICK if context.quick else Sim2realBench()
    return measured_with(config, context)


def measured_with(config: Sim2realBench, context: Context) -> dict[str, Any]:
    """The record of the experiment at these sizes."""
    prior = load_prior(context.prior)
    if not isinstance(prior, UNetPrior):
        raise InputError(f"--prior {context.prior} has no U-Net to control")
    train = SensorPairs(RenderedPlaces("train", config.groups, config.size, maps=True), config.sensor)
    test = SensorPairs(RenderedPlaces("test", config.test_groups, config.size, maps=True), config.sensor)
    known, held = Scenes.of(train), Scenes.of(test)
    simulator = shipped(context)
    seconds: list[float] = []
    if simulator is None:
        simulator, seconds = trained(prior, train, config)
    draws = ways(simulator, known, config)
    made = {name: [draw(known, seed + 100) for seed in config.seeds] for name, draw in draws.items()}
    table = [distribution_row(name, draw, held, known, made[name], config) for name, draw in draws.items()]
    table += downstream_rows(made, known, held, config)
    _picture(draws, held, context.picture())
    return {
        "config": asdict(config),
        "seeds": list(config.seeds),
        "images": len(test),
        "table": table,
        "stages": "trained here" if seconds else "shipped",
        "training_seconds": seconds,
        "nfe": {"stage 1": config.draw_steps, "stage 2": 2 * config.draw_steps},
    }


def shipped(context: Context) -> SensorSimulator | None:
    """The stages that come with a prior; None where there are none, and for quick runs, which try the training."""
    try:
        return None if context.quick else load_sensor(context.prior)
    except InputError:
        return None


def trained(prior: UNetPrior, pairs: SensorPairs, config: Sim2realBench) -> tuple[SensorSimulator, list[float]]:
    """Both stages, stage 2 on what stage 1 draws, and their seconds."""
    stages: list[SensorStage] = []
    seconds = []
    for number, steps in enumerate(config.steps, 1):
        sensor = SensorConfig(number, CODEC, "patches", gain=6.0, steps=config.draw_steps)  # type: ignore[arg-type]
        stage = SensorStage(prior, sensor)
        data: Any = pairs
        if stages:
            data = FlaggedPairs(pairs, SensorSimulator(stages), CriticConfig(), 0, config.draw_steps)
        settings = TrainerConfig(
            steps=steps, batch=config.batch, optimizer="muon", lr=config.lr, warmup=steps // 20, ema=0.99
        )
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(settings, SensorObjective(stage), data, Path(folder) / "run", "cpu")
            trainer.run()
        with trainer.averaged():
            kept = {name: p.detach().clone() for name, p in stage.tensors().items()}
        for name, p in stage.tensors().items():
            p.data.copy_(kept[name])
        for module in stage.modules().values():
            module.requires_grad_(False).eval()
        stages.append(stage)
        seconds.append(round(trainer.seconds, 1))
    return SensorSimulator(stages), seconds


def ways(simulator: SensorSimulator, known: Scenes, config: Sim2realBench) -> dict[str, Draw]:
    """What measures clean depth, by name: hand-made noise is fitted to the training measurements."""
    return {
        **hand_made(known),
        "stage 1": drawing(simulator, 1, config),
        "stage 2": drawing(simulator, 2, config),
    }


def hand_made(known: Scenes) -> dict[str, Draw]:
    """Noise without a network, fitted to known measurements, and none."""
    answered = CODEC.answered(known.real, known.clean)
    off = (known.real - known.clean)[answered]
    std = float(off.std())
    growth = float((off.square().sum() / known.clean[answered].pow(4).sum()).sqrt())  # std = growth z^2
    lost = float((~answered[CODEC.seen(known.clean)]).float().mean())

    def hand(spread_of: Callable[[Tensor], Tensor]) -> Draw:
        def draw(scenes: Scenes, seed: int) -> Tensor:
            rng = generator(seed_of(seed, 7))
            noisy = scenes.clean + spread_of(scenes.clean) * torch.randn(scenes.clean.shape, generator=rng)
            kept = torch.rand(scenes.clean.shape, generator=rng) >= lost
            return torch.where(kept & (scenes.clean > 0), noisy.clamp(min=1e-3), 0.0)

        return draw

    return {
        "gaussian": hand(lambda clean: torch.full_like(clean, std)),
        "clean": lambda scenes, seed: scenes.clean,
        "gaussian growing with depth squared": hand(lambda clean: growth * clean.square()),
    }


def drawing(simulator: SensorSimulator, number: int, config: Sim2realBench) -> Draw:
    """What the first so many stages draw."""

    def draw(scenes: Scenes, seed: int) -> Tensor:
        parts = []
        for first in range(0, len(scenes.clean), 32):
            clean = scenes.clean[first : first + 32]
            sources = [generator(seed_of(seed, first + i)) for i in range(len(clean))]
            parts.append(simulator.measured(clean, sources, config.draw_steps, stages=number))
        return torch.cat(parts)

    return draw


def distribution_row(
    name: str, draw: Draw, held: Scenes, known: Scenes, learnt: Sequence[Tensor], config: Sim2realBench
) -> dict[str, Any]:
    """Distances of the residuals' distributions from the real ones on held-out scenes, and what a critic says that has
    learnt from measurements of the known scenes, one set a seed."""
    found: dict[str, list[float]] = {}
    for seed, drawn in zip(config.seeds, learnt, strict=True):
        made = draw(held, seed)
        for key, value in distances(made, held).items():
            found.setdefault(key, []).append(value)
        critic = trained_critic(DepthPairs(known.clean, known.real, drawn, known.K), seed=seed)
        patch = CriticConfig().patch
        told = [realness(critic, one, held.clean, held.K, patch) for one in (held.real, made)]
        found.setdefault("critic_auc", []).append(auc(*told))
    return {"method": name, **{key: spread(values) for key, values in found.items()}}


def distances(made: Tensor, held: Scenes) -> dict[str, float]:
    """Of measurements (N, 1, H, W) from the real ones of the same clean depth."""
    found = {
        "wasserstein_mm": 1000
        * wasserstein(residuals(CODEC, held.real, held.clean), residuals(CODEC, made, held.clean))
    }
    for low, high in SLANTS_DEG:
        inside = (held.slant_deg >= low) & (held.slant_deg < high)
        clean = torch.where(inside, held.clean, 0.0)
        name = f"{low:g}_to_{high:g}_deg"
        both = [residuals(CODEC, one, clean) for one in (held.real, made)]
        found[f"wasserstein_mm_{name}"] = 1000 * wasserstein(*both)
        lost = [float((~CODEC.answered(one, clean))[CODEC.seen(clean)].float().mean()) for one in (held.real, made)]
        found[f"holes_off_{name}"] = abs(lost[1] - lost[0])
    answered = CODEC.answered(made, held.clean)
    found["abs_rel"] = float(((made - held.clean).abs() / held.clean)[answered].mean())
    found["holes"] = float((~answered)[CODEC.seen(held.clean)].float().mean())
    return found


class Restorer(nn.Module):
    """Measured depth to clean depth: what one would train on simulated data. (B, 1, H, W) metres to the same."""

    def __init__(self, width: int = 24, seed: int = 0) -> None:
        super().__init__()
        with fixed_init(seed):
            layers: list[nn.Module] = [nn.Conv2d(2, width, 3, padding=1)]
            for dilation in (1, 2, 4, 1):
                layers += [nn.SiLU(), nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)]
            self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, measured: Tensor) -> Tensor:
        """See the class."""
        there = measured > 0
        logs = torch.where(there, measured, 1.0).log()
        middle = (logs * there).sum((2, 3), keepdim=True) / there.sum((2, 3), keepdim=True).clamp(min=1)
        given = torch.where(there, logs - middle, 0.0)
        return (middle + given + self.layers(torch.cat([4 * given, there.to(given)], 1))).exp()


def downstream_rows(
    made: Mapping[str, Sequence[Tensor]], known: Scenes, held: Scenes, config: Sim2realBench
) -> list[dict[str, Any]]:
    """Errors on real measurements of nets that learnt from each kind, and the share of the gap that each closes."""
    kinds = {"real": [known.real] * len(config.seeds), **made}
    errors = {
        name: [restored_error(one, known, held, seed, config) for seed, one in zip(config.seeds, drawn, strict=True)]
        for name, drawn in kinds.items()
    }
    gap = np.mean(errors["clean"]) - np.mean(errors["real"])
    rows = []
    for name, values in errors.items():
        closed = float((np.mean(errors["clean"]) - np.mean(values)) / gap) if gap else float("nan")
        rows.append({"method": f"net trained on {name}", "rmse_log": spread(values), "gap_closed": round(closed, 3)})
    return rows


def restored_error(given: Tensor, known: Scenes, held: Scenes, seed: int, config: Sim2realBench) -> float:
    """RMSE of log depth on held-out real measurements, holes included, after training on `given`."""
    net = Restorer(seed=seed)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.net_steps)
    rng = np.random.default_rng(seed)
    for _ in range(config.net_steps):
        chosen = torch.from_numpy(rng.integers(len(given), size=config.batch))
        loss = F.mse_loss(net(given[chosen]).log(), known.clean[chosen].log())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(F.mse_loss(net(held.real).log(), held.clean.log()).sqrt())


def _picture(draws: Mapping[str, Draw], held: Scenes, path: Path, rows: int = 4) -> None:
    """Clean, real and every kind of measurement of a few scenes, and how far each is off, +- 5 cm."""
    few = Scenes(*(getattr(held, name)[:: max(1, len(held.clean) // rows)][:rows] for name in Scenes.__annotations__))
    shown = [few.clean, few.real, *(draw(few, 0) for name, draw in draws.items() if name != "clean")]
    tiles = []
    for i in range(len(few.clean)):
        far = float(few.clean[i].max())
        for one in shown:
            tiles.append(_enlarged(ResidualDepthCodec(largest_m=min(far, 4.9)), one[i, 0]))
        for one in shown:
            off = torch.where(one[i, 0] > 0, (one[i, 0] - few.clean[i, 0]) / 0.1 + 0.5, torch.nan)
            grey = torch.where(torch.isfinite(off), off.clamp(0, 1), 1.0)
            hole = torch.isfinite(off)[..., None]
            rgb = torch.where(hole, grey[..., None].expand(-1, -1, 3), torch.tensor([0.85, 0.2, 0.2]))
            tiles.append(np.kron((rgb.numpy() * 255).astype(np.uint8), np.ones((3, 3, 1), np.uint8)))
    save_image(path, grid(tiles, columns=len(shown)))


def _enlarged(codec: ResidualDepthCodec, depth: Tensor) -> np.ndarray:
    return np.kron(codec.picture(depth.numpy()[..., None]), np.ones((3, 3, 1), np.uint8))
