"""The Gaussian oracle: exact flow, exact denoiser, fitting, and solvers that converge to it."""

from __future__ import annotations

import math

import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler, make_solver
from unproject.core.sampling import teleport as module
from unproject.core.sampling.calibration import fingerprint
from unproject.core.sampling.teleport import GaussianPrior
from unproject.utils.errors import InputError

SHAPE = (2, 2, 3)
SCHEDULES = {"vp": NoiseSchedule.from_config(SD_SCHEDULE), "flow": NoiseSchedule.from_config(FLOW_SCHEDULE)}


def gaussian(rank: int = 12, tail: float = 0.0) -> GaussianPrior:
    rng = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=rng, dtype=torch.float64))[0][:rank]
    variances = torch.linspace(3.0, 0.05, rank, dtype=torch.float64)
    return GaussianPrior(torch.randn(SHAPE, generator=rng, dtype=torch.float64), basis, variances, tail)


def noise(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture(params=["vp", "flow"])
def schedule(request):
    return SCHEDULES[request.param]


def test_denoiser_is_the_posterior_mean_of_dense_algebra(schedule):
    prior, x, level = gaussian(5, 0.2), noise(), schedule.at_index(600)
    cov = prior.basis.mT @ (prior.variances[:, None] * prior.basis)
    cov = cov + 0.2 * (torch.eye(12, dtype=torch.float64) - prior.basis.mT @ prior.basis)
    total = level.alpha**2 * cov + level.sigma**2 * torch.eye(12, dtype=torch.float64)
    score = -torch.linalg.solve(total, (x.flatten(1) - level.alpha * prior.mean).mT).mT
    prediction = prior(x, level)
    torch.testing.assert_close(prediction.score.flatten(1), score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        prediction.x0.flatten(1), (x.flatten(1) + level.sigma**2 * score) / level.alpha, rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(prediction.v, level.alpha * prediction.eps - level.sigma * prediction.x0)


def test_isotropic_gaussian_agrees_with_the_mixture_prior(schedule):
    config = FLOW_SCHEDULE if schedule.flow else SD_SCHEDULE
    mean = noise(1)
    mixture = GaussianMixturePrior(mean, torch.tensor([0.5]), scheduler_config=config)
    prior = GaussianPrior(mean[0], torch.zeros(0, 12), torch.zeros(0), tail=0.25)
    level, x = schedule.at_index(300), noise()
    wanted = Denoiser(mixture, mixture.encode_text([""] * 3))(x, level)
    torch.testing.assert_close(prior(x, level).eps, wanted.eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prior(x, level).x0, wanted.x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("rank", "tail"), [(12, 0.0), (5, 0.0), (5, 0.3)])
def test_transport_composes_and_comes_back(schedule, rank, tail):
    prior, x = gaussian(rank, tail), noise()
    top, middle, low = (schedule.at_index(i) for i in (999, 500, 20))
    there = prior.transport(x, top, middle)
    torch.testing.assert_close(
        prior.transport(there, middle, low), prior.transport(x, top, low), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(prior.transport(there, middle, top), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(prior.transport(x, top, top), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [12, 4])
def test_transport_solves_the_ode(schedule, rank):
    """Four-stage Runge-Kutta on dx/ds of the path of interpolated x0 and eps, s between two levels."""
    prior, x = gaussian(rank), noise()
    start, end = schedule.at_index(900).lam, schedule.at_index(100).lam
    steps = 100

    def slope(state, lam):
        level = schedule.at_lambda(lam)
        prediction = prior(state, level)
        share = level.sigma**2 if not schedule.flow else level.sigma  # d log alpha / d lambda
        return share * state - level.sigma * prediction.eps

    h = (end - start) / steps
    state = x
    for i in range(steps):
        lam = start + i * h
        k1 = slope(state, lam)
        k2 = slope(state + h / 2 * k1, lam + h / 2)
        k3 = slope(state + h / 2 * k2, lam + h / 2)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(state + h * k3, lam + h))
    wanted = prior.transport(x, schedule.at_lambda(start), schedule.at_lambda(end))
    torch.testing.assert_close(state, wanted, rtol=1e-6, atol=1e-6)


def test_ddim_converges_to_the_transport_with_order_one(schedule):
    prior, x = gaussian(), noise()
    start, end = schedule.at_index(950).lam, schedule.at_index(50).lam
    wanted = prior.transport(x, schedule.at_lambda(start), schedule.at_lambda(end))
    errors = []
    for n in (20, 40, 80):
        levels = [schedule.at_lambda(start + (end - start) * k / n) for k in range(n + 1)]
        errors.append(float((Sampler(DDIM()).run(prior, x, levels) - wanted).norm()))
    assert 0.8 < math.log2(errors[0] / errors[1]) < 1.2
    assert 0.85 < math.log2(errors[1] / errors[2]) < 1.15


def test_a_library_solver_beats_ddim_on_the_oracle():
    schedule, prior, x = SCHEDULES["vp"], gaussian(), noise().float()
    levels = schedule.grid(20, "logsnr", "index0")
    wanted = prior.transport(x, levels[0], levels[-1])
    plain = (Sampler(DDIM()).run(prior, x, levels) - wanted).norm()
    assert (Sampler(make_solver("dpm++")).run(prior, x, levels) - wanted).norm() < 0.5 * plain


def test_transported_marginals_have_the_data_variances():
    prior, schedule = gaussian(), SCHEDULES["vp"]
    top = schedule.at_index(999)
    rng = torch.Generator().manual_seed(4)
    spread = (top.alpha**2 * prior.variances + top.sigma**2).sqrt()
    modes = spread * torch.randn(20000, 12, generator=rng, dtype=torch.float64)
    x = (top.alpha * prior.mean + modes @ prior.basis).reshape(-1, *SHAPE)
    out = prior.transport(x, top, schedule.clean).flatten(1) - prior.mean
    torch.testing.assert_close((out @ prior.basis.mT).var(0), prior.variances, rtol=0.05, atol=0.0)


def test_flow_ends_are_division_free():
    schedule, prior, x = SCHEDULES["flow"], gaussian(4), noise()
    top = schedule.at_index(999)
    assert top.alpha == 0
    torch.testing.assert_close(prior(x, top).x0.flatten(1), prior.mean.expand(3, -1))
    torch.testing.assert_close(prior(x, top).eps, x)
    clean = prior.transport(x, top, schedule.clean)
    assert bool(torch.isfinite(prior(clean, schedule.clean).raw).all())
    torch.testing.assert_close(prior(clean, schedule.clean).x0, clean)


def test_levels_per_sample_and_dtypes():
    schedule, prior, x = SCHEDULES["vp"], gaussian(5, 0.1), noise()
    together = prior(x, schedule.at_index(torch.tensor([100.0, 500.0, 900.0])))
    for row, index in enumerate((100.0, 500.0, 900.0)):
        alone = prior(x[row : row + 1], schedule.at_index(index))
        torch.testing.assert_close(alone.eps[0], together.eps[row], rtol=1e-9, atol=1e-9)
    assert prior(x.float(), schedule.at_index(3)).eps.dtype == torch.float32
    assert prior.transport(x.float(), schedule.at_index(30), schedule.at_index(3)).dtype == torch.float32


def test_a_mode_is_born_where_its_signal_equals_the_noise():
    schedule, prior = SCHEDULES["vp"], gaussian()
    mode = 3
    born = schedule.at_lambda(float(prior.emergence()[mode]))
    assert born.alpha**2 * float(prior.variances[mode]) == pytest.approx(born.sigma**2)
    assert bool((prior.emergence().diff() > 0).all())  # high variance first


def samples(count: int = 300) -> torch.Tensor:
    rng = torch.Generator().manual_seed(9)
    scale = torch.linspace(2, 0.1, 12, dtype=torch.float64).reshape(SHAPE)
    return 5 + scale * torch.randn(count, *SHAPE, generator=rng, dtype=torch.float64)


def test_fit_is_the_sample_covariance_and_ignores_the_batching():
    data = samples()
    fitted = GaussianPrior.fit(data.split(7))
    torch.testing.assert_close(fitted.mean, data.mean(0).flatten(), rtol=1e-10, atol=1e-10)
    cov = fitted.basis.mT @ (fitted.variances[:, None] * fitted.basis)
    torch.testing.assert_close(cov, torch.cov(data.flatten(1).mT), rtol=1e-9, atol=1e-9)
    once = GaussianPrior.fit([data])
    torch.testing.assert_close(once.variances, fitted.variances, rtol=1e-9, atol=1e-9)


def test_streamed_fit_equals_the_whole_covariance(monkeypatch):
    data = samples()
    whole = GaussianPrior.fit(data.split(50), rank=4)
    monkeypatch.setattr(module, "FULL_COVARIANCE", 4)
    streamed = GaussianPrior.fit(data.split(50), rank=4)
    torch.testing.assert_close(streamed.variances, whole.variances, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((streamed.basis @ whole.basis.mT).abs(), torch.eye(4).double(), rtol=1e-7, atol=1e-7)
    assert streamed.tail == pytest.approx(whole.tail)


def test_tail_keeps_the_total_variance():
    data = samples()
    fitted = GaussianPrior.fit([data], rank=3)
    total = float(fitted.variances.sum()) + fitted.tail * 9
    assert total == pytest.approx(float(data.flatten(1).var(0).sum()))


@pytest.mark.parametrize("streamed", [False, True])
def test_few_samples_are_shrunk_towards_their_mean_variance(streamed, monkeypatch):
    """(1 - w) S + w tr(S) / D I, w the closed form: every direction has variance, the total is that of the samples."""
    monkeypatch.setattr(module, "FULL_COVARIANCE", 4 if streamed else 4096)
    data = samples(9)
    fitted = GaussianPrior.fit(data.split(4))
    assert fitted.basis.shape[0] == 8
    cov, size, freedom = torch.cov(data.flatten(1).mT), 12, 8
    square, total = float((cov @ cov).trace()), float(cov.trace())
    weight = ((1 - 2 / size) * square + total**2) / ((freedom + 1 - 2 / size) * (square - total**2 / size))
    assert 0.1 < weight < 1
    eye = torch.eye(size, dtype=torch.float64)
    found = fitted.basis.mT @ (fitted.variances[:, None] * fitted.basis)
    found = found + fitted.tail * (eye - fitted.basis.mT @ fitted.basis)
    torch.testing.assert_close(found, (1 - weight) * cov + weight * total / size * eye, rtol=1e-9, atol=1e-9)


def test_directions_without_samples_keep_the_variance_of_round_data():
    rng = torch.Generator().manual_seed(3)
    fitted = GaussianPrior.fit([torch.randn(16, 1, 8, 8, generator=rng, dtype=torch.float64)])
    assert fitted.tail == pytest.approx(1.0, abs=0.2)
    assert float(fitted.variances.max()) < 1.5
    clean = SCHEDULES["vp"].clean
    assert bool(torch.isfinite(fitted.transport(torch.zeros(1, 1, 8, 8), clean, SCHEDULES["vp"].at_index(9))).all())
    assert GaussianPrior.fit([torch.ones(3, *SHAPE)]).tail == 0, "equal samples have no variance to spread"


def test_artefact_comes_back_and_belongs_to_its_guidance(tmp_path):
    prior = GaussianMixturePrior(torch.zeros(1, *SHAPE), torch.tensor([1.0]))
    path = gaussian(5, 0.2).save(tmp_path / "gaussian.safetensors", fingerprint(prior, guidance=3.0))
    back, x = GaussianPrior.load(path, fingerprint(prior, guidance=3.0)), noise()
    top, low = (SCHEDULES["vp"].at_index(i) for i in (900, 100))
    torch.testing.assert_close(back.transport(x, top, low), gaussian(5, 0.2).transport(x, top, low))
    with pytest.raises(InputError, match="guidance"):
        GaussianPrior.load(path, fingerprint(prior))


def test_bad_input_is_named():
    with pytest.raises(InputError, match="at least 2"):
        GaussianPrior.fit([])
    with pytest.raises(InputError, match="batch has shape"):
        GaussianPrior.fit([torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 3, 3)])
    with pytest.raises(InputError, match="do not"):
        GaussianPrior(torch.zeros(SHAPE), torch.zeros(2, 11), torch.zeros(2))
    with pytest.raises(InputError, match="tail"):
        GaussianPrior(torch.zeros(SHAPE), torch.zeros(0, 12), torch.zeros(0), tail=-1)
    with pytest.raises(InputError, match="describes latents"):
        gaussian()(torch.zeros(1, 1, 2, 2), SCHEDULES["vp"].at_index(3))
    with pytest.raises(InputError, match="clean end"):
        gaussian(4).transport(noise(), SCHEDULES["vp"].clean, SCHEDULES["vp"].at_index(3))
