"""Several models along one trajectory: one model everywhere is that model, each level has its own, refusals."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.priors.noise import NoisePath
from unproject.core.sampling import SOLVERS, ClassifierFree, Denoiser, NoiseSchedule, Sampler, make_solver
from unproject.core.sampling.model_schedule import ScheduledPrior, switched
from unproject.core.sampling.noiseshift import TimeRemap
from unproject.utils.errors import InputError, UnprojectError

BASELINES = ("ddim", "dpm++", "unipc", "euler", "heun")


def mixture(seed=5, config=SD_SCHEDULE, std=0.4, size=3) -> GaussianMixturePrior:
    rng = torch.Generator().manual_seed(seed)
    means = torch.randn(3, 2, size, size, generator=rng, dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([std] * 3), scheduler_config=config)


def noise(batch=3):
    return torch.randn(batch, 2, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


X0 = noise().flip(0)


class Oracle(GaussianMixturePrior):
    """A network that knows the noise and the picture, as it is told the time."""

    def _forward(self, x, time, rows):
        alpha, sigma = NoisePath.from_config(self.scheduler_config).at_time(time).coefficients(x)
        answers = {"epsilon": noise(), "sample": X0, "v_prediction": alpha * noise() - sigma * X0}
        return answers[self.prediction_type]


def sample(prior, levels, name="ddim", guidance=None):
    solver = make_solver(name, NoiseSchedule.from_config(prior.scheduler_config).flow, prior.prediction_type)
    denoiser = Denoiser(prior, prior.encode_text(["0", "1", ""]), guidance)
    return Sampler(solver).run(denoiser, noise(), levels)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_one_model_everywhere_is_that_model(name, config):
    assert name in SOLVERS
    prior = mixture(config=config)
    levels = NoiseSchedule.from_config(config).grid(8)
    plain = sample(prior, levels, name, ClassifierFree(2.0))
    for share in (0.0, 0.4, 1.0):
        assert torch.equal(sample(switched(prior, prior, levels, share), levels, name, ClassifierFree(2.0)), plain)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_each_level_has_its_model_and_calls_are_counted(share):
    first, second = mixture(5), mixture(6)
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(8)
    both = switched(first, second, levels, share)
    for step, level in enumerate(levels[:-1]):
        wanted = first if step < 8 * share else second
        found = both.predict(noise(), level.model_time, both.encode_text([""] * 3)["cond"])
        assert torch.equal(found, wanted.predict(noise(), level.model_time, wanted.encode_text([""] * 3)["cond"]))
    before = (first.nfe, second.nfe, both.nfe)
    sample(both, levels)
    assert (first.nfe - before[0], second.nfe - before[1]) == (int(24 * share), 24 - int(24 * share))
    assert both.nfe - before[2] == 24


def test_the_ends_are_the_models_alone_and_the_order_matters():
    first, second = mixture(5), mixture(6)
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(8)
    assert torch.equal(sample(switched(first, second, levels, 0.0), levels), sample(second, levels))
    assert torch.equal(sample(switched(first, second, levels, 1.0), levels), sample(first, levels))
    half, other = (sample(switched(*pair, levels, 0.5), levels) for pair in ((first, second), (second, first)))
    assert not torch.allclose(half, other)


def test_rows_at_different_levels_go_to_their_own_model():
    first, second = mixture(5), mixture(6)
    both = ScheduledPrior([first, second], [500.0])
    condition = both.encode_text(["0", "1", "2"])
    time = torch.tensor([800.0, 100.0, 501.0], dtype=torch.float64)
    found = both.predict(noise(), time, condition["cond"])
    for row, model in enumerate((first, second, first)):
        alone = model.predict(noise()[row : row + 1], time[row : row + 1], condition["cond"].index([row]))
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_answers_of_another_kind_are_converted(kind):
    """The same distribution asked in another parameterisation gives the same trajectory."""
    eps, other = mixture(), mixture(config={**SD_SCHEDULE, "prediction_type": kind})
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(8)
    both = switched(other, eps, levels, 0.5)
    assert both.prediction_type == kind
    torch.testing.assert_close(sample(both, levels), sample(eps, levels), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kinds", [("epsilon", "v_prediction"), ("v_prediction", "epsilon"), ("sample", "epsilon")])
def test_answers_to_a_remapped_time_are_converted_at_the_true_one(kinds):
    """Networks that know noise and picture: what they say of them does not depend on the time told."""
    config = [{**SD_SCHEDULE, "prediction_type": kind} for kind in kinds]
    both = ScheduledPrior([Oracle(torch.zeros(1, 2, 3, 3), torch.ones(1), scheduler_config=c) for c in config], [500.0])
    remap = TimeRemap(torch.tensor([0.0, 999.0]), torch.tensor([0.0, 800.0]))
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    for index in (300, 550, 800):
        level = schedule.at_index(index)
        x = schedule.add_noise(X0, noise(), level)
        found = Denoiser(both, both.encode_text([""] * 3), time_remap=remap)(x, level)
        torch.testing.assert_close(found.x0, X0, rtol=1e-9, atol=1e-9)
    assert [model.nfe for model in both.models] == [6, 3], "chosen by the true time"


def test_refusals():
    prior = mixture()
    for models, switches, message in (
        ([prior, prior], [], "2 models need 1 switches, got 0"),
        ([prior] * 3, [100.0, 200.0], "must fall"),
        ([prior, mixture(size=4)], [1.0], r"differ in latent_shape: \(2, 3, 3\) and \(2, 4, 4\)"),
        ([prior, mixture(config=FLOW_SCHEDULE)], [1.0], "different noise schedules"),
        ([prior, mixture(config={**SD_SCHEDULE, "beta_end": 0.02})], [1.0], "different noise schedules"),
        ([prior, GaussianMixturePrior(torch.zeros(1, 2, 3, 3), torch.ones(1))], [1.0], "different text encoders"),
    ):
        with pytest.raises(InputError, match=message):
            ScheduledPrior(models, switches)
    with pytest.raises(InputError, match=r"share=1\.5 must lie in \[0, 1\]"):
        switched(prior, prior, NoiseSchedule.from_config(SD_SCHEDULE).grid(4), 1.5)
    with pytest.raises(UnprojectError, match="save its models one by one"):
        ScheduledPrior([prior], []).save("nowhere")


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_real_classes(tiny_folders, family):
    prior = load_prior(tiny_folders[family])
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    levels = schedule.grid(5)
    both = switched(prior, prior, levels, 0.4)
    assert list(both.modules()) == [f"0.{name}" for name in prior.modules()]
    condition = both.encode_text(["a dog"])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    solver = make_solver("euler", schedule.flow, prior.prediction_type)
    with torch.no_grad():
        plain = Sampler(solver).run(Denoiser(prior, condition), x, levels)
        found = Sampler(solver).run(Denoiser(both, condition), x, levels)
    assert torch.equal(plain, found)
    assert torch.equal(both.decode(found), prior.decode(plain))
