"""The noise path of a prior: its levels, from train indices, from model times and from lambda.

x = alpha x0 + sigma eps, lambda = log(alpha / sigma). VP: alpha = sqrt(abar), sigma = sqrt(1 - abar),
abar = cumprod(1 - beta); rectified flow: alpha = 1 - sigma. Indices run over the N train steps, 0 = least noise; model
time is what the prior's network is asked with (VP: the index; flow: N sigma, sigma = (index + 1) / N; EDM-trained
networks on a VP path, such as SVD's: log(sigma / alpha) / 4).

Between train indices lambda is linear in the index, in both directions. Schedulers of diffusers find the time of a
sigma so (log sigma / alpha, linear in the time), and a level must be asked at the time that they would ask it at; the
code of DPM-Solver interpolates log alpha instead, which is further off where noise is least (docs/sampling.md).

Tables and levels are float64 on the CPU; what multiplies a state is cast to its dtype before it moves to its device, as
not every device has float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError
from .base import PredictionType
from .schedulers import read_scheduler

Scalar = float | Tensor
ABAR_FLOOR = 2.0**-24  # stands for abar = 0 in schedules with zero terminal signal, so that lambda stays finite


@dataclass(frozen=True)
class Level:
    """One noise level; fields are floats, or float64 tensors (B,) on the CPU for one per sample."""

    alpha: Scalar
    sigma: Scalar
    lam: Scalar  # log(alpha / sigma); +inf without noise, -inf without signal
    model_time: Scalar
    index: Scalar  # train index, fractional allowed; -1 for the clean end
    span: float = 1000.0  # model time of the whole path, N
    continuous: bool = False  # whether the model time says log sigma; the index alone then tells shares of the path

    def coefficients(self, x: Tensor) -> tuple[Scalar, Scalar]:
        """(alpha, sigma) ready to multiply x (B, ...) of any rank: floats, or (B, 1, ...) in its dtype and place."""
        if isinstance(self.alpha, Tensor) and isinstance(self.sigma, Tensor):
            shape = (-1, *[1] * (x.ndim - 1))
            alpha, sigma = (value.reshape(shape).to(x.dtype).to(x.device) for value in (self.alpha, self.sigma))
            return alpha, sigma
        return self.alpha, self.sigma

    def times(self, x: Tensor) -> Tensor:
        """Model time (B,) for a batch x, float32 (float64 for a float64 state)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(self.model_time, Tensor):
            return self.model_time.to(dtype).to(x.device).expand(x.shape[0])
        return torch.full((x.shape[0],), self.model_time, device=x.device, dtype=dtype)

    def within(self, interval: tuple[float, float]) -> Tensor:
        """Whether the level lies in an interval of fractions of the train time: (), or (B,) of one per sample."""
        place = self.index if self.continuous else self.model_time
        share = torch.as_tensor(place, dtype=torch.float64) / self.span
        return (interval[0] <= share) & (share <= interval[1])

    def item(self) -> Level:
        """A level of 0-d tensors as one of floats."""
        alpha, sigma, lam = float(self.alpha), float(self.sigma), float(self.lam)
        return Level(alpha, sigma, lam, float(self.model_time), float(self.index), self.span, self.continuous)


@dataclass(frozen=True, eq=False)
class NoisePath:
    """Levels of a prior; tensors of any device come in, levels of the same shape come out, differentiable in them."""

    steps: int  # train steps N
    lambdas: Tensor | None  # (N,) float64, decreasing; None for rectified flows
    continuous: bool = False  # the network is told c_noise = log(sigma / alpha) / 4 (Karras et al. 2022), not an index

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoisePath:
        """The path that a diffusers scheduler config describes; raises InputError for what is not supported."""
        read = read_scheduler(config)
        if read.get("prediction_type") == "flow_prediction":
            return cls(int(read.get("num_train_timesteps", 1000)), None)
        abar = alpha_bar_table(read)
        lambdas = 0.5 * (abar.log() - torch.log1p(-abar))
        continuous = read.get("timestep_type") == "continuous"
        if continuous:  # no train steps: N places between the ends of the sigmas, where the config gives them
            ends = [read.get("sigma_min"), read.get("sigma_max")]
            low, high = (
                end if given is None else -math.log(given) for end, given in zip(lambdas[[0, -1]], ends, strict=True)
            )
            lambdas = torch.linspace(float(low), float(high), len(abar), dtype=torch.float64)
        return cls(len(abar), lambdas, continuous)

    @property
    def flow(self) -> bool:
        """Whether this is a rectified flow."""
        return self.lambdas is None

    def at_index(self, index: Tensor) -> Level:
        """Levels at train indices, fractional allowed; outside the table (VP) its end goes on evenly."""
        position = on_cpu(index)
        if self.lambdas is None:
            return self._flow((position + 1) / self.steps, index=position)
        low = position.long().clamp(0, self.steps - 2)
        lam = torch.lerp(self.lambdas[low], self.lambdas[low + 1], position - low)
        return self._vp(lam, position)

    def at_time(self, time: Tensor) -> Level:
        """Levels at model times."""
        if self.continuous:
            return self.at_lambda(-4 * on_cpu(time))
        return self.at_sigma(on_cpu(time) / self.steps) if self.lambdas is None else self.at_index(time)

    def at_sigma(self, sigma: Tensor) -> Level:
        """Levels of a flow at these sigmas in [0, 1]."""
        return self._flow(on_cpu(sigma))

    def at_lambda(self, lam: Tensor) -> Level:
        """Levels of lambdas; beyond those of the table (VP) the time stays at its end."""
        lam = on_cpu(lam)
        if self.lambdas is None:
            return self._flow(torch.sigmoid(-lam), lam)
        above = torch.searchsorted(-self.lambdas, -lam.detach()).clamp(1, self.steps - 1)
        start, end = self.lambdas[above - 1], self.lambdas[above]
        return self._vp(lam, (above - 1 + (lam - start) / (end - start)).clamp(0, self.steps - 1))

    def _vp(self, lam: Tensor, index: Tensor) -> Level:
        alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
        time = -lam / 4 if self.continuous else index
        return Level(alpha, sigma, lam, time, index, float(self.steps), self.continuous)

    def _flow(self, sigma: Tensor, lam: Tensor | None = None, index: Tensor | None = None) -> Level:
        lam = torch.log1p(-sigma) - sigma.log() if lam is None else lam
        index = sigma * self.steps - 1 if index is None else index
        return Level(1 - sigma, sigma, lam, self.steps * sigma, index, float(self.steps))


def on_cpu(values: Tensor) -> Tensor:
    """Float64 on the CPU: moved, then widened, as not every device has float64."""
    return values.cpu().double()


def predicts(config: Mapping[str, Any]) -> PredictionType:
    """What the network of a prior with this scheduler config predicts."""
    kind: PredictionType = read_scheduler(config).get("prediction_type", "epsilon")
    return kind


def alpha_bar_table(config: Mapping[str, Any]) -> Tensor:
    """abar (N,) float64, decreasing, of a VP config (linear, scaled_linear, squaredcos_cap_v2 or trained betas)."""
    steps = int(config.get("num_train_timesteps", 1000))
    kind = config.get("beta_schedule", "linear")
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    elif kind == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif kind == "squaredcos_cap_v2":
        knots = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = torch.cos((knots + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    else:
        raise InputError(
            f"beta_schedule {kind!r} is unknown; have linear, scaled_linear, squaredcos_cap_v2 or trained_betas"
        )
    abar = torch.cumprod(1 - betas, 0)
    if config.get("snr_shift_scale") is not None:  # CogVideoX: SNR / scale
        scale = float(config["snr_shift_scale"])
        abar = abar / (scale + (1 - scale) * abar)
    if config.get("rescale_betas_zero_snr"):
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return abar.clamp(min=ABAR_FLOOR)
