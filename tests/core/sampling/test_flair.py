"""Restoration: closed forms of the regulariser and the data term, limits, calibration, batches, real classes."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import Denoiser, NoiseSchedule
from unproject.core.sampling.calibration import fingerprint
from unproject.core.sampling.flair import (
    ErrorCurve,
    RestoreConfig,
    error_curve,
    flow_level,
    flow_range,
    regulariser_gradient,
    restore,
)
from unproject.core.sampling.operators import Identity, Inpainting, super_resolution
from unproject.utils.errors import InputError

SIZE = 4
PATHS = [SD_SCHEDULE, FLOW_SCHEDULE]
ALONE = RestoreConfig(steps=20, regulariser=0.0, data_steps=30)


def prior_of(mean: float = 0.3, std: float = 0.5, config=FLOW_SCHEDULE) -> GaussianMixturePrior:
    return GaussianMixturePrior(torch.full((1, 3, SIZE, SIZE), mean), torch.tensor([std]), scheduler_config=config)


def measured(operator, rows: int = 2, noise: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(6)
    y = operator.forward(torch.rand(rows, 3, SIZE, SIZE, generator=rng, dtype=torch.float64) * 0.6 + 0.2)
    return y + noise * torch.randn(y.shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("config", PATHS)
def test_regulariser_contracts_towards_the_prior_at_the_known_rate(config):
    """Mean over probe noise of the gradient is t / D (mu - m), D = (1 - t)^2 s^2 + t^2."""
    mean, std, time, rows = 0.3, 0.5, 0.6, 4000
    prior = prior_of(mean, std, config)
    denoiser = Denoiser(prior, prior.encode_text([""] * rows))
    rng = torch.Generator().manual_seed(0)
    half = torch.randn(rows // 2, 3, SIZE, SIZE, generator=rng, dtype=torch.float64)
    probe = torch.cat([half, -half])  # antithetic: the linear part of the noise cancels
    latents = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4).expand(rows, 3, 4, 4)
    gradient, endpoint = regulariser_gradient(denoiser, latents, probe, time)
    wanted = time / ((1 - time) ** 2 * std**2 + time**2) * (latents[0] - mean)
    torch.testing.assert_close(gradient.mean(0), wanted, rtol=1e-6, atol=1e-6)
    x = (1 - time) * latents + time * probe
    torch.testing.assert_close(endpoint, x + (1 - time) * (gradient + probe - latents), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", PATHS)
def test_flow_levels_have_the_signal_to_noise_of_the_flow(config):
    schedule = NoiseSchedule.from_config(config)
    level = flow_level(schedule, 0.7)
    assert level.sigma / (level.alpha + level.sigma) == pytest.approx(0.7)
    low, high = flow_range(schedule)
    assert flow_level(schedule, low).index == pytest.approx(-1 if schedule.flow else 0, abs=1e-6)
    assert flow_level(schedule, high).index == pytest.approx(schedule.steps - 1)


def test_without_regulariser_it_is_least_squares():
    operator = super_resolution(2, SIZE, SIZE)
    y, prior = measured(operator), prior_of()
    out = restore(y, operator, prior, config=ALONE, noise_std=0.0)
    torch.testing.assert_close(operator.forward(out.images), y, rtol=0, atol=1e-5)
    start = operator.pseudo_inverse(y).clamp(0, 1)
    moved = out.images - start  # least squares never leaves the row space
    null = moved - operator.pseudo_inverse(operator.forward(moved))
    assert float(null.abs().max()) < 1e-5
    assert out.nfe == 0


def test_identity_without_noise_gives_the_measurement_back():
    y = measured(Identity())
    out = restore(y, Identity(), prior_of(), noise_std=0.0, config=RestoreConfig(steps=20, data_steps=40))
    torch.testing.assert_close(out.images, y, rtol=0, atol=1e-4)


def test_the_data_term_stops_at_the_noise():
    operator = Inpainting(torch.arange(16).reshape(4, 4) % 3 != 0)
    y = operator.forward(measured(Identity(), 4, noise=0.02))
    out = restore(y, operator, prior_of(), noise_std=0.02, config=RestoreConfig(steps=20))
    assert float(out.residual.max()) < 1.05 * 0.02


def test_unknown_pixels_go_to_the_prior():
    """Pixels without measurement end near the prior's mean, wherever the start put them."""
    known = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    known[:, :2] = True
    operator, prior = Inpainting(known), prior_of(mean=0.6, std=0.02)
    y = operator.forward(torch.full((3, 3, SIZE, SIZE), 0.2, dtype=torch.float64))
    out = restore(y, operator, prior, noise_std=0.001, config=RestoreConfig(steps=30))
    assert float((out.images[..., 2:] - 0.8).abs().max()) < 0.05
    assert float((out.images[..., :2] - 0.2).abs().max()) < 0.01


@pytest.mark.parametrize("config", PATHS)
def test_curve_of_an_exact_prior_is_the_bayes_error(config):
    """E|u - (eps - x0)|^2 = var(x0 | x) / t^2 per element at flow time t."""
    std = 0.5
    prior = prior_of(0.3, std, config)
    rng = torch.Generator().manual_seed(0)
    latents = 0.3 + std * torch.randn(300, 3, SIZE, SIZE, generator=rng, dtype=torch.float64)
    curve = error_curve(prior, latents, prior.encode_text(""), guidance=1.0, levels=6, batch=300)
    time = curve.times[1:]
    posterior = std**2 * time**2 / ((1 - time) ** 2 * std**2 + time**2)
    torch.testing.assert_close(curve.errors[1:], posterior / time**2, rtol=0.05, atol=0.0)
    inverse = 1 / curve.errors
    assert curve.weight(float(curve.times[2])) == pytest.approx(float(inverse[2] / inverse.mean()))


def test_weights_have_mean_one_and_hold_beyond_the_table():
    curve = ErrorCurve(torch.linspace(0.1, 0.9, 9), torch.linspace(2, 0.5, 9))
    assert sum(curve.weight(t) for t in curve.times.tolist()) / 9 == pytest.approx(1.0)
    assert curve.weight(0.0) == curve.weight(0.1)
    assert curve.weight(1.0) == curve.weight(0.9) > curve.weight(0.5)


@pytest.mark.parametrize("steered", [True, False])
def test_batch_equals_single_rows(steered):
    operator, prior = super_resolution(2, SIZE, SIZE), prior_of(config=SD_SCHEDULE)
    y = measured(operator, 3, noise=0.01)
    config = RestoreConfig(steps=4, data_steps=3, steered=steered)
    whole = restore(y, operator, prior, config=config, seed=5)
    for row in range(3):
        alone = restore(y[row : row + 1], operator, prior, config=config, seed=5 + row)
        torch.testing.assert_close(alone.latents[0], whole.latents[row], rtol=1e-9, atol=1e-9)
    again = restore(y, operator, prior, config=config, seed=5)
    assert torch.equal(again.latents, whole.latents)
    assert not torch.equal(restore(y, operator, prior, config=config, seed=6).latents, whole.latents)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_it_runs_on_the_real_classes_and_lowers_the_misfit(tiny_folders, name):
    prior = load_prior(tiny_folders[name])
    operator = super_resolution(4, 16, 16)
    y = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    before, after = (
        restore(y, operator, prior, "a red chair", config=RestoreConfig(steps=2, data_steps=n)) for n in (0, 4)
    )
    assert after.images.shape == (1, 3, 16, 16)
    assert after.nfe == 4
    lower = float(after.residual) < float(before.residual)
    assert lower
    assert all(p.grad is None for p in prior.parameters())


def test_curve_artefact_belongs_to_its_guidance(tmp_path):
    prior = prior_of()
    curve = ErrorCurve(torch.linspace(0, 1, 5), torch.linspace(1, 2, 5))
    path = curve.save(tmp_path / "curve.safetensors", fingerprint(prior, guidance=2.0))
    assert torch.equal(ErrorCurve.load(path, fingerprint(prior, guidance=2.0)).errors, curve.errors)
    with pytest.raises(InputError, match="guidance"):
        ErrorCurve.load(path, fingerprint(prior, guidance=3.0))


def test_bad_input_is_named():
    with pytest.raises(InputError, match="low=2"):
        RestoreConfig(low=2)
    with pytest.raises(InputError, match="steps=0"):
        RestoreConfig(steps=0)
    with pytest.raises(InputError, match="data_rate=0"):
        RestoreConfig(data_rate=0)
    with pytest.raises(InputError, match="positive errors"):
        ErrorCurve(torch.linspace(0, 1, 3), torch.zeros(3))
    with pytest.raises(InputError, match="2 prompts for 3"):
        restore(measured(Identity(), 3), Identity(), prior_of(), ["a", "b"])
    with pytest.raises(InputError, match=r"low=0\.95"):
        restore(measured(Identity()), Identity(), prior_of(config=SD_SCHEDULE), config=RestoreConfig(low=0.95))
