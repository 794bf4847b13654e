"""The experiments on score distillation: rows, variance, saturation, on an exact prior."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unproject.bench import asd, stabledreamer
from unproject.bench.distilled import BEHIND, at_rows, chroma, made, rows_of_a_step
from unproject.bench.score_distillation import RULES, pull_variance, recipe_of
from unproject.bench.toy_latents import Renders
from unproject.core.distillation.rules import RuleConfig
from unproject.core.distillation.rules.inverted import SDI
from unproject.core.priors import SD_SCHEDULE, GaussianMixturePrior
from unproject.pipelines.text_to_shape import load_recipe
from unproject.toybox.captions import Meaning, Phrase
from unproject.utils.ramps import Ramp
from unproject.utils.seeds import generator

SIZE = 16


def prior(side: int = SIZE) -> GaussianMixturePrior:
    means = torch.stack([torch.full((3, side, side), v) for v in (-0.5, 0.5)])
    made_ = GaussianMixturePrior(means, torch.tensor([0.3, 0.4]), names=("red", "cube"), scheduler_config=SD_SCHEDULE)
    made_.dtype = torch.float32
    return made_


@pytest.mark.parametrize(("rule", "rows"), [("sds", 8), ("asd", 12), ("csd", 8), ("recon", 8)])
def test_steps_follow_from_the_rows_of_a_rule(rule, rows):
    model = prior()
    recipe = load_recipe(None, model, rule, "text-to-splats")
    assert rows_of_a_step(recipe, model) == rows
    assert at_rows(recipe, model, 240).optimise.steps == 240 // rows


def test_all_rules_have_one_window_but_those_that_are_one_and_the_same_rates():
    model = prior()
    plain = load_recipe(None, model, None, "text-to-splats")
    slow, fast = Ramp.of(plain.optimise.lr), (3 * Ramp.of(plain.optimise.lr).at(share) for share in (0.0, 0.4, 1.0))
    for rule in set(RULES) - {"vsd"}:
        found = recipe_of(rule, model, 64, 3.0)
        assert (found.score.window == plain.score.window) == (rule != "hifa")
        assert Ramp.of(found.optimise.lr) == Ramp(slow.start, 3 * slow.value0, 3 * slow.value1, slow.end)
    assert [Ramp.of(found.optimise.lr).at(share) for share in (0.0, 0.4, 1.0)] == pytest.approx(list(fast))


def test_a_pull_without_noise_has_no_variance():
    model, views = prior(), torch.rand(4, 3, SIZE, SIZE, generator=generator(0))
    recipe = recipe_of("sdi", model, 64, 1.0)
    still = replace(recipe.score, rule=RuleConfig("sdi", sdi=SDI(eta=0.0)))
    assert pull_variance(replace(recipe, score=still), model, views, 3) < 1e-12
    assert pull_variance(recipe, model, views, 3) > 1e-6


def test_saturation_looks_at_the_object_alone():
    views = torch.full((8, 3, 6, 6), BEHIND)
    assert chroma(views) == 0
    views[:, :, 2:4, 2:4] = torch.tensor([0.9, 0.4, 0.1])[:, None, None]
    assert chroma(views) == pytest.approx(0.8)


def test_a_collapse_is_a_result():
    model = prior()
    recipe = at_rows(load_recipe(None, model, None, "text-to-splats"), model, 16)
    limits = replace(recipe.optimise.health, empty=0.97, full=0.99, patience=1)
    gone = made(replace(recipe, optimise=replace(recipe.optimise, health=limits)), model, "red", 0, 8)
    assert "vanished" in gone.failed and gone.work is None and gone.views.shape == (8, 3, 8, 8)
    one = made(recipe, model, "red", 0, 8)
    assert not one.failed and one.nfe == 16 and one.views.shape == (8, 3, 8, 8)


def test_the_noise_error_of_an_exact_prior_is_its_posterior_variance():
    """E |eps - n|^2 = alpha^2 tau^2 / (alpha^2 tau^2 + sigma^2) for a Gaussian, which falls with t."""
    model = GaussianMixturePrior(torch.zeros(1, 3, 24, 24), torch.tensor([0.5]), scheduler_config=SD_SCHEDULE)
    latents = 0.5 * torch.randn(64, 3, 24, 24, generator=generator(1), dtype=torch.float64)
    errors = []
    for index in (100.0, 500.0, 900.0):
        level = model.path.at_index(torch.tensor(index)).item()
        found = asd.noise_error(model, latents, model.encode_text(["x"] * 64), index, 0)
        signal = (level.alpha * 0.5) ** 2
        assert float(found.mean()) == pytest.approx(signal / (signal + level.sigma**2), rel=0.02)
        errors.append(float(found.mean()))
    assert errors[0] > errors[1] > errors[2]


def test_variance_of_sds_on_a_gaussian():
    """Of x - x0: (sigma alpha tau^2 / v)^2 for each element, against a mean of sigma^2 (x - mu) / v."""
    model = GaussianMixturePrior(torch.zeros(1, 3, SIZE, SIZE), torch.tensor([0.5]), scheduler_config=SD_SCHEDULE)
    given = Renders(torch.rand(4, 3, SIZE, SIZE, generator=generator(2)), [Meaning((Phrase("cube", "red"),))] * 4)
    draws = 60
    found = asd.variance(model, given, "sds", 0.5, asd.AsdBench(pulled=4, draws=draws))
    level = model.path.at_index(torch.tensor(round(0.5 * 999.0))).item()
    spread = (level.sigma * level.alpha * 0.25) ** 2
    means = (level.sigma**2 * (2 * given.images - 1)).square().flatten(1).mean(1)
    expected = spread / (means + spread / draws)
    torch.testing.assert_close(torch.tensor(found), expected.float(), rtol=0.1, atol=0)


def test_settings_of_the_dream_change_what_they_say():
    recipe = load_recipe(None, prior(), None, "text-to-splats")
    fixed, plain, images = (change(recipe) for change in stabledreamer.SETTINGS.values())
    assert fixed.score.window.bounds(0) == fixed.score.window.bounds(1) == (0.02, 0.98)
    assert plain == recipe and images.score.space == "image" and images.optimise == recipe.optimise


def test_a_second_stage_goes_on_from_the_first_and_costs_both():
    model = prior()
    recipe = at_rows(load_recipe(None, model, None, "text-to-splats"), model, 40)
    still = replace(recipe, optimise=replace(recipe.optimise, steps=1, lr=1e-9))
    fast = replace(recipe, optimise=replace(recipe.optimise, lr=20.0))
    first = made(fast, model, "a red cube", 3, SIZE)
    both = made(still, model, "a red cube", 3, SIZE, first)
    alone = made(still, model, "a red cube", 3, SIZE)
    torch.testing.assert_close(both.views, first.views, rtol=0, atol=1e-2)
    assert (alone.views - first.views).abs().max() > 0.05
    assert both.nfe == first.nfe + alone.nfe and both.seconds > first.seconds
    lost = replace(first, work=None, failed="it collapsed")
    assert made(still, model, "a red cube", 3, SIZE, lost) is lost


def test_two_stages_share_the_rows(monkeypatch):
    model = prior(64)
    monkeypatch.setattr(stabledreamer, "load_prior", lambda name, device, dtype: model if "pixels" in name else None)
    shape = stabledreamer.in_two(model, 80)("a red cube", 0)
    assert shape.nfe == 80 and not shape.failed
