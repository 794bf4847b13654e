"""Q-Sched: identity, closed forms, parity with diffusers' schedulers, the search, fake quantisation, the artefact."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Prediction, Sampler, make_solver
from unproject.core.sampling.caches import refuse_exact_inverse
from unproject.core.sampling.calibration import fingerprint
from unproject.core.sampling.dpm_v3_statistics import ModelStatistics
from unproject.core.sampling.q_sched import (
    Coefficients,
    RescaledDenoiser,
    RescaledSolver,
    calibrate,
    jaq,
    load_coefficients,
    rescaled_scheduler,
)
from unproject.core.sampling.quantise import fake_quantized, rounded
from unproject.core.sampling.solvers import EDICT, HeavyBall, SolverSchedule, StepDecision, UnifiedSolver
from unproject.utils.errors import InputError

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STEPS = 4


def mixture(config=SD_SCHEDULE) -> GaussianMixturePrior:
    rng = torch.Generator().manual_seed(5)
    means = torch.randn(3, 2, 3, 3, generator=rng, dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.5, 0.8]), scheduler_config=config)


def noise(batch=4):
    return torch.randn(batch, 2, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


class Scaled:
    """A denoiser whose output is off by a constant factor."""

    def __init__(self, denoiser, factor):
        self.denoiser, self.factor = denoiser, factor

    def __call__(self, x, level):
        found = self.denoiser(x, level)
        return Prediction(found.x, level, self.factor * found.raw, found.kind)


def setting(config=SD_SCHEDULE):
    prior = mixture(config)
    return Denoiser(prior, prior.encode_text([""] * 4)), NoiseSchedule.from_config(config).grid(STEPS)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm++", "unipc"])
def test_ones_are_bit_identical(name, config):
    denoiser, levels = setting(config)
    flow = config is FLOW_SCHEDULE
    ones = Coefficients.constant(STEPS)
    plain = Sampler(make_solver(name, flow)).run(denoiser, noise(), levels)
    wrapped = RescaledDenoiser(denoiser, ones, levels)
    assert torch.equal(Sampler(make_solver(name, flow)).run(wrapped, noise(), levels), plain)
    assert torch.equal(Sampler(RescaledSolver(make_solver(name, flow), ones)).run(denoiser, noise(), levels), plain)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_a_multiplicative_error_is_undone_exactly(config):
    denoiser, levels = setting(config)
    plain = Sampler(DDIM()).run(denoiser, noise(), levels)
    wrong = Scaled(denoiser, 1.1)
    cure = Coefficients.constant(STEPS, 1 / 1.1)
    found = Sampler(DDIM()).run(RescaledDenoiser(wrong, cure, levels), noise(), levels)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    assert float((Sampler(DDIM()).run(wrong, noise(), levels) - plain).norm()) > 0.1


def test_one_step_is_the_formula_and_the_state_reaches_solvers_that_keep_their_own():
    denoiser, levels = setting(FLOW_SCHEDULE)
    here, there = levels[0], levels[1]
    u = denoiser(noise(), here).u
    pair = Coefficients.constant(1, 0.9, 1.05)
    wanted = 1.05 * noise() + (there.sigma - here.sigma) * 0.9 * u
    for solver, wrap in ((DDIM(), False), (RescaledSolver(DDIM(), pair), True)):
        asked = denoiser if wrap else RescaledDenoiser(denoiser, pair, levels[:2])
        torch.testing.assert_close(Sampler(solver).run(asked, noise(), levels[:2]), wanted, rtol=1e-12, atol=1e-12)
    euler = Sampler(RescaledSolver(make_solver("euler", True), pair)).run(denoiser, noise(), levels[:2])
    torch.testing.assert_close(euler, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_the_state_factor_reaches_solvers_that_correct(name):
    """With x0 = 0 whatever is asked, a run multiplies the state by sigma_t / sigma_s and by its factors."""
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    levels = schedule.grid(STEPS, "trailing", "index0")
    pair = Coefficients((1.0,) * STEPS, (1.0, 1.0, 1.5, 1.0))

    def nothing(x, level):
        return Prediction(x, level, torch.zeros_like(x), "sample")

    ends = [
        Sampler(RescaledSolver(make_solver(name, kind="sample"), chosen)).run(nothing, noise(), levels)
        for chosen in (Coefficients.constant(STEPS), pair)
    ]
    torch.testing.assert_close(ends[1], 1.5 * ends[0], rtol=1e-4, atol=1e-5)
    official = UniPCMultistepScheduler(**BETAS, prediction_type="sample")
    ends = []
    for chosen in (Coefficients.constant(STEPS), pair):
        scheduler = rescaled_scheduler(official, chosen)
        scheduler.set_timesteps(STEPS)
        x = noise()
        for time in scheduler.timesteps[:3]:
            x = scheduler.step(torch.zeros_like(x), time, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(ends[1], 1.5 * ends[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++", "unipc", "ghvb", "dpm-v3:2"])
def test_factors_in_the_answers_are_factors_in_the_solver(name, config):
    denoiser, levels = setting(config)
    solver = make_solver(name, config is FLOW_SCHEDULE, statistics=ModelStatistics.constant())
    pair = Coefficients.profile(STEPS, 0.9, 1.1)
    around = Sampler(RescaledSolver(solver, pair)).run(denoiser, noise(), levels)
    answered = Sampler(solver).run(RescaledDenoiser(denoiser, pair, levels), noise(), levels)
    assert torch.equal(around, answered)
    assert float((around - Sampler(solver).run(denoiser, noise(), levels)).norm()) > 0.1


def test_what_is_wrapped_speaks_for_itself():
    ones = Coefficients.constant(2)
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(2)
    with pytest.raises(InputError, match="RescaledSolver inverts"):
        refuse_exact_inverse(RescaledSolver(EDICT(), ones))
    for wrap in (lambda solver: RescaledSolver(solver, ones), lambda solver: HeavyBall(solver, 0.5)):
        assert wrap(DDIM(0.5)).stochastic and not wrap(DDIM()).stochastic
        with pytest.raises(InputError, match="draws noise: pass a generator"):
            wrap(DDIM(0.5))(noise(), levels)
        with pytest.raises(InputError, match="LinearMultistep needs one level for the whole batch"):
            each = NoiseSchedule.from_config(SD_SCHEDULE).at_index(torch.arange(4))
            wrap(make_solver("ghvb"))(noise(), [each, *levels[1:]])


def test_factors_need_one_call_a_step():
    ones, other = Coefficients.constant(STEPS), Coefficients.constant(STEPS, 0.9)
    implicit = UnifiedSolver(SolverSchedule((StepDecision(corrector="implicit"),) * STEPS))
    for solver in (make_solver("heun"), EDICT(), implicit):
        assert RescaledSolver(solver, ones).calls(STEPS) == solver.calls(STEPS)
        with pytest.raises(InputError, match=f"{type(solver).__name__} does not ask the network exactly once a step"):
            RescaledSolver(solver, other)
    for scheduler in (PNDMScheduler(**BETAS, skip_prk_steps=True), FlowMatchHeunDiscreteScheduler()):
        rescaled_scheduler(scheduler, ones).set_timesteps(STEPS)
        with pytest.raises(InputError, match=f"{type(scheduler).__name__} does not ask"):
            rescaled_scheduler(scheduler, other).set_timesteps(STEPS)


def test_profiles_end_at_one():
    found = Coefficients.profile(4, 0.7, 1.3)
    assert found.output == pytest.approx((0.7, 0.8, 0.9, 1.0))
    assert found.state == pytest.approx((1.3, 1.2, 1.1, 1.0))
    assert Coefficients.profile(1, 0.7, 1.3) == Coefficients((0.7,), (1.3,))


def test_additive_noise_shrinks_as_least_squares_says():
    """argmin_c E|eps - c eps_Q|^2 = E[eps^2] / (E[eps^2] + s^2) for zero-mean noise of variance s^2."""
    rng = torch.Generator().manual_seed(0)
    eps, s = torch.randn(200_000, generator=rng, dtype=torch.float64), 0.6
    wrong = eps + s * torch.randn(eps.shape, generator=rng, dtype=torch.float64)
    grid = torch.linspace(0.5, 1.0, 101, dtype=torch.float64)

    def draw(pair: Coefficients) -> torch.Tensor:
        return (eps - pair.output[0] * wrong)[:, None]

    found = calibrate(draw, lambda e: -e[:, 0].square(), 1, grid, [1.0], constant=True)
    assert found.coefficients.output[0] == pytest.approx(1 / (1 + s**2), abs=0.01)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, TCDScheduler, LCMScheduler])
def test_scheduler_step_is_the_official_one_on_scaled_inputs(scheduler, kind):
    official = scheduler(**BETAS, prediction_type=kind)
    ones, other = (rescaled_scheduler(official, Coefficients.profile(STEPS, *p)) for p in ((1, 1), (0.9, 1.1)))
    sample, out = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert isinstance(other, scheduler) and "coefficients" not in other.config

    def step(which, a, b):
        which.set_timesteps(STEPS)
        options = {} if scheduler is DDIMScheduler else {"generator": torch.Generator().manual_seed(1)}
        which.scale_model_input(sample, which.timesteps[0])
        return which.step(a, which.timesteps[0], b, return_dict=False, **options)[0]

    assert torch.equal(step(ones, out, sample), step(official, out, sample))
    assert torch.equal(step(other, out, sample), step(official, 0.9 * out, 1.1 * sample))


def test_schedulers_check_the_number_of_steps_and_take_the_factor_of_the_step():
    made = rescaled_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), Coefficients.profile(STEPS, 0.8, 1.2))
    made.set_timesteps(STEPS)
    x, u = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, (time, c_e, c_x) in enumerate(zip(made.timesteps, (0.8, 0.8667, 0.9333, 1.0), (1.2, 1.1333, 1.0667, 1.0))):
        wanted = c_x * x + (made.sigmas[i + 1] - made.sigmas[i]) * c_e * u
        torch.testing.assert_close(made.step(u, time, x, return_dict=False)[0], wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="for steps=4, the run has 8; calibrate for it"):
        made.set_timesteps(8)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_stock_pipelines(tiny_folders, family):
    pipe = load_prior(tiny_folders[family]).pipe
    pipe.set_progress_bar_config(disable=True)
    official = pipe.scheduler

    def draw():
        options = {"num_inference_steps": STEPS, "output_type": "latent", "height": 32, "width": 32}
        return pipe("a dog", generator=torch.Generator().manual_seed(0), **options).images

    plain = draw()
    pipe.scheduler = rescaled_scheduler(official, Coefficients.constant(STEPS))
    assert torch.equal(draw(), plain)
    pipe.scheduler = rescaled_scheduler(official, Coefficients.profile(STEPS, 0.9, 1.0))
    assert not torch.equal(draw(), plain)


def test_image_to_image_uses_the_factors_of_its_steps(tiny_folders):
    pipe = AutoPipelineForImage2Image.from_pipe(load_prior(tiny_folders["sd"]).pipe)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    official = pipe.scheduler

    def draw(pair):
        pipe.scheduler = rescaled_scheduler(official, pair)
        rng = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 4, "strength": 0.5, "generator": rng, "output_type": "latent"}
        return pipe("a dog", image=image, **options).images

    plain = draw(Coefficients.constant(4))
    assert torch.equal(draw(Coefficients((0.5, 0.5, 1.0, 1.0), (1.0,) * 4)), plain), "the first half is not run"
    assert not torch.equal(draw(Coefficients((1.0, 1.0, 0.5, 1.0), (1.0,) * 4)), plain)


def test_the_search_finds_the_cure_and_the_plain_pair_wins_ties():
    denoiser, levels = setting()
    target = Sampler(DDIM()).run(denoiser, noise(), levels)
    wrong = Scaled(denoiser, 1.25)

    def draw(pair):
        return Sampler(DDIM()).run(RescaledDenoiser(wrong, pair, levels), noise(), levels)

    def score(x):
        return -(x - target).flatten(1).square().mean(1)

    found = calibrate(draw, score, STEPS, [0.7, 0.8, 0.9, 1.0], [0.9, 1.0, 1.1], constant=True)
    assert found.coefficients == Coefficients.constant(STEPS, 0.8, 1.0)
    assert found.scores.shape == (4, 3) and found.gain > 0 and 0 < found.flatness() < 1
    flat = calibrate(draw, lambda x: x.new_zeros(len(x)), STEPS)
    assert flat.coefficients == Coefficients.constant(STEPS)
    assert flat.gain == 0 and flat.flatness() == 1 and flat.scores.shape == (10, 10)


def test_a_pair_that_blows_up_never_wins():
    found = calibrate(lambda pair: torch.tensor([[pair.output[0]]]), lambda x: x[:, 0] / (x[:, 0] - 2), 1, [2.0], [1.0])
    assert found.coefficients == Coefficients.constant(1)


def test_jaq():
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    score = jaq(lambda x: x.mean((1, 2, 3)), lambda x: x.amax((1, 2, 3)))
    torch.testing.assert_close(score(images), images.mean((1, 2, 3)) + 2 * images.amax((1, 2, 3)))


def test_rounding():
    w = torch.tensor([[1.0, -0.6, 0.2], [0.0, 0.0, 0.0], [8.0, 4.1, 1.0]])
    torch.testing.assert_close(
        rounded(w, 4), torch.tensor([[1.0, -4 / 7, 1 / 7], [0.0, 0.0, 0.0], [8.0, 32 / 7, 8 / 7]])
    )
    assert torch.equal(rounded(w, 4), torch.cat([rounded(row[None], 4) for row in w])), "samples do not mix"
    assert torch.equal(rounded(rounded(w, 8), 8), rounded(w, 8))
    fine = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    errors = [float((rounded(fine, bits) - fine).norm()) for bits in (3, 4, 8)]
    assert errors[0] > 1.8 * errors[1] > 20 * errors[2]
    assert float((rounded(fine, 8) - fine).abs().max()) <= float(fine.abs().max()) / 127 / 2 * 1.001
    with pytest.raises(InputError, match="bits=1 must lie between 2 and 16"):
        rounded(w, 1)


def test_fake_quantisation_is_undone(make_unet):
    unet = make_unet()
    rng = torch.Generator().manual_seed(3)
    x, text = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 7, 32, generator=rng)
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    with torch.no_grad():
        plain = unet(x, 500, text).sample
        distance = {}
        for bits in (4, 8):
            with fake_quantized(unet, bits, 8, keep=("conv_in", "conv_out")) as errors:
                assert "conv_in" not in errors and 0 < max(errors.values()) < 0.2
                distance[bits] = float((unet(x, 500, text).sample - plain).norm())
        assert 0 < distance[8] < distance[4]
        assert torch.equal(unet(x, 500, text).sample, plain)
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    with pytest.raises(InputError, match="no layer to quantise outside keep="), fake_quantized(torch.nn.ReLU()):
        pass


def test_artefact_round_trip_and_fingerprint(tmp_path):
    prior = mixture()
    found = calibrate(lambda pair: torch.tensor([[pair.output[0] - pair.state[0]]]), lambda x: -x[:, 0], STEPS)
    path = found.save(tmp_path / "q.safetensors", prior, (2, 3, 3), 2.0)
    assert load_coefficients(path, fingerprint(prior, (2, 3, 3), 2.0)) == found.coefficients
    with pytest.raises(InputError, match=r"guidance 2 \(now 3\)"):
        load_coefficients(path, fingerprint(prior, (2, 3, 3), 3.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Coefficients((1.0,), (1.0, 1.0)), "got 1 output and 2 state factors"),
        (lambda: RescaledDenoiser(None, Coefficients.constant(3), setting()[1]), "for steps=3, the run has 4"),
        (lambda: calibrate(None, None, 4, []), "must hold finite numbers"),
    ],
)
def test_messages(make, message):
    with pytest.raises(InputError, match=message):
        make()
