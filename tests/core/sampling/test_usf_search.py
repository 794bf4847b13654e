"""Schedule search: budget, invariants of breeding, progress over the start, cached references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unproject.core.priors import SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import DDIM, NoiseSchedule
from unproject.core.sampling.paired_error import PairedError
from unproject.core.sampling.solvers import SolverSchedule, StepDecision
from unproject.core.sampling.solvers.decisions import times_of
from unproject.core.sampling.usf_search import (
    SearchSpace,
    baselines,
    crossover,
    features,
    mutate,
    search_schedule,
)
from unproject.utils.errors import InputError

SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)
SPACE = SearchSpace(4, ("noise", "data"), ("none", "zero_x0"))


def mixture() -> GaussianMixturePrior:
    rng = torch.Generator().manual_seed(5)
    means = torch.randn(3, 1, 2, 2, generator=rng, dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.5, 0.8]))


def noise(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(1))


def times(steps: int) -> tuple[float, ...]:
    return times_of(SCHEDULE.grid(steps, "trailing", "index0"), SCHEDULE)


def known(space: SearchSpace) -> list[SolverSchedule]:
    return list(baselines(space, times).values())


@pytest.fixture(scope="module")
def fitness() -> PairedError:
    prior = mixture()
    return PairedError(prior, prior.encode_text(""), noise(), steps=60, final="index0")


def test_breeding_keeps_the_number_of_calls_and_the_ends():
    rng = np.random.default_rng(0)
    start = known(SPACE)
    pool = list(start)
    for _ in range(200):
        a, b = pool[rng.integers(len(pool))], pool[rng.integers(len(pool))]
        child = mutate(crossover(a, b, rng) if a.steps == b.steps else a, SPACE, rng)
        assert child.nfe == SPACE.nfe
        assert (child.times[0], child.times[-1]) == (start[0].times[0], start[0].times[-1])
        assert all(d.order <= k + 1 for k, d in enumerate(child.decisions))
        assert features(child, SPACE).shape == features(start[0], SPACE).shape
        assert SolverSchedule.from_dict(child.to_dict()) == child
        pool.append(child)
    assert {s.first for s in pool} == {"none", "zero_x0"}
    assert {d.prediction for s in pool for d in s.decisions} == {"noise", "data"}


@pytest.mark.parametrize("strategy", ["surrogate", "evolution", "random"])
def test_a_search_spends_its_budget_and_never_loses_to_its_start(fitness, strategy):
    start = known(SPACE)
    seen = []
    found = search_schedule(
        fitness, SPACE, start, budget=14, strategy=strategy, progress=lambda n, best: seen.append(n)
    )
    assert seen == list(range(1, 15)) and len(found.history) == 14
    assert found.score == min(score for _, score in found.history) == found.curve()[-1]
    assert found.score <= min(score for _, score in found.history[: len(start)])
    again = search_schedule(fitness, SPACE, start, budget=14, strategy=strategy)
    assert again.best == found.best, "the seed decides"


def test_a_search_finds_an_easy_optimum():
    """Fitness counts decisions that are not (order 2, noise): breeding gets there, the surrogate with less."""

    def wrong(schedule: SolverSchedule) -> float:
        return float(
            sum((d.order != min(2, k + 1)) + (d.prediction != "noise") for k, d in enumerate(schedule.decisions))
        )

    space = SearchSpace(4, ("noise", "data"), ("none",))
    start = known(space)[:1]
    scores = {
        strategy: np.mean(
            [search_schedule(wrong, space, start, budget=40, strategy=strategy, seed=s).score for s in range(2)]
        )
        for strategy in ("surrogate", "random")
    }
    assert scores["surrogate"] <= 0.5 < scores["random"]


def test_fitness_is_the_paired_error(fitness):
    ddim = known(SPACE)[0]
    levels = ddim.levels(SCHEDULE)
    states = fitness.run(DDIM(), levels)
    assert fitness(ddim) == pytest.approx(float(fitness.errors(states).mean()), rel=1e-5)
    assert fitness(known(SPACE)[1]) < fitness(ddim), "second order is better here"
    prior = mixture()
    split = PairedError(prior, prior.encode_text(""), noise(), steps=60, final="index0", batch=3)
    assert split(ddim) == pytest.approx(fitness(ddim), rel=1e-4)


def test_the_reference_is_cached_and_bound_to_its_problem(tmp_path):
    prior, path = mixture(), tmp_path / "reference.safetensors"
    first = PairedError(prior, prior.encode_text(""), noise(), steps=20, cache=path)
    spent = prior.nfe
    second = PairedError(prior, prior.encode_text(""), noise(), steps=20, cache=path)
    assert prior.nfe == spent
    assert torch.equal(first.reference, second.reference)
    PairedError(prior, prior.encode_text(""), noise() + 1, steps=20, cache=path)
    assert prior.nfe > spent, "other noise, another reference"
    with pytest.raises(InputError, match="network weights"):
        other = GaussianMixturePrior(torch.zeros(1, 1, 2, 2), torch.tensor([1.0]))
        PairedError(other, other.encode_text(""), noise(), steps=20, cache=path)


def test_divergence_is_infinite_and_bad_requests_are_named(fitness):
    assert fitness(SolverSchedule((StepDecision(),) * 4, times(4))) < float("inf")
    wild = SolverSchedule((StepDecision(), StepDecision(2, relaxation=1e38), *(StepDecision(),) * 2), times(4))
    assert fitness(wild) > 1e10
    with pytest.raises(InputError, match="nfe=4"):
        search_schedule(fitness, SPACE, [])
    with pytest.raises(InputError, match="strategy='grid'"):
        search_schedule(fitness, SPACE, known(SPACE), strategy="grid")
