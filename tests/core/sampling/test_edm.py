"""The EDM view of a prior, Karras' grid and guidance by frame: exact checks of the SVD card."""

from __future__ import annotations

import math

import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from unproject.core.sampling.edm import EDMDenoiser, karras_sigmas, level_of, lognormal_levels, v_error
from unproject.core.sampling.guidance import ClassifierFree, Conditional, FrameGuidance, KnownRows
from unproject.core.sampling.prediction import Prediction
from unproject.utils.errors import InputError

SVD = {  # the scheduler of the published checkpoints
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
V_SCHEDULE = {**SD_SCHEDULE, "prediction_type": "v_prediction"}
CONTINUOUS = NoiseSchedule.from_config(SVD)


def mixture(config, count=3):
    means = torch.randn(count, 2, 3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return GaussianMixturePrior(means, torch.linspace(0.3, 0.8, count), scheduler_config=config)


@pytest.fixture
def x():
    return torch.randn(4, 2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_d_of_a_v_network_is_the_edm_formula_at_a_hundred_sigmas(x):
    """(2) c_skip x + c_out F(c_in x; c_noise), written out beside the view."""
    prior = mixture(SVD)
    condition = prior.encode_text("0").repeat(4)
    view = EDMDenoiser(Denoiser(prior, condition))
    for sigma in torch.logspace(math.log10(0.002), math.log10(700), 100, dtype=torch.float64).tolist():
        noisy = x + sigma * x.flip(0)
        root = math.sqrt(sigma**2 + 1)
        raw = prior.predict(noisy / root, 0.25 * math.log(sigma), condition["cond"])
        wanted = noisy / root**2 - sigma / root * raw
        torch.testing.assert_close(view(noisy, sigma), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", [SD_SCHEDULE, V_SCHEDULE, FLOW_SCHEDULE, SVD])
def test_d_is_the_posterior_mean_on_every_path(config, x):
    """One component N(mu, s^2): D = (s^2 x + sigma^2 mu) / (s^2 + sigma^2), with a sigma for each row too."""
    prior = mixture(config, 1)
    view = EDMDenoiser(Denoiser(prior, prior.encode_text("0").repeat(4)))
    sigmas = torch.tensor([0.05, 0.4, 2.0, 9.0], dtype=torch.float64)
    wide, s2 = sigmas.reshape(-1, 1, 1, 1) ** 2, float(prior.stds[0]) ** 2
    wanted = (s2 * x + wide * prior.means) / (s2 + wide)
    torch.testing.assert_close(view(x, sigmas), wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(view.score(x, sigmas), (wanted - x) / wide, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(view(x, 0.4)[1], wanted[1], rtol=1e-8, atol=1e-8)
    with pytest.raises(InputError, match="above 0"):
        view(x, 0.0)


def euler(denoise, x, sigmas):
    """The loop of the paper."""
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x = x + (after - sigma) * (x - denoise(x, sigma)) / sigma
    return x


def test_ddim_on_a_karras_grid_is_euler_in_sigma(x):
    prior = mixture(SVD)
    denoiser = Denoiser(prior, prior.encode_text("1").repeat(4))
    levels = CONTINUOUS.grid(7)
    ours = Sampler(DDIM()).run(denoiser, x, levels)
    start = math.sqrt(700**2 + 1) * x  # a variance-preserving state of unit noise
    torch.testing.assert_close(ours, euler(EDMDenoiser(denoiser), start, karras_sigmas(7)), rtol=1e-7, atol=1e-7)


def test_euler_reaches_the_mean_and_variance_of_a_gaussian_at_first_order():
    """(3) Of one Gaussian the map from noise is affine: its offset and slope are the mean and the deviation."""
    prior = mixture(SVD, 1)
    noise = torch.stack([torch.zeros(2, 3, 2), torch.ones(2, 3, 2)]).double()
    errors = []
    for steps in (40, 80, 160):
        denoiser = Denoiser(prior, prior.encode_text("0").repeat(2))
        low, high = Sampler(DDIM()).run(denoiser, noise, CONTINUOUS.grid(steps))
        offset, slope = float((low - prior.means[0]).abs().max()), float((high - low).mean())
        errors.append((slope - float(prior.stds[0])) / float(prior.stds[0]))
        assert offset < 0.02  # the noise of 700 still holds a little of the mean
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 1.8 < coarse / fine < 2.2


def test_the_grid_of_svd_is_that_of_diffusers():
    """(6) Ends 700 and .002, first ratio .7796 at 25 steps, c_noise from 1.64 to -1.55."""
    from diffusers import EulerDiscreteScheduler

    stock = EulerDiscreteScheduler.from_config({k: v for k, v in SVD.items() if k != "_class_name"})
    stock.set_timesteps(25)
    levels = CONTINUOUS.grid(25)
    sigmas = karras_sigmas(25)
    assert float(sigmas[0]) == pytest.approx(700) and float(sigmas[-2]) == pytest.approx(0.002)
    assert float(sigmas[-1]) == 0 and float(sigmas[1] / sigmas[0]) == pytest.approx(0.7796, abs=1e-4)
    torch.testing.assert_close(sigmas.float(), stock.sigmas, rtol=1e-5, atol=0)
    found = torch.tensor([level.sigma / level.alpha for level in levels[:-1]])
    torch.testing.assert_close(found, sigmas[:-1].float(), rtol=1e-6, atol=0)
    times = torch.tensor([level.model_time for level in levels[:-1]])
    torch.testing.assert_close(times, stock.timesteps, rtol=1e-5, atol=1e-5)
    assert times[0] == pytest.approx(1.6378, abs=1e-3) and times[-1] == pytest.approx(-1.5536, abs=1e-3)
    with pytest.raises(InputError, match="sigma_min"):
        karras_sigmas(5, 2.0, 1.0)


def test_levels_of_a_continuous_path():
    level = level_of(CONTINUOUS, 3.0)
    assert level.model_time == pytest.approx(0.25 * math.log(3)) and level.lam == pytest.approx(-math.log(3))
    assert CONTINUOUS.at_time(torch.tensor(level.model_time)).lam == pytest.approx(level.lam)
    beyond = level_of(CONTINUOUS, 5000.0)
    assert beyond.model_time == pytest.approx(0.25 * math.log(5000))
    assert bool(level_of(CONTINUOUS, 0.01).within((0.0, 0.3))) and not bool(level_of(CONTINUOUS, 0.01).within((0.5, 1)))
    wide = NoiseSchedule.from_config({k: v for k, v in SVD.items() if not k.startswith("sigma_")})
    assert float(wide.at_index(999).sigma / wide.at_index(999).alpha) == pytest.approx(14.6146, abs=1e-3)


def test_continuous_times_need_a_v_network():
    with pytest.raises(InputError, match=r"timestep_type='continuous' with prediction_type='epsilon'"):
        NoiseSchedule.from_config({**SVD, "prediction_type": "epsilon"})
    plain = {**SVD, "timestep_type": "discrete"}
    assert NoiseSchedule.from_config(plain).at_index(500).model_time == 500


def test_levels_of_a_training_are_lognormal_and_within_the_path():
    schedule = NoiseSchedule.from_config(V_SCHEDULE)
    levels = lognormal_levels(schedule, 4000, 0.7, 1.6, torch.Generator().manual_seed(3))
    lam = -torch.as_tensor(levels.lam)
    inside = (lam > lam.min()) & (lam < lam.max())
    assert float(lam.median()) == pytest.approx(0.7, abs=0.08) and 0.86 < float(inside.double().mean()) < 0.91
    assert float(torch.as_tensor(levels.index).min()) >= 0 and float(torch.as_tensor(levels.index).max()) <= 999


def test_the_loss_is_the_weighted_error_of_d(x):
    level = NoiseSchedule.from_config(V_SCHEDULE).at_index(torch.tensor([20.0, 300.0, 600.0, 990.0]))
    alpha, sigma = level.coefficients(x)
    x0, eps = x.flip(1), x.flip(2)
    prediction = Prediction(alpha * x0 + sigma * eps, level, x.sin(), "epsilon")
    ratio = (sigma / alpha) ** 2
    wanted = (1 + ratio) / ratio * (prediction.x0 - x0).square()
    torch.testing.assert_close(v_error(prediction, x0, eps), wanted, rtol=1e-8, atol=1e-8)


def test_frame_guidance_by_hand(x):
    level = NoiseSchedule.from_config(V_SCHEDULE).at_index(400)
    cond, null = (Prediction(x, level, raw, "v_prediction") for raw in (x.exp(), x.cos()))
    guidance = FrameGuidance.ramp(1.0, 2.5, 2)
    made = guidance({"cond": cond, "null": null}).x0
    for row, scale in enumerate((1.0, 2.5, 1.0, 2.5)):
        torch.testing.assert_close(made[row], null.x0[row] + scale * (cond.x0[row] - null.x0[row]))
    with pytest.raises(InputError, match="whole groups of the 3 frames"):
        FrameGuidance((1.0, 2.0, 3.0))({"cond": cond, "null": null})


def test_ramps_and_triangles():
    assert FrameGuidance.ramp(1, 3, 5).scales == (1, 1.5, 2, 2.5, 3)
    assert FrameGuidance.triangle(1, 2.5, 5).scales == pytest.approx((1, 1.75, 2.5, 1.75, 1))
    t = torch.arange(21, dtype=torch.float64) / 20  # the formula of SV3D's guider, period 1
    wave = 2 * (t - (t + 0.5).floor()).abs()
    assert FrameGuidance.triangle(1, 2.5, 21).scales == pytest.approx((1 + 1.5 * wave).tolist())
    around = FrameGuidance.around(1, 3, [0, 90, 180, 270, 360, -90])
    assert around.scales == pytest.approx((1, 2, 3, 2, 1, 2))
    assert FrameGuidance.ramp(1, 3, 1).scales == FrameGuidance.triangle(1, 3, 1).scales == (1,)
    assert str(FrameGuidance((1.0, 2.0, 2.0))) == "frames 1 2 x2"


def test_weight_one_in_all_frames_is_the_conditional_model(x):
    """(4) The same numbers, and no second branch."""
    prior = mixture(V_SCHEDULE)
    condition = prior.encode_text("2").repeat(4)
    ones, plain = (Denoiser(prior, condition, g) for g in (FrameGuidance.ramp(1, 1, 4), Conditional()))
    level = ones.schedule.at_index(700)
    assert torch.equal(ones(x, level).x0, plain(x, level).x0) and ones.nfe == plain.nfe == 4


def test_one_frame_is_a_single_picture(x):
    """(5) of the sampler: a group of one with its scale draws what classifier-free guidance draws."""
    prior = mixture(V_SCHEDULE)
    condition = prior.encode_text("2").repeat(4)
    frames, single = (
        Sampler(DDIM()).run(Denoiser(prior, condition, g), x, NoiseSchedule.from_config(V_SCHEDULE).grid(4))
        for g in (FrameGuidance((2.0,)), ClassifierFree(2.0))
    )
    torch.testing.assert_close(frames, single, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_known_rows_keep_their_noise_and_end_as_what_they_are(kind):
    """x0 of the known rows is exact at any level, the state of each is that picture under the noise it began with, and
    the other rows are those of the guidance within."""
    random = torch.Generator().manual_seed(2)
    x, cond, null = (torch.randn(3, 2, 3, 2, generator=random, dtype=torch.float64) for _ in range(3))
    x0 = torch.randn(1, 2, 3, 2, generator=random, dtype=torch.float64)
    level = CONTINUOUS.at_index(400)
    told = {"cond": Prediction(x, level, cond, kind), "null": Prediction(x, level, null, kind)}
    inner = ClassifierFree(3.0)
    guided, found = inner(told), KnownRows(inner, x0, (1,))(told)
    torch.testing.assert_close(found.x0[1:2], x0)
    torch.testing.assert_close(found.alpha * found.x0 + found.sigma * found.eps, x)
    assert torch.equal(found.raw[[0, 2]], guided.raw[[0, 2]]) and found.kind == kind
    assert KnownRows(inner, x0, (1,)).needs(level) == inner.needs(level) and "1 rows known" in str(
        KnownRows(inner, x0, (1,))
    )
