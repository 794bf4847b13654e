"""Noise schedules: identities of levels and agreement of grids with diffusers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch.utils._python_dispatch import TorchDispatchMode

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE
from unproject.core.sampling import KINDS, NoiseSchedule, Prediction
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


@pytest.mark.parametrize("schedule", [SD, FLOW])
@pytest.mark.parametrize("shape", [(3, 3, 2, 4, 4), (3, 5, 4), (3, 3), (3,), (3, 3, 4, 4)])
def test_levels_of_samples_scale_samples_whatever_the_rank(schedule, shape):
    """Video latents (B, C, T, h, w) with B = C, packed latents (B, tokens, C), and plain ones."""
    x0, noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    indices = torch.tensor([20.0, 400.5, 930.0])
    x = schedule.add_noise(x0, noise, schedule.at_index(indices))
    for k, index in enumerate(indices.tolist()):
        one = schedule.at_index(index)
        torch.testing.assert_close(x[k], one.alpha * x0[k] + one.sigma * noise[k])
    assert schedule.at_index(indices).times(x0).shape == (3,)


@pytest.mark.parametrize("schedule", [SD, FLOW])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 2, 3, 3), (2, 2, 3, 4, 4), (2, 6, 4)])
def test_targets_are_what_predictions_read(schedule, kind, shape):
    x0 = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    level = schedule.at_index(torch.tensor([130.25, 771.0]))
    x, eps = schedule.noised(x0, level, torch.Generator().manual_seed(5))
    again, same = schedule.noised(x0, level, eps)
    assert torch.equal(again, x) and torch.equal(same, eps) and eps.dtype == x0.dtype
    read = Prediction(x, level, schedule.target(kind, x0, eps, level), kind)
    torch.testing.assert_close(read.x0, x0)
    torch.testing.assert_close(read.eps, eps)
    torch.testing.assert_close(read.v, schedule.target("v_prediction", x0, eps, level))
    torch.testing.assert_close(read.u, schedule.target("flow_prediction", x0, eps, level))


def test_noise_of_rows_comes_from_their_own_generators():
    x0, seeds = torch.zeros(2, 4, 3, 3), (7, 8)
    both = SD.noised(x0, SD.at_index(500), [torch.Generator().manual_seed(s) for s in seeds])[1]
    for k, seed in enumerate(seeds):
        one = SD.noised(x0[:1], SD.at_index(500), torch.Generator().manual_seed(seed))[1]
        assert torch.equal(both[k : k + 1], one)
    with pytest.raises(InputError, match="'noise' is unknown; have epsilon"):
        SD.target("noise", x0, both, SD.at_index(500))


def test_levels_between_train_indices_follow_lambda():
    """Lambda is linear in the index both ways; log alpha, as DPM-Solver has it, gives what docs/sampling.md says."""
    table = SD.lambdas.numpy()
    half = np.arange(999) + 0.5
    ours = SD.at_index(torch.from_numpy(half))
    np.testing.assert_allclose(ours.lam, (table[1:] + table[:-1]) / 2, rtol=1e-12)
    log_alpha = np.log([SD.at_index(i).alpha for i in range(1000)])
    other = np.interp(half, np.arange(1000), log_alpha)
    lam = other - 0.5 * np.log(-np.expm1(2 * other))
    gaps = np.abs(lam - ours.lam.numpy())
    assert gaps.argmax() == 0
    assert gaps.max() == pytest.approx(0.0297, abs=1e-4)
    assert gaps[10:].max() == pytest.approx(5.0e-4, abs=1e-5)
    assert np.abs(np.exp(other) - ours.alpha.numpy()).max() == pytest.approx(3.7e-5, abs=1e-6)
    assert np.abs(SD.at_lambda(torch.from_numpy(lam)).index.numpy() - half).max() == pytest.approx(0.085, abs=1e-3)


def test_times_of_sigmas_are_those_that_diffusers_asks_at():
    theirs = EulerDiscreteScheduler(
        **{k: v for k, v in SD_SCHEDULE.items() if "beta" in k}, use_exponential_sigmas=True
    )
    theirs.set_timesteps(9)
    lambdas = -theirs.sigmas[:-1].double().log()
    np.testing.assert_allclose(SD.at_lambda(lambdas).model_time, theirs.timesteps, atol=2e-3)
    assert SD.at_lambda(float(lambdas[4])).model_time == pytest.approx(float(theirs.timesteps[4]), abs=2e-3)


@pytest.mark.parametrize("schedule", [SD, FLOW])
def test_levels_at_times_and_their_share_of_the_train_range(schedule):
    indices = torch.tensor([3.0, 250.5, 800.0])
    level = schedule.at_index(indices)
    back = schedule.at_time(level.model_time)
    torch.testing.assert_close(back.index, indices.double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(back.sigma, level.sigma, rtol=1e-12, atol=0)
    assert schedule.at_time(torch.tensor([5000.0])).index.tolist() == [schedule.steps - 1]
    share = 0.2515 if schedule.flow else 0.2505
    assert schedule.at_index(250.5).within((share - 1e-9, 1.0)) and not schedule.at_index(250.5).within(
        (share + 1e-6, 1.0)
    )
    assert schedule.at_index(250.5).within((0.0, share + 1e-9)) and not schedule.at_index(250.5).within(
        (0.0, share - 1e-6)
    )
    assert level.within((0.2, 0.3)).tolist() == [False, True, False]
    assert bool(schedule.clean.within((0.0, 0.0)))


class _NoFloat64(TorchDispatchMode):
    """Stands for a device without float64: refuses such a tensor on "meta", and lets one from there arrive here."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (
            function is torch.ops.aten._to_copy.default
            and args[0].is_meta
            and kwargs.get("device") == torch.device("cpu")
        ):
            assert kwargs.get("dtype", args[0].dtype) == args[0].dtype, "widened before it was moved"
            return torch.full(args[0].shape, 250.0, dtype=args[0].dtype)
        out = function(*args, **kwargs)
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.is_meta and value.dtype == torch.float64:
                raise TypeError(f"{function} makes a float64 tensor on a device that has none")
        return out


@pytest.mark.parametrize("schedule", [SD, FLOW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16])
def test_no_float64_reaches_a_device(schedule, dtype):
    x = torch.empty(2, 4, 3, 3, device="meta")
    index = torch.empty(2, device="meta", dtype=dtype)
    with _NoFloat64():
        with pytest.raises(TypeError, match="has none"):
            torch.zeros(2, dtype=torch.float64).to(x.device)
        for level in (schedule.at_index(index), schedule.at_time(index), schedule.at_lambda(torch.zeros(2))):
            noised, eps = schedule.noised(x, level, torch.empty_like(x))
            assert noised.is_meta and noised.dtype == torch.float32
            assert schedule.target("v_prediction", x, eps, level).is_meta
            assert level.times(x).dtype == torch.float32 and level.times(x).is_meta
        assert schedule.at_index(250).times(x).is_meta


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


def test_karras_grid_is_that_of_diffusers():
    betas = {name: value for name, value in SD_SCHEDULE.items() if "beta" in name}
    theirs = DPMSolverMultistepScheduler(**betas, use_karras_sigmas=True)
    theirs.set_timesteps(7)
    ours = [level.sigma / level.alpha for level in SD.grid(7, "karras", "zero")]
    np.testing.assert_allclose(ours, theirs.sigmas, rtol=1e-4)


def test_logsnr_grid_is_even_in_lambda():
    lambdas = np.array([level.lam for level in SD.grid(10, "logsnr", "index0")])
    np.testing.assert_allclose(np.diff(lambdas), np.diff(lambdas)[0], rtol=1e-9)


@pytest.mark.parametrize("schedule", [SD, FLOW])
def test_karras_grid_is_that_of_the_paper(schedule):
    """sigma_i = (s_0^(1/7) + i / (n - 1) (s_n^(1/7) - s_0^(1/7)))^7 of sigma / alpha (Karras et al. 2022, eq. 5)."""
    levels = [level for level in schedule.grid(9, "karras", "index0")[:9] if level.alpha > 0]  # flows begin at noise
    sigmas = np.array([level.sigma / level.alpha for level in levels])
    first, last = sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7)
    np.testing.assert_allclose(sigmas, (first + np.linspace(0, 1, len(sigmas)) * (last - first)) ** 7, rtol=1e-9)
    assert abs(np.log(sigmas[4]) - np.log(sigmas[[0, -1]]).mean()) > 0.1  # another exponent would be seen


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
