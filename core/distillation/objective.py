"""What the objectives of distillation share: a student, its teacher, and how far apart two answers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..priors.rows import Condition
from ..sampling.levels import Level
from ..sampling.prediction import Prediction
from ..training.objectives.base import Objective
from .student import Student
from .teacher import Teacher

HUBER = 1e-3  # c of the pseudo-Huber distance


@dataclass(frozen=True)
class Training:
    """What a run is defined by."""

    method: Any
    student: dict[str, Any]
    teacher: str  # hash


class Distillation(Objective):
    """A student that learns from a teacher, on batches {"latents": (B, C, h, w), "captions": texts, ...}."""

    def __init__(self, student: Student, teacher: Teacher, method: Any) -> None:
        """`method`: its settings."""
        self.student, self.teacher, self.method = student, teacher, method
        self.config = Training(method, student.recipe, teacher.hash)
        self.modules, self.frozen = student.trainable(), frozen_parts(student, teacher)

    def described(self, texts: Sequence[str]) -> Condition:
        """What student and teacher are told; their text encoders are the same."""
        return self.teacher.prior.encode_text(list(texts))

    def told(self, batch: dict[str, Any], rng: torch.Generator) -> Condition:
        """What both are told of a batch."""
        return self.described(batch["captions"])

    def latents(self, batch: dict[str, Any], name: str = "latents") -> Tensor:
        """Rows of the batch where the student is, float32."""
        return torch.as_tensor(batch[name]).to(self.student.prior.device).float()


def frozen_parts(student: Student, teacher: Teacher) -> dict[str, nn.Module]:
    """The networks around a student and its teacher that only move along."""
    around = {"student": student.prior.modules(), "teacher": teacher.prior.modules()}
    return {
        f"{owner}.{name}": module
        for owner, parts in around.items()
        for name, module in parts.items()
        if module is not student.network
    }


def uniform(bounds: tuple[float, float], rows: int, rng: torch.Generator) -> Tensor:
    """One number a row (B,) between two bounds; no randomness is spent where they are equal."""
    low, high = bounds
    return torch.full((rows,), low) if low == high else low + (high - low) * torch.rand(rows, generator=rng)


def huber(found: Tensor, wanted: Tensor, c: float = HUBER) -> Tensor:
    """sqrt(d^2 + c^2) - c of each element, computed in float64 where d is of the size of c."""
    return ((found - wanted).double().square() + c * c).sqrt().sub(c).to(found.dtype)


def per_row(values: Tensor) -> Tensor:
    """The mean (B,) over each row."""
    return values.flatten(1).mean(1)


def row_weight(value: Tensor, like: Tensor) -> Tensor:
    """(B,) numbers of rows ready to multiply (B, ...), in its dtype and place."""
    return value.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype).to(like.device)


def distance(found: Prediction, wanted: Prediction, kind: str) -> Tensor:
    """Squared error (B,) of two predictions at one state.

    "raw" of the network's own output, "x0", "eps", "v", or "truncated": the larger of those of x0 and eps, which is
    max(1, alpha^2 / sigma^2) times that of x0 (Salimans & Ho 2022, truncated SNR).
    """
    if kind == "truncated":
        return torch.maximum(distance(found, wanted, "x0"), distance(found, wanted, "eps"))
    if kind == "raw":
        return per_row((found.raw - wanted.read(found.kind)).square())
    return per_row((getattr(found, kind) - getattr(wanted, kind)).square())


def step_to(prediction: Prediction, after: Level) -> Tensor:
    """alpha' x0 + sigma' eps (B, C, h, w), a DDIM step, for one level a row."""
    alpha, sigma = after.coefficients(prediction.x)
    return alpha * prediction.x0 + sigma * prediction.eps
