"""Model statistics: integrals, exact values on Gaussians, regression on mixtures, resuming, real architectures."""

from __future__ import annotations

import math

import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from unproject.core.sampling.calibration import fingerprint, probe_generator
from unproject.core.sampling.dpm_v3_estimation import (
    eps_derivative,
    estimate_statistics,
    lambda_rows,
)
from unproject.core.sampling.dpm_v3_statistics import ModelStatistics, unfold_patches
from unproject.core.sampling.solvers import DPMSolverV3
from unproject.utils.errors import InputError


def gaussian(config=SD_SCHEDULE, mean: float = 0.6, std: float = 1.2) -> GaussianMixturePrior:
    return GaussianMixturePrior(torch.full((1, 1, 2, 2), mean), torch.tensor([std]), scheduler_config=config)


def mixture(config=SD_SCHEDULE) -> GaussianMixturePrior:
    means = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.6]), names=("one", "two"), scheduler_config=config)


def latents(count: int = 6, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(8), dtype=dtype)


def test_integrals_of_constants_are_closed_forms():
    ell, s, b, start, end = 0.7, -0.4, 0.3, -1.3, 0.9
    h, z = end - start, ell + s
    part = ModelStatistics.constant(ell, s, b).segment(start, end, 3)
    assert float(part.ell) == pytest.approx(ell * h, rel=1e-13)
    assert float(part.s) == pytest.approx(s * h, rel=1e-13)
    assert float(part.b) == pytest.approx(b * (1 - math.exp(-s * h)) / s, rel=1e-13)
    assert float(part.moments[0]) == pytest.approx(math.expm1(z * h) / z, rel=1e-13)
    assert float(part.moments[1]) == pytest.approx((math.exp(z * h) * (z * h - 1) + 1) / z**2, rel=1e-12)
    drift = b / s * (math.expm1(z * h) / z - math.expm1(ell * h) / ell)
    assert float(part.drift) == pytest.approx(drift, rel=1e-12)


def test_integrals_add_up_and_turn_round():
    rng = torch.Generator().manual_seed(0)
    lambdas = torch.linspace(-2, 2, 9, dtype=torch.float64)
    statistics = ModelStatistics(lambdas, *(torch.rand(9, 2, 1, 1, generator=rng, dtype=torch.float64) for _ in "lsb"))
    a, b, whole = (statistics.segment(*ends, 1) for ends in ((-1.7, 0.4), (0.4, 1.1), (-1.7, 1.1)))
    torch.testing.assert_close(a.ell + b.ell, whole.ell, rtol=1e-12, atol=0)
    torch.testing.assert_close(a.b + torch.exp(-a.s) * b.b, whole.b, rtol=1e-9, atol=0)
    gain = torch.exp(a.ell + a.s)
    torch.testing.assert_close(a.moments[0] + gain * b.moments[0], whole.moments[0], rtol=1e-9, atol=0)
    drift = a.drift + gain * (a.b * b.moments[0] + torch.exp(-a.s) * b.drift)
    torch.testing.assert_close(drift, whole.drift, rtol=1e-9, atol=0)
    back = statistics.segment(0.4, -1.7, 1)
    torch.testing.assert_close(back.ell, -a.ell, rtol=1e-12, atol=0)
    torch.testing.assert_close(back.b, -torch.exp(a.s) * a.b, rtol=1e-9, atol=0)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_levels_of_lambdas_agree_with_the_schedule(config):
    schedule = NoiseSchedule.from_config(config)
    for lam in (-2.1, 0.0, 1.4, schedule.at_index(0).lam):
        one, many = schedule.at_lambda(lam), schedule.at_lambda(torch.tensor([lam], dtype=torch.float64))
        for name in ("alpha", "sigma", "lam", "model_time", "index"):
            assert float(getattr(many, name)) == pytest.approx(getattr(one, name), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_derivative_along_the_ode(config):
    """eps along the exact trajectory of a Gaussian, by finite differences."""
    prior, schedule = gaussian(config, 0.0), NoiseSchedule.from_config(config)
    denoiser = Denoiser(prior, prior.encode_text([""] * 6))
    base, lam = latents(), torch.tensor(0.3, dtype=torch.float64)

    def eps_on_path(at: float) -> torch.Tensor:
        level = schedule.at_lambda(at)
        return denoiser(base * math.sqrt(1.44 * level.alpha**2 + level.sigma**2), level).eps

    level = schedule.at_lambda(float(lam))
    x = base * math.sqrt(1.44 * level.alpha**2 + level.sigma**2)
    rate = level.sigma if schedule.flow else level.sigma**2
    dx = rate * x - level.sigma * denoiser(x, level).eps
    wanted = (eps_on_path(0.3 + 1e-4) - eps_on_path(0.3 - 1e-4)) / 2e-4
    for derivative in ("exact", "difference"):
        eps, found = eps_derivative(denoiser, x, lam.expand(6), dx, 1.0, derivative)
        torch.testing.assert_close(eps, denoiser(x, level).eps)
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("states", ["noised", "trajectory"])
def test_a_gaussian_has_exact_statistics(config, states):
    """l = sigma^2 / (alpha^2 v + sigma^2), s = 0 where f does not vary, and one step is then nearly exact."""
    prior, schedule = gaussian(config), NoiseSchedule.from_config(config)
    statistics = estimate_statistics(prior, latents(4), prior.encode_text(""), count=80, states=states)
    levels = [schedule.at_lambda(float(lam)) for lam in statistics.lambdas]
    wanted = torch.tensor([v.sigma**2 / (1.44 * v.alpha**2 + v.sigma**2) for v in levels], dtype=torch.float64)
    torch.testing.assert_close(statistics.ell[:, 0, 0, 0], wanted, rtol=1e-6, atol=1e-6)
    top, bottom = schedule.at_lambda(-2.0), schedule.at_lambda(2.0)
    x = latents()
    denoiser = Denoiser(prior, prior.encode_text([""] * 6))
    out = Sampler(DPMSolverV3(statistics, 1, "none")).run(denoiser, x, [top, bottom])
    spread = [math.sqrt(1.44 * level.alpha**2 + level.sigma**2) for level in (top, bottom)]
    exact = (x - 0.6 * top.alpha) * spread[1] / spread[0] + 0.6 * bottom.alpha
    assert float((out - exact).abs().max()) < 2e-2


@pytest.mark.parametrize("states", ["noised", "trajectory"])
def test_s_and_b_are_the_regression_of_the_derivative(states):
    """Against f and f' of every sample, computed one by one at an inner row; trajectories are runs of DDIM."""
    prior, schedule = mixture(), NoiseSchedule.from_config(SD_SCHEDULE)
    x0, count, row = latents(12), 10, 6
    statistics = estimate_statistics(prior, x0, prior.encode_text(""), 1.0, count=count, seed=5, states=states)
    lam, slope = statistics.lambdas[row], torch.gradient(statistics.ell, spacing=(statistics.lambdas,), dim=0)[0][row]
    level = schedule.at_lambda(float(lam))
    f, rate = [], []
    for k in range(12):
        noise = torch.randn(1, 2, 2, generator=probe_generator(5 + k), dtype=torch.float64)
        denoiser = Denoiser(prior, prior.encode_text(""))
        levels = [schedule.at_lambda(float(value)) for value in statistics.lambdas[: row + 1]]
        start = level if states == "noised" else levels[0]
        x = start.alpha * x0[k : k + 1] + start.sigma * noise
        if states == "trajectory":
            x = Sampler(DDIM()).run(denoiser, x, levels)
        eps = denoiser(x, level).eps
        dx = level.sigma**2 * x - level.sigma * eps
        deps = eps_derivative(denoiser, x, lam[None], dx, 1.0, "difference")[1]
        ell, decay = statistics.ell[row], math.exp(-float(lam))
        f.append(decay * eps - ell * x / level.alpha)
        rate.append(decay * ((ell - 1) * eps + deps) - slope * x / level.alpha)
    f, rate = torch.cat(f), torch.cat(rate)
    s = ((f * rate).mean(0) - f.mean(0) * rate.mean(0)) / f.var(0, unbiased=False)
    torch.testing.assert_close(statistics.s[row], s, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(statistics.b[row], rate.mean(0) - s * f.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("states", ["noised", "trajectory"])
def test_chunks_and_interruption_change_nothing(states, tmp_path):
    prior, condition = mixture(), mixture().encode_text(["one", "two", "one"])
    x0, path = latents(3), tmp_path / "moments.safetensors"
    whole = estimate_statistics(prior, x0, condition, 2.0, states=states, count=5)
    parts = estimate_statistics(prior, x0, condition, 2.0, states=states, count=5, chunk=2)
    for name in ("ell", "s", "b"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-6, atol=1e-9)

    def stop(done: int, rows: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_statistics(prior, x0, condition, 2.0, states=states, count=5, resume=path, progress=stop)
    before = prior.nfe
    resumed = estimate_statistics(prior, x0, condition, 2.0, states=states, count=5, resume=path)
    assert prior.nfe - before == 2 * 2 * 2 * 3, "two rows left: two calls, two branches, three samples"
    assert torch.equal(resumed.s, whole.s)
    with pytest.raises(InputError, match="was begun with"):
        estimate_statistics(prior, x0, condition, 2.0, states=states, count=5, seed=1, resume=path)
    for other in ({"latents": x0.flip(0)}, {"condition": mixture().encode_text(["two", "two", "one"])}):
        with pytest.raises(InputError, match="was begun with"):
            estimate_statistics(
                **{"prior": prior, "latents": x0, "condition": condition, **other},
                guidance=2.0,
                states=states,
                count=5,
                resume=path,
            )
    with pytest.raises(InputError, match=r"guidance 2 \(now 3\)"):
        estimate_statistics(prior, x0, condition, 3.0, states=states, count=5, resume=path)


def test_forced_l_and_round_trip(tmp_path):
    prior = mixture()
    made = estimate_statistics(prior, latents(), prior.encode_text(""), count=4, ell=1.0)
    assert bool((made.ell == 1).all())
    path = made.save(tmp_path / "statistics.safetensors")
    back = ModelStatistics.load(path, fingerprint(prior))
    assert torch.equal(back.b, made.b) and back.settings == made.settings
    with pytest.raises(InputError, match="guidance"):
        ModelStatistics.load(path, fingerprint(prior, guidance=4))
    with pytest.raises(InputError, match="no fingerprint"):
        ModelStatistics.constant().save(path)


@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl", "sd3", "flux"])
def test_real_architectures_have_forward_derivatives(name, tiny_folders):
    prior = load_prior(tiny_folders[name])
    shape = (prior.latent_shape[0], 8, 8)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    dx = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    lam = torch.tensor([0.2], dtype=torch.float64)
    with torch.no_grad():
        denoiser = Denoiser(prior, prior.encode_text("a red chair"), 1.0 if name == "flux" else 2.0)
        exact = eps_derivative(denoiser, x, lam, dx, 1.0)[1]
        close = eps_derivative(denoiser, x, lam, dx, 1.0, "difference")[1]
    assert float((exact - close).norm() / exact.norm()) < 3e-2


def test_statistics_of_a_tiny_network_run_the_solver(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    x0 = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = prior.encode_text("a red chair").repeat(2)
    statistics = estimate_statistics(prior, x0, condition, 2.0, count=3)
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(4)
    with torch.no_grad():
        out = Sampler(DPMSolverV3(statistics, 3)).run(Denoiser(prior, condition, 2.0), x0, levels)
    assert out.dtype == torch.float32 and bool(torch.isfinite(out).all())


def test_packing_and_bad_tables():
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    tokens = unfold_patches(x)
    assert tokens.shape == (2, 4, 12)
    assert tokens[0, 1, :4].tolist() == x[0, 0, :2, 2:].flatten().tolist()
    lambdas = torch.tensor([0.0, 1.0])
    table = torch.zeros(2, 1, 3, 3)
    with pytest.raises(InputError, match="must rise"):
        ModelStatistics(lambdas.flip(0), table, table, table)
    with pytest.raises(InputError, match="table s has shape"):
        ModelStatistics(lambdas, table, table[:1], table)
    with pytest.raises(InputError, match="not finite"):
        ModelStatistics(lambdas, table, table, table + math.inf)
    with pytest.raises(InputError, match="odd sides"):
        ModelStatistics(lambdas, table, table, table).packed()
    with pytest.raises(InputError, match="K of at least 2"):
        estimate_statistics(mixture(), latents(1), mixture().encode_text(""))
    with pytest.raises(InputError, match="count=0"):
        lambda_rows(NoiseSchedule.from_config(SD_SCHEDULE), 0)
