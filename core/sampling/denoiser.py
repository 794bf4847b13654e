"""A prior asked with a condition and guidance: state and level in, Prediction out.

This is the only place where a network is asked; it batches the branches and counts the rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.base import Prior
from ..priors.rows import LEVEL_TIME, NULL, Condition, Rows
from .caches.base import Told, telling
from .guidance import Guidance, as_guidance
from .levels import Level, NoiseSchedule
from .prediction import Prediction, reread_v

Control = Callable[["Denoiser", Prediction], Prediction]
Remap = Callable[[Tensor], Tensor]


class Denoiser:
    """Asks the prior once per request, all branches in one batch, the unconditional one first as in diffusers.

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
            prior: the backbone.
            condition: one row per state row, or one for all.
            guidance: a scale means classifier-free guidance; None: the conditional model alone.
            time_remap: model times (B,) of the levels asked to the times the network is told (`TimeRemap`); levels,
                steps and conversions keep the true level, and v is read as what it means at the time told.
            controls: change the guided prediction, in order (`VelocityControl`).
        """
        self.prior, self.condition, self.guidance = prior, condition, as_guidance(guidance)
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        self.time_remap, self.controls = time_remap, tuple(controls)
        self.nfe = 0
        self._joined: dict[tuple[tuple[str, ...], int], Rows] = {}
        middle = self.schedule.at_index(0.5 * (self.schedule.steps - 1))
        self._rows(_in_order(self.guidance.needs(middle)), condition.rows)  # what is missing is said at once

    def with_condition(self, condition: Condition) -> Denoiser:
        """The same denoiser asked with another condition; it counts from 0."""
        other = copy.copy(self)
        other.condition, other.nfe, other._joined = condition, 0, {}
        return other

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """The guided and controlled prediction at x (B, C, h, w)."""
        prediction = self.guidance(self.ask(x, level, self.guidance.needs(level)))
        for control in self.controls:
            prediction = control(self, prediction)
        return prediction

    def ask(self, x: Tensor, level: Level, names: Sequence[str]) -> dict[str, Prediction]:
        """What the network says at x (B, C, h, w) in each of these branches, from one call; differentiable in x."""
        order = _in_order(names)
        count, time = len(order), level.times(x)
        told = time if self.time_remap is None else self.time_remap(time)
        rows = self._rows(order, x.shape[0])
        largest = level.model_time
        call = Told(float(largest.max()) if isinstance(largest, Tensor) else largest, rows)
        if self.time_remap is not None:
            rows = rows.with_tensors(**{LEVEL_TIME: torch.cat([time] * count)})
        before = self.prior.nfe
        with telling(call):
            raw = self.prior.predict(torch.cat([x] * count), torch.cat([told] * count), rows)
        self.nfe += self.prior.nfe - before
        state = x.to(torch.promote_types(x.dtype, torch.float32))  # one for all branches, whose predictions add
        parts, kind = raw.to(state.dtype).chunk(count), self.prior.prediction_type
        return {
            name: Prediction(state, level, self._at_level(x, level, time, told, part), kind)
            for name, part in zip(order, parts, strict=True)
        }

    def _rows(self, order: tuple[str, ...], count: int) -> Rows:
        """The rows of these branches for `count` states, kept from call to call."""
        if (order, count) not in self._joined:
            missing = [name for name in order if name not in self.condition]
            if missing:
                raise InputError(
                    f"guidance {self.guidance!r} needs the branch {missing[0]!r}, which this condition lacks (the "
                    f"unconditional branch is {NULL!r}); encode the text with a negative prompt, add the branch, or "
                    "use scale 1"
                )
            self._joined[order, count] = Rows.join([self.condition[name].for_batch(count) for name in order])
        return self._joined[order, count]

    def _at_level(self, x: Tensor, level: Level, time: Tensor, told: Tensor, raw: Tensor) -> Tensor:
        """What a network that was told other times means at the level; the same bits where the time is the true one."""
        if told is time or self.prior.prediction_type != "v_prediction":
            return raw
        other = self.schedule.at_index(told.clamp(0, self.schedule.steps - 1))
        same = (told == time).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(same, raw, reread_v(x.to(raw.dtype), raw, level, other))


def _in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Distinct names, the unconditional branch first."""
    return tuple(sorted(dict.fromkeys(names), key=lambda name: name != NULL))
