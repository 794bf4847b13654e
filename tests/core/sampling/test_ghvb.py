"""Momentum: weight tables, stability ends, orders, limits and the toy system of the paper."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import DDIM, Denoiser, Level, NoiseSchedule, Prediction, Sampler, make_solver
from unproject.core.sampling.divergence import magnitude_score
from unproject.core.sampling.q_sched import Coefficients, RescaledSolver
from unproject.core.sampling.solvers import (
    EDICT,
    HeavyBall,
    LinearMultistep,
    SolverSchedule,
    StepDecision,
    UnifiedSolver,
    advanced,
    multistep_weights,
    preset,
)
from unproject.core.sampling.solvers.decisions import times_of
from unproject.core.sampling.solvers.ghvb import momentum_number
from unproject.utils.errors import InputError


def noise(dtype=torch.float64) -> torch.Tensor:
    return torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(7), dtype=dtype)


def mixture(config=SD_SCHEDULE, count: int = 3) -> GaussianMixturePrior:
    rng = torch.Generator().manual_seed(5)
    means = torch.randn(count, 2, 3, 3, generator=rng, dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.5, 0.8][:count]), scheduler_config=config)


def run(prior, solver, levels, x, callback=None):
    return Sampler(solver).run(Denoiser(prior, prior.encode_text([""] * x.shape[0])), x, levels, callback=callback)


def nudged(call, level, x):
    """A callback that replaces every state but the first, so that only the first step is corrected."""
    return x * (1 + 1e-6) if call else None


@pytest.mark.parametrize("beta", [1.0, 0.9, 0.5, 0.1])
def test_weights_match_the_closed_forms(beta):
    b = beta
    tables = {
        1: [1.0],
        2: [(2 + b) / (2 * b), -(2 - b) / (2 * b)],
        3: [(18 + 5 * b) / (12 * b), -(24 - 8 * b) / (12 * b), (6 - b) / (12 * b)],
        4: [(46 + 9 * b) / (24 * b), -(78 - 19 * b) / (24 * b), (42 - 5 * b) / (24 * b), -(10 - b) / (24 * b)],
        5: [
            w / (720 * b)
            for w in (
                1650 + 251 * b,
                -(3420 - 646 * b),
                2880 - 264 * b,
                -(1380 - 106 * b),
                270 - 19 * b,
            )
        ],
    }
    for order, wanted in tables.items():
        weights = multistep_weights(order, beta)
        assert weights == pytest.approx(wanted, rel=1e-12)
        assert math.fsum(weights) == pytest.approx(1, abs=1e-12)


def test_beta_one_is_adams_bashforth():
    assert multistep_weights(4) == (55 / 24, -59 / 24, 37 / 24, -9 / 24)
    prior, levels = mixture(), NoiseSchedule.from_config(SD_SCHEDULE).grid(8)
    plain = run(prior, LinearMultistep(4), levels, noise())
    assert torch.equal(plain, run(prior, LinearMultistep(4, 1.0), levels, noise()))
    assert torch.equal(plain, run(prior, HeavyBall(LinearMultistep(4), 1.0), levels, noise()))


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_order_one_without_momentum_is_ddim(config):
    prior, levels = mixture(config), NoiseSchedule.from_config(config).grid(9)
    ours = run(prior, LinearMultistep(1), levels, noise())
    torch.testing.assert_close(ours, run(prior, DDIM(), levels, noise()), rtol=1e-10, atol=1e-10)


def _radius(order: int, beta: float, z: float, heavy: bool) -> float:
    """Spectral radius of one step on y' = z y with unit step: state (y, v, past directions)."""
    weights = multistep_weights(order, 1.0 if heavy else beta)
    size = order + 1  # y and the last `order` directions; for HB: y, v and past f
    if heavy:
        matrix = np.zeros((order + 1, order + 1))  # y, v, f_{n-1}..f_{n-order+1}
        combined = np.zeros(order + 1)
        combined[0] = weights[0] * z
        combined[2 : order + 1] = weights[1:]
        velocity = beta * combined
        velocity[1] += 1 - beta
        matrix[1] = velocity
        matrix[0] = velocity
        matrix[0, 0] += 1
        for k in range(2, order + 1):
            matrix[k, 0 if k == 2 else k - 1] = z if k == 2 else 1
    else:
        matrix = np.zeros((size, size))  # y, v_n, v_{n-1}, ...
        matrix[1, 0], matrix[1, 1] = beta * z, 1 - beta
        for k in range(2, size):
            matrix[k, k - 1] = 1
        matrix[0] = sum(w * row for w, row in zip(weights, matrix[1:], strict=True))
        matrix[0, 0] += 1
    return float(np.abs(np.linalg.eigvals(matrix)).max())


@pytest.mark.parametrize("beta", [1.0, 0.9, 0.8, 0.5])
@pytest.mark.parametrize(
    ("order", "heavy", "end"),
    [
        (1, True, lambda b: (4 - 2 * b) / b),
        (2, True, lambda b: (2 - b) / b),
        (2, False, lambda b: 2 - b),
        (3, False, lambda b: 6 * (2 - b) / (12 - b)),
        (4, False, lambda b: 3 * (2 - b) / (11 - b)),
    ],
)
def test_the_real_stability_interval_ends_where_the_paper_says(order, heavy, end, beta):
    z = -end(beta)
    assert _radius(order, beta, 0.99 * z, heavy) < 1 + 1e-9
    assert _radius(order, beta, 1.01 * z, heavy) > 1


@pytest.mark.parametrize(
    ("solver", "slope"),
    [
        (LinearMultistep(2, 0.8), 2),
        (LinearMultistep(3, 0.9), 3),
        (LinearMultistep(4, 0.9), 4),
        (HeavyBall(LinearMultistep(3), 0.8), 1),
    ],
)
def test_convergence_orders(solver, slope):
    """On a Gaussian, x / sqrt(alpha^2 v + sigma^2) is constant along the exact solution."""
    prior = GaussianMixturePrior(torch.zeros(1, 2, 3, 3), torch.tensor([1.5]))
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    errors = [_multistep_error(solver, prior, schedule, noise(), steps) for steps in (20, 40, 80)]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(slope, abs=0.35)


def _multistep_error(solver, prior, schedule, x, steps: int) -> float:
    """Global error when the velocities of the warm-up are those of the exact solution on the grid before the start."""
    span, begin = 2.0, 4.0
    h = span / steps
    sigmas = [begin - h * k for k in range(steps + 1)]
    before = [begin + h * k for k in range(60, 0, -1)]  # long enough for the average to settle

    def level(s: float) -> Level:
        return schedule.at_lambda(-math.log(s))

    def exact(s: float) -> torch.Tensor:
        here = level(s)
        return x * math.sqrt(2.25 * here.alpha**2 + here.sigma**2)

    denoiser = Denoiser(prior, prior.encode_text([""] * x.shape[0]))
    grid = [level(s) for s in before + sigmas]
    run = solver(exact(before[0]), grid)
    end, _ = advanced(run)
    for k in range(len(grid) - 1):
        state = exact(before[k]) if k < len(before) else (exact(begin) if k == len(before) else end)
        end, _ = advanced(run, denoiser(state, grid[k]))
    return float((end - exact(sigmas[-1])).norm())


@pytest.mark.parametrize(
    ("solver", "wanted"),
    [
        (LinearMultistep(2), 1.44),
        (LinearMultistep(1), 1.4e-2),
        (HeavyBall(LinearMultistep(2), 0.8), 6.3e-3),
        (HeavyBall(LinearMultistep(2), 0.9), 2.9e-3),
        (LinearMultistep(2, 0.8), 7.2e-4),
        (LinearMultistep(2, 0.9), 4.7e-2),
    ],
)
def test_the_stiff_toy_system_of_the_paper(solver, wanted):
    matrix = torch.tensor([[0.0, 1.0], [-9.0, -10.0]], dtype=torch.float64)
    times = np.linspace(0, 3, 27)
    grid = [Level(1 - t, t, 0.0, t, 0.0) for t in times]
    x = torch.tensor([[-1.0, 0.0]], dtype=torch.float64).reshape(1, 2, 1, 1)
    run = solver(x, grid)
    end, level = advanced(run)
    while level is not None:
        slope = torch.einsum("ij,bjkl->bikl", matrix, end)
        end, level = advanced(run, Prediction(end, level, slope, "flow_prediction"))
    exact = torch.einsum("ij,bjkl->bikl", torch.linalg.matrix_exp(3 * matrix), x)
    assert float((end - exact).norm()) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("name", ["dpm++", "unipc", "ddim"])
@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_heavy_ball_goes_on_any_solver(name, config):
    """Momentum vanishes as beta goes to 1, and a point mass is met whatever the beta; UniPC is left its predictor."""
    prior, schedule = mixture(config), NoiseSchedule.from_config(config)
    levels = schedule.grid(10)
    plain = run(prior, make_solver(name, schedule.flow), levels, noise(), nudged if name == "unipc" else None)
    near = run(prior, HeavyBall(make_solver(name, schedule.flow), 1 - 1e-7), levels, noise())
    torch.testing.assert_close(near, plain.to(near.dtype), rtol=1e-4, atol=1e-4)
    point = GaussianMixturePrior(torch.full((1, 2, 3, 3), 0.7), torch.tensor([1e-6]), scheduler_config=config)
    end = run(point, HeavyBall(make_solver(name, schedule.flow), 0.7), schedule.grid(5, final="zero"), noise())
    torch.testing.assert_close(end, torch.full_like(end, 0.7), rtol=1e-4, atol=1e-4)


def test_heavy_ball_averages_the_combined_direction():
    """Two Euler steps by hand: v_2 = (1 - beta) e_1 + beta e_2."""
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(2, "trailing", "zero")
    x, answers = noise(), [noise() * 0.5, noise() + 0.3]
    for nesterov in (False, True):
        solver = HeavyBall(LinearMultistep(1), 0.6, nesterov=nesterov)
        steps = solver(x, levels)
        end, _ = advanced(steps)
        for level, eps in zip(levels, answers, strict=False):
            end, _ = advanced(steps, Prediction(end, level, eps, "epsilon"))
        velocity = 0.4 * answers[0] + 0.6 * answers[1]
        if nesterov:
            velocity = 0.4 * velocity + 0.6 * answers[1]
        ve = [level.sigma / level.alpha for level in levels]
        wanted = x / levels[0].alpha + (ve[1] - ve[0]) * answers[0] + (ve[2] - ve[1]) * velocity
        torch.testing.assert_close(end, wanted, rtol=1e-9, atol=1e-9)


def test_velocity_is_seeded_with_noise_whatever_the_network_predicts():
    outs = []
    for kind in ("epsilon", "v_prediction", "sample"):
        config = {**SD_SCHEDULE, "prediction_type": kind}
        outs.append(run(mixture(config), LinearMultistep(3, 0.7), NoiseSchedule.from_config(config).grid(6), noise()))
    for a, b in itertools.pairwise(outs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_names_numbers_and_errors():
    assert momentum_number(1.8) == (2, 0.8)
    assert momentum_number(4) == (4, 1.0)
    assert momentum_number(0.7) == (1, 0.7)
    solver = make_solver("ghvb:2,0.5")
    assert isinstance(solver, LinearMultistep) and (solver.order, solver.beta) == (2, 0.5)
    solver = make_solver("hb:dpm++,0.9")
    assert isinstance(solver, HeavyBall) and solver.beta == 0.9
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(3)
    assert advanced(make_solver("hb:3,0.9")(noise(), levels))[1] is levels[0]
    for name, words in (
        ("ghvb:9", "momentum number 9"),
        ("ghvb:2,1.5", r"beta=1\.5"),
        ("ghvb:6,0.5", "order=6"),
        ("ghvb:x", "'x' is not a number"),
        ("hb:0.5", "lacks its beta"),
        ("hb:heun,0.5", "one network call per step"),
        ("hb:rk45,0.5", "'rk45' is unknown"),
    ):
        with pytest.raises(InputError, match=words):
            make_solver(name)
    with pytest.raises(InputError, match="order=0"):
        LinearMultistep(0)
    with pytest.raises(InputError, match="v_prediction"):
        HeavyBall(DDIM(), 0.5, "v_prediction")


@pytest.mark.parametrize(
    "wrap", [lambda solver: HeavyBall(solver, 0.9), lambda solver: RescaledSolver(solver, Coefficients.constant(4))]
)
def test_wrappers_run_on_the_levels_of_what_they_wrap(wrap):
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    levels = schedule.grid(4, "karras", "index0")
    inner = UnifiedSolver(replace(preset("dpm++", 4), times=times_of(levels, schedule)))
    solver = wrap(inner)
    own = solver.own_grid(schedule)
    assert own is not None and [v.index for v in own] == [v.index for v in inner.own_grid(schedule)]
    assert solver.calls(4) == 4 and solver.asks(own) == [0, 1, 2, 3] and solver.asks_once
    assert wrap(DDIM()).own_grid(schedule) is None
    doubled = schedule.grid(4, "linspace", "index0")
    assert len(wrap(make_solver("dpm++")).asks(doubled)) == 3


def test_momentum_refuses_what_it_would_spoil():
    implicit = UnifiedSolver(SolverSchedule((StepDecision(corrector="implicit"),) * 3))
    skipping = UnifiedSolver(SolverSchedule((StepDecision(),) * 3, first="zero_x0"))
    for inner in (EDICT(), make_solver("heun"), implicit, skipping):
        with pytest.raises(InputError, match="one network call per step"):
            HeavyBall(inner, 0.9)
    for inner in ("dpm-v3:2", "usf:found.safetensors"):
        with pytest.raises(InputError, match=rf"'hb:{inner},0\.9'.*use {inner} alone .*hb:dpm\+\+,0\.9"):
            make_solver(f"hb:{inner},0.9")


def test_magnitude_score():
    """One cell of one image stands out by 5 deviations; real-looking latents score 0."""
    latents = torch.zeros(2, 3, 8, 8)
    latents[0, 1, 5, 2] = 1 + 5 * 0.5
    mean, std = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.5, 1.0])
    latents[:, 1] += (latents[:, 1] == 0) * 1.0
    found = magnitude_score(latents, mean, std)
    torch.testing.assert_close(found.score, torch.tensor([5.0, 0.0]))
    torch.testing.assert_close(found.share, torch.tensor([0.25, 0.0]))
    with pytest.raises(InputError, match="3 channels"):
        magnitude_score(latents, mean[:2], std)
