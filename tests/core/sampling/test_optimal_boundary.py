"""Choosing a starting noise: limits, closed form of a linear model, variance shares, the artefact."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from unproject.core.sampling.calibration import fingerprint
from unproject.core.sampling.init import sample_from
from unproject.core.sampling.optimal_boundary import (
    BoundaryNoise,
    candidates,
    grid_lambdas,
    search_boundary,
    variance_shares,
)
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator, sample_noise

SHAPE = (1, 2, 2)
SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)


def linear_loss(references: int, spread: float = 1.0):
    """h = m(y) + S x, squared distance to the truth: |r_i + S x_j|^2."""
    rng = torch.Generator().manual_seed(3)
    residuals = spread * torch.randn(references, 4, generator=rng, dtype=torch.float64)
    matrix = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    return lambda noise, rows: (residuals[rows] + noise.double().flatten(1) @ matrix.mT).square().sum(1), matrix


def test_one_candidate_is_plain_sampling():
    prior = GaussianMixturePrior(torch.zeros(1, *SHAPE), torch.tensor([0.5]))
    levels = SCHEDULE.grid(5)
    search = search_boundary(linear_loss(4)[0], candidates(SHAPE, [7]), 4)
    assert search.best == 0
    chosen = BoundaryNoise(candidates(SHAPE, [7])[0], "ddim", grid_lambdas(levels), 7, 0.0)
    plain = sample_noise(SHAPE, [generator(7)], 1)
    denoiser = Denoiser(prior, prior.encode_text(""))
    ours = sample_from(chosen.init("ddim", levels), Sampler(DDIM()), denoiser, torch.zeros(1, *SHAPE), levels)
    assert torch.equal(ours, Sampler(DDIM()).run(denoiser, plain, levels))


def test_reference_loss_never_rises_with_more_candidates():
    noises = candidates(SHAPE, range(16))
    loss = linear_loss(8)[0]
    best = [float(search_boundary(loss, noises[:k], 8).means.min()) for k in (1, 2, 4, 8, 16)]
    assert best == sorted(best, reverse=True)


def test_many_references_choose_the_shortest_image_of_the_noise():
    noises = candidates(SHAPE, range(12))
    loss, matrix = linear_loss(4000, spread=0.3)
    lengths = (noises.double().flatten(1) @ matrix.mT).square().sum(1)
    assert search_boundary(loss, noises, 4000, batch=4000).best == int(lengths.argmin())


def test_order_and_batching_of_the_references_do_not_matter():
    noises, order = candidates(SHAPE, range(6)), torch.randperm(9, generator=generator(0)).tolist()
    loss = linear_loss(9)[0]
    straight = search_boundary(loss, noises, 9, batch=4)
    mixed = search_boundary(lambda noise, rows: loss(noise, [order[i] for i in rows]), noises, 9, batch=9)
    assert straight.best == mixed.best
    torch.testing.assert_close(straight.means, mixed.means)


def test_halving_spends_less_and_keeps_a_clear_winner():
    noises = candidates(SHAPE, range(8))
    noises[5] = 0
    calls = []
    loss, _ = linear_loss(16, spread=0.01)

    def counted(noise, rows):
        calls.append(len(rows))
        return loss(noise, rows)

    search = search_boundary(counted, noises, 16, halving=True)
    assert search.best == 5
    assert sum(calls) == 8 * 4 + 4 * 4 + 2 * 8
    assert int(search.losses.isnan().any(1).sum()) == 6


def test_variance_shares_recover_an_additive_model():
    rng = torch.Generator().manual_seed(1)
    a, b = torch.randn(1, 300, generator=rng), 0.5 * torch.randn(400, 1, generator=rng)
    e = 2 * torch.randn(400, 300, generator=rng)
    shares = variance_shares(a + b + e)
    assert shares.noise == pytest.approx(0.25, rel=0.25)
    assert shares.interaction == pytest.approx(4.0, rel=0.05)
    assert shares.transfer == pytest.approx(0.25 / (0.25 + 4 / 300), rel=0.05)
    assert variance_shares(a + 0 * b).noise == pytest.approx(0.0, abs=1e-12)


def test_artefact_belongs_to_solver_and_grid(tmp_path):
    prior = GaussianMixturePrior(torch.zeros(1, *SHAPE), torch.tensor([0.5]))
    levels = SCHEDULE.grid(5)
    chosen = BoundaryNoise(candidates(SHAPE, [3])[0], "ddim", grid_lambdas(levels), 3, 0.25)
    path = chosen.save(tmp_path / "noise.safetensors", fingerprint(prior))
    back = BoundaryNoise.load(path, fingerprint(prior))
    assert torch.equal(back.noise, chosen.noise)
    assert (back.solver, back.seed, back.loss, back.lambdas) == ("ddim", 3, 0.25, chosen.lambdas)
    with pytest.raises(InputError, match="solver ddim"):
        back.init("dpm++", levels)
    with pytest.raises(InputError, match="5 steps, not 6"):
        back.init("ddim", SCHEDULE.grid(6))
    with pytest.raises(InputError, match="another spacing"):
        back.init("ddim", SCHEDULE.grid(5, "trailing"))
    with pytest.raises(InputError, match="guidance"):
        BoundaryNoise.load(path, fingerprint(prior, guidance=3.0))


def test_bad_input_is_named():
    with pytest.raises(InputError, match="references=0"):
        search_boundary(linear_loss(1)[0], candidates(SHAPE, [1]), 0)
    with pytest.raises(InputError, match="complete"):
        variance_shares(torch.zeros(1, 5))
