"""FLAIR (Erbach et al. 2025): inverse problems with a frozen prior, by variational flow matching.

A latent mu is pulled towards what the prior finds plausible and towards what was measured, in turn. In flow time t
(1 is noise), with x_t = (1 - t) mu + t e and u the prior's velocity (noise minus data):
    mu <- mu - lambda_R(t) (u - e + mu)                      regulariser, no network Jacobian
    mu <- mu - rate grad |A D(mu) - y|^2, several times       data, until the residual is the noise
The probe noise e is not fresh: it is mixed with the noise that the prior read off the last state,
e = a e_hat + sqrt(1 - a^2) z, a = 1 - t. lambda_R(t) is one over the prior's error at t, scaled to mean 1.
VP priors are asked at equal lambda: x_VP = (alpha + sigma) x_t, and u = eps - x0 is the same velocity.

Every image keeps its own data rate: it grows while the residual falls and is halved (and the step undone) when it
rises, so one start value serves every operator and decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.seeds import generator, sample_noise
from ..priors.base import Prior
from ..priors.rows import Condition
from .calibration import Calibration, Fingerprint, probe_generator
from .denoiser import Denoiser
from .guidance import Guidance, guided
from .levels import Level, NoiseSchedule
from .operators import Operator
from .sampler import StepCallback

KIND = "velocity-error"
GROWTH, SHRINK = 1.25, 0.5  # of the data rate after a step that helped, and one that did not


@dataclass(frozen=True)
class RestoreConfig:
    """Settings of `restore`; the paper's where it has them."""

    steps: int = 50
    low: float = 0.18  # flow time of the end; the prior is not asked below it
    guidance: float = 2.0
    regulariser: float = 0.5  # factor of lambda_R; 0 leaves the data term alone
    data_steps: int = 15  # per level at most
    data_rate: float = 0.1  # first step size of the data term, images in [-1, 1]
    steered: bool = True  # probe noise follows the prior's own; False draws it afresh

    def __post_init__(self) -> None:
        if self.steps < 1 or self.data_steps < 0:
            raise InputError(f"steps={self.steps} must be >= 1 and data_steps={self.data_steps} >= 0")
        if not 0 < self.low < 1:
            raise InputError(f"low={self.low} is a flow time and must lie in (0, 1)")
        if self.regulariser < 0 or self.data_rate <= 0:
            raise InputError(f"regulariser={self.regulariser} must be >= 0 and data_rate={self.data_rate} > 0")


class Restored(NamedTuple):
    """What came back."""

    images: Tensor  # (B, 3, H, W) in [0, 1]
    latents: Tensor  # (B, C, h, w)
    residual: Tensor  # (B,) root mean square of A x - y over what was measured, image units
    nfe: int  # network rows


class ErrorCurve:
    """E|u - (eps - x0)|^2 per element against flow time: how far to trust the prior at each level."""

    def __init__(self, times: Tensor, errors: Tensor) -> None:
        """Flow times (n,) evenly rising, errors (n,) > 0."""
        if times.shape != errors.shape or len(times) < 2 or bool((errors <= 0).any()):
            raise InputError("an error curve needs n >= 2 flow times and as many positive errors")
        self.times, self.errors = times.double(), errors.double()

    def weight(self, time: float) -> float:
        """1 / error at a flow time, scaled to mean 1 over the table."""
        inverse = 1 / self.errors
        table = inverse / inverse.mean()
        place = min(max(time, float(self.times[0])), float(self.times[-1]))
        right = min(max(int(torch.searchsorted(self.times, place)), 1), len(self.times) - 1)
        low, high = float(self.times[right - 1]), float(self.times[right])
        return float(torch.lerp(table[right - 1], table[right], (place - low) / (high - low)))

    def save(self, path: str | Path, made_for: Fingerprint) -> Path:
        """Writes the curve as a calibration artefact; it belongs to one guidance."""
        return Calibration(KIND, {"times": self.times, "errors": self.errors}, made_for).save(path)

    @classmethod
    def load(cls, path: str | Path, expected: Fingerprint | None = None) -> ErrorCurve:
        """Reads a curve."""
        tensors = Calibration.load(path, KIND, expected).tensors
        return cls(tensors["times"], tensors["errors"])


def flow_level(schedule: NoiseSchedule, time: float) -> Level:
    """The level of any path that has the signal-to-noise ratio of a rectified flow at `time` in [0, 1]."""
    if time <= 0 or time >= 1:
        return schedule.at_lambda(math.inf if time <= 0 else -math.inf)
    return schedule.at_lambda(math.log1p(-time) - math.log(time))


def flow_range(schedule: NoiseSchedule) -> tuple[float, float]:
    """Flow times (low, high) a prior was trained on."""
    if schedule.flow:
        return 0.0, 1.0
    low, high = (1 / (1 + math.exp(float(schedule.at_index(i).lam))) for i in (0, schedule.steps - 1))
    return low, high


@torch.no_grad()
def error_curve(
    prior: Prior,
    latents: Tensor,
    condition: Condition,
    guidance: Guidance | float = 2.0,
    levels: int = 25,
    seed: int = 0,
    batch: int = 64,
) -> ErrorCurve:
    """Measures the curve on clean latents (N, C, h, w) with N (or one) condition rows; noise i belongs to seed + i."""
    rows = latents.shape[0]
    condition = condition.for_batch(rows)
    noise = sample_noise(latents.shape[1:], [probe_generator(seed + i) for i in range(rows)], rows, latents.device)
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    times = torch.linspace(*flow_range(schedule), levels, dtype=torch.float64)
    errors = []
    for time in times.tolist():
        level, total = flow_level(schedule, time), 0.0
        for start in range(0, rows, batch):
            part = slice(start, start + batch)
            x0, eps = latents[part], noise[part].to(latents)
            found = Denoiser(prior, condition.index(part), guidance)(schedule.add_noise(x0, eps, level), level)
            total += float((found.u - (eps - x0)).square().mean((1, 2, 3)).cpu().double().sum())
        errors.append(total / rows)
    return ErrorCurve(times, torch.tensor(errors, dtype=torch.float64).clamp_min(1e-7))


def restore(
    y: Tensor,
    operator: Operator,
    prior: Prior,
    prompt: str | Sequence[str] = "",
    curve: ErrorCurve | None = None,
    noise_std: float = 0.005,
    config: RestoreConfig = RestoreConfig(),
    seed: int = 0,
    generators: Sequence[torch.Generator] | None = None,
    callback: StepCallback | None = None,
) -> Restored:
    """Images whose degraded version is y and which the prior finds plausible.

    Args:
        y: what was measured, A x + noise, of images x (B, 3, H, W) in [0, 1].
        operator: A.
        prior: any; encode and decode must be differentiable.
        prompt: what the images show, one or one each; empty is fine.
        curve: weights of the regulariser (`error_curve`, same guidance); None: the same weight at every level.
        noise_std: standard deviation of the noise in y, image units; the data term stops there.
        config: see RestoreConfig.
        seed: image i uses seed + i; other seeds give other plausible answers.
        generators: one per image instead of seeds.
        callback: called after every level with (its number, the level, latents); latents it returns replace them.
    """
    rows = y.shape[0]
    draws = list(generators) if generators is not None else [generator(seed + i) for i in range(rows)]
    denoiser = _denoiser(prior, prompt, rows, config.guidance)
    target = (2 * noise_std) ** 2 * operator.count(y)
    with torch.no_grad():
        latents = prior.encode(operator.pseudo_inverse(y).clamp(0, 1))
    data = _DataTerm(y, operator, lambda z: prior.decode(z, clamp=False), target, config.data_rate)
    endpoint = _noise(latents, draws)
    for step, time in enumerate(_times(denoiser.schedule, config)):
        weight = min(config.regulariser * (1.0 if curve is None else curve.weight(time)), 1.0)
        if weight > 0:
            probe = _noise(latents, draws)
            if config.steered:
                probe = (1 - time) * endpoint + math.sqrt(1 - (1 - time) ** 2) * probe
            with torch.no_grad():
                gradient, endpoint = regulariser_gradient(denoiser, latents, probe, time)
            latents = latents - weight * gradient
        latents = data.descend(latents, config.data_steps)
        changed = None if callback is None else callback(step, flow_level(denoiser.schedule, time), latents)
        latents = latents if changed is None else changed
    with torch.no_grad():
        images = prior.decode(latents, clamp=False)
        misfit = (operator.forward(images) - y).square().sum((1, 2, 3)) / operator.count(y)
    return Restored(images.clamp(0, 1), latents, misfit.sqrt(), denoiser.nfe)


def regulariser_gradient(denoiser: Denoiser, latents: Tensor, probe: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """(u - e + mu, the noise the prior reads off x_t) for latents mu and probe noise e, all (B, C, h, w)."""
    level = flow_level(denoiser.schedule, time)
    scale = float(level.alpha) + float(level.sigma)
    prediction = denoiser(scale * ((1 - time) * latents + time * probe), level)
    return prediction.u - probe + latents, prediction.eps


class _DataTerm:
    """Descent on |A D(mu) - y|^2 over images in [-1, 1], with a rate for each row that it remembers."""

    def __init__(
        self, y: Tensor, operator: Operator, decode: Callable[[Tensor], Tensor], target: Tensor, rate: float
    ) -> None:
        self.y, self.operator, self.decode, self.target = y, operator, decode, target
        self.rates = torch.full((y.shape[0], 1, 1, 1), rate, device=y.device)

    def descend(self, latents: Tensor, steps: int) -> Tensor:
        """At most `steps` steps; rows whose misfit is below the target stay."""
        if steps == 0:
            return latents
        misfit, slope = self._measured(latents)
        for _ in range(steps):
            active = (misfit > self.target).reshape(-1, 1, 1, 1)
            if not bool(active.any()):
                break
            trial = torch.where(active, latents - self.rates.to(latents) * slope, latents)
            new_misfit, new_slope = self._measured(trial)
            better = (new_misfit <= misfit).reshape(-1, 1, 1, 1)
            latents, slope = torch.where(better, trial, latents), torch.where(better, new_slope, slope)
            misfit = torch.where(better.flatten(), new_misfit, misfit)
            factor = torch.where(better, GROWTH, SHRINK)
            self.rates = torch.where(active, self.rates * factor, self.rates)
        return latents

    def _measured(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(sum of squares (B,), its gradient (B, C, h, w))."""
        with torch.enable_grad():
            free = latents.detach().requires_grad_(True)
            misfit = 4 * (self.operator.forward(self.decode(free)) - self.y).square().sum((1, 2, 3))
            slope = torch.autograd.grad(misfit.sum(), free)[0]
        return misfit.detach(), slope


def _times(schedule: NoiseSchedule, config: RestoreConfig) -> list[float]:
    """Flow times of the run, falling, both ends left out."""
    high = flow_range(schedule)[1]
    if config.low >= high:
        raise InputError(f"low={config.low} must lie below {high:.3f}, the noisiest flow time this prior knows")
    return torch.linspace(high, config.low, config.steps + 2, dtype=torch.float64)[1:-1].tolist()


def _denoiser(prior: Prior, prompt: str | Sequence[str], rows: int, guidance: float) -> Denoiser:
    condition = prior.encode_text(prompt)
    if condition.rows not in (1, rows):
        raise InputError(f"got {condition.rows} prompts for {rows} images; give one, or one per image")
    scale, condition = guided(prior, condition.for_batch(rows), guidance)
    return Denoiser(prior, condition, scale)


def _noise(latents: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
    return sample_noise(latents.shape[1:], draws, latents.shape[0], latents.device, latents.dtype)
