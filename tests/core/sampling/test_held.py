"""Renoise and hold, then DDIM: the published times and coefficients, fixed points, limits."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import SD_SCHEDULE
from unproject.core.sampling import DDIM, NoiseSchedule, Prediction, Sampler
from unproject.core.sampling.solvers.held import HeldGrid, HeldThenDDIM
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 3, 5, generator=generator(seed), dtype=torch.float64)


def run(grid: HeldGrid, answer, start: torch.Tensor) -> torch.Tensor:
    sampler = Sampler(HeldThenDDIM(grid))
    return sampler.run(answer, start, grid.levels, [generator(5), generator(6)])


def test_times_and_coefficients_are_the_published_ones():
    grid = HeldGrid.of(SCHEDULE, 10)
    assert [level.index for level in grid.levels] == [401] * 6 + [301, 201, 101, 1, -1] and grid.held == 5
    assert grid.noisier is not None and grid.noisier.index == 501
    abar = {401: 0.423, 501: 0.275, 301: 0.589, 201: 0.752, 101: 0.893}
    for level in (*grid.levels[5:9], grid.noisier):
        assert float(level.alpha) ** 2 == pytest.approx(abar[int(level.index)], abs=6e-4)


def test_an_answer_that_never_changes_is_the_result():
    wanted = noise(1)
    for steps, share in ((10, 0.5), (4, 0.5), (3, 0.0), (1, 0.5)):
        found = run(
            HeldGrid.of(SCHEDULE, steps, share), lambda x, level: Prediction(x, level, wanted, "sample"), noise()
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def smooth(x: torch.Tensor, level) -> Prediction:
    return Prediction(x, level, torch.tanh(0.7 * x + float(level.sigma)), "sample")


def test_without_a_hold_it_is_ddim():
    grid = HeldGrid.of(SCHEDULE, 2, 0.0)
    assert [level.index for level in grid.levels] == [501, 1, -1] and grid.held == 0
    torch.testing.assert_close(run(grid, smooth, noise()), Sampler(DDIM()).run(smooth, noise(), grid.levels))


def test_the_loop_by_hand():
    """Four steps, two held: one renoised answer, one read a stride noisier, two of DDIM."""
    grid = HeldGrid.of(SCHEDULE, 4)
    assert [level.index for level in grid.levels] == [251, 251, 251, 1, -1] and grid.noisier.index == 501
    alpha, sigma = (float(v) for v in (grid.levels[0].alpha, grid.levels[0].sigma))
    far_alpha, far_sigma = float(grid.noisier.alpha), float(grid.noisier.sigma)
    level, near = grid.levels[0], grid.levels[3]
    fresh = torch.stack([torch.randn(4, 3, 5, generator=generator(s), dtype=torch.float64) for s in (5, 6)])
    x = alpha * smooth(noise(), level).x0 + sigma * fresh
    x0 = smooth(x, level).x0
    x = alpha * x0 + sigma * (x - far_alpha * x0) / far_sigma
    x0 = smooth(x, level).x0
    x = float(near.alpha) * x0 + float(near.sigma) * (x - alpha * x0) / sigma
    torch.testing.assert_close(run(grid, smooth, noise()), smooth(x, near).x0)


def test_rows_do_not_meet_and_noise_needs_a_generator():
    grid = HeldGrid.of(SCHEDULE, 10)
    both = run(grid, smooth, noise())
    alone = Sampler(HeldThenDDIM(grid)).run(smooth, noise()[1:], grid.levels, [generator(6)])
    torch.testing.assert_close(both[1:], alone)
    with pytest.raises(InputError, match="pass a generator"):
        Sampler(HeldThenDDIM(grid)).run(smooth, noise(), grid.levels)
    with pytest.raises(InputError, match="steps=0"):
        HeldGrid.of(SCHEDULE, 0)
