"""Parts of a picture that are known and stay, while the rest is drawn (RePaint, Lugmayr et al. 2022, without its
resampling).

Every prediction gets the known parts as its clean estimate, x0 <- m x0 + (1 - m) known; under a deterministic solver
that began at the noised known picture (`ImageInit(known, 1.0)`) this is the blend of the states, x_t <- m x_t + (1 - m)
(alpha known + sigma eps) with one eps, which Direct2.5 makes after every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.errors import InputError
from .denoiser import Denoiser
from .prediction import Prediction


@dataclass(frozen=True, eq=False)
class HeldParts:
    """A control of predictions (`Denoiser`'s `controls`)."""

    known: Tensor  # (B, C, h, w) clean latents
    free: Tensor  # (B, 1, h, w) in [0, 1]: 1 where it is drawn, 0 where it stays

    def __post_init__(self) -> None:
        wanted = (len(self.known), 1, *self.known.shape[2:])
        if tuple(self.free.shape) != wanted:
            raise InputError(f"free has shape {tuple(self.free.shape)}, expected {wanted} of the known latents")

    def __call__(self, denoiser: Denoiser, prediction: Prediction) -> Prediction:
        """The prediction with the known parts; where everything is free the same bits."""
        x = prediction.x
        known = Prediction(x, prediction.level, self.known.to(x).expand_as(x), "sample").read(prediction.kind)
        return prediction.with_raw(torch.lerp(known, prediction.raw, self.free.to(x)))
