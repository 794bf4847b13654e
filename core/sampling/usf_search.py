"""Searching solver schedules (S^3, Liu et al. 2024) at a fixed number of network calls.

Fitness is any number to be made small, usually the paired terminal error (`PairedError`), which ranks all candidates on
identical problems. Candidates come from crossover and mutation of the best so
far; with the surrogate strategy many are bred for each that is evaluated, and a Gaussian process on the ranks of
everything evaluated picks which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ...utils.errors import InputError
from .solvers import SolverSchedule, StepDecision, preset
from .solvers.decisions import ESTIMATES, FIRST_STEPS, PREDICTIONS

Strategy = Literal["surrogate", "evolution", "random"]
Fitness = Callable[[SolverSchedule], float]


@dataclass(frozen=True)
class SearchSpace:
    """What may be decided, and how often a mutation changes it (the paper's release, where it has them)."""

    nfe: int
    predictions: tuple[str, ...] = PREDICTIONS  # without statistics: ("noise", "data")
    first_steps: tuple[str, ...] = FIRST_STEPS  # without a mean: ("none", "zero_x0")
    max_order: int = 4
    rate: float = 0.3  # of changing each field of each step
    time_spread: float = 0.08  # relative, of a changed time
    relaxation_spread: float = 0.03
    order_shares: tuple[float, ...] = (0.2, 0.4, 0.3, 0.1)
    corrector_share: float = 0.5


@dataclass(frozen=True)
class SearchResult:
    """What a search found; `history` holds every evaluated schedule with its fitness, in order."""

    best: SolverSchedule
    score: float
    history: tuple[tuple[SolverSchedule, float], ...]

    def curve(self) -> list[float]:
        """Best fitness after each evaluation."""
        return [float(v) for v in np.minimum.accumulate([score for _, score in self.history])]


def baselines(space: SearchSpace, times: Callable[[int], Sequence[float]]) -> dict[str, SolverSchedule]:
    """Known solvers at the wanted number of calls, by name and order; `times(n)` gives n + 1 falling times."""
    names = [("ddim", 1), ("dpm++", 2), ("dpm++taylor", 3), ("unipc-bh1", 2), ("unipc-bh2", 2), ("unipc-bh2", 3)]
    if "v3" in space.predictions:
        names += [("v3", 1), ("v3", 2), ("v3", 3)]
    grid = tuple(times(space.nfe))
    return {f"{name} {order}": replace(preset(name, space.nfe, order), times=grid) for name, order in names}


def search_schedule(
    fitness: Fitness,
    space: SearchSpace,
    start: Sequence[SolverSchedule],
    *,
    budget: int = 300,
    strategy: Strategy = "surrogate",
    parents: int = 15,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> SearchResult:
    """Minimises `fitness` over solver schedules of `space.nfe` calls.

    Args:
        fitness: lower is better; called `budget` times at most.
        space: what may vary.
        start: schedules evaluated first, with times (`baselines`).
        budget: evaluations in all.
        strategy: "surrogate", "evolution" (no surrogate) or "random" (mutations of mutations of the start only).
        parents: how many of the best may breed.
        seed: of the breeding.
        progress: called with (evaluations, best fitness).
    """
    if not start or any(s.times is None or s.nfe != space.nfe for s in start):
        raise InputError(f"start must hold schedules with times and nfe={space.nfe} network calls; see baselines()")
    if strategy not in ("surrogate", "evolution", "random"):
        raise InputError(f"strategy={strategy!r} is unknown; have surrogate, evolution, random")
    rng = np.random.default_rng(seed)
    history: list[tuple[SolverSchedule, float]] = []
    for number in range(budget):
        if number < len(start):
            candidate = start[number]
        else:
            candidate = _next(history, list(start), space, strategy, parents, rng)
        history.append((candidate, float(fitness(candidate))))
        if progress is not None:
            progress(number + 1, min(score for _, score in history))
    best, score = min(history, key=lambda item: item[1])
    return SearchResult(best, score, tuple(history))


def _next(
    history: list[tuple[SolverSchedule, float]],
    start: list[SolverSchedule],
    space: SearchSpace,
    strategy: Strategy,
    parents: int,
    rng: np.random.Generator,
) -> SolverSchedule:
    if strategy == "random":
        candidate = start[rng.integers(len(start))]
        for _ in range(3):
            candidate = mutate(candidate, space, rng)
        return candidate
    ranked = [schedule for schedule, _ in sorted(history, key=lambda item: item[1])][:parents]
    seen = {schedule for schedule, _ in history}
    bred = [_child(ranked, space, rng) for _ in range(64 if strategy == "surrogate" else 1)]
    fresh = [schedule for schedule in dict.fromkeys(bred) if schedule not in seen] or bred
    return fresh[0] if len(fresh) == 1 else fresh[int(np.argmin(_surrogate(history, fresh, space)))]


def _child(ranked: list[SolverSchedule], space: SearchSpace, rng: np.random.Generator) -> SolverSchedule:
    """Crossover of two good schedules with the same number of steps (30 %) or one of them, then mutated."""
    first = ranked[rng.integers(len(ranked))]
    mates = [other for other in ranked if other.steps == first.steps and other is not first]
    if mates and rng.random() < 0.3:
        first = crossover(first, mates[rng.integers(len(mates))], rng)
    return mutate(first, space, rng)


def crossover(a: SolverSchedule, b: SolverSchedule, rng: np.random.Generator) -> SolverSchedule:
    """Times from one parent, decisions step by step from either (half the time) or all from one."""
    times = (a, b)[rng.integers(2)].times
    if rng.random() < 0.5:
        picks = rng.integers(2, size=a.steps)
        decisions = tuple((x, y)[pick] for x, y, pick in zip(a.decisions, b.decisions, picks, strict=True))
    else:
        decisions = (a, b)[rng.integers(2)].decisions
    return (
        SolverSchedule(decisions, times, (a, b)[rng.integers(2)].first)
        if a.first == b.first
        else replace(a, decisions=decisions, times=times)
    )


def mutate(schedule: SolverSchedule, space: SearchSpace, rng: np.random.Generator) -> SolverSchedule:
    """A neighbour at the same number of network calls; the ends of the time range stay."""
    decisions, times = list(schedule.decisions), list(schedule.times or ())
    first: str = schedule.first
    if rng.random() < 0.5 * space.rate and len(space.first_steps) > 1:
        first = str(rng.choice([f for f in space.first_steps if f != schedule.first]))
        if (first == "none") != (schedule.first == "none"):
            _resize(decisions, times, first != "none")
    for k in range(1, len(times) - 1):
        if rng.random() < space.rate:
            times[k] *= 1 + space.time_spread * rng.standard_normal()
    for k, decision in enumerate(decisions):
        decisions[k] = _changed(decision, k, len(decisions), space, rng)
    return SolverSchedule(tuple(decisions), _falling(times), first)  # type: ignore[arg-type]


def _resize(decisions: list[StepDecision], times: list[float], grow: bool) -> None:
    """One step more (the first is split) or less (the first two are joined)."""
    if grow:
        times.insert(1, 0.5 * (times[0] + times[1]))
        decisions.insert(0, replace(decisions[0], order=1))
    elif len(decisions) > 1:
        del times[1], decisions[0]


def _falling(times: list[float]) -> tuple[float, ...]:
    """Times made strictly falling again inside their ends."""
    low, high = times[-1], times[0]
    gap = 1e-3 * (high - low)
    inner = sorted((min(max(t, low + gap), high - gap) for t in times[1:-1]), reverse=True)
    for k in range(1, len(inner)):
        inner[k] = min(inner[k], inner[k - 1] - 1e-6 * (high - low))
    return (high, *inner, low)


def _changed(
    decision: StepDecision, place: int, steps: int, space: SearchSpace, rng: np.random.Generator
) -> StepDecision:
    new: dict[str, object] = {}
    top = min(space.max_order, place + 1, len(space.order_shares))
    if rng.random() < space.rate:
        shares = np.asarray(space.order_shares[:top])
        new["order"] = int(rng.choice(top, p=shares / shares.sum())) + 1
    if rng.random() < space.rate:
        new["prediction"] = str(rng.choice(space.predictions))
    if rng.random() < space.rate:
        new["estimate"] = str(rng.choice(ESTIMATES))
    if rng.random() < space.rate:
        chosen = rng.random() < space.corrector_share and place < steps - 1
        new["corrector"] = "pseudo" if chosen else "none"
    for name in ("relaxation", "corrector_relaxation"):
        value = getattr(decision, name)
        if rng.random() < space.rate:
            new[name] = space.relaxation_spread * rng.standard_normal() + (0.0 if isinstance(value, str) else value)
    made = replace(decision, **new)  # type: ignore[arg-type]
    return replace(made, order=min(made.order, place + 1))


def features(schedule: SolverSchedule, space: SearchSpace) -> np.ndarray:
    """A schedule as numbers, of one length for all schedules of a space; aligned at the clean end."""
    width = space.nfe + 1
    rows = np.zeros((width, 12))
    for k, decision in enumerate(reversed(schedule.decisions[-width:])):
        relaxations = (decision.relaxation, decision.corrector_relaxation)
        rows[k, :4] = np.eye(4)[decision.order - 1]
        rows[k, 4:7] = np.eye(3)[PREDICTIONS.index(decision.prediction)]
        rows[k, 7] = decision.corrector != "none"
        rows[k, 8] = decision.estimate == "low"
        rows[k, 9:11] = [0.0 if isinstance(value, str) else 10 * value for value in relaxations]
        rows[k, 11] = any(isinstance(value, str) for value in relaxations)
    times = np.zeros(width)
    inner = np.log(np.asarray(schedule.times)[-2::-1])[:width]
    times[: len(inner)] = 3 * inner
    return np.concatenate([rows.ravel(), times, np.eye(3)[FIRST_STEPS.index(schedule.first)]])


def _surrogate(
    history: list[tuple[SolverSchedule, float]], candidates: list[SolverSchedule], space: SearchSpace
) -> np.ndarray:
    """Optimistic ranks of candidates, lower is better: mean minus deviation of a Gaussian process on the ranks so far.

    Its kernel is linear plus Gaussian, so that decisions act by themselves and together.
    """
    known = np.stack([features(schedule, space) for schedule, _ in history])
    asked = np.stack([features(schedule, space) for schedule in candidates])
    ranks = np.argsort(np.argsort([score for _, score in history])).astype(float)
    target = (ranks - ranks.mean()) / max(ranks.std(), 1.0)
    centre = known.mean(0)
    everything = np.concatenate([known, asked]) - centre
    scale = max((everything**2).sum(-1).mean(), 1e-12)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        product = (a - centre) @ (b - centre).T / scale
        distance = ((a[:, None] - b[None]) ** 2).sum(-1) / scale
        return product + 0.5 * np.exp(-distance)

    gram = kernel(known, known) + 0.1 * np.eye(len(known))
    cross = kernel(asked, known)
    solved = np.linalg.solve(gram, np.concatenate([target[:, None], cross.T], 1))
    own = ((asked - centre) ** 2).sum(-1) / scale + 0.5
    deviation = np.sqrt(np.clip(own - (cross * solved[:, 1:].T).sum(-1), 0, None))
    return cross @ solved[:, 0] - deviation
