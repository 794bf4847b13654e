"""A prior asked with a condition and guidance: state and level in, Prediction out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.base import Condition, Prior
from .guidance import Guidance
from .levels import Level, NoiseSchedule
from .prediction import Prediction, reread_v

Control = Callable[["Denoiser", Prediction], Prediction]
Remap = Callable[[Tensor], Tensor]
LEVEL_TIME = "level_time"  # entry of a condition's `extra`: model times (B,) of the states, where others are told


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
                steps and conversions keep the true level, and v is read as what it means at the time told.
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
            raw = self.guidance.combine(*self._ask(x, level, self._both, 2))
            prediction = Prediction(x, level, raw, self.prior.prediction_type)
        for control in self.controls:
            prediction = control(self, prediction)
        return prediction

    def conditional(self, x: Tensor, level: Level) -> Prediction:
        """Prediction of the conditional branch alone, without guidance and controls; differentiable in x."""
        (raw,) = self._ask(x, level, self.condition, 1)
        return Prediction(x, level, raw, self.prior.prediction_type)

    def _ask(self, x: Tensor, level: Level, condition: Condition, branches: int) -> list[Tensor]:
        """What the network says at `level` in each branch, (B, C, h, w), from one call."""
        self.nfe += branches * x.shape[0]
        states, time = torch.cat([x] * branches), level.times(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.time_remap is None:
            raw = self.prior.predict(states, torch.cat([time] * branches), condition)
            return list(raw.to(dtype).chunk(branches))
        told = self.time_remap(time)
        added = {LEVEL_TIME: torch.cat([time] * branches)}
        raw = self.prior.predict(states, torch.cat([told] * branches), condition, **added)
        return [self._at_level(x, level, time, told, part) for part in raw.to(dtype).chunk(branches)]

    def _at_level(self, x: Tensor, level: Level, time: Tensor, told: Tensor, raw: Tensor) -> Tensor:
        """What a network that was told other times means at the level; the same bits where the time is the true one."""
        if self.prior.prediction_type != "v_prediction":
            return raw
        other = self.schedule.at_index(told.clamp(0, self.schedule.steps - 1))
        return torch.where((told == time).reshape(-1, 1, 1, 1), raw, reread_v(x.to(raw.dtype), raw, level, other))

    def _active(self, level: Level) -> bool:
        return level.within(self.guidance.interval)
