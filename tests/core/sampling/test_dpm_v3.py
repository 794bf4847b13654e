"""DPM-Solver-v3: limits, exactness on Gaussians, order, and an independent evaluation of the paper's formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler, make_solver
from unproject.core.sampling.calibration import fingerprint
from unproject.core.sampling.dpm_v3_statistics import ModelStatistics
from unproject.core.sampling.solvers import DPMSolverV3
from unproject.core.sampling.solvers.exponential import derivative_weights, phi, taylor_weights
from unproject.utils.errors import InputError

DATA, NOISE = ModelStatistics.constant(), ModelStatistics.constant(0, -1)
SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)


def noise(dtype=torch.float64) -> torch.Tensor:
    return torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(7), dtype=dtype)


def mixture(config=SD_SCHEDULE) -> GaussianMixturePrior:
    rng = torch.Generator().manual_seed(5)
    means = torch.randn(3, 2, 3, 3, generator=rng, dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.5, 0.8]), scheduler_config=config)


def run(prior, solver, levels, x, callback=None):
    denoiser = Denoiser(prior, prior.encode_text([""] * x.shape[0]))
    return Sampler(solver).run(denoiser, x, levels, callback=callback)


def smooth_tables(count: int = 60, shape=(2, 3, 3), low: float = -2.7, high: float = 3.6) -> ModelStatistics:
    """Random smooth l, s, b."""
    rng = torch.Generator().manual_seed(3)
    lambdas = torch.linspace(low, high, count + 1, dtype=torch.float64)
    waves = torch.stack([torch.cos(k * (lambdas - low) * math.pi / (high - low)) for k in range(4)], 1)
    tables = [
        torch.einsum("nk,kchw->nchw", waves, scale * torch.rand(4, *shape, generator=rng, dtype=torch.float64))
        for scale in (0.4, 0.3, 0.2)
    ]
    return ModelStatistics(lambdas, *tables)


def test_phi_and_finite_differences():
    for k in (1, 2, 3, 4):
        for z in (-3.0, -1.0, -1e-3, 0.0, 1e-6, 0.9999, 1.0001, 5.0):
            nodes, weights = np.polynomial.legendre.leggauss(30)
            r = (nodes + 1) / 2
            wanted = float((weights / 2 * np.exp((1 - r) * z) * r ** (k - 1)).sum()) / math.factorial(k - 1)
            assert phi(k, z) == pytest.approx(wanted, rel=1e-12)
    offsets = [-0.3, 0.5, -1.1]
    for k in (1, 2, 3):
        values = [o + 2 * o**2 - 0.5 * o**3 for o in offsets]
        found = sum(a * v for a, v in zip(derivative_weights(offsets, k), values, strict=True))
        assert found == pytest.approx([1, 4, -3][k - 1], rel=1e-12)
    assert taylor_weights(offsets, low=True)[0] == pytest.approx([1 / -0.3, 0, 0])


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("statistics", [DATA, NOISE], ids=["data", "noise"])
def test_order_one_in_either_prediction_is_ddim(statistics, config):
    prior, levels = mixture(config), NoiseSchedule.from_config(config).grid(8)
    ours = run(prior, DPMSolverV3(statistics, 1, "none"), levels, noise())
    torch.testing.assert_close(ours, run(prior, DDIM(), levels, noise()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("statistics", "algorithm"), [(DATA, "dpmsolver++"), (NOISE, "dpmsolver")])
@pytest.mark.filterwarnings("ignore")
def test_constant_tables_are_dpm_solver_and_plus_plus(statistics, algorithm):
    """Order 2 without corrector is the Taylor ("heun") form of diffusers' multistep solver on the same levels."""
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        algorithm_type=algorithm,
        solver_type="heun",
        timestep_spacing="trailing",
        final_sigmas_type="sigma_min",
        lower_order_final=True,
    )
    scheduler.set_timesteps(10)
    prior, x = mixture(), noise(torch.float32)
    levels = [SCHEDULE.at_index(float(t)) for t in scheduler.timesteps] + [SCHEDULE.at_index(0)]
    ours = run(prior, DPMSolverV3(statistics, 2, "none"), levels, x)
    condition = prior.encode_text([""] * 3)
    for time in scheduler.timesteps:
        x = scheduler.step(prior.predict(x, time, condition["cond"]), time, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("count", [100, 400])
def test_one_step_is_exact_on_a_gaussian(count):
    """l = sigma^2 / (alpha^2 v + sigma^2), s = 0, b = f': g is constant, only the tables' interpolation is left."""
    mean, std = 0.7, 1.3
    prior = GaussianMixturePrior(torch.full((1, 2, 3, 3), mean), torch.tensor([std]))
    start, end = SCHEDULE.at_index(999), SCHEDULE.at_index(0)
    lambdas = torch.linspace(start.lam, end.lam, count + 1, dtype=torch.float64)
    alpha2, sigma2 = torch.sigmoid(2 * lambdas), torch.sigmoid(-2 * lambdas)
    total = alpha2 * std**2 + sigma2
    slope = -2 * alpha2 * sigma2 * std**2 / total**2  # of sigma^2 / total: its derivative along lambda
    tables = [t.reshape(-1, 1, 1, 1) for t in (sigma2 / total, torch.zeros(count + 1), -mean * slope)]
    statistics = ModelStatistics(lambdas, *(t.double() for t in tables))
    x = noise()
    ours = run(prior, DPMSolverV3(statistics, 1, "none"), [start, end], x)
    spread = [math.sqrt(level.alpha**2 * std**2 + level.sigma**2) for level in (start, end)]
    wanted = (x - start.alpha * mean) * spread[1] / spread[0] + end.alpha * mean
    assert float((ours - wanted).abs().max()) < 3.0 / count**2


def _reference(prior, statistics, levels, x, order, pseudo):
    """The paper's formulas with global integrals by trapezoid on a dense grid; pseudo corrector, orders lowered."""
    fine = torch.linspace(levels[0].lam, levels[-1].lam, 40001, dtype=torch.float64)
    places = [int(torch.argmin((fine - level.lam).abs())) for level in levels]
    ell, s, b = (statistics._lookup(t, fine)[:, 0, 0, 0] for t in (statistics.ell, statistics.s, statistics.b))

    def cumulated(y):
        steps = 0.5 * (y[1:] + y[:-1]) * fine.diff()
        return torch.cat([y.new_zeros(1), steps.cumsum(0)])

    big_l, big_s = cumulated(ell), cumulated(s)
    big_b = cumulated(torch.exp(-big_s) * b)
    big_c = cumulated(torch.exp(big_l + big_s) * big_b)
    denoiser = Denoiser(prior, prior.encode_text([""] * x.shape[0]))

    def update(x, i, j, nodes, low):
        """Transition from grid level i to j; nodes [(grid index, f)], the base first."""
        p, q = places[i], places[j]
        base = nodes[0][1]
        g = [
            torch.exp(big_s[p] - big_s[places[k]]) * f - torch.exp(big_s[p]) * (big_b[places[k]] - big_b[p])
            for k, f in nodes
        ]
        offsets = [float(fine[places[k]] - fine[p]) for k, _ in nodes[1:]]
        shifted = torch.exp(big_l + big_s - big_l[p] - big_s[p])
        out = levels[j].alpha / levels[i].alpha * torch.exp(big_l[p] - big_l[q]) * x
        first = cumulated(shifted)
        out = out - levels[j].alpha * torch.exp(big_l[p] - big_l[q]) * (first[q] - first[p]) * base
        inner = (
            big_c[q]
            - big_c[p]
            - big_b[p] * (cumulated(torch.exp(big_l + big_s))[q] - cumulated(torch.exp(big_l + big_s))[p])
        )
        out = out - levels[j].alpha * torch.exp(-big_l[q]) * inner
        for k in range(1, len(nodes)):
            a = derivative_weights(offsets[:k] if low else offsets, k)
            slope = sum(w * (value - base) for w, value in zip(a, g[1:], strict=False))
            moment = cumulated(shifted * (fine - fine[p]) ** k / math.factorial(k))
            out = out - levels[j].alpha * torch.exp(big_l[p] - big_l[q]) * (moment[q] - moment[p]) * slope
        return out

    history, before, last = [], None, 0
    steps = len(levels) - 1
    for m in range(steps):
        level, at = levels[m], ell[places[m]]
        f = (level.sigma * denoiser(x, level).eps - at * x) / level.alpha
        if m and last >= 1:
            nodes = [history[0], (m, f), *history[1:last]]
            x = update(before, m - 1, m, nodes, True)
        history.insert(0, (m, f))
        last, before = min(order, len(history), steps - m), x
        x = update(x, m, m + 1, history[:last], pseudo)
    return x


@pytest.mark.parametrize(("order", "pseudo"), [(1, False), (2, False), (3, False), (3, True)])
def test_smooth_tables_follow_the_formulas(order, pseudo):
    statistics, prior, x = smooth_tables(shape=(1, 1, 1)), mixture(), noise()
    fine = np.linspace(-2.5, 3.5, 40001)
    levels = [SCHEDULE.at_lambda(float(fine[k])) for k in (0, 6000, 13000, 22000, 31000, 40000)]
    ours = run(prior, DPMSolverV3(statistics, order, "pseudo", pseudo), levels, x)
    torch.testing.assert_close(ours, _reference(prior, statistics, levels, x, order, pseudo), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("statistics", [DATA, smooth_tables(400, (1, 1, 1))], ids=["data", "smooth"])
@pytest.mark.parametrize(
    ("order", "corrector", "slope"), [(1, "none", 1), (2, "none", 2), (3, "none", 3), (2, "pseudo", 2), (3, "full", 3)]
)
def test_convergence_orders(statistics, order, corrector, slope):
    """With exact states during warm-up, the error falls with the order; nearest-node correctors do not raise it."""
    prior, x = GaussianMixturePrior(torch.full((1, 2, 3, 3), 0.4), torch.tensor([1.5])), noise()[:1]

    def exact(level):
        first = SCHEDULE.at_lambda(-1.5)
        spread = [math.sqrt(2.25 * here.alpha**2 + here.sigma**2) for here in (first, level)]
        return (x - 0.4 * first.alpha) * spread[1] / spread[0] + 0.4 * level.alpha

    def error(steps):
        levels = [SCHEDULE.at_lambda(-1.5 + 4 * k / steps) for k in range(steps + 1)]
        solver = DPMSolverV3(statistics, order, corrector, lower_order_final=False)
        out = run(prior, solver, levels, x, lambda call, level, state: exact(levels[call + 1]) if call < 4 else None)
        return float((out - exact(levels[-1])).norm())

    errors = [error(n) for n in (40, 80)]
    assert slope - 0.3 < math.log2(errors[0] / errors[1]) < slope + 1


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_ends_at_infinite_lambda(config):
    """Flow ends and a clean end are finite, and a point mass is met exactly."""
    schedule = NoiseSchedule.from_config(config)
    point = GaussianMixturePrior(torch.full((1, 2, 3, 3), 0.7), torch.tensor([1e-6]), scheduler_config=config)
    for steps in (1, 2, 5):
        out = run(point, DPMSolverV3(smooth_tables(), 3), schedule.grid(steps, "trailing", "zero"), noise())
        torch.testing.assert_close(out, torch.full_like(out, 0.7), rtol=1e-5, atol=1e-5)


def test_second_order_beats_ddim_and_the_corrector_helps():
    prior, x = mixture(), noise()
    reference = run(prior, DDIM(), SCHEDULE.grid(999, "trailing"), x)
    levels = SCHEDULE.grid(12, "logsnr")
    errors = [
        float((run(prior, solver, levels, x) - reference).norm())
        for solver in (DDIM(), DPMSolverV3(DATA, 2, "none"), DPMSolverV3(DATA, 2))
    ]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]


def test_the_corrector_range_and_replaced_states():
    prior, levels, x = mixture(), SCHEDULE.grid(8), noise()
    plain = run(prior, DPMSolverV3(DATA, 2, "none"), levels, x)
    nowhere = run(prior, DPMSolverV3(DATA, 2, corrector_range=(50, 60)), levels, x)
    torch.testing.assert_close(nowhere, plain, rtol=0, atol=0)
    replaced = run(prior, DPMSolverV3(DATA, 2), levels, x, lambda call, level, state: state + 1e-14)
    torch.testing.assert_close(replaced, plain, rtol=0, atol=1e-11)
    corrected = run(prior, DPMSolverV3(DATA, 2), levels, x)
    assert float((corrected - plain).abs().max()) > 0.1
    same = run(prior, DPMSolverV3(DATA, 2), levels, x, lambda call, level, state: state.clone())
    assert torch.equal(same, corrected)


def test_batch_rows_are_independent_and_float32_stays():
    prior, levels, x = mixture(), SCHEDULE.grid(6), noise(torch.float32)
    whole = run(prior, DPMSolverV3(smooth_tables()), levels, x)
    assert whole.dtype == torch.float32
    for row in range(3):
        alone = run(prior, DPMSolverV3(smooth_tables()), levels, x[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("order", "guidance", "corrector"),
    [(1, "1.5", "none"), (2, "1.5", "pseudo"), (2, "3 rescale 0.7", "pseudo"), (2, "3.5", "none"), (3, "5", "none")],
)
def test_who_says_nothing_gets_a_corrector_above_order_1_and_at_moderate_guidance(order, guidance, corrector):
    prior, levels, x = mixture(), SCHEDULE.grid(6), noise()
    tables = replace(smooth_tables(), fingerprint=replace(fingerprint(prior), guidance=guidance))
    silent = run(prior, make_solver(f"dpm-v3:{order}", statistics=tables), levels, x)
    assert torch.equal(silent, run(prior, DPMSolverV3(tables, order, corrector), levels, x))
    other = "pseudo" if corrector == "none" else "none"
    assert not torch.equal(silent, run(prior, DPMSolverV3(tables, order, other), levels, x))


def test_bad_requests_are_named():
    for name, words in (("dpm-v3", "needs statistics="), ("dpm-v3:2", "needs statistics=")):
        with pytest.raises(InputError, match=words):
            make_solver(name)
    assert isinstance(make_solver("dpm-v3:3", statistics=DATA), DPMSolverV3)
    with pytest.raises(InputError, match="order=4"):
        make_solver("dpm-v3:4", statistics=DATA)
    with pytest.raises(InputError, match="corrector='half'"):
        DPMSolverV3(DATA, corrector="half")
    with pytest.raises(InputError, match=r"shape \(2, 5, 5\)"):
        DPMSolverV3(smooth_tables(shape=(2, 5, 5)))(noise(), SCHEDULE.grid(3))
