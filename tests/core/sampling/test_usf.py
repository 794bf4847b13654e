"""The unified framework: known solvers as decisions, orders, first steps, correctors, files and errors."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler, make_solver
from unproject.core.sampling.calibration import fingerprint
from unproject.core.sampling.dpm_v3_statistics import ModelStatistics
from unproject.core.sampling.solvers import DPMSolverV3, SolverSchedule, StepDecision, UnifiedSolver, preset
from unproject.core.sampling.solvers.decisions import relaxation_factor, times_of
from unproject.core.sampling.solvers.exponential import phi
from unproject.utils.errors import InputError

SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)
DATA, NOISE = ModelStatistics.constant(), ModelStatistics.constant(0, -1)


def noise(dtype=torch.float64) -> torch.Tensor:
    return torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(7), dtype=dtype)


def mixture(config=SD_SCHEDULE) -> GaussianMixturePrior:
    rng = torch.Generator().manual_seed(5)
    means = torch.randn(3, 2, 3, 3, generator=rng, dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.5, 0.8]), scheduler_config=config)


def run(prior, solver, levels, x, callback=None):
    denoiser = Denoiser(prior, prior.encode_text([""] * x.shape[0]))
    out = Sampler(solver).run(denoiser, x, levels, callback=callback)
    return out, denoiser.nfe // x.shape[0]


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_ddim_as_decisions(config):
    prior, levels = mixture(config), NoiseSchedule.from_config(config).grid(7)
    wanted = run(prior, DDIM(), levels, noise())[0]
    for kind in ("ddim", "noise"):
        schedule = preset("ddim", 7)
        if kind == "noise":
            schedule = SolverSchedule(tuple(replace(d, prediction="noise") for d in schedule.decisions))
        ours, nfe = run(prior, UnifiedSolver(schedule), levels, noise())
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)
        assert nfe == schedule.nfe == 7


@pytest.mark.parametrize(
    ("name", "order", "scheduler_class", "options"),
    [
        ("dpm++", 2, DPMSolverMultistepScheduler, {"solver_type": "midpoint"}),
        ("dpm++taylor", 2, DPMSolverMultistepScheduler, {"solver_type": "heun"}),
        ("unipc-bh1", 2, UniPCMultistepScheduler, {"solver_type": "bh1"}),
        ("unipc-bh2", 2, UniPCMultistepScheduler, {"solver_type": "bh2"}),
        ("unipc-bh2", 3, UniPCMultistepScheduler, {"solver_type": "bh2"}),
    ],
)
def test_presets_are_the_solvers_of_diffusers(name, order, scheduler_class, options):
    scheduler = scheduler_class(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        solver_order=order,
        timestep_spacing="trailing",
        final_sigmas_type="sigma_min" if name == "unipc-bh1" else "zero",
        **options,
    )
    scheduler.set_timesteps(10)
    prior, x = mixture(), noise(torch.float32)
    levels = SCHEDULE.grid(10, "trailing", "index0" if name == "unipc-bh1" else "zero")
    ours = run(prior, UnifiedSolver(preset(name, 10, order)), levels, x)[0]
    condition = prior.encode_text([""] * 3)
    for time in scheduler.timesteps:
        x = scheduler.step(prior.predict(x, time, condition["cond"]), time, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize("final", ["zero", "index0"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_v3_as_decisions(order, final):
    rng = torch.Generator().manual_seed(3)
    lambdas = torch.linspace(-2.7, 3.6, 8, dtype=torch.float64)
    tables = ModelStatistics(lambdas, *(torch.rand(8, 2, 3, 3, generator=rng, dtype=torch.float64) for _ in "lsb"))
    prior, levels = mixture(), SCHEDULE.grid(6, "trailing", final)
    wanted = run(prior, DPMSolverV3(tables, order, "pseudo"), levels, noise())[0]
    ours = run(prior, UnifiedSolver(preset("v3", 6, order), tables), levels, noise())[0]
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "statistics"), [("dpm++taylor", DATA), ("dpm", NOISE)])
def test_v3_with_constant_tables_is_the_data_or_noise_form(name, statistics):
    prior, levels = mixture(), SCHEDULE.grid(8, "logsnr", "index0")
    for corrector in ("none", "pseudo"):
        plain = SolverSchedule(tuple(replace(d, corrector=corrector) for d in preset(name, 8, 3).decisions))
        v3 = SolverSchedule(tuple(replace(d, prediction="v3") for d in plain.decisions))
        a = run(prior, UnifiedSolver(plain), levels, noise())[0]
        b = run(prior, UnifiedSolver(v3, statistics), levels, noise())[0]
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["noise", "data"])
@pytest.mark.parametrize(
    ("order", "corrector", "slope"), [(1, "none", 1), (2, "none", 2), (3, "none", 3), (4, "none", 4), (2, "pseudo", 3)]
)
def test_convergence_orders(prediction, order, corrector, slope):
    """With exact states during warm-up; a corrector that uses all points raises the order by one."""
    prior, x = GaussianMixturePrior(torch.full((1, 2, 3, 3), 0.4), torch.tensor([1.5])), noise()[:1]

    def exact(level):
        first = SCHEDULE.at_lambda(-1.5)
        spread = [math.sqrt(2.25 * here.alpha**2 + here.sigma**2) for here in (first, level)]
        return (x - 0.4 * first.alpha) * spread[1] / spread[0] + 0.4 * level.alpha

    def error(steps):
        levels = [SCHEDULE.at_lambda(-1.5 + 2 * k / steps) for k in range(steps + 1)]
        decisions = (StepDecision(order, prediction, corrector=corrector),) * steps
        out = run(
            prior,
            UnifiedSolver(SolverSchedule(decisions)),
            levels,
            x,
            lambda call, level, state: exact(levels[call + 1]) if call < 4 else None,
        )[0]
        return float((out - exact(levels[-1])).norm())

    errors = [error(n) for n in (40, 80)]
    assert slope - 0.3 < math.log2(errors[0] / errors[1]) < slope + 1.2


def test_relaxation_presets():
    """Near h = 0 every preset is 1; bh1 and bh2 replace h^2 phi_2 by h B(h) / 2."""
    for value in ("bh1", "bh2", "exp+", "exp-", 0.7):
        for data in (False, True):
            assert relaxation_factor(value, 1e-6, data) == pytest.approx(1, abs=1e-5)
    h = 0.8
    assert relaxation_factor(0.3, h, True) == pytest.approx(1 + 0.3 * h)
    for data, z in ((False, h), (True, -h)):
        assert relaxation_factor("bh1", h, data) * phi(2, z) == pytest.approx(0.5)
        assert relaxation_factor("bh2", h, data) * phi(2, z) == pytest.approx(0.5 * math.expm1(z) / z)
        assert relaxation_factor("exp+", h, data) == pytest.approx(1 + 0.5 * math.expm1(z))
    for value in ("bh1", "bh2"):
        assert relaxation_factor(value, 0.99e-4, True) == pytest.approx(
            relaxation_factor(value, 1.01e-4, True), abs=1e-6
        )


def test_a_guessed_first_answer_saves_a_call():
    """zero_x0 shrinks the state, average_x0 is right when the data are one point."""
    prior, levels, x = mixture(), SCHEDULE.grid(3), noise()
    first, nfe = run(prior, UnifiedSolver(SolverSchedule((StepDecision(),) * 3, first="zero_x0")), levels, x)
    scaled = x * levels[1].sigma / levels[0].sigma
    torch.testing.assert_close(first, run(prior, DDIM(), levels[1:], scaled)[0], rtol=1e-9, atol=1e-9)
    assert nfe == 2
    point = GaussianMixturePrior(torch.full((1, 2, 3, 3), 0.7), torch.tensor([1e-6]))
    schedule = SolverSchedule((StepDecision(),) * 3, first="average_x0")
    solver = UnifiedSolver(schedule, mean=torch.full((2, 3, 3), 0.7))
    assert solver.calls(3) == schedule.nfe == len(solver.asks(levels)) == 2
    skipped = run(point, solver, levels, x)[0]
    torch.testing.assert_close(skipped, run(point, DDIM(), levels, x)[0], rtol=1e-6, atol=1e-6)
    late = run(prior, solver, levels[1:], x)
    assert late[1] == 2, "a late entry has no first step to skip"


def published(denoise, x, levels, schedule):
    """The published sampler in plain words: buffers of x, eps and x0, and a pseudo corrector that writes x alone.

    A step integrates the polynomial through the start and the nodes: eps under alpha_t e^{-lambda}, x0 under
    sigma_t e^{lambda}, by quadrature. v3 steps are meant for l = 1, s = b = 0, where they integrate x0.
    """
    lam, xs, values = [], [], []  # newest first
    at, weight = np.polynomial.legendre.leggauss(30)

    def taken(decision, target, order, low, relaxation, new):
        base = min(-decision.start, len(lam)) - 1
        kind = "noise" if decision.prediction == "noise" else "data"
        others = [(lam[j], values[j][kind]) for j in range(len(lam)) if j != base]
        nodes = ([new] if new else []) + others
        nodes = nodes[: order - 1]
        terms = [values[base][kind]]  # of the polynomial in lambda - lambda_s
        for k in range(1, len(nodes) + 1):
            used = nodes[:k] if low else nodes
            powers = np.array([[(here - lam[base]) ** i for i in range(1, len(used) + 1)] for here, _ in used])
            row = np.linalg.inv(powers)[k - 1]
            terms.append(sum(float(a) * (value - values[base][kind]) for a, (_, value) in zip(row, used)))
        h = target.lam - lam[base]
        r = 0.5 * h * (at + 1)
        if len(terms) > 1:
            terms[1] = terms[1] * (1 + relaxation * h)
        growth = np.exp(-(lam[base] + r)) if kind == "noise" else np.exp(lam[base] + r)
        total = sum(float(0.5 * h * (weight * growth * r**k).sum()) * term for k, term in enumerate(terms))
        start = SCHEDULE.at_lambda(lam[base])
        if kind == "noise":
            return target.alpha / start.alpha * xs[base] - target.alpha * total
        return target.sigma / start.sigma * xs[base] + target.sigma * total

    for k, (decision, level, after) in enumerate(zip(schedule.decisions, levels, levels[1:])):
        if k == 0 and schedule.first == "zero_x0":
            answer = {"noise": x / level.sigma, "data": 0 * x}
        else:
            asked = denoise(x, level)
            answer = {"noise": asked.eps, "data": asked.x0}
        last = schedule.decisions[k - 1]
        if k and last.corrector == "pseudo":
            new = (level.lam, answer["noise" if last.prediction == "noise" else "data"])
            low = last.corrector_estimate == "low"
            x = taken(last, level, last.order + 1, low, last.corrector_relaxation, new)
        lam, xs, values = [level.lam, *lam], [x, *xs], [answer, *values]
        x = taken(decision, after, decision.order, decision.estimate == "low", decision.relaxation, None)
    return x


@pytest.mark.parametrize("first", ["none", "zero_x0"])
@pytest.mark.parametrize("kinds", itertools.product(("noise", "data", "v3"), repeat=2))
def test_a_pseudo_corrector_changes_the_state_alone(kinds, first):
    """A step that integrates another quantity than the corrector before it finds it as the network gave it."""
    a, b = kinds
    decisions = (
        StepDecision(1, a, corrector="pseudo"),
        StepDecision(2, b, corrector="pseudo", corrector_estimate="low", corrector_relaxation=0.05),
        StepDecision(2, a, relaxation=0.1, corrector="pseudo"),
        StepDecision(3, b, estimate="low"),
        StepDecision(2, a, start=-2, corrector="pseudo"),
        StepDecision(4, b),
    )
    prior, schedule = mixture(), SolverSchedule(decisions, first=first)
    levels = [SCHEDULE.at_lambda(lam) for lam in (-2.2, -1.5, -0.6, 0.1, 0.9, 1.3, 2.0)]
    ours = run(prior, UnifiedSolver(schedule, DATA), levels, noise())[0]
    wanted = published(Denoiser(prior, prior.encode_text([""] * 3)), noise(), levels, schedule)
    torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-8)


def test_the_step_to_a_replaced_state_is_not_corrected():
    prior, levels, x = mixture(), SCHEDULE.grid(6), noise()
    corrected, plain = (SolverSchedule((StepDecision(2, corrector=name),) * 6) for name in ("pseudo", "none"))
    wanted = run(prior, UnifiedSolver(plain), levels, x)[0]
    moved = run(prior, UnifiedSolver(corrected), levels, x, lambda call, level, state: state + 1e-14)[0]
    torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-11)
    whole = run(prior, UnifiedSolver(corrected), levels, x)[0]
    assert float((whole - wanted).abs().max()) > 0.01
    same = run(prior, UnifiedSolver(corrected), levels, x, lambda call, level, state: state.clone())[0]
    assert torch.equal(same, whole)


def test_an_implicit_corrector_asks_again():
    prior, levels = mixture(), SCHEDULE.grid(4)
    schedule = SolverSchedule((StepDecision(1, corrector="implicit"),) * 4)
    solver = UnifiedSolver(schedule)
    out, nfe = run(prior, solver, levels, noise())
    assert nfe == schedule.nfe == solver.calls(4) == len(solver.asks(levels)) == 7
    assert solver.asks(levels) == [0, 1, 1, 2, 2, 3, 3]
    assert bool(torch.isfinite(out).all())


def test_a_step_from_an_older_point_is_single_step_like():
    """Half step, then the whole step from the start with the derivative of the half point: 2S, one order 2 step."""
    prior, x = mixture(), noise()
    levels = [SCHEDULE.at_lambda(lam) for lam in (-1.0, -0.9, -0.8)]
    schedule = SolverSchedule((StepDecision(1), StepDecision(2, start=-2)))
    ours = run(prior, UnifiedSolver(schedule), levels, x)[0]
    denoiser = Denoiser(prior, prior.encode_text([""] * 3))
    start, h = denoiser(x, levels[0]).x0, 0.2
    half = levels[1].sigma / levels[0].sigma * x - levels[1].alpha * math.expm1(-0.1) * start
    slope = (denoiser(half, levels[1]).x0 - start) / 0.1
    wanted = levels[2].sigma / levels[0].sigma * x - levels[2].alpha * math.expm1(-h) * start
    wanted = wanted + levels[2].alpha * h * h * phi(2, -h) * slope
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_a_late_entry_uses_the_last_decisions():
    prior, levels, x = mixture(), SCHEDULE.grid(6), noise()
    schedule = preset("dpm++", 6)
    late = run(prior, UnifiedSolver(schedule), levels[2:], x)[0]
    alone = run(prior, UnifiedSolver(SolverSchedule(schedule.decisions[2:])), levels[2:], x)[0]
    assert torch.equal(late, alone)


def test_files_times_and_names(tmp_path):
    prior = mixture()
    levels = SCHEDULE.grid(4)
    schedule = replace(preset("unipc-bh1", 4), times=times_of(levels, SCHEDULE))
    assert SolverSchedule.from_dict(schedule.to_dict()) == schedule
    path = schedule.save(tmp_path / "s.safetensors", fingerprint(prior, guidance=2), {"score": 0.1})
    assert SolverSchedule.load(path, fingerprint(prior, guidance=2)) == schedule
    solver = make_solver(f"usf:{path}")
    own = solver.own_grid(SCHEDULE)
    assert own is not None
    assert [v.index for v in own] == pytest.approx([v.index for v in levels])
    with pytest.raises(InputError, match="guidance 2"):
        make_solver(f"usf:{path}", expected=fingerprint(prior))
    guess, mean = SolverSchedule((StepDecision(),) * 4, first="average_x0"), torch.full((2, 3, 3), 0.7)
    path = guess.save(tmp_path / "mean.safetensors", fingerprint(prior), mean=mean)
    ours, wanted = make_solver(f"usf:{path}"), UnifiedSolver(guess, mean=mean)
    assert torch.equal(run(prior, ours, levels, noise())[0], run(prior, wanted, levels, noise())[0])
    flow = NoiseSchedule.from_config(FLOW_SCHEDULE)
    grid = flow.grid(5)
    made = SolverSchedule((StepDecision(),) * 5, times_of(grid, flow)).levels(flow)
    assert [v.sigma for v in made] == pytest.approx([v.sigma for v in grid])


def test_bad_schedules_are_named(tmp_path):
    v3 = preset("v3", 3)
    path = v3.save(tmp_path / "v3.safetensors", fingerprint(mixture()))
    guess = SolverSchedule((StepDecision(),) * 2, first="average_x0").save(tmp_path / "g", fingerprint(mixture()))
    for build, words in (
        (lambda: UnifiedSolver(v3), "need statistics="),
        (lambda: make_solver(f"usf:{path}"), "needs statistics="),
        (
            lambda: make_solver(f"usf:{guess}"),
            "average clean latent, which its file lacks; save",
        ),
        (lambda: UnifiedSolver(SolverSchedule((StepDecision(),) * 2, first="average_x0")), "needs mean="),
        (lambda: UnifiedSolver(preset("ddim", 2))(noise(), SCHEDULE.grid(3)), "has 2 steps, the grid 3"),
        (lambda: StepDecision(5), "order=5"),
        (lambda: StepDecision(prediction="v4"), "prediction='v4'"),
        (lambda: StepDecision(relaxation="bh3"), "relaxation='bh3'"),
        (lambda: StepDecision(start=0), "start=0"),
        (lambda: SolverSchedule(()), "at least one step"),
        (lambda: SolverSchedule((StepDecision(),), first="zero_x0"), "at least 2 steps"),
        (lambda: SolverSchedule((StepDecision(),), (0.5, 0.7)), "must fall"),
        (lambda: SolverSchedule.from_dict({"decisions": []}), "no solver schedule|at least one"),
        (lambda: SolverSchedule.from_dict({"decisions": [{"shape": 1}], "times": None, "first": "none"}), "no solver"),
        (lambda: preset("rk4", 3), "'rk4'"),
        (lambda: make_solver("usf"), "usf:FILE"),
    ):
        with pytest.raises(InputError, match=words):
            build()
