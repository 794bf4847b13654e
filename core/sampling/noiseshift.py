"""NoiseShift: tell the network another time than the level's, where the resolution makes images look noisier.

Along a straight path the error of one step is (step)^2 E|v(x_s, tau) - (eps - x0)|^2, so the best time tau to tell at
level s does not depend on the step: one table per latent shape serves every solver and grid. Levels, steps and
conversions keep the true s; only the time embedding changes. VP priors compare their own prediction instead of v; at a
fixed level that has the same minimum. A v-prediction means another mixture of eps and x0 at the time told than at the
level's, which `Denoiser` accounts for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from ...utils.digests import digest
from ...utils.errors import InputError
from ...utils.seeds import sample_noise
from ..priors.base import Prior
from ..priors.noise import on_cpu, predicts
from ..priors.rows import Condition
from .caches.hooks import network_of
from .calibration import Calibration, Fingerprint, probe_generator
from .denoiser import Denoiser
from .levels import Level, NoiseSchedule

KIND = "time-remap"
HOOK = "unproject_time_remap"
TIME_UNITS = {"FluxTransformer2DModel": 1000.0}  # model time per unit of the network's argument, where it is not 1


class TimeRemap:
    """Piecewise linear map of model times to the times told; an identity table gives every time back bit for bit."""

    def __init__(self, times: Tensor, told: Tensor) -> None:
        """Two (n,) tables in model time (VP: train index; flow: 1000 sigma), `times` rising, `told` never falling."""
        if times.ndim != 1 or times.shape != told.shape or len(times) < 2:
            raise InputError(
                f"times {tuple(times.shape)} and told {tuple(told.shape)} must be tables of n >= 2 entries"
            )
        self.times, self.told = on_cpu(times), on_cpu(told)
        if bool((self.times.diff() <= 0).any()) or bool((self.told.diff() < 0).any()):
            raise InputError("times must rise and told must not fall; smooth the table first (`isotonic`)")

    def __call__(self, time: Tensor) -> Tensor:
        """Times to tell (B,), in the dtype and on the device given; outside the table its end offsets hold."""
        place = on_cpu(time.detach()).clamp(self.times[0], self.times[-1])
        right = torch.searchsorted(self.times, place).clamp(1, len(self.times) - 1)
        low, high = self.times[right - 1], self.times[right]
        offsets = self.told - self.times
        offset = torch.lerp(offsets[right - 1], offsets[right], (place - low) / (high - low))
        return time + offset.to(time.device, time.dtype)

    @property
    def shift(self) -> float:
        """Mean offset as a fraction of the table's range; positive: levels are told as noisier."""
        return float((self.told - self.times).mean() / (self.times[-1] - self.times[0]))

    def save(self, path: str | Path, made_for: Fingerprint) -> Path:
        """Writes the table as a calibration artefact."""
        return Calibration(KIND, {"times": self.times, "told": self.told}, made_for).save(path)

    @classmethod
    def load(cls, path: str | Path, expected: Fingerprint | None = None) -> TimeRemap:
        """Reads a table made for the same network, path and latent shape; guidance does not matter to it."""
        tensors = Calibration.load(path, KIND, expected, ignore=("guidance",)).tensors
        return cls(tensors["times"], tensors["told"])


@dataclass(frozen=True)
class RemapSearch:
    """How a table is searched; all in fractions of the train time."""

    levels: int = 20  # evenly spaced over the train time, ends included
    reach: float = 0.2  # farthest offset tried
    cells: tuple[float, ...] = (0.05, 0.0125)  # spacing of the candidates, coarse to fine

    def __post_init__(self) -> None:
        if self.levels < 2 or not self.cells or min(self.cells) <= 0 or self.reach <= 0:
            raise InputError(f"levels={self.levels}, reach={self.reach}, cells={self.cells}: need >= 2 and positive")


class RemapFit(NamedTuple):
    """A table and the errors it rests on."""

    remap: TimeRemap
    plain: Tensor  # (n,) mean squared error at each level when the network is told the truth
    best: Tensor  # (n,) the same at the best time tried, before smoothing
    raw: Tensor  # (n,) best time before smoothing, model time


@torch.no_grad()
def calibrate_time_remap(
    prior: Prior,
    latents: Tensor,
    condition: Condition,
    search: RemapSearch = RemapSearch(),
    seed: int = 0,
    batch: int = 64,
) -> RemapFit:
    """The best table for the latent shape of `latents`, by a coarse-to-fine search at every level.

    Args:
        prior: its conditional branch is asked, without guidance.
        latents: (N, C, h, w) clean scaled latents at the wanted size (images resized with antialiasing first).
        condition: N rows, or one.
        search: grid and range.
        seed: image i gets noise of its own for seed + i, the same at every level and candidate.
        batch: rows asked at once.
    """
    rows = latents.shape[0]
    condition = condition.for_batch(rows)
    noise = sample_noise(latents.shape[1:], [probe_generator(seed + i) for i in range(rows)], rows, latents.device)
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    top = float(schedule.steps - (not schedule.flow))
    fractions = torch.linspace(0, 1, search.levels, dtype=torch.float64)
    told, plain, best = [], [], []
    offset = 0.0
    for fraction in fractions.tolist():
        level = schedule.at_index(fraction * schedule.steps - 1 if schedule.flow else fraction * top)
        errors: dict[float, float] = {}

        def error(tau: float, level: Level = level, errors: dict[float, float] = errors) -> float:
            if tau not in errors:
                errors[tau] = _error(prior, latents, noise, condition, level, tau * top, batch)
            return errors[tau]

        plain.append(error(fraction))
        offset = _searched(error, fraction, offset, search)
        told.append((fraction + offset) * top)
        best.append(errors[fraction + offset])
    raw = torch.tensor(told, dtype=torch.float64)
    smooth = isotonic(torch.cat([torch.zeros(1).double(), raw[1:-1], torch.full((1,), top).double()]))
    remap = TimeRemap(fractions * top, smooth)
    return RemapFit(remap, torch.tensor(plain, dtype=torch.float64), torch.tensor(best, dtype=torch.float64), raw)


def _searched(error: Any, fraction: float, warm: float, search: RemapSearch) -> float:
    """Best offset: candidates about the truth and the last level's offset, then finer and finer about the best."""
    coarse = search.cells[0]
    count = math.floor(search.reach / coarse + 1e-9)
    candidates = [0.0, *(k * coarse for k in range(-count, count + 1)), warm]
    best = 0.0
    for finer in (*search.cells[1:], None):
        inside = [o for o in candidates if 0 <= fraction + o <= 1 and abs(o) <= search.reach + 1e-9]
        best = min(inside, key=lambda o: (error(fraction + o), abs(o)))
        if finer is not None:
            near = math.ceil(coarse / finer) - 1
            candidates = [best, *(best + k * finer for k in range(-near, near + 1) if k)]
            coarse = finer
    return best


def _error(
    prior: Prior, latents: Tensor, noise: Tensor, condition: Condition, level: Level, told: float, batch: int
) -> float:
    """Mean squared error of the prior's own prediction at `level` when it is told time `told`."""
    total = 0.0
    for start in range(0, latents.shape[0], batch):
        part = slice(start, start + batch)
        x0, eps = latents[part], noise[part].to(latents)
        denoiser = Denoiser(prior, condition.index(part), time_remap=lambda time: torch.full_like(time, told))
        schedule = denoiser.schedule
        found = denoiser(schedule.add_noise(x0, eps, level), level)
        wanted = schedule.target(found.kind, x0, eps, level)
        total += float((found.raw - wanted).square().mean(dim=(1, 2, 3)).cpu().double().sum())
    return total / latents.shape[0]


def isotonic(values: Tensor) -> Tensor:
    """The never-falling sequence nearest to values (n,) in least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values.double().tolist():
        mean, size = value, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return torch.tensor([mean for mean, size in blocks for _ in range(size)], dtype=torch.float64)


def resolution_rule(schedule: NoiseSchedule, pixels: float, trained_pixels: float, levels: int = 20) -> TimeRemap:
    """The table without calibration: noise at `pixels` is as uncertain as lambda - log a at the trained size.

    a = sqrt(trained_pixels / pixels), the rule by which flow models shift their sampling levels with the resolution
    (Esser et al. 2024, section 5.3.2), applied to what the network is told.
    """
    shift = 0.5 * math.log(trained_pixels / pixels)
    top = float(schedule.steps - (not schedule.flow))
    times = torch.linspace(0, top, levels, dtype=torch.float64)
    indices = times - 1 if schedule.flow else times
    told = [float(schedule.at_lambda(float(schedule.at_index(i).lam) - shift).model_time) for i in indices.tolist()]
    return TimeRemap(times, isotonic(torch.tensor(told, dtype=torch.float64).clamp(0, top)))


class _TimeHook(ModelHook):
    """Rewrites the timestep argument of a network."""

    def __init__(self, remap: TimeRemap, unit: float) -> None:
        super().__init__()
        self.remap, self.unit = remap, unit
        self.changes = f"times remapped by {digest({'times': remap.times, 'told': remap.told})}"

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        """Finds the argument."""
        self._position = list(inspect.signature(type(module).forward).parameters).index("timestep") - 1
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Sequence[Any], dict[str, Any]]:
        """Changes the time, nothing else."""
        if "timestep" in kwargs:
            return args, {**kwargs, "timestep": self._told(kwargs["timestep"])}
        place = self._position
        return (*args[:place], self._told(args[place]), *args[place + 1 :]), kwargs

    def _told(self, time: Tensor | float) -> Tensor:
        value = time if isinstance(time, Tensor) else torch.tensor(float(time))
        value = value if value.is_floating_point() else value.float()
        return self.remap(value.reshape(-1) * self.unit).reshape(value.shape) / self.unit


def apply_time_remap(target: Any, remap: TimeRemap) -> None:
    """Makes the network of a diffusers pipeline or of a prior hear remapped times, until `remove_time_remap`.

    Raises InputError for v-prediction, which a scheduler would read at the level's own time, and for a bare network,
    which does not say what it predicts.
    """
    kind = _kind_of(target)
    if kind == "v_prediction":
        raise InputError(
            f"{type(target).__name__} predicts v, whose meaning depends on the time told, and its scheduler would not "
            "know that time; give the table to Denoiser or TextToImage as time_remap="
        )
    network = network_of(target)
    unit = TIME_UNITS.get(type(network).__name__, 1.0)
    HookRegistry.check_if_exists_or_initialize(network).register_hook(_TimeHook(remap, unit), HOOK)


def remove_time_remap(target: Any) -> None:
    """Takes the remap off the network of a pipeline or prior, which is then what it was."""
    HookRegistry.check_if_exists_or_initialize(network_of(target)).remove_hook(HOOK, recurse=False)


def _kind_of(target: Any) -> str:
    """What the network of a prior or pipeline predicts."""
    if isinstance(target, Prior):
        return target.prediction_type
    config = getattr(getattr(target, "scheduler", None), "config", None)
    if config is None:
        raise InputError(
            f"a {type(target).__name__} does not say what it predicts; give the pipeline or the prior it belongs to"
        )
    return predicts({**config, "_class_name": type(target.scheduler).__name__})
