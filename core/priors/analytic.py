"""A Gaussian-mixture prior whose score is exact: the oracle for solvers, guidance and distillation.

x0 ~ sum_k w_k N(mu_k, s_k^2 I), so x at a level is sum_k w_k N(alpha mu_k, v_k I), v_k = alpha^2 s_k^2 + sigma^2, and
eps = -sigma score = sigma sum_k r_k (x - alpha mu_k) / v_k with responsibilities r_k (softmax over log-densities).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from .base import Prior
from .diffusers import paired
from .noise import NoisePath, predicts
from .rows import COND, NULL, Condition, Rows

SD_SCHEDULE: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
FLOW_SCHEDULE: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
}


class GaussianMixturePrior(Prior):
    """Mixture over latents (C, h, w), in float64; prompts choose components by name, others mean all of them."""

    recipe = "toybox"

    reads = frozenset({"text", "cameras"})  # views of a mixture are alike from everywhere

    def __init__(
        self,
        means: Tensor,
        stds: Tensor,
        weights: Tensor | None = None,
        names: Sequence[str] = (),
        scheduler_config: Mapping[str, Any] = SD_SCHEDULE,
    ) -> None:
        """Means (K, C, h, w), standard deviations (K,) > 0, weights (K,) summing to 1 (default equal)."""
        count = means.shape[0]
        if means.ndim != 4 or stds.shape != (count,) or bool((stds <= 0).any()):
            raise InputError("means must be (K, C, h, w) and stds (K,) positive")
        self.means, self.stds = means.double(), stds.double()
        self.log_weights = (
            torch.full((count,), -math.log(count)).double() if weights is None else weights.double().log()
        )
        self.names = tuple(names) or tuple(str(k) for k in range(count))
        self.name, self.scheduler_config = "analytic", scheduler_config
        self.path = NoisePath.from_config(scheduler_config)
        self.prediction_type = predicts(scheduler_config)
        self.latent_shape = (means.shape[1], means.shape[2], means.shape[3])
        self.image_size, self.dtype = means.shape[-1], torch.float64

    def modules(self) -> dict[str, nn.Module]:
        """No networks."""
        return {}

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """Embeddings (B, 1, K): log-weights of the components named in the prompt."""
        texts, against = paired(prompts, negative)
        told = [Rows({"text": torch.stack([self._select(t) for t in side])[:, None]}) for side in (texts, against)]
        return Condition({COND: told[0], NULL: told[1]}, texts)

    def _select(self, text: str) -> Tensor:
        words = text.split()
        named = torch.tensor([name in words for name in self.names])
        if not named.any():
            return self.log_weights
        return torch.log_softmax(self.log_weights.masked_fill(~named, -math.inf), 0)

    def _coefficients(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), each (B, 1, 1, 1) float64 on the device of x."""
        alpha, sigma = self.path.at_time(time).coefficients(x.double())
        return torch.as_tensor(alpha), torch.as_tensor(sigma)

    def _components(self, x: Tensor, time: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log joint density (B, K), residual x - alpha mu (B, K, C, h, w), variance (B, K)) in float64."""
        alpha, sigma = self._coefficients(x, time)
        means, stds = self.means.to(x.device), self.stds.to(x.device)
        residual = x.double()[:, None] - alpha[:, None] * means
        variance = (alpha[:, :, 0, 0] * stds) ** 2 + sigma[:, :, 0, 0] ** 2
        count = residual[0, 0].numel()
        square = residual.flatten(2).square().sum(-1)
        log_density = -0.5 * (square / variance + count * torch.log(2 * math.pi * variance))
        return log_weights[:, 0].double().to(x.device) + log_density, residual, variance

    def log_prob(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        """log p(x) (B,) at model time (B,)."""
        return self._components(x, time, rows["text"])[0].logsumexp(1)

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        joint, residual, variance = self._components(x, time, rows["text"])
        pull = torch.softmax(joint, 1) / variance  # (B, K)
        minus_score = torch.einsum("bk,bkchw->bchw", pull, residual)
        alpha, sigma = self._coefficients(x, time)
        eps = sigma * minus_score
        if self.prediction_type == "epsilon":
            return eps
        shares = torch.softmax(joint, 1)
        shrink = alpha[:, :, 0, 0] * self.stds.to(x.device) ** 2 / variance
        means = torch.einsum("bk,kchw->bchw", shares, self.means.to(x.device))
        x0 = means + torch.einsum("bk,bkchw->bchw", shares * shrink, residual)
        if self.prediction_type == "sample":
            return x0
        return alpha * eps - sigma * x0 if self.prediction_type == "v_prediction" else eps - x0

    def encode(
        self, images: Tensor, sample: bool = False, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Latents are pixels in [-1, 1]."""
        return 2 * images - 1

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """Inverse of `encode`."""
        images = latents / 2 + 0.5
        return images.clamp(0, 1) if clamp else images
