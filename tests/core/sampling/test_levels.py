"""Noise schedules: identities of levels and agreement of grids with diffusers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE
from unproject.core.sampling import NoiseSchedule
from unproject.utils.errors import InputError

SD = NoiseSchedule.from_config(SD_SCHEDULE)
FLOW = NoiseSchedule.from_config(FLOW_SCHEDULE)


@pytest.mark.parametrize("index", [0, 1, 0.25, 499.5, 998.75, 999])
def test_vp_level_is_variance_preserving_and_consistent(index):
    level = SD.at_index(index)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-14)
    assert math.log(level.alpha / level.sigma) == pytest.approx(level.lam, abs=1e-12)
    assert level.model_time == index


@pytest.mark.parametrize("schedule", [SD, FLOW])
@pytest.mark.parametrize("index", [0.5, 10, 700.25, 990])
def test_lambda_round_trip(schedule, index):
    level = schedule.at_index(index)
    back = schedule.at_lambda(level.lam)
    assert back.index == pytest.approx(index, abs=1e-8)
    assert back.sigma == pytest.approx(level.sigma, abs=1e-12)


@pytest.mark.parametrize("schedule", [SD, FLOW])
def test_batched_levels_equal_single_ones(schedule):
    indices = torch.tensor([0.0, 3.5, 500.0, 999.0])
    batch = schedule.at_index(indices)
    assert batch.alpha.shape == (4,)
    for k, index in enumerate(indices.tolist()):
        one = schedule.at_index(index)
        assert float(batch.alpha[k]) == pytest.approx(one.alpha, abs=1e-13)
        assert float(batch.sigma[k]) == pytest.approx(one.sigma, abs=1e-13)
        assert float(batch.model_time[k]) == pytest.approx(one.model_time)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_tables_agree_with_diffusers(name):
    config = {"beta_schedule": name, "beta_start": 0.0009, "beta_end": 0.015, "num_train_timesteps": 1000}
    ours = NoiseSchedule.from_config({**config, "_class_name": "DDPMScheduler"})
    theirs = DDPMScheduler(**config).alphas_cumprod
    mine = torch.tensor([ours.at_index(i).alpha ** 2 for i in range(0, 1000, 37)])
    torch.testing.assert_close(mine.float(), theirs[::37], rtol=2e-4, atol=1e-6)


def test_zero_terminal_snr_keeps_lambda_finite():
    schedule = NoiseSchedule.from_config({**SD_SCHEDULE, "rescale_betas_zero_snr": True})
    level = schedule.at_index(999)
    assert level.alpha == pytest.approx(2**-12)
    assert math.isfinite(level.lam)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_grid_matches_diffusers_timesteps(spacing, steps):
    scheduler = DDIMScheduler.from_config({**SD_SCHEDULE, "timestep_spacing": spacing})
    scheduler.set_timesteps(steps)
    grid = SD.grid(steps, spacing)
    assert [level.model_time for level in grid[:-1]] == scheduler.timesteps.tolist()
    assert grid[-1].index == 0  # set_alpha_to_one is False
    assert SD.grid(steps, spacing, final="zero")[-1].sigma == 0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_grid_matches_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(9)
    schedule = NoiseSchedule.from_config({**FLOW_SCHEDULE, "shift": shift})
    np.testing.assert_allclose([lv.sigma for lv in schedule.grid(9)], scheduler.sigmas.numpy(), atol=1e-6)
    np.testing.assert_allclose([lv.model_time for lv in schedule.grid(9)[:-1]], scheduler.timesteps.numpy(), atol=1e-3)


def test_dynamic_shift_matches_diffusers():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = calculate_shift(1024)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7), mu=mu)
    config = {**scheduler.config, "_class_name": "FlowMatchEulerDiscreteScheduler", "spacing": "trailing"}
    schedule = NoiseSchedule.from_config(config)
    np.testing.assert_allclose([lv.sigma for lv in schedule.grid(7, tokens=1024)], scheduler.sigmas.numpy(), atol=1e-6)


@pytest.mark.parametrize("schedule", [SD, FLOW])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "logsnr", "karras"])
@pytest.mark.parametrize("final", ["zero", "index0"])
def test_grids_fall_monotonically(schedule, spacing, final):
    grid = schedule.grid(12, spacing, final)
    noise = [level.sigma for level in grid]
    assert len(grid) == 13
    assert all(a > b for a, b in itertools.pairwise(noise[:-1]))
    assert noise[-1] <= noise[-2] * (1 + 1e-9)  # linspace ends on index 0 itself
    assert (noise[-1] == 0) == (final == "zero")


def test_logsnr_grid_is_even_in_lambda():
    lambdas = np.array([level.lam for level in SD.grid(10, "logsnr", "index0")])
    np.testing.assert_allclose(np.diff(lambdas), np.diff(lambdas)[0], rtol=1e-9)


def test_add_noise_matches_diffusers():
    x0, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))[:2]
    times = torch.tensor([5, 500, 999])
    theirs = DDIMScheduler.from_config(SD_SCHEDULE).add_noise(x0, noise, times)
    torch.testing.assert_close(SD.add_noise(x0, noise, SD.at_index(times)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_step_counts_are_named(steps):
    with pytest.raises(InputError, match=f"steps={steps}"):
        SD.grid(steps)


def test_unknown_spacing_final_and_index_are_named():
    with pytest.raises(InputError, match="spacing='even'"):
        SD.grid(5, "even")
    with pytest.raises(InputError, match="final='end'"):
        SD.grid(5, final="end")
    with pytest.raises(InputError, match="1000"):
        SD.at_index(1000)
    with pytest.raises(InputError, match="beta_schedule 'odd'"):
        NoiseSchedule.from_config({**SD_SCHEDULE, "beta_schedule": "odd"})
