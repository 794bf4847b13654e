"""Solvers against closed forms, their order, diffusers' own loops and each other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import DDIM, SOLVERS, Denoiser, Level, NoiseSchedule, Prediction, Sampler, make_solver
from unproject.core.sampling.dpm_v3_statistics import ModelStatistics
from unproject.core.sampling.solvers import DPMSolverV3, advanced
from unproject.utils.errors import InputError


def mixture(config=SD_SCHEDULE) -> GaussianMixturePrior:
    rng = torch.Generator().manual_seed(5)
    means = torch.randn(3, 2, 3, 3, generator=rng, dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.5, 0.8]), scheduler_config=config)


def noise(batch: int = 4, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(batch, 2, 3, 3, generator=torch.Generator().manual_seed(7), dtype=dtype)


def run(prior, solver, levels, x, guidance=None, **options):
    denoiser = Denoiser(prior, prior.encode_text([""] * x.shape[0]), guidance)
    return Sampler(solver).run(denoiser, x, levels, **options)


def test_ddim_is_euler_on_a_rectified_flow():
    prior = mixture(FLOW_SCHEDULE)
    levels = NoiseSchedule.from_config(FLOW_SCHEDULE).grid(7, "trailing")
    x = noise()
    ours = run(prior, DDIM(), levels, x)
    condition = prior.encode_text([""] * 4)
    for here, there in itertools.pairwise(levels):
        x = x + (there.sigma - here.sigma) * prior.predict(x, here.model_time, condition["cond"])
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_ddim_converges_with_order_one(config):
    prior = mixture(config)
    schedule = NoiseSchedule.from_config(config)
    top, bottom = schedule.at_index(900).lam, schedule.at_index(100).lam

    def solve(steps: int) -> torch.Tensor:
        levels = [schedule.at_lambda(top + (bottom - top) * k / steps) for k in range(steps + 1)]
        return run(prior, DDIM(), levels, noise())

    reference = 2 * solve(2048) - solve(1024)  # Richardson: the first-order error cancels
    errors = [float((solve(n) - reference).norm()) for n in (32, 64, 128)]
    assert 0.85 < math.log2(errors[0] / errors[1]) < 1.15
    assert 0.9 < math.log2(errors[1] / errors[2]) < 1.1


def test_ddim_is_exact_for_a_point_mass():
    """With all mass on one point the denoiser is constant and one step lands on it."""
    prior = GaussianMixturePrior(torch.full((1, 2, 3, 3), 0.7), torch.tensor([1e-6]))
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(1, "trailing", "zero")
    wanted = torch.full((4, 2, 3, 3), 0.7, dtype=torch.float32).double()
    torch.testing.assert_close(run(prior, DDIM(), levels, noise()), wanted, atol=1e-8, rtol=0)


def test_ancestral_sampling_keeps_the_moments():
    """eta = 1 on N(m, s^2): the samples have its mean and variance."""
    prior = GaussianMixturePrior(torch.full((1, 1, 1, 1), 1.5), torch.tensor([0.5]))
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 1, 1, 1, generator=rng, dtype=torch.float64)
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(60, "logsnr", "zero")
    out = run(prior, DDIM(1.0), levels, x, generator=rng)
    assert float(out.mean()) == pytest.approx(1.5, abs=0.05)
    assert float(out.std()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim_loop_matches_diffusers(kind, spacing):
    config = {**SD_SCHEDULE, "prediction_type": kind, "timestep_spacing": spacing}
    prior, x = mixture(config), noise(dtype=torch.float32)
    levels = NoiseSchedule.from_config(config).grid(20)
    ours = run(prior, DDIM(), levels, x)
    scheduler = DDIMScheduler.from_config({**config, "clip_sample": False})
    scheduler.set_timesteps(20)
    condition = prior.encode_text([""] * 4)
    for time in scheduler.timesteps:
        x = scheduler.step(prior.predict(x, time, condition["cond"]), time, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "scheduler_class", "options"),
    [
        ("dpm++", DPMSolverMultistepScheduler, {"final_sigmas_type": "zero"}),
        ("unipc", UniPCMultistepScheduler, {"final_sigmas_type": "zero"}),
        ("heun", HeunDiscreteScheduler, {}),
    ],
)
def test_wrapped_solvers_match_their_own_loop(name, scheduler_class, options):
    """On the same timesteps the wrapped scheduler reproduces diffusers' loop."""
    config = {k: v for k, v in SD_SCHEDULE.items() if k.startswith(("beta", "num_train"))}
    scheduler = scheduler_class(**config, timestep_spacing="trailing", **options)
    scheduler.set_timesteps(10)
    prior, start = mixture(), noise(dtype=torch.float32)
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(10, "trailing", "zero")
    ours = run(prior, make_solver(name), levels, start)
    condition = prior.encode_text([""] * 4)
    x = start / levels[0].alpha if name == "heun" else start
    for time in scheduler.timesteps:
        raw = prior.predict(scheduler.scale_model_input(x, time), time, condition["cond"])
        x = scheduler.step(raw, time, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=2e-4, atol=2e-4)


def test_wrapped_euler_is_ddim_on_both_paths():
    for config, tolerance in ((SD_SCHEDULE, 2e-5), (FLOW_SCHEDULE, 1e-6)):
        prior, schedule = mixture(config), NoiseSchedule.from_config(config)
        levels = schedule.grid(12, "trailing")
        x = noise(dtype=torch.float32)
        euler = run(prior, make_solver("euler", schedule.flow), levels, x)
        torch.testing.assert_close(euler, run(prior, DDIM(), levels, x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("name", ["dpm++", "unipc", "heun"])
def test_second_order_solvers_beat_ddim(config, name):
    prior, schedule = mixture(config), NoiseSchedule.from_config(config)
    x = noise(16, torch.float32)
    reference = run(prior, DDIM(), schedule.grid(999, "trailing"), x)
    levels = schedule.grid(24, "logsnr" if not schedule.flow else "trailing")
    plain = (run(prior, DDIM(), levels, x) - reference).norm()
    assert (run(prior, make_solver(name, schedule.flow), levels, x) - reference).norm() < 0.7 * plain


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_reports_its_calls_and_lets_callbacks_replace_the_state(name):
    prior = mixture()
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(5)
    seen: list[Level] = []
    fixed = noise(dtype=torch.float32)

    def callback(call: int, level: Level, x: torch.Tensor):
        seen.append(level)
        return fixed if len(seen) == make_solver(name).calls(5) else None

    out = run(prior, make_solver(name), levels, noise(dtype=torch.float32), callback=callback)
    assert len(seen) == make_solver(name).calls(5)
    torch.testing.assert_close(out, fixed)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler"])
def test_a_replaced_state_is_the_one_stepped_from(name, config):
    """With the same x0 whatever the state, a step keeps sigma_t / sigma_s of the change (UniPC corrects otherwise)."""
    schedule = NoiseSchedule.from_config(config)
    levels, x0, ends = schedule.grid(5, "trailing", "zero"), noise(), []
    for shift in (0.0, 1.0):
        solver = make_solver(name, schedule.flow, "sample")
        steps = solver(noise(), levels)
        x, _ = advanced(steps)
        for step in range(3):
            if step == 2:
                x = x.double() + 0.5 + shift
            x, _ = advanced(steps, Prediction(x, levels[step], x0, "sample"))
        ends.append(x)
    kept = levels[3].sigma / levels[2].sigma
    torch.testing.assert_close(ends[1] - ends[0], torch.full_like(ends[0], kept), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*SOLVERS, "hb:unipc,0.8", "dpm-v3:2", "edict"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_state_given_back_changes_nothing(name, dtype):
    prior, levels = mixture(), NoiseSchedule.from_config(SD_SCHEDULE).grid(6)
    solver, x = make_solver(name, statistics=ModelStatistics.constant()), noise(dtype=dtype)
    plain = run(prior, solver, levels, x)
    assert torch.equal(run(prior, solver, levels, x, callback=lambda call, level, state: state.clone()), plain)
    assert plain.dtype == dtype


@pytest.mark.parametrize("name", ["ddim", "ghvb", "dpm++", "unipc"])
def test_a_run_of_a_half_precision_state_is_that_of_its_float32_copy(name):
    """States stay float32 between the network calls; only the last one is rounded, once."""
    prior, levels, solver = mixture(), NoiseSchedule.from_config(SD_SCHEDULE).grid(6), make_solver(name)
    x, asked = noise(dtype=torch.float16), []

    def ask(state: torch.Tensor, level: object) -> object:
        asked.append(state.dtype)
        return inner(state, level)

    inner = Denoiser(prior, prior.encode_text([""] * len(x)))
    made, exact = Sampler(solver).run(ask, x, levels), Sampler(solver).run(inner, x.float(), levels)
    assert set(asked) == {torch.float32} and torch.equal(made, exact.half())


def test_a_denoiser_that_answers_for_another_state_moves_the_run_there():
    """The answer says where it was asked: the same as a callback that puts the state there."""
    prior, levels = mixture(), NoiseSchedule.from_config(SD_SCHEDULE).grid(5)
    inner = Denoiser(prior, prior.encode_text([""] * 4))
    for name in (*SOLVERS, "dpm-v3:2"):
        solver = make_solver(name, statistics=ModelStatistics.constant())
        moved = Sampler(solver).run(lambda x, level: inner(0.9 * x, level), noise(), levels)
        last = solver.calls(5) - 1
        told = Sampler(solver).run(
            inner, 0.9 * noise(), levels, callback=lambda call, level, x, last=last: x if call == last else 0.9 * x
        )
        torch.testing.assert_close(moved, told, rtol=1e-6, atol=1e-6)


ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpm++": 2, "dpm++3m": 2, "unipc": 3, "ghvb": 2, "hb": 1}


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_convergence_orders_of_every_solver(config):
    """Slopes of the error on a mixture, from 40 to 80 steps over lambda in [-3, 3].

    The low-order first and last steps hold DPM-Solver++ 3M at 2; UniPC's corrector lifts order 2 to 3.
    """
    prior, schedule = mixture(config), NoiseSchedule.from_config(config)

    def end(solver, steps: int) -> torch.Tensor:
        lambdas = torch.linspace(-3, 3, steps + 1, dtype=torch.float64)
        return run(prior, solver, [schedule.at_lambda(float(value)) for value in lambdas], noise())

    assert set(ORDERS) == set(SOLVERS)
    exact = end(DPMSolverV3(ModelStatistics.constant(), 3), 600)
    for name, order in ORDERS.items():
        few, many = ((end(make_solver(name, schedule.flow), n) - exact).norm() for n in (40, 80))
        assert math.log2(few / many) == pytest.approx(order, abs=0.2), name


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("name", [*SOLVERS, "dpm-v3:2", "edict"])
def test_a_run_resumes_from_its_answers_at_any_call(name, config):
    """All state of a run is in the run: another one of the same solver, sent the answers so far, asks the next question
    and ends where the first does, bit for bit, while the first goes on."""
    prior, schedule = mixture(config), NoiseSchedule.from_config(config)
    denoiser = Denoiser(prior, prior.encode_text([""] * 4))
    solver = make_solver(name, schedule.flow, statistics=ModelStatistics.constant())
    levels = schedule.grid(5, "trailing", "index0")

    def resumed(answers):
        again = solver(noise(), levels)
        question = advanced(again)
        for answer in answers:
            question = advanced(again, answer)
        return again, question

    first, answers, others = solver(noise(), levels), [], []
    x, level = advanced(first)
    while level is not None:
        others.append((resumed(answers), x))
        answers.append(denoiser(x, level))
        x, level = advanced(first, answers[-1])
    assert len(others) == solver.calls(5)
    for (other, (state, asked)), then in others:
        assert torch.equal(state, then)
        while asked is not None:
            state, asked = advanced(other, denoiser(state, asked))
        assert torch.equal(state, x)


@pytest.mark.parametrize("name", [*SOLVERS, "hb:unipc,0.8", "dpm-v3:3"])
def test_a_state_that_is_asked_at_instead_is_where_the_run_goes_on_from(name):
    """With the same answers, in the quantity a solver averages, two runs meet where their states are replaced."""
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(5, "trailing", "zero")
    kind = "epsilon" if name in ("ghvb", "hb") else "sample"
    solver = make_solver(name, kind="sample", statistics=ModelStatistics.constant())
    pair = [solver(noise() + shift, levels) for shift in (0.0, 1.0)]
    states = [advanced(steps)[0] for steps in pair]
    for call, k in enumerate(solver.asks(levels)):
        if call == 2:
            assert float((states[1] - states[0]).abs().min()) > 0.1
            states = [noise(), noise()]
        answers = [Prediction(x, levels[k], 0.3 * noise(), kind) for x in states]
        states = [advanced(steps, answer)[0] for steps, answer in zip(pair, answers, strict=True)]
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_one_step_solvers_resume_from_a_state_and_the_levels_left(name, config):
    prior, schedule = mixture(config), NoiseSchedule.from_config(config)
    levels = schedule.grid(5, "trailing", "index0")
    whole = run(prior, make_solver(name, schedule.flow), levels, noise())
    for cut in range(1, 5):
        half = run(prior, make_solver(name, schedule.flow), levels[: cut + 1], noise())
        torch.testing.assert_close(run(prior, make_solver(name, schedule.flow), levels[cut:], half), whole)


def test_solvers_do_not_write_on_their_input():
    prior, levels = mixture(), NoiseSchedule.from_config(SD_SCHEDULE).grid(3)
    for name in SOLVERS:
        x = noise(dtype=torch.float32)
        kept = x.clone()
        run(prior, make_solver(name), levels, x)
        assert torch.equal(x, kept)


def test_flow_euler_matches_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    config = {**FLOW_SCHEDULE, "shift": 3.0}
    prior, x = mixture(config), noise(dtype=torch.float32)
    ours = run(prior, DDIM(), NoiseSchedule.from_config(config).grid(8), x)
    condition = prior.encode_text([""] * 4)
    for time in scheduler.timesteps:
        x = scheduler.step(prior.predict(x, time, condition["cond"]), time, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_empty_last_step_changes_nothing(name):
    """linspace visits index 0 and then ends on it."""
    prior, schedule = mixture(), NoiseSchedule.from_config(SD_SCHEDULE)
    levels = schedule.grid(8, "linspace", "index0")
    x = noise(dtype=torch.float32)
    out = run(prior, make_solver(name), levels, x)
    shorter = run(prior, make_solver(name), [*levels[:-2], levels[-1]], x)
    torch.testing.assert_close(out, shorter, rtol=1e-4, atol=1e-4)
    asked: list[Level] = []
    run(prior, make_solver(name), levels, x, callback=lambda call, level, state: asked.append(level))
    assert [level.index for level in asked] == [levels[k].index for k in make_solver(name).asks(levels)]


def test_bad_solver_requests_are_named():
    with pytest.raises(InputError, match="'rk45'"):
        make_solver("rk45")
    with pytest.raises(InputError, match=r"eta=0\.5 only works"):
        make_solver("dpm++", eta=0.5)
    with pytest.raises(InputError, match="eta=2"):
        DDIM(2)
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(2)
    with pytest.raises(InputError, match="generator"):
        DDIM(0.5)(noise(), levels)
    with pytest.raises(InputError, match="2 levels"):
        DDIM()(noise(), levels[:1])
    assert isinstance(Prediction(noise(), levels[0], noise(), "epsilon").x0, torch.Tensor)


@pytest.mark.parametrize("name", [*SOLVERS, "edict", "hb:dpm++,0.9"])
@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_a_callback_that_writes_into_the_state_replaces_it(name, config):
    prior, levels, x = mixture(config), NoiseSchedule.from_config(config).grid(5), noise()
    solver = make_solver(name, config is FLOW_SCHEDULE)

    def returning(call, level, state):
        return 0.9 * state + 0.1 if call in (0, 2, 3) else None

    def writing(call, level, state):
        if call in (0, 2, 3):
            state.mul_(0.9).add_(0.1)
        return state if call else None

    wanted = run(prior, solver, levels, x, callback=returning)
    torch.testing.assert_close(run(prior, solver, levels, x, callback=writing), wanted, rtol=1e-12, atol=1e-12)
