"""The experiments' own arithmetic: intervals, distances, grids, controls, and seeds that do not meet."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from unproject.bench import (
    dpm_solver_v3,
    flair,
    focus,
    noiseshift,
    optimal_boundary,
    overhead,
    q_sched,
    sampling,
    usf_s3,
)
from unproject.bench.distances import Features
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from unproject.core.sampling.dpm_v3_statistics import ModelStatistics
from unproject.core.sampling.flair import ErrorCurve, RestoreConfig, restore
from unproject.core.sampling.init import ImageInit
from unproject.core.sampling.operators import Identity
from unproject.toybox.captions import Meaning, Phrase
from unproject.utils.seeds import generator

SIZE = 4


def prior_of(config=SD_SCHEDULE) -> GaussianMixturePrior:
    return GaussianMixturePrior(torch.full((1, 3, SIZE, SIZE), 0.4), torch.tensor([0.3]), scheduler_config=config)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_as_many_steps_are_taken_as_asked(steps):
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    levels = optimal_boundary.levels(schedule, steps, 0.8)
    noise = torch.zeros(1, 3, SIZE, SIZE)
    assert len(ImageInit(noise, 0.8)(noise, levels).levels) == steps + 1
    assert int((len(levels) - 2) * 0.8) < steps  # no shorter grid would do


def test_a_good_noise_is_chosen_and_measured_against_all():
    quality = torch.tensor([3.0, 1.0, 2.0, 4.0], dtype=torch.float64)[:, None]
    known, new = (quality + 0.01 * normal(4, 30, seed=seed) for seed in (0, 1))
    random, chosen, best, each = optimal_boundary.compared(known, new)
    assert random["loss"]["std"] == pytest.approx(float(quality.std()), rel=0.02) and random["loss"]["n"] == 4
    assert chosen["gain_in_std"]["gain"] == pytest.approx(1.5 / float(quality.std()), rel=0.02)
    assert each["loss"]["mean"] <= best["loss"]["mean"] == chosen["loss"]["mean"] < random["loss"]["mean"]
    assert chosen["rank_correlation_of_two_sets"] == 1


def test_constant_weight_is_the_mean_of_the_capped_weights_of_a_run():
    seen: list[float] = []

    class Curve(ErrorCurve):
        def weight(self, time: float) -> float:
            seen.append(super().weight(time))
            return seen[-1]

    curve = Curve(torch.linspace(0, 1, 5), torch.tensor([1.0, 0.1, 0.4, 0.3, 0.8]))
    prior, config = prior_of(FLOW_SCHEDULE), RestoreConfig(steps=7, guidance=1.0, regulariser=0.8, data_steps=0)
    restore(torch.full((1, 3, SIZE, SIZE), 0.5, dtype=torch.float64), Identity(), prior, curve=curve, config=config)
    visited = [min(0.8 * weight, 1.0) for weight in seen]
    assert len(visited) == 7 and max(visited) == 1
    assert flair.constant_weight(curve, NoiseSchedule.from_config(FLOW_SCHEDULE), config) == pytest.approx(
        np.mean(visited)
    )


def test_gradient_steps_lower_the_misfit_and_without_strength_are_plain_sampling():
    prior, levels = prior_of(), NoiseSchedule.from_config(SD_SCHEDULE).grid(12)
    noise, y = normal(2, 3, SIZE, SIZE), torch.full((2, 3, SIZE, SIZE), 0.9, dtype=torch.float64)
    ends = []
    for strength in (0.0, 1.0):
        steps = flair.PosteriorSteps(Denoiser(prior, prior.encode_text([""] * 2)), Identity(), y, strength)
        draws = [generator(i) for i in range(2)]
        ends.append(Sampler(DDIM(eta=1.0)).run(steps, noise, levels, draws, steps.moved))
    denoiser, draws = Denoiser(prior, prior.encode_text([""] * 2)), [generator(i) for i in range(2)]
    plain = Sampler(DDIM(eta=1.0)).run(denoiser, noise, levels, draws)
    torch.testing.assert_close(ends[0], plain, rtol=0, atol=0)
    misfits = [(prior.decode(end, clamp=False) - y).square().mean() for end in ends]
    assert misfits[1] < 0.5 * misfits[0]


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_shifted_levels_keep_their_ends_and_raise_the_rest(config):
    schedule = NoiseSchedule.from_config(config)
    levels = schedule.grid(10, "trailing")
    moved = noiseshift.shifted(schedule, levels, math.log(2))
    assert moved[0] == levels[0] and moved[-1] == levels[-1] and len(moved) == len(levels)
    for before, after in zip(levels[1:-1], moved[1:-1]):
        assert float(after.lam) == pytest.approx(float(before.lam) + math.log(2))


def test_statistics_are_measured_on_seeds_that_are_not_evaluated(monkeypatch):
    asked = []
    monkeypatch.setattr(dpm_solver_v3, "TextToImage", lambda prior: prior)
    monkeypatch.setattr(
        dpm_solver_v3,
        "measure_statistics",
        lambda _, prompts, sizes, cells, states: asked.append((len(prompts), sizes.seed)),
    )
    dpm_solver_v3.measured(prior_of(), 1.5, 64, 2, 3, 8, seed=7)
    ((count, first),) = asked
    assert count == 64 and not set(range(first, first + count)) & set(range(7, 7 + 512))


def test_every_solver_is_tuned_over_its_spacings():
    errors = {"ddim 1, trailing": 3.0, "ddim 1, logsnr": 1.0, "dpm++ 2, trailing": 2.0, "dpm++ 2, logsnr": 4.0}
    known = {name: name for name in errors}
    assert usf_s3.tuned(errors.get, known) == {"ddim 1": "ddim 1, logsnr", "dpm++ 2": "dpm++ 2, trailing"}


def test_swapped_colours_are_asked_of_two_colours_only():
    class Reader:
        pairs = object()

        def __call__(self, images, pairs):
            assert pairs  # two objects are read by what reads two
            return self

        def agrees(self, meanings):
            asked = ("noun", "second_noun", "colour", "second_colour", "relation")
            return {name: np.ones(len(meanings), bool) for name in asked}

    pairs = [("red", "red"), ("red", "blue"), ("green", "red")]
    meanings = [Meaning((Phrase("car", a), Phrase("dog", b)), "left of") for a, b in pairs]
    flags = focus._judged(Reader(), torch.zeros(3, 3, 4, 4), meanings)
    assert {name: len(right) for name, right in flags.items()} == {
        "both_objects": 3,
        "relation": 3,
        "both_colours": 2,
        "swapped_colours": 2,
    }


def test_only_scenes_with_a_relation_are_asked_for_and_compared_with():
    scenes, numbers = focus.relations(5)
    others, later = focus.relations(5, numbers[-1] + 1)
    assert all(scene.relation and len(scene.members) == 2 for scene in scenes + others)
    assert numbers == sorted(numbers) and later[0] > numbers[-1]


def test_gains_of_a_quantised_network_are_told_apart_from_tuning():
    reference, full = normal(300, 4), normal(220, 4, seed=1)
    seen = {(q_sched.FULL, "plain"): full, (q_sched.FULL, "searched"): full}
    seen |= {("W4A8", "plain"): full + 2, ("W4A8", "searched"): full + 1}
    gains = q_sched.gains(seen, Features.of(reference))
    assert gains[q_sched.FULL]["gain"] == {"value": 0, "std": 0}
    assert gains["W4A8"]["gain"]["value"] == pytest.approx(12, abs=2)
    assert gains["W4A8"]["beyond_full_precision"] == gains["W4A8"]["gain"]
    assert gains["W4A8"]["recovered"] == pytest.approx(0.75, abs=0.05)
    assert q_sched.gains({key: part[:50] for key, part in seen.items()}, Features.of(reference)) == {}


def test_all_jobs_of_the_overhead_make_the_same_network_calls():
    prior = load_prior("toybox")
    work = overhead.jobs(prior, 1, overhead.OverheadBench(3, (1,), 3.0, 1), 0)
    seen = {job: overhead.recorded(prior.network, run) for job, run in work.items()}
    inputs = {job: torch.stack([(*args, *kwargs.values())[0] for args, kwargs in calls]) for job, calls in seen.items()}
    assert len(inputs[overhead.BARE]) == 3
    for job, states in inputs.items():
        torch.testing.assert_close(states, inputs[overhead.BARE], atol=2e-3, rtol=1e-3, msg=job)
    rows = overhead.timed({overhead.BARE: lambda: None, overhead.STOCK: lambda: time.sleep(0.01)}, 3, 1)
    assert rows[0]["over_bare"]["ratio"] == 1 and rows[1]["over_bare"]["ratio"] > 10 and rows[1]["seconds"] >= 0.01


def test_thinned_statistics_keep_both_ends_and_every_second_row():
    lambdas = torch.linspace(-2, 3, 6, dtype=torch.float64)
    table = lambdas[:, None, None, None] * torch.ones(1, 2, 1, 1, dtype=torch.float64)
    thin = dpm_solver_v3.thinned(ModelStatistics(lambdas, table, 2 * table, 3 * table))
    assert thin.lambdas.tolist() == [-2.0, 0.0, 2.0, 3.0]
    assert all(torch.equal(part[:, 0, 0, 0], k * thin.lambdas) for k, part in ((1, thin.ell), (2, thin.s), (3, thin.b)))


def test_presets_are_the_least_geometric_mean_over_guidances_of_what_needs_no_calibration():
    found = {
        ("ddim", "trailing"): (0.04, 0.2),
        ("dpm++", "trailing"): (0.01, 0.16),  # the least
        ("dpm++", "karras"): (0.002, 0.9),  # likewise
        ("heun", "trailing"): (0.001,),  # at one guidance only
        ("ghvb:4,0.8", "trailing"): (0.0001, 0.3),  # loses to the first at one guidance
        ("dpm-v3:2", "trailing"): (0.001, 0.001),
    }
    table = [
        {"guidance": guidance, "solver": solver, "spacing": spacing, "nfe": nfe, "mse": {"mean": error * nfe}}
        for (solver, spacing), errors in found.items()
        for guidance, error in zip((1.5, 5.0), errors)
        for nfe in (8, 20)
    ]
    chosen = sampling.presets(table, (20,), ("trailing", "karras"))
    assert chosen == {"20": {"solver": "dpm++", "spacing": "trailing", "geometric_mean_mse": 0.8}}
    assert sampling.presets(table, (8,), ("karras",))["8"]["spacing"] == "karras"
    few = [row for row in table if row["nfe"] == 8]
    assert sampling.presets(few, (8,), ("trailing",))["8"]["solver"] == "ghvb:4,0.8"  # where few calls are all there is
