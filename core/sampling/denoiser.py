"""A prior asked with a condition and guidance: state and level in, Prediction out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.base import Condition, Prior
from .guidance import Guidance
from .levels import Level, NoiseSchedule
from .prediction import Prediction

Control = Callable[["Denoiser", Prediction], Prediction]
Remap = Callable[[Tensor], Tensor]


class Denoiser:
    """Calls the prior once per request, both guidance branches in one batch ordered (uncond, cond) as diffusers.

    `nfe` counts network rows spent by this object; `schedule` is the prior's noise path.
    """

    def __init__(
        self,
        prior: Prior,
        condition: Condition,
        guidance: Guidance | float | None = None,
        time_remap: Remap | None = None,
        controls: Sequence[Control] = (),
    ) -> None:
        """Settings of every call.

        Args:
            prior: the frozen backbone.
            condition: one row per state row.
            guidance: None: the conditional model alone.
            time_remap: model times (B,) of the levels asked to the times the network is told (`TimeRemap`); levels,
                steps and conversions keep the true level.
            controls: change the guided prediction, in order (`VelocityControl`).
        """
        self.prior, self.condition = prior, condition
        self.guidance = guidance if isinstance(guidance, Guidance) else Guidance(1.0 if guidance is None else guidance)
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        self.time_remap, self.controls = time_remap, tuple(controls)
        self.nfe = 0
        if self.guidance.scale != 1.0 and condition.null is None:
            raise InputError(
                f"guidance scale={self.guidance.scale} needs an unconditional branch, which this condition lacks; use 1"
            )
        self._both = condition.guided() if self.guidance.scale != 1.0 else None

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Prediction at x (B, C, h, w); B is the number of condition rows."""
        if self._both is None or not self._active(level):
            prediction = self.conditional(x, level)
        else:
            time = self._told(x, level)
            both = self._ask(torch.cat([x, x]), torch.cat([time, time]), self._both)
            prediction = Prediction(x, level, self.guidance.combine(*both.chunk(2)), self.prior.prediction_type)
        for control in self.controls:
            prediction = control(self, prediction)
        return prediction

    def conditional(self, x: Tensor, level: Level) -> Prediction:
        """Prediction of the conditional branch alone, without guidance and controls; differentiable in x."""
        raw = self._ask(x, self._told(x, level), self.condition)
        return Prediction(x, level, raw, self.prior.prediction_type)

    def _told(self, x: Tensor, level: Level) -> Tensor:
        """The times (B,) the network is told."""
        time = level.times(x)
        return time if self.time_remap is None else self.time_remap(time)

    def _ask(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        self.nfe += x.shape[0]
        raw = self.prior.predict(x, time, condition)
        return raw.to(torch.promote_types(x.dtype, torch.float32))

    def _active(self, level: Level) -> bool:
        if self.guidance.interval == (0.0, 1.0):
            return True
        time = level.model_time
        mean = float(time.mean()) if isinstance(time, Tensor) else time
        return self.guidance.active(mean / (1000 if self.schedule.flow else self.schedule.steps))
