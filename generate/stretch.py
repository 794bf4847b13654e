"""A recipe for another number of steps: every literal schedule stretches with it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from ..utils.errors import InputError

T = TypeVar("T")


def with_steps(recipe: T, steps: int) -> T:
    """The recipe with `steps` optimisation steps; schedules, resolution changes and level starts keep their share."""
    old: Any = recipe
    if steps < 1:
        raise InputError(f"num_inference_steps={steps} must be at least 1")
    ratio = steps / old.optimise.steps
    score, run = old.score, old.optimise
    window = replace(
        score.window,
        low=stretched(score.window.low, ratio),
        high=stretched(score.window.high, ratio),
        steps=round(score.window.steps * ratio),
    )
    grid = replace(run.field.grid, starts=tuple(round(start * ratio) for start in run.field.grid.starts))
    head = replace(run.field.head, beta=stretched(run.field.head.beta, ratio))
    losses = {f.name: stretched(getattr(run.losses, f.name), ratio) for f in fields(run.losses)}
    optimise = replace(
        run,
        steps=steps,
        sizes=tuple((round(start * ratio), px) for start, px in run.sizes),
        lr=stretched(run.lr, ratio),
        occupancy_from=round(run.occupancy_from * ratio),
        field=replace(run.field, grid=grid, head=head),
        losses=replace(run.losses, **losses),
    )
    score = replace(score, window=window, clip=stretched(score.clip, ratio))
    return replace(old, score=score, optimise=optimise)


def stretched(ramp: tuple[float, ...], ratio: float) -> tuple[float, ...]:
    """[step0, v0, v1, step1] with its steps scaled; constants stay."""
    return (ramp[0] * ratio, ramp[1], ramp[2], ramp[3] * ratio) if len(ramp) == 4 else ramp
