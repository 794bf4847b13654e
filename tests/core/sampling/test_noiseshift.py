"""Recalibrated times: identity, closed-form search, isotonic smoothing, artefact, hooks on the real classes."""

from __future__ import annotations

import math

import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.priors.noise import NoisePath
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from unproject.core.sampling.calibration import fingerprint
from unproject.core.sampling.noiseshift import (
    RemapSearch,
    TimeRemap,
    apply_time_remap,
    calibrate_time_remap,
    isotonic,
    remove_time_remap,
    resolution_rule,
)
from unproject.utils.errors import InputError

V_SCHEDULE = {**SD_SCHEDULE, "prediction_type": "v_prediction"}
IDENTITY = TimeRemap(torch.linspace(0, 1000, 7), torch.linspace(0, 1000, 7))


def prior_of(variance: float, config=FLOW_SCHEDULE) -> GaussianMixturePrior:
    return GaussianMixturePrior(torch.zeros(1, 1, 4, 4), torch.tensor([variance**0.5]), scheduler_config=config)


def latents(variance: float, count: int = 400) -> torch.Tensor:
    rng = torch.Generator().manual_seed(11)
    return variance**0.5 * torch.randn(count, 1, 4, 4, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE, V_SCHEDULE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identity_table_is_the_plain_sampler_bit_for_bit(config, dtype):
    prior = prior_of(0.5, config)
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    condition = prior.encode_text([""] * 3)
    levels = NoiseSchedule.from_config(config).grid(7)
    plain = Sampler(DDIM()).run(Denoiser(prior, condition), x, levels)
    told = Sampler(DDIM()).run(Denoiser(prior, condition, time_remap=IDENTITY), x, levels)
    assert torch.equal(plain, told)


def test_only_the_networks_time_changes():
    prior, schedule = prior_of(0.5), NoiseSchedule.from_config(FLOW_SCHEDULE)
    remap = TimeRemap(torch.tensor([0.0, 500.0, 1000.0]), torch.tensor([0.0, 600.0, 1000.0]))
    condition, x = prior.encode_text([""] * 400), latents(1.0)
    level = schedule.at_index(499)
    answer = Denoiser(prior, condition, time_remap=remap)(x, level)
    assert answer.level is level
    torch.testing.assert_close(answer.raw, prior.predict(x, 600.0, condition["cond"]))


def test_interpolation_and_ends():
    remap = TimeRemap(torch.tensor([100.0, 200.0, 400.0]), torch.tensor([110.0, 230.0, 400.0]))
    told = remap(torch.tensor([0.0, 100.0, 150.0, 300.0, 500.0]))
    torch.testing.assert_close(told, torch.tensor([10.0, 110.0, 170.0, 315.0, 500.0]))
    assert told.dtype == torch.float32
    assert remap.shift == pytest.approx(40 / 3 / 300)


@pytest.mark.parametrize("variance", [0.4, 1.0])
def test_search_finds_the_closed_form_of_gaussian_data(variance):
    """c(s; v) = [s - (1 - s) v] / [(1 - s)^2 v + s^2] is the velocity per x; the network believes v = 1."""

    def c(s: float, v: float) -> float:
        return (s - (1 - s) * v) / ((1 - s) ** 2 * v + s * s)

    search = RemapSearch(levels=11, reach=0.3)
    prior = prior_of(1.0)
    fit = calibrate_time_remap(prior, latents(variance, 4000), prior.encode_text(""), search, batch=4000)
    for k in range(1, 10):
        s = k / 10
        tau = float(fit.raw[k]) / 1000
        grid = torch.linspace(max(s - 0.3, 0), min(s + 0.3, 1), 601).tolist()
        best = min(grid, key=lambda t, s=s: abs(c(t, 1.0) - c(s, variance)))
        assert abs(tau - best) < 0.0125 + 0.01
    if variance == 1.0:
        assert abs(fit.remap.shift) < 0.0125
    else:
        assert fit.remap.shift > 0.02
    assert bool((fit.best <= fit.plain + 1e-12).all())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "flow_prediction"])
def test_an_answer_means_what_it_means_at_the_time_told(kind, guidance):
    """A network that knows noise and picture codes them at the time told; they are read back at every level."""
    config = FLOW_SCHEDULE if kind == "flow_prediction" else {**SD_SCHEDULE, "prediction_type": kind}
    x0, eps = latents(0.5, 3), latents(1.0, 3).flip(0)

    class Oracle(GaussianMixturePrior):
        def _forward(self, x, time, rows):
            alpha, sigma = NoisePath.from_config(config).at_time(time).coefficients(x)
            copies = (len(x) // 3, 1, 1, 1)
            answers = {"epsilon": eps, "v_prediction": alpha[:3] * eps - sigma[:3] * x0, "flow_prediction": eps - x0}
            return answers[kind].repeat(copies)

    prior = Oracle(torch.zeros(1, 1, 4, 4), torch.ones(1), scheduler_config=config)
    schedule = NoiseSchedule.from_config(config)
    remap = TimeRemap(torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0.0, 650.0, 999.0]))
    for level in (schedule.at_index(700), schedule.at_index(torch.tensor([80.0, 400.0, 900.0]))):
        x = schedule.add_noise(x0, eps, level)
        found = Denoiser(prior, prior.encode_text([""] * 3), guidance, remap)(x, level)
        torch.testing.assert_close(found.x0, x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.eps, eps, rtol=1e-9, atol=1e-9)


def test_search_of_a_v_network_finds_its_closed_form():
    """On unit variance v = 0 at every time, read as eps = sigma_tau x / d: best at lambda_tau = lambda_t + log v."""
    prior, variance = prior_of(1.0, V_SCHEDULE), 0.6
    search = RemapSearch(levels=7, reach=0.3)
    fit = calibrate_time_remap(prior, latents(variance, 2000), prior.encode_text(""), search, batch=2000)
    schedule = NoiseSchedule.from_config(V_SCHEDULE)
    for k in range(1, 5):
        wanted = schedule.at_lambda(float(schedule.at_index(k / 6 * 999).lam) + math.log(variance)).index
        assert abs(float(fit.raw[k]) - wanted) / 999 < 0.0125 + 0.01


def test_the_velocity_regression_and_the_one_step_objective_agree():
    prior, x0 = prior_of(1.0), latents(0.4)
    schedule = NoiseSchedule.from_config(FLOW_SCHEDULE)
    condition = prior.encode_text([""] * 400)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    here, there = schedule.at_index(599), schedule.at_index(549)
    x, wanted = (schedule.add_noise(x0, noise, level) for level in (here, there))
    ratio = []
    for tau in (500.0, 600.0, 700.0):
        u = prior.predict(x, tau, condition["cond"])
        one_step = (x + (there.sigma - here.sigma) * u - wanted).square().mean()
        ratio.append(float(one_step / (u - (noise - x0)).square().mean()))
    assert ratio == pytest.approx([(there.sigma - here.sigma) ** 2] * 3)


def test_isotonic_regression():
    values = torch.tensor([1.0, 3.0, 2.0, 2.5, 5.0])
    torch.testing.assert_close(isotonic(values), torch.tensor([1.0, 2.5, 2.5, 2.5, 5.0]).double())
    rising = torch.tensor([0.0, 1.0, 4.0])
    torch.testing.assert_close(isotonic(rising), rising.double(), rtol=0, atol=0)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_resolution_rule(config):
    schedule = NoiseSchedule.from_config(config)
    same = resolution_rule(schedule, 4096, 4096)
    torch.testing.assert_close(same.told, same.times, rtol=1e-9, atol=1e-6)
    small = resolution_rule(schedule, 1024, 4096, levels=5)
    assert small.shift > 0
    if schedule.flow:
        s = small.times[1:-1] / 1000
        torch.testing.assert_close(small.told[1:-1] / 1000, 2 * s / (1 + s))
    else:
        middle = float(schedule.at_index(float(small.told[2])).lam)
        assert middle == pytest.approx(float(schedule.at_index(float(small.times[2])).lam) - math.log(2))


def test_artefact_comes_back_and_belongs_to_its_shape(tmp_path):
    prior = prior_of(1.0)
    remap = TimeRemap(torch.tensor([0.0, 300.0, 1000.0]), torch.tensor([0.0, 350.0, 1000.0]))
    path = remap.save(tmp_path / "remap.safetensors", fingerprint(prior))
    assert torch.equal(TimeRemap.load(path, fingerprint(prior, guidance=3.0)).told, remap.told)
    with pytest.raises(InputError, match="latent shape"):
        TimeRemap.load(path, fingerprint(prior, (1, 8, 8)))


def test_hook_and_denoiser_tell_the_same_time(tiny_folders):
    remap = TimeRemap(torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0.0, 620.0, 999.0]))
    for name in ("sd", "sd3", "flux"):
        prior = load_prior(tiny_folders[name])
        condition = prior.encode_text("a red chair")
        x = torch.randn(1, prior.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(0))
        level = NoiseSchedule.from_config(prior.scheduler_config).at_index(400)
        with torch.no_grad():
            plain = Denoiser(prior, condition)(x, level).raw
            wanted = Denoiser(prior, condition, time_remap=remap)(x, level).raw
            apply_time_remap(prior, remap)
            torch.testing.assert_close(Denoiser(prior, condition)(x, level).raw, wanted, rtol=1e-4, atol=1e-5)
            remove_time_remap(prior)
            assert torch.equal(Denoiser(prior, condition)(x, level).raw, plain)
        assert not torch.equal(plain, wanted)


def test_the_hook_refuses_what_it_would_spoil(tiny_folders):
    remap = TimeRemap(torch.tensor([0.0, 999.0]), torch.tensor([0.0, 900.0]))
    prior = load_prior(tiny_folders["sd-v"])
    for target in (prior, prior.pipe):
        with pytest.raises(InputError, match=f"{type(target).__name__} predicts v.*as time_remap="):
            apply_time_remap(target, remap)
    with pytest.raises(InputError, match="a UNet2DConditionModel does not say what it predicts; give the pipeline"):
        apply_time_remap(prior.network, remap)
    other = load_prior(tiny_folders["sd3"])
    apply_time_remap(other.pipe, remap)
    remove_time_remap(other.network)


def test_bad_tables_are_named():
    with pytest.raises(InputError, match="n >= 2"):
        TimeRemap(torch.zeros(1), torch.zeros(1))
    with pytest.raises(InputError, match="must not fall"):
        TimeRemap(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="levels=1"):
        RemapSearch(levels=1)


def test_a_v_of_frames_is_read_again_sample_by_sample() -> None:
    """As many channels as samples, which a shape for pictures would take for each other."""
    config = {**SD_SCHEDULE, "prediction_type": "v_prediction"}
    prior = GaussianMixturePrior(torch.zeros(1, 2, 3, 3), torch.ones(1), scheduler_config=config)
    denoiser = Denoiser(prior, prior.encode_text(["", ""]), time_remap=IDENTITY)
    level, time, told = denoiser.schedule.at_index(400), torch.tensor([400.0, 400.0]), torch.tensor([400.0, 500.0])
    x, raw = torch.randn(2, 2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    found = denoiser._at_level(x, level, time, told, raw)
    frames = [denoiser._at_level(x[:, :, k], level, time, told, raw[:, :, k]) for k in range(4)]
    torch.testing.assert_close(found, torch.stack(frames, 2), rtol=0, atol=0)
