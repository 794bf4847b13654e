"""What a scheduler config says about the noise path of a prior, in float64.

VP: alpha = sqrt(abar), sigma = sqrt(1 - abar), abar = cumprod(1 - beta). Rectified flow: alpha = 1 - sigma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError

ABAR_FLOOR = 2.0**-24  # stands for abar = 0 in schedules with zero terminal signal, so that lambda stays finite


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler config describes a rectified flow."""
    if config.get("prediction_type") == "flow_prediction":
        return True
    return "FlowMatch" in str(config.get("_class_name", ""))


def train_steps(config: Mapping[str, Any]) -> int:
    """Number of train steps N."""
    return int(config.get("num_train_timesteps", 1000))


def alpha_bar_table(config: Mapping[str, Any]) -> Tensor:
    """abar (N,) float64, decreasing, of a VP scheduler config (linear, scaled_linear, squaredcos_cap_v2 or trained)."""
    steps = train_steps(config)
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
    if config.get("rescale_betas_zero_snr"):
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return abar.clamp(min=ABAR_FLOOR)


def lambda_table(config: Mapping[str, Any]) -> Tensor:
    """lambda = log(alpha / sigma), (N,) float64, of a VP scheduler config."""
    abar = alpha_bar_table(config)
    return 0.5 * (abar.log() - torch.log1p(-abar))


def interpolate_lambda(lambdas: Tensor, index: Tensor) -> Tensor:
    """lambda at fractional train indices (B,), linear between the table's entries."""
    index = index.cpu().double()
    low = index.long().clamp(0, len(lambdas) - 2)
    return torch.lerp(lambdas[low], lambdas[low + 1], index - low)


def path_coefficients(config: Mapping[str, Any], time: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma), each (B, 1, 1, 1) float64 on the CPU, at model time (B,) (VP: train index; flow: 1000 sigma)."""
    if is_flow(config):
        sigma = time.cpu().double().reshape(-1, 1, 1, 1) / 1000
        return 1 - sigma, sigma
    lam = interpolate_lambda(lambda_table(config), time).reshape(-1, 1, 1, 1)
    return torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
