"""Guidance and the denoiser: limits, commutation, counting, batching."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import SD_SCHEDULE, Condition, GaussianMixturePrior
from unproject.core.sampling import DDIM, KINDS, Denoiser, Guidance, NoiseSchedule, Prediction, Sampler
from unproject.utils.errors import InputError

SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)


@pytest.fixture
def prior():
    means = torch.stack([torch.full((1, 2, 2), float(m)) for m in (-1, 1)])
    return GaussianMixturePrior(means, torch.tensor([0.2, 0.2]), names=("left", "right"))


@pytest.fixture
def x():
    return torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_guidance_one_is_the_conditional_model_and_costs_one_branch(prior, x):
    condition = prior.encode_text(["left", "right", ""])
    denoiser = Denoiser(prior, condition, 1.0)
    level = SCHEDULE.at_index(400)
    torch.testing.assert_close(denoiser(x, level).raw, prior.predict(x, 400.0, condition), rtol=0, atol=0)
    assert denoiser.nfe == 3


def test_guidance_formula_and_cost(prior, x):
    condition = prior.encode_text(["left", "right", ""])
    denoiser = Denoiser(prior, condition, 5.0)
    cond = prior.predict(x, 400.0, condition)
    uncond = prior.predict(x, 400.0, condition, embeds=condition.null)
    torch.testing.assert_close(denoiser(x, SCHEDULE.at_index(400)).raw, uncond + 5 * (cond - uncond))
    assert denoiser.nfe == 6


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_commutes_with_parameterisation(kind, x):
    level = SCHEDULE.at_index(torch.tensor([10.0, 500.0, 900.0]))
    branches = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    guidance = Guidance(7.5)
    direct = Prediction(x, level, guidance.combine(*branches), "epsilon").read(kind)
    apart = guidance.combine(*(Prediction(x, level, b, "epsilon").read(kind) for b in branches))
    torch.testing.assert_close(direct, apart, rtol=1e-10, atol=1e-10)


def test_full_rescale_restores_the_conditional_std(x):
    out = Guidance(10.0, rescale=1.0).combine(x.flip(0), x)
    torch.testing.assert_close(out.std((1, 2, 3)), x.std((1, 2, 3)))


def test_interval_saves_the_second_branch(prior, x):
    denoiser = Denoiser(prior, prior.encode_text("left").repeat_interleave(3), Guidance(5.0, interval=(0.2, 0.8)))
    for index in (100, 500, 900):
        denoiser(x, SCHEDULE.at_index(index))
    assert denoiser.nfe == 3 + 6 + 3


def test_batch_equals_single_rows(prior, x):
    levels = SCHEDULE.grid(6)
    condition = prior.encode_text(["left", "right", ""])
    whole = Sampler(DDIM()).run(Denoiser(prior, condition, 3.0), x, levels)
    for row in range(3):
        alone = Sampler(DDIM()).run(Denoiser(prior, condition.index([row]), 3.0), x[row : row + 1], levels)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-12, atol=1e-12)


def test_levels_per_sample(prior, x):
    indices = torch.tensor([100.0, 500.0, 900.0])
    denoiser = Denoiser(prior, prior.encode_text("left").repeat_interleave(3), 4.0)
    together = denoiser(x, SCHEDULE.at_index(indices)).x0
    for row, index in enumerate(indices.tolist()):
        single = Denoiser(prior, prior.encode_text("left"), 4.0)(x[row : row + 1], SCHEDULE.at_index(index)).x0
        torch.testing.assert_close(single[0], together[row], rtol=1e-9, atol=1e-9)


def test_missing_branch_and_bad_settings_are_named(prior):
    condition = prior.encode_text("left")
    bare = Condition(embeds=condition.embeds, prompts=["left"])
    with pytest.raises(InputError, match=r"scale=3\.0"):
        Denoiser(prior, bare, 3.0)
    with pytest.raises(InputError, match="rescale=2"):
        Guidance(1.0, rescale=2)
    with pytest.raises(InputError, match="interval"):
        Guidance(1.0, interval=(0.8, 0.2))
