"""Guidance: which branches of a condition are asked at a level, and how their predictions become one.

The members of the protocol here are the plain conditional model and classifier-free guidance (Ho & Salimans 2022) with
std rescale (Lin et al. 2023) and interval (Kynkaanniemi 2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.base import Prior
from ..priors.rows import COND, NEGATIVE, NULL, Condition
from .levels import Level
from .prediction import Prediction

EVERYWHERE = (0.0, 1.0)  # the whole train time


class Guidance(Protocol):
    """A frozen dataclass of its settings; `str` tells them, for fingerprints and messages."""

    def needs(self, level: Level) -> tuple[str, ...]:
        """The branches to ask at this level, in one network call."""
        ...

    def __call__(self, predictions: Mapping[str, Prediction]) -> Prediction:
        """One prediction of the branches that `needs` named; weights that sum to 1 suit every parameterisation."""
        ...


@dataclass(frozen=True)
class Conditional:
    """The conditional branch as it is."""

    def needs(self, level: Level) -> tuple[str, ...]:
        """See Guidance.needs."""
        return (COND,)

    def __call__(self, predictions: Mapping[str, Prediction]) -> Prediction:
        """See Guidance."""
        return predictions[COND]

    def __str__(self) -> str:
        return "1"


@dataclass(frozen=True)
class Unconditional:
    """The branch of the negative or empty prompt as it is."""

    def needs(self, level: Level) -> tuple[str, ...]:
        """See Guidance.needs."""
        return (NULL,)

    def __call__(self, predictions: Mapping[str, Prediction]) -> Prediction:
        """See Guidance."""
        return predictions[NULL]

    def __str__(self) -> str:
        return "0"


@dataclass(frozen=True)
class ClassifierFree:
    """null + scale (cond - null); the conditional branch alone where the scale is 1 or outside the interval."""

    scale: float = 7.5  # 1 is the plain conditional model, 0 the unconditional one
    rescale: float = 0.0  # [0, 1], pulls the per-sample std back to that of the conditional output
    interval: tuple[float, float] = EVERYWHERE  # fraction of the train time in which guidance acts

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise InputError(f"guidance rescale={self.rescale} must lie in [0, 1]")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise InputError(f"guidance interval={self.interval} must be (low, high) with 0 <= low <= high <= 1")

    def needs(self, level: Level) -> tuple[str, ...]:
        """See Guidance.needs."""
        acts = self.scale != 1 and (self.interval == EVERYWHERE or bool(level.within(self.interval).any()))
        return (COND, NULL) if acts else (COND,)

    def __call__(self, predictions: Mapping[str, Prediction]) -> Prediction:
        """See Guidance."""
        cond = predictions[COND]
        if NULL not in predictions:
            return cond
        null = predictions[NULL]
        guided = null + self.scale * (cond - null)
        guided = guided if self.rescale == 0 else rescaled(guided, cond, self.rescale)
        if self.interval == EVERYWHERE or not isinstance(cond.level.model_time, Tensor):
            return guided
        inside = cond.level.within(self.interval).to(guided.raw.device).reshape(-1, *[1] * (guided.raw.ndim - 1))
        return guided.with_raw(torch.where(inside, guided.raw, cond.raw))

    def __str__(self) -> str:
        told = f"{self.scale:g}"
        if self.rescale:
            told += f" rescale {self.rescale:g}"
        return told if self.interval == EVERYWHERE else f"{told} interval {self.interval[0]:g}-{self.interval[1]:g}"


@dataclass(frozen=True, eq=False)
class ScaleOfEach:
    """Classifier-free guidance with a scale for each row."""

    scale: Tensor  # (B,)

    def needs(self, level: Level) -> tuple[str, ...]:
        """See Guidance.needs."""
        return (COND, NULL)

    def __call__(self, predictions: Mapping[str, Prediction]) -> Prediction:
        """See Guidance."""
        cond, null = predictions[COND], predictions[NULL]
        scale = self.scale.to(cond.x).reshape(-1, *[1] * (cond.x.ndim - 1))
        return null + scale * (cond - null)

    def __str__(self) -> str:
        return "one of each row"


@dataclass(frozen=True)
class FrameGuidance:
    """Classifier-free guidance with a scale for each frame of a film or orbit: D = D_u + w_f (D_c - D_u).

    What is far from the picture that is given needs more of it (Blattmann et al. 2023, "Stable Video Diffusion").
    """

    scales: tuple[float, ...]  # of the frames in their order, the same for every group of them

    def __post_init__(self) -> None:
        if not self.scales:
            raise InputError("frame guidance needs a scale for each frame, got none")

    @classmethod
    def ramp(cls, first: float, last: float, frames: int) -> FrameGuidance:
        """Linear in the frame: 1 to 2.5 or 3 for films that leave their picture."""
        return cls(_between(first, last, [k / max(frames - 1, 1) for k in range(frames)]))

    @classmethod
    def triangle(cls, low: float, high: float, frames: int) -> FrameGuidance:
        """low, up to high in the middle and down again: for orbits, which come back (Voleti et al. 2024, "SV3D")."""
        return cls(_between(low, high, [1 - abs(2 * k / max(frames - 1, 1) - 1) for k in range(frames)]))

    @classmethod
    def around(cls, low: float, high: float, azimuths_deg: Sequence[float]) -> FrameGuidance:
        """The triangle by the angle between a frame and the picture, wherever in the orbit the frame stands."""
        return cls(_between(low, high, [1 - abs((azimuth % 360) / 180 - 1) for azimuth in azimuths_deg]))

    def needs(self, level: Level) -> tuple[str, ...]:
        """See Guidance.needs."""
        return (COND,) if all(scale == 1 for scale in self.scales) else (COND, NULL)

    def __call__(self, predictions: Mapping[str, Prediction]) -> Prediction:
        """See Guidance. Raises InputError for rows that are no whole groups of these frames."""
        cond = predictions[COND]
        if NULL not in predictions:
            return cond
        groups, rest = divmod(len(cond.x), len(self.scales))
        if rest:
            raise InputError(f"{len(cond.x)} rows are no whole groups of the {len(self.scales)} frames with a scale")
        return ScaleOfEach(torch.tensor(self.scales).repeat(groups))(predictions)

    def __str__(self) -> str:
        runs = [(scale, len(list(same))) for scale, same in itertools.groupby(self.scales)]
        return "frames " + " ".join(f"{scale:g}" + (f" x{count}" if count > 1 else "") for scale, count in runs)


@dataclass(frozen=True, eq=False)
class KnownRows:
    """Another guidance, some of whose rows are known: their x0 is what it is told to be, as when a part of a picture is
    given and the rest drawn (Lugmayr et al. 2022, "RePaint", for whole rows of a batch). The states of these rows are
    the known picture under the noise that they began with, which the rows beside them see.
    """

    inner: Guidance
    x0: Tensor  # (n, C, h, w)
    rows: tuple[int, ...]

    def needs(self, level: Level) -> tuple[str, ...]:
        """See Guidance.needs."""
        return self.inner.needs(level)

    def __call__(self, predictions: Mapping[str, Prediction]) -> Prediction:
        """See Guidance."""
        guided = self.inner(predictions)
        x0, chosen = guided.x0.clone(), list(self.rows)
        x0[chosen] = self.x0.to(x0)
        raw = guided.raw.clone()
        raw[chosen] = Prediction(guided.x, guided.level, x0, "sample").read(guided.kind)[chosen]
        return guided.with_raw(raw)

    def __str__(self) -> str:
        return f"{self.inner}, {len(self.rows)} rows known"


def _between(low: float, high: float, shares: Sequence[float]) -> tuple[float, ...]:
    return tuple(low + (high - low) * share for share in shares)


def rescaled(guided: Prediction, cond: Prediction, share: float) -> Prediction:
    """The guided output with `share` of its per-sample std pulled to that of the conditional output."""
    raw, plain = guided.raw, cond.raw
    axes = tuple(range(1, raw.ndim))
    matched = raw * (plain.std(axes, keepdim=True) / raw.std(axes, keepdim=True))
    return guided.with_raw(share * matched + (1 - share) * raw)


def as_guidance(guidance: Guidance | float | None) -> Guidance:
    """A guidance, classifier-free guidance of a scale, or none at all."""
    if guidance is None:
        return Conditional()
    return ClassifierFree(float(guidance)) if isinstance(guidance, (int, float)) else guidance


def guided(
    prior: Prior, condition: Condition, scale: float | Tensor, rescale: float = 0.0
) -> tuple[Guidance, Condition]:
    """A guidance scale, a number or one for each row (B,), the way the prior takes it: by two branches, or as an input
    (rows "guidance") of models distilled to take it; a negative prompt that is an input goes along."""
    if prior.negative_embedded:
        return Conditional(), condition.with_rows(**{NEGATIVE: condition[NULL]["text"]})
    if prior.guidance_embedded:
        told = scale if isinstance(scale, Tensor) else torch.tensor([scale])
        return Conditional(), condition.with_rows(guidance=told.to(condition[COND]["text"].device))
    return ScaleOfEach(scale) if isinstance(scale, Tensor) else ClassifierFree(scale, rescale), condition
