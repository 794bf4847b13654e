"""Rectified pairs: Gaussian maps, the limit in which both papers agree, oracles of one pair, signs."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy.integrate import solve_ivp

from unproject.core.distillation.kinds import Full
from unproject.core.distillation.rectify import (
    Phased,
    PhasedObjective,
    Rectifying,
    RectifyObjective,
    first_order_defect,
    implied_noise,
    jump,
    negated_output,
    random_level,
    straightness,
)
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher, rollout
from unproject.core.distillation.views import flow_view
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import Denoiser, NoiseSchedule, Prediction
from unproject.utils.errors import InputError

TEXTS = ["a dog", "a red chair"]
FLOW, VP = (NoiseSchedule.from_config(config) for config in (FLOW_SCHEDULE, SD_SCHEDULE))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(prior) -> dict:
    x0, noise = (torch.randn(2, *prior.latent_shape, generator=rng(seed)) for seed in (7, 8))
    return {"latents": 0.5 * x0, "noise": noise, "captions": TEXTS}


def test_the_velocity_of_a_gaussian_and_its_map():
    """v*(x, t) = m + (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) (x - t m), t = 1 - sigma; the map is m + s eps, which
    after one reflow a single Euler step makes."""
    m, s = 0.4, 0.6
    prior = GaussianMixturePrior(torch.full((1, 1, 1, 1), m), torch.tensor([s]), scheduler_config=FLOW_SCHEDULE)
    condition, x = prior.encode_text([""] * 5), torch.linspace(-2, 2, 5).double().reshape(-1, 1, 1, 1)
    for t in (0.1, 0.5, 0.8):
        level = FLOW.at_index(1000 * (1 - t) - 1)
        slope = (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2)
        wanted = m + slope * (x - t * m)
        torch.testing.assert_close(-Denoiser(prior, condition)(x, level).u, wanted, rtol=0, atol=1e-6)
    ends = rollout(Denoiser(prior, condition), x, FLOW.grid(1000, "trailing"))[-1]
    torch.testing.assert_close(ends, m + s * x, rtol=0, atol=2e-3)

    def reflowed(x, level):
        """The velocity of the coupling x0 = m + s eps."""
        eps = (x - level.alpha * m) / (level.alpha * s + level.sigma)
        return Prediction(x, level, eps - (m + s * eps), "flow_prediction")

    one = rollout(reflowed, x, FLOW.grid(1, "trailing"))[-1]
    torch.testing.assert_close(one, m + s * x, rtol=0, atol=1e-6)
    levels = FLOW.grid(20, "trailing")
    assert float(straightness(reflowed, x, levels).max()) < 1e-12
    assert float(straightness(Denoiser(prior, condition), x, levels).mean()) > 1e-2


def test_a_vp_teacher_in_flow_coordinates_is_integrated_as_a_flow():
    """RK45 of dx/dsigma = u equals the VP run of 1000 steps."""
    prior = GaussianMixturePrior(torch.tensor([0.9, -0.6]).reshape(2, 1, 1, 1), torch.tensor([0.2, 0.4]))
    view, condition = flow_view(prior), prior.encode_text(["", "", ""])
    z = torch.tensor([-1.3, 0.2, 0.9]).double().reshape(3, 1, 1, 1)
    first = VP.at_index(999)
    start, top = z / (first.alpha + first.sigma), view.levels(1)[0].sigma

    def slope(sigma, x):
        level = view.path.at_sigma(torch.tensor(sigma, dtype=torch.float64)).item()
        return Denoiser(view, condition)(torch.as_tensor(x).reshape(3, 1, 1, 1), level).u.flatten().numpy()

    low = VP.at_index(0)
    end = low.sigma / (low.alpha + low.sigma)
    found = solve_ivp(slope, (top, end), start.flatten().numpy(), rtol=1e-7, atol=1e-8).y[:, -1]
    run = rollout(Denoiser(prior, condition), z, [VP.at_index(999 - i) for i in range(1000)])[-1]
    wanted = (run / (low.alpha + low.sigma)).flatten()
    torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=0, atol=5e-3)


def test_on_a_flow_both_papers_have_one_gradient(tiny_folders):
    """With alpha = 1 - t, sigma = t and velocities, x0 - x0* = -t (u - u*): the gradients differ by t^2."""
    prior = load_prior(tiny_folders["sd3"])
    student, grads = Student(prior), []
    x = batch(prior)
    level, _ = FLOW.at_index(torch.tensor([399.0, 399.0])), None
    state = student.schedule.add_noise(x["latents"], x["noise"], level)
    condition = prior.encode_text(TEXTS)
    for name in ("x0", "u"):
        student.network.zero_grad()
        found = student.ask(state, level, condition)
        aim = x["latents"] if name == "x0" else x["noise"] - x["latents"]
        (getattr(found, name) - aim).square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in student.network.parameters() if p.grad is not None]))
    sigma = float(level.sigma[0])
    torch.testing.assert_close(grads[0], sigma**2 * grads[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_one_pair_known_exactly_is_drawn_in_any_number_of_steps(schedule):
    x0, noise = (torch.randn(1, 1, 2, 2, generator=rng(seed)).double() for seed in (1, 2))

    def oracle(x, level):
        """The noise of the one pair."""
        return Prediction(x, level, noise if not schedule.flow else noise - x0, kind)

    kind = "flow_prediction" if schedule.flow else "epsilon"
    first = schedule.grid(1, "trailing")[0]
    start = schedule.add_noise(x0, noise, first)
    for steps in (1, 2, 7):
        end = rollout(oracle, start, schedule.grid(steps, "trailing", "zero"))[-1]
        torch.testing.assert_close(end, x0, rtol=0, atol=1e-5)
    assert float(first_order_defect(oracle, x0, noise, schedule.grid(5)[:-1])) < 1e-12
    assert float(first_order_defect(oracle, x0, noise.flip(-1), schedule.grid(5)[:-1])) > 0.1


def test_the_pairs_of_a_gaussian_have_the_closed_form():
    """x0 = s z / sqrt(alpha_T^2 s^2 + sigma_T^2) from noise z at time T."""
    s = 0.5
    prior = GaussianMixturePrior(torch.zeros(1, 1, 1, 1), torch.tensor([s]))
    z = torch.tensor([[-1.0], [0.5], [2.0]]).double().reshape(3, 1, 1, 1)
    levels = [VP.at_index(999 - i) for i in range(1000)] + [VP.clean]
    end = rollout(Denoiser(prior, prior.encode_text([""] * 3)), z, levels)[-1]
    first = levels[0]
    wanted = s * z / math.sqrt((first.alpha * s) ** 2 + first.sigma**2)
    torch.testing.assert_close(end, wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["sd-v", "sd3", "flux"])
@pytest.mark.parametrize("distance", ["huber-x0", "velocity", "pixels"])
def test_the_loss_is_of_the_pair_and_pure(tiny_folders, name, distance):
    prior = load_prior(tiny_folders[name])
    objective = RectifyObjective(Student(prior), Teacher(prior), Rectifying("all", distance, drop=0.5))
    first, again = (objective.loss(batch(prior), rng(5), 0).loss for _ in range(2))
    assert torch.equal(first, again) and first > 0
    other = RectifyObjective(objective.student, objective.teacher, Rectifying("all", distance, 0.5, shuffled=True))
    assert any(
        not torch.equal(other.loss(batch(prior), rng(k), 0).loss, objective.loss(batch(prior), rng(k), 0).loss)
        for k in range(4)
    )


def test_one_step_distillation_sees_nothing_of_the_answer(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    student = Student(prior, Full("flow"))
    assert student.prior.prediction_type == "flow_prediction" and student.schedule.flow
    asked = []
    student.prior._forward = lambda x, time, rows: asked.append((x, time)) or torch.zeros_like(x)
    objective = RectifyObjective(student, Teacher(prior), Rectifying("noise", "velocity", drop=0.0))
    x = batch(prior)
    loss = objective.loss(x, rng(1), 0).loss
    assert torch.equal(asked[0][0], x["noise"]) and asked[0][1].tolist() == [1000.0, 1000.0]
    torch.testing.assert_close(loss, (x["noise"] - x["latents"]).square().mean())


def test_levels_fill_the_path():
    assert 0 < float(random_level(FLOW, 2000, rng()).sigma.min()) < 0.01
    assert float(random_level(VP, 2000, rng()).index.max()) > 990


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_first_order_jump_with_the_implied_noise_ends_where_the_teacher_did(place):
    segment = VP.grid(40, "trailing")[10:21]
    xs, xe = (torch.randn(2, 1, 2, 2, generator=rng(seed)).double() for seed in (1, 2))
    noise = implied_noise(xs, segment[0], xe, segment[-1])
    x = jump(xs, noise, segment[0], segment[place])
    torch.testing.assert_close(jump(x, noise, segment[place], segment[-1]), xe, rtol=0, atol=1e-5)
    eps = Prediction(x, segment[place], noise, "epsilon")
    alpha, sigma = segment[-1].alpha, segment[-1].sigma
    torch.testing.assert_close(alpha * eps.x0 + sigma * noise, xe, rtol=0, atol=1e-5)


def test_phases_are_equal_and_their_loss_is_pure(tiny_folders):
    with pytest.raises(InputError, match="grid=10 must be a multiple"):
        Phased(grid=10, phases=4)
    prior = load_prior(tiny_folders["sd-v"])
    objective = PhasedObjective(Student(prior), Teacher(prior), Phased(3.0, 8, 4))
    losses = [objective.loss(batch(prior), rng(5), 0).loss for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert max(p.grad.abs().max() for p in objective.student.network.parameters()) > 0


def test_instaflows_sign_is_diffusers_with_the_last_layer_negated(make_unet):
    """x <- x + dt v, v = x0 - eps, at times 1000 (1 - i / N), against FlowMatchEuler with explicit sigmas."""
    unet, steps = make_unet(seed=3), 4
    x = torch.randn(1, 4, 8, 8, generator=rng(1))
    text = torch.randn(1, 5, 32, generator=rng(2))
    theirs = x
    with torch.no_grad():
        for i in range(steps):
            theirs = theirs + unet(theirs, 1000 * (1 - i / steps), text).sample / steps
        negated_output(unet)
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        ours = x
        for time in scheduler.timesteps:
            ours = scheduler.step(unet(ours, time, text).sample, time, ours, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="no conv_out"):
        negated_output(torch.nn.Linear(2, 2))
