"""Velocity laws: quadrature, additivity, Euler's limit, a curved Gaussian trajectory; the student and its head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import least_squares

from unproject.core.distillation.arcflow import Arcing, ArcObjective, Mixture, dropped, folded, shares
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, load_prior
from unproject.core.sampling import NoiseSchedule, Prediction, Sampler
from unproject.core.sampling.solvers.arc import Arc, Policy, flow_sigma, phi
from unproject.utils.errors import InputError

FLOW, VP = (NoiseSchedule.from_config(config) for config in (FLOW_SCHEDULE, SD_SCHEDULE))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def law(count: int = 4, rates: float = 1.0, source: float = 0.9) -> Policy:
    shape = (1, count, 2, 1, 1)
    weights = torch.randn(1, count, 1, 1, 1, generator=rng(2)).double().softmax(1)
    g = rates * torch.randn(1, count, 1, 1, 1, generator=rng(3)).double()
    g[:, 0] = 0
    return Policy(torch.randn(shape, generator=rng(1)).double(), weights, g, source)


@pytest.mark.parametrize("rates", [0.0, 1e-5, 1.0, 30.0])
def test_a_step_is_the_integral_of_the_law(rates):
    policy = law(rates=rates)
    for channel in range(2):
        wanted, _ = quad(lambda s, c=channel: float(policy.at(s)[0, c]), 0.2, 0.7, epsabs=1e-12, epsrel=1e-12)
        assert float(policy.moved(0.7, 0.2)[0, channel]) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_steps_add_up_and_without_rates_they_are_eulers():
    policy, x = law(), torch.randn(1, 2, 1, 1, generator=rng(4)).double()
    parts = policy.step(policy.step(x, 0.9, 0.5), 0.5, 0.1)
    torch.testing.assert_close(parts, policy.step(x, 0.9, 0.1), rtol=1e-12, atol=1e-12)
    straight = law(rates=0.0)
    mean = (straight.weights * straight.velocity).sum(1)
    assert torch.equal(straight.step(x, 0.9, 0.1), x - (0.9 - 0.1) * mean)
    y = torch.tensor([0.0, 1e-9, -1e-3, 0.5, 40.0]).double()
    wanted = torch.where(y == 0, 1.0, torch.expm1(y) / torch.where(y == 0, 1.0, y))
    torch.testing.assert_close(phi(y), wanted, rtol=1e-9, atol=0)


def test_the_integrator_is_the_published_formula():
    """x_b = x_a - sum pi u gamma^(sigma_s - sigma_a) (gamma^D - 1) / log gamma, gamma = e^g."""
    policy, x = law(3), torch.zeros(1, 2, 1, 1).double()
    gamma = policy.rates[:, 1:].exp()
    factor = gamma ** (0.9 - 0.6) * (gamma ** (0.6 - 0.2) - 1) / gamma.log()
    moving = (policy.weights[:, 1:] * policy.velocity[:, 1:] * factor).sum(1)
    wanted = x - moving - 0.4 * policy.weights[:, 0] * policy.velocity[:, 0]
    torch.testing.assert_close(policy.step(x, 0.6, 0.2), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("spread", "wanted"), [(0.5, (0.146, 0.014, 0.0013)), (0.3, (0.116, 0.025, 0.0013))])
def test_few_components_follow_a_gaussians_curve(spread, wanted):
    """Fits of the teacher's velocity along its path, in two steps (shift 3.2): the largest deviation inside."""

    def state(s):
        return np.sqrt((1 - s) ** 2 * spread**2 + s**2)

    def velocity(s):
        return (s - (1 - s) * spread**2) / state(s)

    middle = 3.2 * 0.5 / (1 + 2.2 * 0.5)
    for count, worst in zip((1, 2, 4), wanted):
        found = 0.0
        for start, end in ((1.0, middle), (middle, 0.0)):
            s = np.linspace(start, end, 200)
            d = start - s
            best = None
            for fastest in (1.0, 3.0, 6.0, 10.0):
                guess = np.linspace(-1.0, fastest, count - 1)
                fit = least_squares(lambda g, d=d, s=s: residual(g, d, velocity(s))[0], guess) if count > 1 else None
                rates = np.concatenate([[0.0], fit.x if fit is not None else []])
                weights = residual(rates[1:], d, velocity(s))[1]
                if best is None or (fit is not None and fit.cost < best[0]):
                    best = (fit.cost if fit is not None else 0.0, rates, weights)
            _, rates, weights = best
            policy = Policy(
                *(torch.as_tensor(v).reshape(1, -1, 1, 1, 1) for v in (weights, np.ones(count), rates)), start
            )
            x = torch.full((1, 1, 1, 1), float(state(start))).double()
            path = np.array([float(policy.step(x, start, float(one))) for one in s])
            found = max(found, np.abs(path - state(s)).max())
        assert found < 2 * worst and (count > 1 or found > worst / 2)  # free rates may fit better than published ones


def residual(g, d, target):
    basis = np.exp(np.concatenate([[0.0], g])[None] * d[:, None])
    weights = np.linalg.lstsq(basis, target, rcond=None)[0]
    return basis @ weights - target, weights


@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_a_run_of_a_straight_law_is_ddim_of_its_flow(schedule):
    """One component: Euler's method in flow coordinates, on both kinds of path."""
    kind = "flow_prediction" if schedule.flow else "v_prediction"
    levels, x = schedule.grid(3, "trailing", "zero"), torch.randn(2, 2, 3, 3, generator=rng(1)).double()

    def network(z, level):
        raw = torch.sin(z)
        return Prediction(z, level, torch.cat([raw, torch.zeros_like(raw[:, :1])], 1), kind)

    found = Sampler(Arc()).run(network, x, levels)
    state = x
    for level, after in zip(levels, levels[1:]):
        p = Prediction(state, level, torch.sin(state), kind)
        flow = state / (level.alpha + level.sigma) - (flow_sigma(level) - flow_sigma(after)) * p.u
        state = flow * (after.alpha + after.sigma)
    torch.testing.assert_close(found, state, rtol=1e-9, atol=1e-9)
    with pytest.raises(InputError, match="no velocity law"):
        Policy.of(Prediction(x, levels[0], torch.randn(2, 4, 3, 3), kind))


@pytest.mark.parametrize("count", [1, 4])
def test_a_mixture_begins_with_the_priors_velocity_and_one_component_folds(tiny_folders, count):
    prior = load_prior(tiny_folders["sd-v"])
    student, x = Student(prior, Mixture(count, 2)), torch.randn(2, 4, 8, 8, generator=rng(2))
    condition, level = prior.encode_text(["a dog", "the blue wagon"]), student.schedule.at_index(600)
    with torch.no_grad():
        policy = Policy.of(student.ask(x, level, condition))
        plain = Teacher(prior).predict(x, level, condition)
        torch.testing.assert_close(policy.at(policy.source), plain.u, rtol=0, atol=1e-4)
        assert policy.velocity.shape == (2, count, 4, 8, 8) and student.trained_share < 0.25
        if count > 1:
            assert (policy.velocity[:, 0] - policy.velocity[:, 1]).abs().max() > 1e-3
            with pytest.raises(InputError, match="of 4 components"):
                folded(student.network)
            return
        text = condition["cond"]["text"]
        torch.testing.assert_close(folded(student.network)(x, 600, text).sample, plain.raw, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"which .* has not"):
        Student(load_prior(tiny_folders["sd3"]), Mixture())


def test_the_objective_is_pure_and_falls(tiny_folders, tmp_path):
    prior = load_prior(tiny_folders["sd-v"])
    student = Student(prior, Mixture(3, 2))
    objective = ArcObjective(student, Teacher(prior), Arcing(2.0, 2, 2, mixed=10))
    x = torch.randn(2, 4, 8, 8, generator=rng(3))
    batch = {"latents": x, "noise": x, "captions": ["a dog", "the blue wagon"]}
    first, again, later = (objective.loss(batch, rng(5), step) for step in (0, 0, 10))
    assert torch.equal(first.loss, again.loss) and not torch.equal(first.loss, later.loss)
    assert (first.logs["teacher_ratio"], later.logs["teacher_ratio"]) == (1.0, 0.0)
    optimizer = torch.optim.Adam([p for p in student.network.parameters() if p.requires_grad], 1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        objective.loss(batch, rng(5), 10).loss.backward()
        optimizer.step()
    assert objective.loss(batch, rng(5), 10).loss < 0.9 * later.loss
    fresh = Student(prior, Mixture(3, 2), seed=4)
    fresh.load(student.save(tmp_path / "s"))
    assert all(torch.equal(v, fresh.network.state_dict()[k]) for k, v in student.network.state_dict().items())


def test_shares_and_dropout():
    assert 0 < sum(shares(5, rng(1))) <= 1 and min(shares(5, rng(1))) >= 0
    assert not dropped(law(), 1.0, rng(1)).all() and dropped(law(), 1.0, rng(1)).sum() == 3
    kept = law().detached(dropped(law(), 1.0, rng(1)))
    torch.testing.assert_close(kept.weights.sum(1), torch.ones_like(kept.weights.sum(1)))
